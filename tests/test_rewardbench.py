"""RewardBench: the official numbers, files of the hub's shape, wrong files, and runs that are scored on it."""
import json
import warnings

import numpy as np
import pandas as pd
import pytest

from small import small
from responserank.llm import rewardbench as B
from responserank.llm import trainer as T
from responserank.llm.methods import resolve_settings
from responserank.llm.models import load_model, train_tokenizer
from responserank.settings import UserError

SMALL = small(max_length=48, epochs=3)


def first(per_subset=2):
    """RewardBench's `filtered` split: its columns, all subsets."""
    rows = [dict(prompt=f"question {s} {i}", chosen="good answer " * (i + 1), chosen_model="a", rejected=f"bad {i}", rejected_model="b",
                 subset=s) for s in B._SUBSETS["1"] for i in range(per_subset)]
    return pd.DataFrame(rows).assign(id=range(len(rows)))


def second(per_subset=2):
    """RewardBench 2's `test` split: its columns, all subsets."""
    extra = dict(models=["m"], additional_metadata=dict(category=None, correct=None, index=1., instruction_id_list=["x"], label=None,
                                                        method=None, models=None, prompt_norm=None, subcategory=None, valid=1.))
    rows = [dict(id=str(i), prompt=f"question {s} {i}", chosen=[f"good answer {i}"], rejected=[f"bad {i} {j}" for j in range(3)],
                 num_correct=1, num_incorrect=3, total_completions=4, subset=s, **extra) for s in B._SUBSETS["2"][:5] for i in range(per_subset)]
    for i in range(per_subset):
        for kind, n in (("ref", 1), ("tied", 3)):
            rows.append(dict(id=f"{kind}:{i}", prompt=f"a colour, {i}?", chosen=["red", "blue", "green"][:n], rejected=["seven", "cat"],
                             num_correct=n, num_incorrect=2, total_completions=n + 2, subset="Ties", **extra))
    columns = ["id", "prompt", "chosen", "rejected", "num_correct", "num_incorrect", "total_completions", "models", "subset",
               "additional_metadata"]
    return pd.DataFrame(rows)[columns]


CARD = "---\nlicense: odc-by\nconfigs:\n- config_name: default\n  data_files:\n{}---\n# Card\n"


def clone(frame, folder, splits, card):
    """A hub repository as `git clone` leaves it."""
    (folder / "data").mkdir(parents=True)
    for split in splits: frame.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    if card: (folder / "README.md").write_text(CARD.format("".join(f"  - split: {s}\n    path: data/{s}-*\n" for s in splits)))
    return folder


def saved(frame, folder, split):
    """What `datasets` leaves with save_to_disk, all splits."""
    import datasets
    datasets.DatasetDict({split: datasets.Dataset.from_pandas(frame, preserve_index=False)}).save_to_disk(str(folder))
    return folder


def jsonl(frame, path):
    path.write_text("".join(json.dumps(r, default=lambda v: v.tolist()) + "\n" for r in frame.to_dict("records")))
    return path


@pytest.fixture(scope="module")
def model():
    tok = train_tokenizer(["good answer bad answer question"] * 50, 300)
    return load_model(resolve_settings("bt", overrides=SMALL), tok, 0), tok


def test_official_numbers_of_rewardbench_1(shared):
    known = json.loads((shared / "reference/vectors.json").read_text())["rewardbench_v1"]
    scores = B.section_scores(known["subset_accuracy"])
    assert scores.pop("overall") == pytest.approx(known["overall"], abs=1e-15)
    assert scores == pytest.approx(known["sections"], abs=1e-15)


def test_official_numbers_of_ties(shared):
    known = json.loads((shared / "reference/vectors.json").read_text())["rewardbench_v2_ties"]
    assert B.ties_score(known["rows"]) == pytest.approx(known["score"], abs=1e-15)
    assert B.ties_score(pd.DataFrame(known["rows"])) == pytest.approx(known["score"], abs=1e-15)
    assert B.ties_score(known["rows"][::-1]) == pytest.approx(known["score"], abs=1e-15)


@pytest.mark.parametrize("scores, credit", [([2, 1, 1, 0], 1), ([1, 1, 0, 0], 1 / 2), ([1, 1, 1, 0], 1 / 3), ([1, 1, 1, 1], 1 / 4), ([0, 1, 1, 1], 0),
                                            ([np.nan] * 4, 0), ([1, np.nan, 0, 0], 0), ([np.inf, 0, 0, 0], 1)])
def test_best_of_four(scores, credit):
    assert B._top_credit(scores) == credit


def test_equal_scores_everywhere():
    one, two = (B._Bench(v, "made", t(f, "made")) for v, t, f in (("1", B._pairs_table, first()), ("2", B._lists_table, second())))
    zeros = lambda bench: [np.zeros(len(c)) for c in bench.table.completions]  # noqa: E731
    assert B._bench_results(one, zeros(one))["overall"] == 0
    found = B._bench_results(two, zeros(two))
    assert found["subsets"] == {s: .25 for s in B._SUBSETS["2"][:5]} | {"Ties": 0}
    assert found["ties"]["margin"] == 0 and not any(np.isnan(v) for v in found["ties"].values())
    nothing = B._bench_results(two, [z * np.nan for z in zeros(two)])
    assert nothing["overall"] == 0


@pytest.mark.parametrize("version, frame, split", [("1", first, "filtered"), ("2", second, "test")])
@pytest.mark.parametrize("shape", ["clone", "clone without card", "saved", "parquet", "jsonl"])
def test_every_shape_of_a_local_copy(version, frame, split, shape, tmp_path):
    splits = [split, "raw"] if version == "1" else [split]
    path = dict(saved=lambda: saved(frame(), tmp_path / "s", split), jsonl=lambda: jsonl(frame(), tmp_path / "x.jsonl"),
                parquet=lambda: (frame().to_parquet(tmp_path / "x.parquet"), tmp_path / "x.parquet")[1]).get(
                    shape, lambda: clone(frame(), tmp_path / "c", splits, shape == "clone"))()
    bench = B.read_bench(path)
    assert bench.version == version and len(bench.table) == len(frame())
    assert bench.table.completions.map(len).sum() == (2 * len(frame()) if version == "1" else frame().total_completions.sum())


def test_two_copies_of_the_same_name_are_not_confused(tmp_path):
    one, other = (clone(first(n), tmp_path / str(n) / "reward-bench", ["filtered"], True) for n in (1, 2))
    assert [len(B.read_bench(p).table) for p in (one, other, one)] == [23, 46, 23]


def spoilt(frame, row, **cells):
    frame = frame.astype(object)
    for column, value in cells.items(): frame.at[row, column] = value
    return frame


WRONG = {
    "no text": (lambda: spoilt(first(), 3, chosen=None), "row 4, column 'chosen': a text is expected, found nothing"),
    "messages for text": (lambda: spoilt(first(), 0, rejected=[dict(role="user", content="x")]), "row 1, column 'rejected'"),
    "no column": (lambda: first().drop(columns="rejected"), "no column 'rejected'"),
    "column's name": (lambda: first().rename(columns=dict(subset="subsets")), "did you mean 'subsets'"),
    "unknown subset": (lambda: spoilt(first(), 0, subset="math-prn"), "row 1, column 'subset': RewardBench 1 has no subset 'math-prn'; did you mean math-prm?"),
    "missing subset": (lambda: first()[first().subset != "hep-go"], "no row of hep-go"),
    "no list": (lambda: spoilt(second(), 2, rejected="bad"), "row 3, column 'rejected': a list of texts"),
    "empty list": (lambda: spoilt(second(), 2, rejected=[]), "row 3, column 'rejected': the list is empty"),
    "null in a list": (lambda: spoilt(second(), 2, rejected=["a", None]), "row 3, column 'rejected', item 2: a text"),
    "count": (lambda: spoilt(second(), 1, num_correct=2), "row 2, column 'num_correct': 2, but 'chosen' has 1"),
    "total": (lambda: spoilt(second(), 1, total_completions=5), "row 2, column 'total_completions': 5, but there are 4"),
    "no number": (lambda: spoilt(second(), 1, num_correct="one"), "row 2, column 'num_correct': a finite number"),
    "two right": (lambda: spoilt(second(), 0, chosen=["a", "b"], rejected=["c", "d"], num_correct=2), "where only Ties has more"),
    "id of ties": (lambda: spoilt(second(), 10, id="r:0"), "row 11, column 'id': 'r:0' should be"),
    "repeated tie": (lambda: spoilt(second(), 12, id="ref:0"), "row 13, column 'id': duplicate id 'ref:0'"),
    "no ties": (lambda: second()[second().subset != "Ties"], "no row of Ties"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_with_its_place(case, tmp_path):
    frame, says = WRONG[case]
    with pytest.raises(UserError) as e: B.read_bench(jsonl(frame(), tmp_path / "bench.jsonl"))
    assert says in str(e.value) and str(e.value).startswith(str(tmp_path))


@pytest.mark.parametrize("source, says", [("3", "use 1, 2, both"), ("v2", "use 1, 2"), ("no/such/copy.parquet", "no such file"),
                                          ("allenai/reward-bench-3", "allenai/reward-bench-3"), ("1", "allenai/reward-bench:")])
def test_a_benchmark_that_cannot_be_had_is_one_line(source, says):
    with pytest.raises(UserError) as e: B.read_bench(source)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_each_text_is_scored_once_and_long_ones_are_counted(model, tmp_path, monkeypatch):
    frame = first().assign(prompt="one question", chosen="good answer", rejected="bad")
    frame.loc[0, "chosen"] = "good answer " * 40
    bench, net = B._Bench("1", "made", B._pairs_table(frame, "made")), model[0]
    seen, forward = [], net.forward
    monkeypatch.setattr(net, "forward", lambda input_ids, **k: (seen.append(len(input_ids)), forward(input_ids=input_ids, **k))[1])
    found = B.rewardbench(net, bench, model[1], max_length=40)
    assert sum(seen) == 3 and found["cut"] == 1 and found["rows"] == len(frame)


def test_rewards_do_not_depend_on_the_batches(model):
    bench = B._Bench("2", "made", B._lists_table(second(), "made"))
    many, few = (B._bench_rewards(bench, *model, tokens=t)[0] for t in (10_000, 60))
    assert [r.shape for r in many] == [(len(c),) for c in bench.table.completions]
    np.testing.assert_allclose(np.concatenate(many), np.concatenate(few), atol=1e-6)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies")
    pairs = [dict(chosen=f"a good answer to {i}", rejected=f"a bad one to {i}", strength=i) for i in range(80)]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(p) for p in pairs))
    return folder, clone(first(), folder / "one", ["filtered", "raw"], True), jsonl(second(), folder / "two.jsonl")


def train(copies, tmp_path, **kwargs):
    return T.train_once("rr", data=str(copies[0] / "pairs.jsonl"), wandb_mode="disabled", **dict(out=tmp_path / "runs", overrides=SMALL) | kwargs)


@pytest.mark.parametrize("when, evaluations", [("", 1), (",epochs", 3)])
def test_a_run_is_scored_and_says_so(when, evaluations, copies, tmp_path):
    result = train(copies, tmp_path, rewardbench=f"{copies[1]},{copies[2]}{when}", save_model=True)
    written = json.loads((result.folder / "metrics.json").read_text())["eval"]
    assert written["rewardbench_v1"]["rows"] == 46 and set(written["rewardbench_v1"]["sections"]) == set(B._SECTIONS)
    assert set(written["rewardbench_v2"]["subsets"]) == set(B._SUBSETS["2"]) and 0 <= written["accuracy"] <= 1
    assert pd.read_csv(result.folder / "curve.csv").rewardbench_v2.notna().sum() == evaluations
    again = B.rewardbench(result.folder / "model", copies[2])  # the saved model, by anybody
    assert again["subsets"] == pytest.approx(written["rewardbench_v2"]["subsets"], abs=1e-6)
    assert {"rewardbench_v1", "rewardbench_v2", "rewardbench_v2_precise_if"} <= set(T.measures_table(result).columns)


def test_the_group_does_not_depend_on_it_and_a_finished_run_does_not_pretend(copies, tmp_path):
    plain = train(copies, tmp_path)
    assert not any(k.startswith("rewardbench") for k in plain.metrics["eval"])
    with pytest.raises(UserError, match="redo=True"): train(copies, tmp_path, rewardbench=str(copies[2]))
    assert train(copies, tmp_path, rewardbench=str(copies[2]), redo=True).metrics["group"] == plain.metrics["group"]
    assert train(copies, tmp_path, rewardbench=str(copies[2])).metrics["eval"]["rewardbench_v2"]["rows"] == 14


def test_what_cannot_be_had_stops_a_run_at_once_or_is_said(copies, tmp_path, monkeypatch):
    monkeypatch.setattr(T, "prepare_data", lambda *a: pytest.fail("the data were prepared before the benchmark was read"))
    with pytest.raises(UserError, match="allenai/reward-bench-2"): train(copies, tmp_path, rewardbench="2")
    with pytest.raises(UserError, match="no such file"): train(copies, tmp_path, rewardbench="no/such/copy.parquet", redo=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert B.read_benches("auto", "paper") == ([], "end")
    assert [str(w.message)[:20] for w in said] == ["no RewardBench 1 in ", "no RewardBench 2 in "]
    assert B.read_benches("auto", "tiny") == ([], "end") and B.read_benches("", "paper") == ([], "end")
