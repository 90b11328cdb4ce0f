"""The synthetic results: tables that can't be trusted are refused or marked, and the reproduction fails where it should."""
import numpy as np
import pandas as pd
import pytest

from responserank.artefacts import _artefact_status, check_claim, make_artefact
from responserank.settings import UserError
from responserank.synthetic import experiments as module
from responserank.synthetic.data import TrialSettings
from responserank.synthetic.experiments import _TABLE_COLUMNS, EXPERIMENTS, Experiment, _conditions, _run_trials, _experiment_blocks, read_experiment, run_experiment, _run_experiments
from responserank.synthetic.learners import LEARNERS, fit_chunk
from responserank.synthetic.results import (SYNTHETIC_ARTEFACTS, EXPERIMENT_ARTEFACTS, _GROUPS, _EXPECTED_TRIALS, study_cells, _check_fits, _comparisons_needed, _error_points, _experiment_points,
                                            _order_of_learners, _paired_points, read_cells, read_fits, compare_cells, _learner_tests as compare, _trial_counts, _reproduction_verdict, _weight_points)


@pytest.fixture(scope="module")
def fits(): return read_fits()


@pytest.fixture(scope="module")
def own(fits):  # the published trials drawn anew, as a second study
    drawn = np.random.default_rng(0).integers(_EXPECTED_TRIALS, size=400)
    wide = fits.trials.set_index("trial").sort_index()
    again = pd.concat([wide.loc[[t]].assign(draw=i) for i, t in enumerate(drawn)])
    return study_cells(fits._replace(trials=again.reset_index(drop=True).rename(columns={"draw": "trial"})))


@pytest.mark.parametrize("change, message", [
    (lambda t: t.drop(columns=["pdc", "size"]), "column size, pdc is missing"),
    (lambda t: t.replace({"dataset": {"stochastic": "stochastik"}}), "unknown dataset 'stochastik'; did you mean stochastic?: line 3602, "),
    (lambda t: t.replace({"learner": {"rr": "rank"}}), "unknown learner 'rank'"),
    (lambda t: pd.concat([t, t.head(2)]), "the same fit twice: line 2, 3, 21602, 21603"),
    (lambda t: t.assign(pdc=t["pdc"].where(t.index != 5)), "no accuracy or pdc: line 7"),
    (lambda t: t.assign(size=t["size"].where(t.index != 0, 1.5)), "a size outside (0, 1]: line 2"),
])
def test_tables_of_fits_are_checked(fits, change, message):
    with pytest.raises(UserError) as e: _check_fits(change(fits.trials), "trials.csv.gz")
    assert message in str(e.value) and str(e.value).startswith("trials.csv.gz") and "\n" not in str(e.value)


@pytest.mark.parametrize("read, missing", [(read_fits, "trials.csv.gz"), (read_cells, "summary.csv"), (lambda p: read_experiment("size", p), "size.csv")])
def test_a_missing_table_is_named(tmp_path, read, missing):
    with pytest.raises(UserError, match="no such table") as e: read(tmp_path)
    assert missing in str(e.value)


def test_a_summary_with_wrong_columns_is_refused(tmp_path):
    pd.DataFrame({"dataset": ["stochastic"], "mean": [0.5]}).to_csv(tmp_path / "summary.csv", index=False)
    with pytest.raises(UserError, match="column learner, size, metric, std, count is missing"): read_cells(tmp_path)


def test_short_and_missing_runs_are_marked(fits, tmp_path):
    t = fits.trials
    gap = fits._replace(trials=t[~((t["dataset"] == "stochastic") & (t["learner"] == "rr") & (t["size"] == 1.0) & (t["trial"] < 20))])
    rows = {a.name: make_artefact(a, gap, tmp_path) for a in SYNTHETIC_ARTEFACTS if a.name in ("synthetic_pdc_boxes", "synthetic_pdc_size", "choice_accuracy", "number_of_trials")}
    assert {r["status"] for r in rows.values()} == {"short"} and all("n = 80" in r["note"] for r in rows.values())
    assert "(n = 80)" in (tmp_path / "tables" / "choice_accuracy.tex").read_text()
    none = fits._replace(trials=t[t["dataset"] != "stochastic"])
    points = _trial_counts(none, _GROUPS[""])
    assert points.attrs["missing"] == ["stochastic"] and _artefact_status(points) == "partial"


def test_holm_is_within_a_measure_and_a_group(fits):
    found = compare(fits, _GROUPS[""])
    for _, family in found[found["size"] != "pooled"].groupby("measure"):
        p = family["p"].sort_values().to_numpy()
        expected = np.minimum(np.maximum.accumulate((len(p) - np.arange(len(p))) * p), 1)
        assert len(p) == 3 * 6 * 6 and np.allclose(np.sort(family["p_holm"]), expected)
    assert found.loc[found["size"] == "pooled", "p_holm"].isna().all() and (found.loc[found["size"] == "pooled", "n"] == 600).all()


def test_arrows_point_to_the_better_learner(fits):
    found = compare(fits, _GROUPS[""]).query("first == 'rr' and second == 'bt' and size == 'pooled'")
    assert (found["arrow"] == "↑").all() and (found["difference"] > 0).all()


WRONG = {
    "swapped learners": lambda own: own.assign(learner=own["learner"].replace({"rr": "rr_pooled", "rr_pooled": "rr"})),
    "swapped data sets": lambda own: own.assign(dataset=own["dataset"].replace({"drift_diffusion": "stochastic", "stochastic": "drift_diffusion"})),
    "sizes one step off": lambda own: own.assign(size=(own["size"] - .1).round(1).replace(.4, 1.0)),
    "a missing learner": lambda own: own[own["learner"] != "rt_regression"],
    "a small shift of everything": lambda own: own.assign(mean=own["mean"] + own["sd"] / 5),
}


def test_the_reproduction_passes_where_both_studies_are_the_same(fits, own):
    judged = _reproduction_verdict(compare_cells(study_cells(fits), own))
    assert judged["passes"] and judged["cells"] == 432 and not judged["missing"]
    assert "opposite" not in set(_order_of_learners(fits, own)["verdict"])


@pytest.mark.parametrize("wrong", WRONG)
def test_the_reproduction_fails_on_a_wrong_table(fits, own, wrong):
    assert not _reproduction_verdict(compare_cells(study_cells(fits), WRONG[wrong](own)))["passes"]


def test_the_order_of_learners_sees_a_swap(fits, own):
    verdicts = _order_of_learners(fits, WRONG["swapped learners"](own))["verdict"].value_counts()
    assert verdicts["opposite"] > 20
    assert _order_of_learners(fits, WRONG["a missing learner"](own))["verdict"].eq("missing").sum() == 2 * 6 * 6 * 5


def test_paired_points_pair(fits):
    points = _paired_points({"published": fits}).set_index(["dataset", "size"])
    wide = fits.trials.query("dataset == 'stochastic' and size == 0.5").pivot(index="trial", columns="learner", values="pdc")
    z = wide["rr"] - wide["bt"]
    row = points.loc[("stochastic", .5)]
    assert np.isclose(row["y"], z.mean()) and np.isclose(row["better"], (z > 0).mean()) and np.isclose(row["hi"] - row["y"], z.sem() * 1.9842169)


TINY = Experiment("strata", (1, 3), {k: LEARNERS[k] for k in ("bt", "rr")}, ("stochastic",), trials=60, settings={"train": 10, "test": 20})


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "tiny", TINY)
    return TINY


def test_an_experiment_stopped_and_resumed_is_the_same(tiny, tmp_path, monkeypatch):
    whole = run_experiment("tiny", tmp_path / "a", workers=1)
    assert list(whole) == _TABLE_COLUMNS and not (tmp_path / "a" / ".parts").exists()
    assert whole.groupby("value")["count"].min().to_dict() == {1: 60, 3: 60}
    calls = []
    def stop(**job):
        if len(calls) == 2: raise KeyboardInterrupt
        calls.append(job)
        return _run_trials(**job)
    monkeypatch.setattr(module, "_run_trials", stop)
    with pytest.raises(BaseException): run_experiment("tiny", tmp_path / "b", workers=1)
    assert len(list((tmp_path / "b" / ".parts").iterdir())) == 2 and not (tmp_path / "b" / "tiny.csv").exists()
    torn = next((tmp_path / "b" / ".parts").iterdir())
    torn.write_text("learner,trial\nbt,0\n")  # not whole: computed anew
    monkeypatch.setattr(module, "_run_trials", lambda **job: calls.append(job) or _run_trials(**job))
    run_experiment("tiny", tmp_path / "b", workers=1)
    assert len(calls) == 2 + 3
    assert (tmp_path / "a" / "tiny.csv").read_bytes() == (tmp_path / "b" / "tiny.csv").read_bytes()


def test_the_world_and_the_pairing_are_what_the_table_says(tiny):
    condition = _conditions(tiny)[1]
    rows = _run_trials("stochastic", [0, 1, 2], condition.settings, condition.training, condition.learners)
    same = fit_chunk("stochastic", [0, 1, 2], ["bt", "rr"], settings=TrialSettings("stochastic", strata=3, train=10, test=20))
    both = rows.merge(same, on=["learner", "trial"], suffixes=("", "_chunk"))
    assert len(both) == 6 and np.allclose(both["pdc"], both["pdc_chunk"], atol=2e-3)


def test_unfinished_experiments_are_marked(tiny, tmp_path):
    table = run_experiment("tiny", tmp_path, workers=1)
    table.loc[table["value"] == 1].assign(count=30).to_csv(tmp_path / "tiny.csv", index=False)
    read = read_experiment("tiny", tmp_path)
    assert read.attrs["missing"] == ["stochastic, strata 3"] and read.attrs["short"] == ["stochastic, strata 1 (n = 30 of 60)"]
    points = _experiment_points(tmp_path, "tiny")
    assert _artefact_status(points) == "partial" and points.attrs["short"] and set(points["by"]) == {"bt", "rr"}
    table.drop(columns=["head", "sd"]).to_csv(tmp_path / "tiny.csv", index=False)
    with pytest.raises(UserError, match="column sd, head is missing"): read_experiment("tiny", tmp_path)


def test_unknown_experiments_are_refused(tmp_path):
    for call in (lambda: run_experiment("sice", tmp_path), lambda: read_experiment("sice"), lambda: _run_experiments(["sice"])):
        with pytest.raises(UserError, match="unknown experiment 'sice'.*size"): call()


def test_the_committed_experiments_are_whole():
    for name in EXPERIMENTS:
        table = read_experiment(name)
        assert not table.attrs["missing"] and not table.attrs["short"], (name, table.attrs)
        assert len(_experiment_blocks(name, module.Path("."))) == sum(-(-c.trials // module._BLOCK) for c in _conditions(EXPERIMENTS[name]))
    for artefact in EXPERIMENT_ARTEFACTS.values(): assert _artefact_status(artefact.points(None)) == "complete", artefact.name
    assert len(_error_points()) == 3 * 4 * 8 and len(_weight_points()) == 7 * 6


def test_comparisons_needed():
    table = pd.DataFrame([(v, l, "", "pdc", m) for v, l, m in [(10, "bt", .1), (100, "bt", .3), (1000, "bt", .5), (10, "rr", .2), (100, "rr", .5), (1000, "rr", .7)]],
                         columns=["value", "learner", "against", "measure", "mean"])
    found = _comparisons_needed(table)
    assert np.allclose(found[:2], [10 ** 1.5, 1000]) and np.isnan(found.iloc[2])  # half-way in log n; never within the curve


def test_every_number_in_a_claim_is_computed(fits):
    for artefact in SYNTHETIC_ARTEFACTS: check_claim(artefact, fits)
    for artefact in EXPERIMENT_ARTEFACTS.values(): check_claim(artefact, None)
