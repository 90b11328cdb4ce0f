"Simulated comparisons: reproducible, shaped like MultiPref, and like people where people were measured."
import dataclasses
import time

import numpy as np
import pandas as pd
import pytest

from responserank.llm.formats import from_multipref, read_preferences
from responserank.llm.simulated import (_MULTIPREF_COLUMNS, _OBJECTS, _PHRASES, _TOPICS, _VERBS, Annotators, _all_prompts, _annotate, _answer_utility, _assign_annotators, _binarize, _write_prompts_and_answers,
                                        _draw_people, _phrase_worth, simulate, simulated_table, _time_statistics, _vote_statistics, _write_answers,
                                        write_multipref)
from responserank.settings import UserError
from responserank.files import content_hash, read_json, rng


@pytest.fixture(scope="module")
def table(): return simulated_table()


@pytest.fixture(scope="module")
def votes(table): return np.stack(table["preferences"])


def test_one_seed_one_data_set(table):
    again = simulated_table()
    for column in ("id", "completion_a", "true_diff", "label", "majority"): pd.testing.assert_series_equal(table[column], again[column])
    assert all(np.array_equal(a, b) for c in ("preferences", "seconds", "annotators") for a, b in zip(table[c], again[c]))
    other = simulated_table(data_seed=1, n=6000)
    assert (other["completion_a"] != table["completion_a"]).mean() > 0.99 and not set(other["id"]) & set(table["id"])


def test_fast_enough():
    start = time.process_time()
    simulated_table()
    assert time.process_time() - start < 4      # 0.3 s on a quiet machine


def test_shape(table):
    raw = simulate(50)
    assert list(raw) == [*_MULTIPREF_COLUMNS, "topic", "true_diff"]
    for kind in ("normal", "expert"):
        cells = raw[f"{kind}_worker_annotations"]
        assert cells.map(len).eq(2).all() and all(r["evaluator"].startswith(kind) for cell in cells for r in cell)
        assert all(set(r) == {"evaluator", "overall_pref", "time_spent", "timestamp"} and r["time_spent"] >= 1 for cell in cells for r in cell)
    assert (raw["model_a"] != raw["model_b"]).all()
    assert table["annotators"].map(lambda a: len(set(a))).eq(4).all()
    assert sorted(table["topic"].unique()) == sorted(_TOPICS)


def test_prompts_repeat_and_name_one_text_each(table):
    assert table.groupby("prompt_id")["prompt"].nunique().eq(1).all()
    assert 1.8 < len(table) / table["prompt_id"].nunique() < 2.6
    assert _all_prompts()["text"].is_unique and len(_all_prompts()) == 3072


def test_phrases(): assert len(_PHRASES) == len(set(_PHRASES)) == len(_VERBS) * len(_OBJECTS) == 300


def test_utility_has_unit_spread_and_no_hint_in_length(table):
    assert table["true_diff"].std() == pytest.approx(np.sqrt(2), abs=0.05)
    longer = table["completion_a"].str.len() - table["completion_b"].str.len()
    assert abs(np.corrcoef(longer, table["true_diff"])[0, 1]) < 0.03
    assert (np.sign(longer) == np.sign(table["true_diff"]))[longer != 0].mean() == pytest.approx(0.5, abs=0.03)
    by_topic = table.groupby("topic")["true_diff"].mean()
    assert by_topic.abs().max() < 0.2


def test_worth_is_standardised_in_each_topic():
    worth = _phrase_worth(3)
    assert np.allclose(worth.mean(1), 0) and np.allclose(worth.std(1), 1)
    phrases, count = _write_answers(4000, rng(0))
    assert count.min() >= 3 and count.max() <= 12
    for k in (3, 6, 12):                                                       # the spread doesn't grow with length
        u = _answer_utility(phrases, np.full(4000, k), rng(1).integers(0, 8, 4000), worth)
        assert u.std() == pytest.approx(1, abs=0.1)


def test_truth_and_people(table, votes):
    assert (table["label"] == np.sign(table["true_diff"])).all()
    assert (table["majority"] == np.sign(np.sign(votes).sum(1))).all()
    told = table["majority"] != 0
    majority, single = (table["majority"] == table["label"])[told].mean(), (np.sign(votes) == table["label"].to_numpy()[:, None])[votes != 0].mean()
    assert 0.7 < single < majority < 0.95


def test_votes_are_like_those_on_arguments(root):
    real = read_json(root / "results" / "human" / "simulator_targets.json")["arguments"]
    people = _draw_people(dataclasses.replace(Annotators(), normal=200, expert=200), rng(1, "people"))
    r = rng(1)
    votes, _ = _annotate(np.sqrt(2) * r.normal(size=20_000), np.full(20_000, 40), _assign_annotators(np.ones(400), 20_000, 5, r), people, Annotators(), r)
    found = _vote_statistics(np.repeat(np.arange(20_000), 5), np.sign(votes).ravel())
    for name, value in found.items(): assert value == pytest.approx(real[name], abs=0.04), name


@pytest.mark.parametrize("felt,low,high", [(1, -0.42, -0.2), (0, -0.8, -0.5)])
def test_time_follows_what_was_felt(root, felt, low, high):
    real = read_json(root / "results" / "human" / "simulator_targets.json")["faces"]
    a = dataclasses.replace(Annotators(), tie=0, normal=76, expert=76, start=42, reading=0, time_noise=real["time_noise"], pace_spread=real["pace_spread"], felt=felt)
    r, people = rng(2), _draw_people(a, rng(2, "people"))
    who = _assign_annotators(np.ones(152), 2000, 26, r)
    votes, seconds = _annotate(0.65 * np.sqrt(2) * r.normal(size=2000), np.zeros(2000), who, people, a, r)
    found = _time_statistics(who.ravel(), np.repeat(np.arange(2000), 26), np.sign(votes).ravel(), seconds.ravel())
    assert low < found["pair_correlation"] < high
    assert found["quartile_1"] - found["quartile_4"] == pytest.approx(real["quartile_1"] - real["quartile_4"], abs=0.03)


def test_kept_statistics_are_those_of_the_real_data(root, shared):
    kept = read_json(root / "results" / "human" / "simulator_targets.json")
    votes = pd.read_csv(shared / "data" / "ukpconvarg1" / "annotations.csv.gz")
    found = _vote_statistics(votes["argument_a"] * 10_000 + votes["argument_b"], votes["vote"].map({"A": 1, "B": -1, "equal": 0}))
    for name, value in found.items(): assert value == pytest.approx(kept["arguments"][name], abs=1e-9)
    assert [round(kept["faces"][f"quartile_{q}"], 3) for q in (1, 2, 3, 4)] == [0.716, 0.704, 0.673, 0.631]


def test_vote_statistics_by_brute_force():
    r = np.random.default_rng(0)
    v = r.integers(-1, 2, (300, 4))
    right = [np.sign(row.sum() - x) == x for row in v for x in row if x and row.sum() != x]
    found = _vote_statistics(np.repeat(np.arange(300), 4), v.ravel(), judges=4)
    assert found["agreement"] == pytest.approx(np.mean(right))
    assert sum(found[k] for k in found if k.startswith("margin")) == pytest.approx(1)
    mixed = _vote_statistics(np.r_[np.repeat(np.arange(300), 4), [999] * 3], np.r_[v.ravel(), [1, 1, 1]], judges=4)       # a pair with three votes is left out
    assert mixed == pytest.approx(found, nan_ok=True)


def test_time_statistics_by_brute_force():
    r = np.random.default_rng(1)
    person, pair, side, seconds = np.tile(np.arange(5), 40), np.repeat(np.arange(40), 5), r.choice([-1, 1], 200), r.lognormal(size=200)
    found = _time_statistics(person, pair, side, seconds)
    agree = [np.sign(side[pair == p].sum() - s) == s for p, s in zip(pair, side) if side[pair == p].sum() != s]
    assert found["agreement"] == pytest.approx(np.mean(agree))
    assert found["pace_spread"] == pytest.approx(np.std([np.median(np.log(seconds[person == k])) for k in range(5)], ddof=1))


def test_who_judges_is_drawn_without_repeats_and_by_workload():
    who = _assign_annotators(np.array([1., 2., 3., 4.]), 30_000, 2, rng(0))
    assert (who[:, 0] != who[:, 1]).all()
    assert (np.diff(np.bincount(who.ravel())) > 0).all()


def test_files(tmp_path):
    folder = write_multipref(tmp_path / "m", 300)
    assert sorted(p.name for p in folder.iterdir()) == ["default", "human_overall_binarized"]
    assert list(pd.read_parquet(folder / "default")) == _MULTIPREF_COLUMNS
    verdict = pd.read_parquet(folder / "human_overall_binarized")
    assert list(verdict) == ["comparison_id", "chosen", "rejected", "tie_is_common"]
    assert [m["role"] for m in verdict.loc[0, "chosen"]] == ["user", "assistant"]
    back, report = read_preferences(folder)
    raw = simulate(300)
    assert (back["majority"] == from_multipref(raw)[0]["majority"]).all() and report["comparisons"] == 300 and report["unlabelled"] == 0
    clear = (back["majority"] != 0) & (back["label"] != 0)
    assert (back["label"] == back["majority"])[clear].all() and (back["label"] == 0).sum() == verdict["tie_is_common"].sum()
    assert content_hash(folder) == content_hash(write_multipref(tmp_path / "again", 300))


def test_verdict_by_hand():
    raw = simulate(1).copy()
    for words, a_wins, tie in ((["A-is-slightly-better", "B-is-clearly-better", "Tie", "A-is-slightly-better"], True, False),
                               (["A-is-clearly-better", "B-is-slightly-better", "Tie", "Tie"], True, True),
                               (["A-is-slightly-better", "B-is-clearly-better", "Tie", "Tie"], False, True)):
        for column, pair in (("normal_worker_annotations", words[:2]), ("expert_worker_annotations", words[2:])):
            raw[column] = [[dict(overall_pref=w) for w in pair]]
        verdict = _binarize(raw).iloc[0]
        assert (verdict["chosen"][-1]["content"] == raw.loc[0, "completion_a"], verdict["tie_is_common"]) == (a_wins, tie)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_small(n):
    assert len(simulated_table(n=n)) == n and len(_write_prompts_and_answers(n, 0)[1]) == n


@pytest.mark.parametrize("call,words", [
    (lambda: simulate(0), "n=0"), (lambda: Annotators(tie=-1), "tie=-1"), (lambda: Annotators(normal=1), "at least 2"), (lambda: Annotators(felt=2), "felt=2"),
    (lambda: Annotators(time_noise=float("nan")), "time_noise"),
])
def test_bad_settings(call, words):
    with pytest.raises(UserError, match=words): call()
