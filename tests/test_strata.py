"""Dealing, concordance, noise and the table steps against vectors, plain loops and bad input."""
import itertools
import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from responserank.rankings import arrange
from responserank.strata import (concordance, deal, deal_rankings, drop_ranks, inversions, length_buckets, order_within_strata, make_rankings, shuffle_ranks,
                                 shuffle_within, stratify)

SETTINGS = dict(drop_rank_fraction=0, keep_category=None, strata="global", length_buckets=None, dealing="round_robin", ranking_size=2,
                allow_ties=False, cap=None, rank_noise=0)


def settings(**changes):
    return SimpleNamespace(**SETTINGS | changes)


def members(ids, rank):
    return [sorted(np.flatnonzero(ids == r).tolist(), key=lambda i: rank[i]) for r in range(max(ids) + 1)]


def plain_rankings(rank, stratum, size, allow_ties=False, cap=None):
    "Sets of members, one stratum and one comparison at a time."
    found = []
    for s in dict.fromkeys(stratum):
        rows = sorted((i for i in range(len(rank)) if stratum[i] == s and not math.isnan(rank[i])), key=lambda i: rank[i])
        groups = [list(g) for _, g in itertools.groupby(rows, key=lambda i: rank[i])]
        widest = max(map(len, groups), default=0)
        m = {"auto": widest, "all": 1}.get(size) or math.ceil(len(rows) / size)
        if isinstance(size, int) and not allow_ties: m = max(m, widest)
        if cap: m = max(m, math.ceil(len(rows) / cap))
        found += [rows[k::m] for k in range(min(m, len(rows)))]
    return sorted(map(sorted, found + [[i] for i in range(len(rank)) if math.isnan(rank[i])]))


def problem(seed, n=60):
    "Coarse ranks with gaps, in strata of uneven size."
    rng = np.random.default_rng(seed)
    rank = rng.integers(0, 12, n) / 4
    rank[rng.random(n) < .1] = np.nan
    return rank, np.array(list("abcde"))[np.minimum(rng.geometric(.4, n), 5) - 1], rng


def test_vectors(shared):
    for v in json.loads((shared / "reference/vectors.json").read_text())["round_robin"]:
        ids = deal(v["ranks"], v["target_size"])
        assert members(ids, v["ranks"]) == v["rankings"]
        assert (make_rankings(v["ranks"], size=v["target_size"], allow_ties=True) == ids).all()
        for tied in members(make_rankings(v["ranks"], size=v["target_size"]), v["ranks"]): assert len({v["ranks"][i] for i in tied}) == len(tied)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", ["auto", "all", 1, 2, 3, 7, 100])
def test_rankings_equal_a_plain_loop(seed, size):
    rank, stratum, _ = problem(seed)
    for allow_ties, cap in itertools.product((False, True), (None, 1, 4)):
        ids = make_rankings(rank, stratum, size, allow_ties=allow_ties, cap=cap)
        assert sorted(set(ids)) == list(range(ids.max() + 1))
        assert sorted(map(sorted, members(ids, rank))) == plain_rankings(rank.tolist(), stratum.tolist(), size, allow_ties, cap)


@pytest.mark.parametrize("seed", range(8))
def test_redealing_keeps_sizes_strata_and_ties_apart(seed):
    rank, stratum, _ = problem(seed, 300)
    for size in ("auto", 2, 5):
        once, again = make_rankings(rank, stratum, size), make_rankings(rank, stratum, size, redeal=True, seed=seed)
        assert sorted(np.bincount(once)) == sorted(np.bincount(again))
        known = ~np.isnan(rank)
        assert (pd.Series(stratum)[known].groupby(again[known]).nunique() == 1).all()
        arrange(rank, again)                                    # raises on a tie
        assert (again == make_rankings(rank, stratum, size, redeal=True, seed=seed)).all()
    loose = make_rankings(rank, stratum, 5, allow_ties=True, redeal=True, seed=seed)
    assert sorted(np.bincount(loose)) == sorted(np.bincount(make_rankings(rank, stratum, 5, allow_ties=True)))


def test_near_ties_follow_the_rule_of_the_loss():
    rng = np.random.default_rng(0)
    for scale in (1e-6, 1., 1e12):
        rank = scale * (rng.integers(0, 9, 200) / 3 * (1 + rng.choice([0, 4e-10], 200)))
        for size in ("auto", 2, 9): arrange(rank, make_rankings(rank, size=size))
    assert deal([1., 1. + 5e-10]).tolist() == [0, 1] and deal([1., 1. + 5e-9]).tolist() == [0, 0]
    assert deal([1., 1. + 5e-9], tol=1e-8).tolist() == [0, 1]


def test_random_rankings_ignore_strata_and_keep_the_unranked_alone():
    rank, stratum, _ = problem(0)
    ids = make_rankings(rank, stratum, 4, "random", seed=3)
    size = np.bincount(ids)
    assert (size[ids[np.isnan(rank)]] == 1).all() and (size == 4).sum() == (~np.isnan(rank)).sum() // 4
    assert any(len(set(stratum[ids == i])) > 1 for i in set(ids))
    assert (ids == make_rankings(rank, stratum, 4, "random", seed=3)).all() and (ids != make_rankings(rank, stratum, 4, "random", seed=4)).any()
    assert make_rankings(rank, stratum, "all", "random").max() == np.isnan(rank).sum()
    assert np.bincount(make_rankings(rank, None, "all", "random", cap=5)).max() == 5


def test_a_missing_stratum_makes_a_singleton():
    assert make_rankings([1, 2, 3, 4], ["a", None, "a", float("nan")], 2).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("form", [list, np.array, pd.Series, torch.tensor, tuple])
def test_any_column_will_do(form):
    assert deal(form([3., 1., 2.]), 2).tolist() == [0, 0, 1]
    assert make_rankings(form([3., 1., 2.]), form([7, 7, 8]), 2).tolist() == [0, 0, 1]
    assert float(concordance(form([3., 1., 2.]), form([6, 2, 4]))) == 1
    assert length_buckets(form([1, 5, 9, 13]), 2).tolist() == [0, 0, 1, 1]


def test_empty_and_unranked_tables():
    assert len(deal([])) == 0 and len(make_rankings([], [])) == 0 and math.isnan(concordance([], []).share)
    assert make_rankings([np.nan, np.nan]).tolist() == [0, 1]
    for rank in ([], [np.nan] * 3):
        table = pd.DataFrame({"rank": np.array(rank, float), "annotator": [""] * len(rank)})
        for step in (drop_ranks, stratify, deal_rankings, shuffle_ranks): table, _ = step(table, settings(), np.random.default_rng(0))
        assert table["ranking"].tolist() == list(range(len(rank)))


@pytest.mark.parametrize("seed", range(6))
def test_concordance_equals_a_plain_count(seed):
    rank, stratum, rng = problem(seed, 50)
    reference = np.where(rng.random(50) < .1, np.nan, rng.integers(0, 6, 50))
    right = wrong = tied_x = tied_y = both = 0
    for i, j in itertools.combinations(range(50), 2):
        a, b = rank[i] - rank[j], reference[i] - reference[j]
        if stratum[i] != stratum[j] or math.isnan(a) or math.isnan(b): continue
        right, wrong, tied_x, tied_y, both = right + (a * b > 0), wrong + (a * b < 0), tied_x + (a == 0), tied_y + (b == 0), both + (a == b == 0)
    found = concordance(rank, reference, stratum)
    assert found == (right / (right + wrong), right, wrong, tied_x, tied_y, both) and found.comparable == right + wrong
    assert concordance(-rank, reference, stratum)[1:3] == (wrong, right)


def test_inversions_of_long_sequences():
    assert inversions(np.arange(100_000)[::-1]) == 100_000 * 99_999 // 2
    assert inversions(np.zeros(9, int)) == inversions(np.array([], int)) == 0


@pytest.mark.parametrize("noise, picked", [(0, 0), (.25, 2), (.5, 5), (.15, 2), (.35, 4), (.75, 8), (1., 10)])
def test_partial_shuffle_picks_half_to_even(noise, picked):
    ids, rank = np.repeat([5, 3, 9, 7], 10), np.tile(np.arange(10.), 4)
    most = np.zeros(4, int)
    for seed in range(60):
        new = shuffle_within(rank, ids, noise, np.random.default_rng(seed))
        assert (np.sort(new.reshape(4, 10)) == np.arange(10)).all()
        most = np.maximum(most, (new != rank).reshape(4, 10).sum(1))
    assert (most <= picked).all() and (picked < 4 or (most >= picked - 1).all())


def test_random_ranks_have_no_ties():
    rank, ids, rng = problem(1)
    ids = make_rankings(rank, None, 4, "random", seed=0)
    arrange(shuffle_within(rank, ids, "random", rng), ids)
    with pytest.raises(ValueError, match="tied"): arrange(rank, ids)
    first = [shuffle_within([7., 7., 7.], [0, 0, 0], "random", np.random.default_rng(s)).argmin() for s in range(600)]
    assert np.bincount(first).min() > 150


def test_dropping_ranks():
    table = pd.DataFrame({"rank": np.arange(100.), "category": np.repeat(["x", "y"], 50)}, index=np.arange(100) + 7)
    fewer, report = drop_ranks(table, settings(drop_rank_fraction=.25), np.random.default_rng(0))
    assert report == dict(step="drop_ranks", rows=100, dropped=25, without_rank=25) and fewer.index.equals(table.index)
    fewer, report = drop_ranks(table, settings(drop_rank_fraction=.5, keep_category="y"), np.random.default_rng(0))
    assert report["dropped"] == 75 and fewer["rank"].notna().sum() == 25 and (fewer["category"][fewer["rank"].notna()] == "y").all()
    assert table["rank"].notna().all()


def test_strata():
    table = pd.DataFrame({"rank": [1., 2., 3., 4., np.nan], "annotator": ["a", "b", "", "a", "a"], "length": [1, 2, 3, 4, 99], "stratum_given": [1, 2, 1, 2, 1]})
    coded = lambda **s: stratify(table, settings(**s), None)
    got, report = coded(strata="annotator")
    assert got["stratum"].tolist() == [0, 1, -1, 0, -1] and (report["without_stratum"], report["without_rank"], report["strata_of_one"]) == (1, 1, 1)
    assert coded(strata="annotator_x_length", length_buckets=2)[0]["stratum"].tolist() == [0, 2, -1, 1, -1]
    assert coded(strata="column")[0]["stratum"].tolist() == [0, 1, 0, 1, -1]
    assert deal_rankings(got, settings(ranking_size="all"), None)[0]["ranking"].tolist() == [0, 1, 2, 0, 3]
    blind, report = stratify(table.drop(columns="annotator"), settings(strata="annotator", loss="bt"), None)
    assert (blind["stratum"] == -1).all() and "no annotator" in report["note"]


def test_buckets_hold_about_equally_many():
    rng = np.random.default_rng(0)
    length, ranked = rng.lognormal(5, 1, 8000).astype(int), rng.random(8000) < .7
    for b in (1, 2, 4, 8, 16, 32):
        count = np.bincount(length_buckets(length, b, ranked)[ranked])
        assert len(count) == b and count.min() > .85 * ranked.sum() / b


def test_reports_say_what_gave_way():
    tied = pd.DataFrame({"rank": [1., 1., 1., 2., 1., 2.], "stratum": [0, 0, 0, 0, 1, 1]})
    assert deal_rankings(tied, settings(), None)[1]["strata_raised_for_ties"] == 1
    report = deal_rankings(tied, settings(ranking_size="auto", cap=1), None)[1]
    assert (report["strata_capped"], report["rankings"], report["strata_raised_for_ties"]) == (2, 6, 0)
    assert deal_rankings(tied, settings(ranking_size="all"), None)[1]["rankings_with_ties"] == 1


BAD = {
    "size 0": (lambda: deal([1, 2], 0), "whole number from 1"), "size word": (lambda: deal([1, 2], "big"), "'auto' or 'all', not 'big'"),
    "size 2.5": (lambda: make_rankings([1, 2], size=2.5), "whole number"), "cap 0": (lambda: make_rankings([1, 2], cap=0), "cap must be"),
    "how": (lambda: make_rankings([1, 2], how="cards"), "'round_robin' or 'random', not 'cards'"), "random auto": (lambda: make_rankings([1, 2], how="random"), "need a size"),
    "strata too few": (lambda: make_rankings([1, 2], ["a"]), "stratum has 1 entries for 2"), "rank words": (lambda: deal(["quick"]), "rank must be a column of numbers"),
    "rank matrix": (lambda: deal([[1, 2], [3, 4]]), "one column of numbers"), "lengths differ": (lambda: concordance([1, 2], [1]), "same comparisons"),
    "noise 2": (lambda: shuffle_within([1], [0], 2, None), "between 0 and 1"), "noise word": (lambda: shuffle_within([1], [0], "much", None), "not 'much'"),
    "buckets 0": (lambda: length_buckets([1], 0), "whole number from 1"), "length NaN": (lambda: length_buckets([1, np.nan], 2), "NaN) for comparison 1"),
    "no category": (lambda: drop_ranks(pd.DataFrame({"rank": [1.]}), settings(keep_category="x"), None), "no column category"),
    "other category": (lambda: drop_ranks(pd.DataFrame({"rank": [1.], "category": "y"}), settings(keep_category="x"), None), "there are y"),
    "no annotator": (lambda: stratify(pd.DataFrame({"rank": [1.], "annotator": ""}), settings(strata="annotator"), None), "have no annotator"),
    "no length": (lambda: stratify(pd.DataFrame({"rank": [1.], "annotator": "a"}), settings(strata="annotator_x_length"), None), "no column length"),
    "strata": (lambda: stratify(pd.DataFrame({"rank": [1.]}), settings(strata="planet"), None), "use global, annotator"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name):
    call, says = BAD[name]
    with pytest.raises(ValueError) as e: call()
    assert says in str(e.value) and "\n" not in str(e.value)


def test_ten_thousand_rows_are_quick():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"rank": rng.random(10_000), "annotator": rng.integers(0, 300, 10_000).astype(str), "length": rng.integers(1, 999, 10_000)})
    start = time.perf_counter()
    for step in (drop_ranks, stratify, deal_rankings, shuffle_ranks):
        table, _ = step(table, settings(strata="annotator_x_length", length_buckets=8, drop_rank_fraction=.1, rank_noise=.5), rng)
    assert time.perf_counter() - start < 1          # some 15 ms on an idle machine


def test_line_up_numbers_places():
    line = order_within_strata(np.array([2., np.nan, 1., 1.]), np.array([0, 0, 0, 1]))
    assert line.order.tolist() == [2, 0, 1, 3] and line.place.tolist() == [0, 1, 2, 0] and line.widest_tie.tolist() == [1, 1]
