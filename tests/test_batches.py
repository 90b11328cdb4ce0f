"""Packers, cohesion, sampler and collator against vectors, plain loops and the libraries that use them."""
import itertools
import json
import math
import time

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from responserank.llm.batches import PreferenceCollator, RankingBatchSampler, _best_fit, cohesion, _fragments, pack_rows, pad_right
from responserank.settings import UserError

NAMES = {"num_partitions": "n_rankings", "num_batches": "n_batches", "intact_partitions": "intact", "intact_ratio": "intact_share",
         "avg_splits_per_partition": "mean_fragments", "avg_cohesion_score": "mean_pairs_kept", "avg_fragment_size": "mean_fragment_size",
         "max_fragment_size": "max_fragment_size", "ideal_fragmentation_ratio": "minimal_share", "fragment_overhead_pct": "fragment_overhead"}
HOW = ["best_fit", "slice", "random"]


def vectors(shared):
    return json.loads((shared / "reference/vectors.json").read_text())["packing"]


def same(found, expected):
    return all(math.isclose(found[ours], expected[theirs], rel_tol=1e-12, abs_tol=1e-12) for theirs, ours in NAMES.items())


def uneven(seed, n=400):
    "Ranking numbers of heavy-tailed sizes, rows in any order."
    rng = np.random.default_rng(seed)
    return rng.permutation(np.repeat(rng.permutation(n), np.minimum(rng.zipf(1.6, n), 90)))


def test_best_fit_equals_the_vectors_whatever_the_shuffle(shared):
    for v in vectors(shared):
        ids = np.repeat(np.arange(len(v["sizes"])), v["sizes"])
        for rng in (None, *map(np.random.default_rng, range(20))):
            assert same(cohesion(ids, pack_rows(ids, v["batch_size"], "best_fit", rng), v["batch_size"]), v["largest_first_best_fit"])


def test_slicing_reaches_the_vectors_by_some_shuffle_and_only_shuffles_of_rankings(shared):
    for v in vectors(shared):
        sizes, b = np.array(v["sizes"]), v["batch_size"]
        ids = np.repeat(np.arange(len(sizes)), sizes)
        orders = set(itertools.islice(itertools.permutations(v["sizes"]), 5040))
        possible = [cohesion(np.repeat(np.arange(len(sizes)), p), np.arange(len(ids)), b) for p in orders]
        assert any(same(c, v["flatten_and_slice"]) for c in possible)
        if len(sizes) > 8: continue
        for seed in range(30):
            c = cohesion(ids, pack_rows(ids, b, "slice", np.random.default_rng(seed)), b)
            assert any(all(math.isclose(c[k], p[k]) for k in c) for p in possible)


def plain_best_fit(sizes, batch_size):
    "Sizes of the pieces, one ranking at a time."
    full, short = divmod(sum(sizes), batch_size)
    room, left, pieces = [batch_size] * full + [short] * (short > 0), sorted(sizes), []
    while left:
        s = left.pop()
        fits = [i for i, r in enumerate(room) if r >= s]
        i = min(fits, key=room.__getitem__) if fits else max(range(len(room)), key=room.__getitem__)
        part = min(s, room[i])
        room[i] -= part
        pieces.append(part)
        if s > part: left = sorted([*left, s - part])
    return sorted(pieces)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("batch_size", [1, 3, 8, 16, 1000])
def test_best_fit_equals_a_plain_loop(seed, batch_size):
    sizes = np.minimum(np.random.default_rng(seed).zipf(1.5, 120), 70)
    p = _best_fit(sizes, batch_size)
    assert sorted(p.size) == plain_best_fit(sizes.tolist(), batch_size)
    assert (np.bincount(p.ranking, p.size) == sizes).all()
    filled = np.bincount(p.batch, p.size)
    assert (filled[:-1] == batch_size).all() and filled.sum() == sizes.sum()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("seed", range(4))
def test_an_order_holds_each_row_once_and_depends_on_the_generator_alone(how, seed):
    ids = uneven(seed)
    order = pack_rows(ids, 16, how, np.random.default_rng(seed))
    assert (np.sort(order) == np.arange(len(ids))).all()
    assert (order == pack_rows(ids, 16, how, np.random.default_rng(seed))).all() and (order != pack_rows(ids, 16, how, np.random.default_rng(seed + 1))).any()
    assert (pack_rows(ids, 16, how) == pack_rows(ids, 16, how)).all()


@pytest.mark.parametrize("seed", range(4))
def test_best_fit_beats_slicing_beats_chance(seed):
    ids = uneven(seed)
    kept = [cohesion(ids, pack_rows(ids, 16, how, np.random.default_rng(seed)), 16) for how in HOW]
    assert kept[0]["mean_pairs_kept"] >= kept[1]["mean_pairs_kept"] > kept[2]["mean_pairs_kept"]
    assert kept[0]["fragment_overhead"] <= kept[1]["fragment_overhead"] < kept[2]["fragment_overhead"]


def test_batches_and_members_of_cut_rankings_change_from_epoch_to_epoch():
    ids = np.zeros(64, int)
    batches = lambda seed: {frozenset(b) for b in pack_rows(ids, 16, "best_fit", np.random.default_rng(seed)).reshape(4, 16).tolist()}
    assert not batches(0) & batches(1)
    pairs = np.repeat(np.arange(40), 2)
    first = [pack_rows(pairs, 8, "best_fit", np.random.default_rng(s))[:8].tolist() for s in range(20)]
    assert len({frozenset(f) for f in first}) == 20


def test_names_of_rankings_may_be_anything():
    names = ["x", "y", "x", "z", "y"]
    for form in (list, np.array, pd.Series): assert pack_rows(form(names), 2).tolist() == [0, 2, 1, 4, 3]
    assert pack_rows(torch.tensor([7, -1, 7, 3, -1]), 2).tolist() == [0, 2, 1, 4, 3]
    assert pack_rows(pd.Series(names, index=[9, 8, 7, 6, 5]), 2).tolist() == [0, 2, 1, 4, 3]


def test_fragments_against_a_plain_count():
    ids = uneven(0, 60)
    order = np.random.default_rng(0).permutation(len(ids))
    table = _fragments(ids, order, 7)
    for r, row in zip(dict.fromkeys(ids.tolist()), table.itertuples()):
        batch = [k // 7 for k, i in enumerate(order) if ids[i] == r]
        pairs = list(itertools.combinations(batch, 2))
        assert (row.size, row.fragments, row.largest) == (len(batch), len(set(batch)), max(map(batch.count, batch)))
        assert row.fewest == math.ceil(len(batch) / 7) and math.isclose(row.pairs_kept, np.mean([a == b for a, b in pairs]) if pairs else 1)


def test_nothing_to_pack():
    for how in HOW: assert len(pack_rows([], 4, how, np.random.default_rng(0))) == 0
    assert cohesion([], [], 4)["n_batches"] == 0 and list(RankingBatchSampler([], 4)) == []


@pytest.mark.parametrize("how", HOW)
def test_sampler_in_a_loader_with_accelerate_telling_the_epoch(how):
    ids = uneven(1, 50)
    sampler = RankingBatchSampler(ids, 16, how, seed=3)
    loader = Accelerator(cpu=True).prepare(DataLoader(range(len(ids)), batch_sampler=sampler, collate_fn=list))
    epochs = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        epochs.append(list(loader))
        assert len(epochs[-1]) == len(loader) == len(sampler) and sampler.epoch == epoch
        assert {len(b) for b in epochs[-1][:-1]} == {16} and sorted(sum(epochs[-1], [])) == list(range(len(ids)))
    assert epochs[0] != epochs[1] != epochs[2]
    again = RankingBatchSampler(ids, 16, how, seed=3)
    again.set_epoch(2)
    assert list(again) == epochs[2] and list(RankingBatchSampler(ids, 16, how, seed=4)) != epochs[0]
    still = RankingBatchSampler(ids, 16, how, shuffle=False)
    before = list(still)
    still.set_epoch(5)
    assert list(still) == before


def comparison(rng, i):
    draw = lambda: rng.integers(1, 50, rng.integers(1, 30)).tolist()
    return dict(chosen_ids=draw(), rejected_ids=draw(), rank=float(rng.normal()), ranking=int(rng.integers(5)), target=float(rng.random()), index=i)


@pytest.mark.parametrize("multiple", [None, 1, 8])
def test_collator_against_a_plain_loop(multiple):
    rng = np.random.default_rng(0)
    features = [comparison(rng, i) for i in range(9)]
    batch = PreferenceCollator(99, batch_size=9, pad_to_multiple_of=multiple)(features)
    texts = [f["chosen_ids"] for f in features] + [f["rejected_ids"] for f in features]
    width = max(map(len, texts))
    if multiple: width = math.ceil(width / multiple) * multiple
    assert batch["input_ids"].tolist() == [t + [99] * (width - len(t)) for t in texts]
    assert batch["attention_mask"].tolist() == [[1] * len(t) + [0] * (width - len(t)) for t in texts]
    assert batch["rank"].tolist() == [f["rank"] for f in features] and batch["ranking_id"].tolist() == [f["ranking"] for f in features]
    assert batch["target"].tolist() == pytest.approx([f["target"] for f in features]) and batch["index"].tolist() == list(range(9))


def test_ranks_closer_than_single_precision_stay_apart():
    one = dict(chosen_ids=[1], rejected_ids=[2], ranking=0, target=1., index=0)
    rank = PreferenceCollator(0)([one | dict(rank=17.00000001), one | dict(rank=17.00000002)])["rank"]
    assert rank[0] < rank[1]


def test_padding_leaves_pad_tokens_inside_a_text_alone():
    ids, mask = pad_right([[0, 5, 0], [7]], 0)
    assert ids.tolist() == [[0, 5, 0], [7, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


BAD = {
    "packer": (lambda: pack_rows([1], 2, "tetris"), "unknown packer"), "batch 0": (lambda: pack_rows([1], 0), "batch_size must be a whole number from 1"),
    "batch 2.5": (lambda: RankingBatchSampler([1], 2.5), "not 2.5"), "sampler": (lambda: RankingBatchSampler([1], 2, "tetris"), "tetris"),
    "no ranking": (lambda: pack_rows([1, None, 2.], 2), "row 1 has no ranking"),
    "order short": (lambda: cohesion([1, 2], [0], 2), "each of the 2 rows once"), "order twice": (lambda: cohesion([1, 2], [0, 0], 2), "once"),
    "batch too large": (lambda: PreferenceCollator(0, batch_size=1)([{}, {}]), "a batch of 2 comparisons where 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name):
    call, says = BAD[name]
    with pytest.raises(UserError) as e: call()
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("sizes", ["pairs", "mixed", "one", "singles"])
def test_ten_thousand_comparisons_are_packed_quickly(sizes):
    rng = np.random.default_rng(0)
    ids = {"pairs": np.arange(10_000) // 2, "mixed": np.repeat(np.arange(5000), rng.multinomial(5000, np.full(5000, 1 / 5000)) + 1),
           "one": np.zeros(10_000, int), "singles": np.arange(10_000)}[sizes]
    start = time.perf_counter()
    order = pack_rows(ids, 16, "best_fit", rng)
    cohesion(ids, order, 16)
    assert time.perf_counter() - start < .5         # some 10 ms on an idle machine
