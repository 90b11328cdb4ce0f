"Language-model results: what is refused, and what is computed from runs made up so that the answer is known."
import numpy as np
import pandas as pd
import pytest

from responserank.llm import results
from responserank.settings import UserError
from responserank.files import repo_root

METRICS = [*results._METRICS, *results._CATEGORIES]


@pytest.fixture(scope="module")
def runs():
    return results.read_llm_runs()


@pytest.fixture
def raw(tmp_path):
    table = pd.read_csv(repo_root() / "results/published/llm_runs.csv.gz").head(40)
    return table, tmp_path / "runs.csv"


def spoil(table, **cells):
    for column, value in cells.items():
        table.loc[3, column] = value
    return table


BAD = {
    "unknown method": (lambda t: spoil(t, method="rr_agre"), "unknown method 'rr_agre': line 5 (rr_agre, 0.1, seed 43); did you mean rr_agree"),
    "twice": (lambda t: pd.concat([t, t.iloc[[3]]]), "more than one finished run of the same method, fraction, seed: line 5 (bt, 0.1, seed 43), line 42"),
    "no measure": (lambda t: spoil(t, rewardbench_v2=np.nan), "a finished run without rewardbench_v2: line 5"),
    "text": (lambda t: spoil(t.astype({"multipref_accuracy": object}), multipref_accuracy="high"), "a finished run without multipref_accuracy: line 5"),
    "per cent": (lambda t: spoil(t, fraction=10), "fraction outside (0, 1]: line 5 (bt, 10, seed 43)"),
    "no column": (lambda t: t.drop(columns="run_state"), "column run_state is missing"),
    "no length": (lambda t: spoil(t, method="rr_agree"), "a ranking run without avg_fragment_size: line 5"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_refused_with_its_rows(raw, name):
    table, path = raw
    change, message = BAD[name]
    change(table).to_csv(path, index=False)
    with pytest.raises(UserError) as e:
        results.read_llm_runs(path)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_what_did_not_finish_is_put_aside_before_anything_is_checked(raw):
    table, path = raw
    table = spoil(table, run_state="crashed", method="nonsense", rewardbench_v2=np.nan, fraction=7)
    table.to_csv(path, index=False)
    assert len(results.read_llm_runs(path)) == 39


def test_a_missing_file_and_mixed_fractions_are_named(tmp_path, runs):
    with pytest.raises(UserError, match="no such table"):
        results.read_llm_runs(tmp_path / "none.csv")
    with pytest.raises(UserError, match=r"mixed fractions 0.1, 0.2.*line \d+ \(bt, 0.1, seed 40\)"):
        results._at_fraction(runs, None)


def test_means_and_half_widths_are_the_published_ones(runs):
    published = pd.read_csv(repo_root() / "results/published/llm_summary.csv")
    own = results.averages(runs, METRICS, None, None)
    both = published.merge(own, on=["method", "fraction", "metric"], suffixes=("_published", ""))
    assert len(both) == len(published[published.metric.isin(METRICS)]) > 900
    np.testing.assert_allclose(both["mean"], both["mean_published"], rtol=1e-12)
    np.testing.assert_allclose(both["ci95"].fillna(0), both["ci95_published"].fillna(0), rtol=1e-9, atol=1e-15)
    assert (both["n"] == both["count"]).all()


def test_every_macro_follows_from_the_runs(runs):
    text = results._paper_macros(runs).set_index("name")["value"]
    assert len(text) == 65 and text.index.is_unique and not (text == "--").any()
    given = {"agreeRewardBenchMeanDiff": "+3.0", "agreeRewardBenchMeanD": "0.94", "batchingMultiprefMeanD": "0.73", "statedGlobalRewardBenchVarP": "= 0.04",
             "sizeAblationFullFragSize": "4.58", "singletonFracGlobal": "0.0001", "batchingMultiprefMeanP": "<0.001", "statedSingletonFraction": "33.1"}
    assert text[list(given)].to_dict() == given


def test_a_pair_with_other_seeds_is_marked_and_the_rest_stays(runs):
    fewer = runs[~((runs["method"] == "rr_agree_bt") & (runs["seed"] == 50))]
    found = results._paper_macros(fewer)
    text = found.set_index("name")["value"]
    assert text["batchingMultiprefMeanD"] == "--" and text["agreeRewardBenchMeanD"] == "0.94"
    assert any("seed 50" in m for m in found.attrs["missing"])
    forest = results._forest_points(fewer)
    assert "rr_agree_bt" not in set(forest["by"]) and "rr_agree_bt (other seeds)" in forest.attrs["missing"]


def test_tables_have_a_cell_for_everything(runs):
    cells = results._fraction_cells(runs, "rewardbench_v2", [.1, .2, .3, .4, .5])
    assert len(cells) == 30 and (cells[cells.method == "rr_randrank_randsize2"].n == 0).all()
    none = results._fraction_cells(runs[runs.method == "bt"], "rewardbench_v2", [.9, 1.0])
    assert (none.n > 0).sum() == 2 and set(none.attrs["missing"]) == set(results.HEADLINE_METHODS) - {"bt"}


def test_short_cells_are_marked(runs):
    few = runs[(runs.method != "rr_agree") | (runs.seed < 43)]
    points = results.side_by_side(few, results.HEADLINE_METHODS)
    assert points.attrs["short"] == ["MultiPref rr_agree RR-Agree (n = 3)", "RewardBench 2 rr_agree RR-Agree (n = 3)"]


def test_every_artefact_names_methods_that_exist(runs):
    for a in results.LLM_ARTEFACTS:
        points = a.points(runs)
        assert len(points) and not points.attrs["missing"] and not points.attrs["short"], a.name
        assert a.claim and points.attrs["rows"] > 0
    names = [a.name for a in results.LLM_ARTEFACTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("size, noise", [(3, .5), (4, .75), (6, .25), (7, 1.0), (16, .4)])
def test_the_share_of_inverted_pairs_is_what_a_shuffle_does(size, noise):
    rng, k = np.random.default_rng(0), int(np.round(noise * size))
    order = np.tile(np.arange(size), (20000, 1))
    for row in order:
        who = rng.choice(size, k, replace=False)
        row[who] = row[rng.permutation(who)]
    i, j = np.triu_indices(size, 1)
    assert abs((order[:, i] > order[:, j]).mean() - results._inverted_share(size, noise)) < .004


def test_data_efficiency_of_curves_that_are_known():
    fractions = np.round(np.arange(.1, 1.01, .1), 1)
    rows = [{"method": m, "fraction": f, "seed": s, "multipref_accuracy": start + slope * f, "rewardbench_v2": start + slope * f}
            for m, start, slope in (("bt", .5, .1), ("bt_ep2", .3, .1), ("rr_agree", .5, .2)) for f in fractions for s in range(5)]
    found = results._data_efficiency(pd.DataFrame(rows), draws=50).set_index(["metric", "baseline"])
    assert np.allclose(found.loc[("rewardbench_v2", "bt"), ["fraction", "lo", "hi"]].to_numpy(float), .5)
    assert (found.loc[("rewardbench_v2", "bt_ep2"), "censored"] == 1).all()
    assert results._data_efficiency(pd.DataFrame(rows)[lambda t: t.method != "bt"]).attrs["missing"] == ["bt"]
