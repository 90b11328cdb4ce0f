"""Paired and unpaired comparisons against SciPy, the published runs, and bad input."""
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from responserank.statistics import (bootstrap_interval, cohens_d, effect_over_joint_sd, format_number, format_p, format_points, format_share,
                                     format_var_p, holm, interquartile_mean, mean_interval, pair_by_seed, paired_comparison, paired_table, qq_points,
                                     resample, summarize, unpaired_comparison, unpaired_from_summaries)


@pytest.fixture(scope="module")
def seeded():
    rng = np.random.default_rng(0)
    x = pd.Series(rng.normal(size=20), index=range(40, 60))
    return x, x + .5 + rng.normal(size=20)


@pytest.fixture
def published(shared):
    runs = pd.read_csv(shared / "reference/llm_runs.csv.gz")
    return runs[(runs.run_state == "finished") & (runs.fraction == 1)]


@pytest.mark.parametrize("first, second, measure, key, text", [
    ("bt", "rr_agree", "rewardbench_v2", "difference", "+3.0"),
    ("bt", "rr_agree", "rewardbench_v2", "d", "0.94"),
    ("bt", "rr_agree_bt", "multipref_accuracy", "d", "0.73"),
    ("rr_stated", "rr_stated_global", "rewardbench_v2", "p_levene", "= 0.04"),
])
def test_published_macros(published, first, second, measure, key, text):
    row = paired_table(published, [(first, second)], measure).iloc[0]
    assert row.n == 30 and row.left_out == 0
    assert dict(difference=format_points, d=format_number, p_levene=format_var_p)[key](row[key]) == text


def test_stated_against_bt(published):
    "No figure of the paper's is at hand; the definitions, written out once more, are."
    row = paired_table(published, [("bt", "rr_stated")], "rewardbench_v2").iloc[0]
    x, y = (published[published.method == m].sort_values("seed").rewardbench_v2.to_numpy() for m in ("bt", "rr_stated"))
    assert row.p == pytest.approx(stats.ttest_rel(y, x).pvalue, rel=1e-12)
    assert row.d == pytest.approx((y - x).mean() / (y - x).std(ddof=1), rel=1e-12)
    assert row.p_levene == pytest.approx(stats.levene(x, y, center="median").pvalue, rel=1e-12)
    assert (row.lo, row.hi) == pytest.approx(tuple(stats.ttest_rel(y, x).confidence_interval()), rel=1e-12)


@pytest.mark.parametrize("table, by, values, sd, half", [
    ("synthetic", ["dataset", "learner", "size"], ["accuracy", "pdc"], "std", "ci95"),
    ("llm", ["method", "fraction"], ["multipref_accuracy", "rewardbench_v1", "rewardbench_v2"], "std", "ci95"),
])
def test_published_summaries(shared, table, by, values, sd, half):
    name = dict(synthetic="synthetic_trials.csv.gz", llm="llm_runs.csv.gz")[table]
    runs = pd.read_csv(shared / "reference" / name)
    if "run_state" in runs: runs = runs[runs.run_state == "finished"]
    theirs = pd.read_csv(shared / f"reference/{table}_summary.csv").rename(columns={"metric": "measure", "mean": "mean_published"})
    both = summarize(runs, by, values).merge(theirs, on=[*by, "measure"], validate="1:1")
    assert len(both) == theirs.measure.isin(values).sum() > 200
    assert (both.n == both["count"]).all() and (both.missing == 0).all()
    for ours, published in (("mean", "mean_published"), ("sd", sd), ("half_width", half)):
        np.testing.assert_allclose(both[ours], both[published], rtol=1e-9, atol=1e-12)


def test_published_effects_of_the_synthetic_study(shared):
    trials = pd.read_csv(shared / "reference/synthetic_trials.csv.gz").query("dataset == 'deterministic_all'")
    side = {m: g.sort_values(["size", "trial"]).pdc.to_numpy() for m, g in trials.groupby("learner")}
    report = paired_comparison(side["bt"], side["rr"])
    assert report["n"] == 600 and report["p_wilcoxon"] < .001 and report["difference"] > 0
    exact = stats.wilcoxon(side["rr"] - side["bt"], zero_method="wilcox").pvalue
    assert report["p_wilcoxon"] == pytest.approx(exact, rel=1e-6)
    both = np.concatenate([side["bt"], side["rr"]])
    assert effect_over_joint_sd(side["bt"], side["rr"]) == pytest.approx(report["difference"] / both.std(ddof=1), rel=1e-12)


def test_pairs_are_seeds_not_places(seeded):
    x, y = seeded
    expected = paired_comparison(x, y)
    assert paired_comparison(x.sample(frac=1, random_state=1), y) == pytest.approx(expected)
    assert paired_comparison(dict(x), dict(y[::-1])) == pytest.approx(expected)
    assert paired_comparison(list(x), np.array(y)) == pytest.approx(expected)
    assert paired_comparison(x.to_numpy()[::-1], y.to_numpy())["d"] != pytest.approx(expected["d"])  # arrays have only their places
    assert expected["d"] == pytest.approx(cohens_d(x, y))


def test_second_minus_first(seeded):
    there, back = paired_comparison(*seeded), paired_comparison(*seeded[::-1])
    assert there["difference"] == pytest.approx(-back["difference"]) and there["d"] == pytest.approx(-back["d"])
    assert (there["lo"], there["hi"]) == pytest.approx((-back["hi"], -back["lo"]))
    assert there["p"] == pytest.approx(back["p"]) and there["p_levene"] == pytest.approx(back["p_levene"])


@pytest.mark.parametrize("first, second, message", [
    (pd.Series([1., 2], [40, 40]), {40: 1., 41: 2}, "first has more than one run for seed 40"),
    ({40: 1., 41: 2}, pd.Series([1., 2, 3, 4], [40, 41, 41, 40]), "second has more than one run for seed 40, 41"),
    ({40: 1., 41: 2}, {40: 1., 43: 2}, "only first has seed 41; only second has seed 43; run them, or pass common=True"),
    ({40: 1., 41: np.nan}, {40: 1., 41: 2}, "first has no value for seed 41"),
    ([1., 2], [1., 2, 3], "only second has seed 2"),
    ([[1., 2]], [1., 2], "first must be one column of numbers; its shape is (1, 2)"),
    ({s: 1. for s in range(20)}, {}, "only first has seed 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"),
])
def test_bad_pairs_are_named(first, second, message):
    with pytest.raises(ValueError) as error:
        paired_comparison(first, second)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_common_seeds_are_counted(seeded):
    x, y = seeded
    report = paired_comparison(x.iloc[2:], y.iloc[:-3], common=True)
    assert report["left_out"] == 5 and report["n"] == 15
    assert report["difference"] == pytest.approx((y - x).iloc[2:-3].mean())
    with pytest.raises(ValueError, match="no seed in common"):
        paired_comparison({1: 1.}, {2: 1.}, common=True)
    assert pair_by_seed(x, y)[2] == 0


@pytest.mark.parametrize("x, y", [([1.], [2.]), ([.1, .2, .3], [.2, .3, .4]), ([1., 1, 1], [1., 1, 1]), ([0., 0], [0., 0])])
def test_undefined_is_nan_and_says_nothing(x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = paired_comparison(x, y)
        assert all(math.isnan(report[k]) for k in ("d", "p", "p_wilcoxon"))
        assert report["difference"] == pytest.approx(y[0] - x[0])
        assert math.isnan(cohens_d(x, y))
        single = unpaired_comparison([1.], [2., 3.])
        assert single["difference"] == 1.5 and math.isnan(single["p"]) and math.isnan(single["lo"])
        assert math.isnan(unpaired_comparison([1., 1.], [2., 2.])["p"])
        assert math.isnan(mean_interval([]).mean) and math.isnan(mean_interval([1.]).sd)


def test_zero_differences_are_dropped_and_ties_are_ties():
    x = np.array([.71, .73, .75, .77, .79, .81, .83, .85])
    steps = np.array([0, 0, 2, 2, 2, -2, 4, 6])
    report = paired_comparison(x, x + steps / 100)
    assert report["p_wilcoxon"] == stats.wilcoxon(steps, zero_method="wilcox").pvalue == stats.wilcoxon(steps[2:]).pvalue


def test_welch_from_summaries_is_welch_from_runs():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, (432, 100)), rng.normal(.1, 2, (432, 40))
    cells = unpaired_from_summaries(a.mean(1), a.std(1, ddof=1), 100, b.mean(1), b.std(1, ddof=1), 40)
    exact = stats.ttest_ind(b, a, axis=1, equal_var=False)
    assert len(cells) == 432
    for name, values in dict(t=exact.statistic, p=exact.pvalue, df=exact.df, lo=exact.confidence_interval().low,
                             hi=exact.confidence_interval().high).items():
        np.testing.assert_allclose(cells[name], values, rtol=1e-9)
    one = unpaired_comparison(a[7], b[7])
    assert {k: one[k] for k in cells} == pytest.approx(cells.iloc[7].to_dict())


def test_holm_by_plain_loop():
    p = np.random.default_rng(3).random(50) ** 3
    expected, running = np.empty(50), 0.
    for k, i in enumerate(np.argsort(p)):
        running = max(running, (50 - k) * p[i])
        expected[i] = min(running, 1)
    np.testing.assert_allclose(holm(p), expected)
    assert np.isnan(holm([np.nan, .5])[0]) and holm([np.nan, .5])[1] == .5 and len(holm([])) == 0
    with pytest.raises(ValueError, match="found 1.5"):
        holm([.1, 1.5])


def test_holm_over_the_pairs_of_a_measure(seeded):
    runs = pd.concat([pd.DataFrame(dict(method=m, seed=range(20), a=x.to_numpy(), b=-x.to_numpy() ** 2))
                      for m, x in zip("uvw", (*seeded, seeded[0] ** 2))])
    table = paired_table(runs, [("u", "v"), ("u", "w")], ["a", "b"])
    assert list(table.measure) == ["a", "a", "b", "b"]
    for _, group in table.groupby("measure"):
        np.testing.assert_allclose(group.p_holm, holm(group.p))
    for bad, message in ((dict(pairs=[("u", "x")]), "no method x; it has u, v, w"), (dict(value="c"), "no column c; it has method, seed, a, b")):
        with pytest.raises(ValueError, match=message):
            paired_table(**dict(runs=runs, pairs=[("u", "v")], value="a") | bad)
    with pytest.raises(ValueError, match="a of u has more than one run for seed 0, 1"):
        paired_table(pd.concat([runs, runs]), [("u", "v")], "a")


def test_summaries_count_what_is_missing():
    runs = pd.DataFrame(dict(m=["a", "a", "a", None], x=[1., 3., np.nan, 5.]))
    table = summarize(runs, "m", "x")
    assert list(table) == ["m", "mean", "sd", "half_width", "n", "missing"] and table.m.isna().tolist() == [False, True]
    assert table.n.tolist() == [2, 1] and table.missing.tolist() == [1, 0] and table["mean"].tolist() == [2, 5]
    assert table.half_width[0] == pytest.approx(stats.sem([1, 3]) * stats.t.ppf(.975, 1)) and math.isnan(table.half_width[1])
    with pytest.raises(ValueError, match="no column y; it has m, x"):
        summarize(runs, "m", "y")


def test_resampling_stays_in_strata_and_is_uniform():
    strata = np.array(["a", "b", None, "b", "a", "b"], object)
    drawn = resample(strata, 30_000, np.random.default_rng(0))
    for members in ([0, 4], [1, 3, 5], [2]):
        seen, count = np.unique(drawn[:, members], return_counts=True)
        assert seen.tolist() == members
        np.testing.assert_allclose(count / count.sum(), 1 / len(members), atol=.01)


def test_bootstrap_is_paired_stratified_seeded_and_bounded():
    rng = np.random.default_rng(4)
    shared_luck, task = 10 * rng.normal(size=40), np.repeat(np.arange(4), 10)
    both = shared_luck + rng.normal(size=(2, 40)) + [[0], [1]]
    difference = lambda v, axis: v[1].mean(axis) - v[0].mean(axis)
    b = bootstrap_interval(both, difference, task)
    assert b["hi"] - b["lo"] < 2 and b["estimate"] == pytest.approx(both[1].mean() - both[0].mean())
    assert b == bootstrap_interval(both, difference, task) != bootstrap_interval(both, difference, task, seed=1)
    rows = bootstrap_interval(both, np.mean, task)
    assert rows["lo"].shape == (2,) and rows["lo"][0] == bootstrap_interval(both[0], np.mean, task)["lo"]
    large = np.concatenate([np.zeros(500_000), np.ones(500_000)])
    large = bootstrap_interval(large, np.mean, draws=20)
    assert large["estimate"] == .5 and large["hi"] - large["lo"] < .01
    shift = bootstrap_interval(task * 100. + rng.normal(size=40), np.mean, task)
    assert shift["hi"] - shift["lo"] < 2  # tasks differ by hundreds, which says nothing about the methods


def test_bootstrap_of_a_mean_agrees_with_theory():
    x = np.random.default_rng(5).normal(size=200)
    b = bootstrap_interval(x, np.mean, draws=10_000)
    assert (b["lo"], b["hi"]) == pytest.approx((x.mean() - 1.96 * x.std() / 200**.5, x.mean() + 1.96 * x.std() / 200**.5), abs=.01)


@pytest.mark.parametrize("values, options, message", [
    ([], {}, "at least one"), ([1., np.nan], {}, "none missing"), (3., {}, "one number per run"),
    ([1., 2.], dict(strata=["a"]), "strata has 1 entries for 2 runs"),
])
def test_bad_bootstraps(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)


def test_interquartile_mean_is_the_mean_of_the_middle():
    x = np.random.default_rng(6).normal(size=(3, 30))
    np.testing.assert_allclose(interquartile_mean(x), np.sort(x)[:, 7:-7].mean(1))
    assert isinstance(interquartile_mean([1, 2, 3, 4]), float)


def test_qq_points():
    rng = np.random.default_rng(7)
    t = rng.standard_t(4, 2000)
    points = qq_points(t, 4)
    assert np.all(np.diff(points.observed) >= 0) and (points.lo < points.expected).all() and (points.expected < points.hi).all()
    assert ((points.observed < points.lo) | (points.observed > points.hi)).mean() < .2
    assert (qq_points(t).observed > qq_points(t).hi).tail(20).mean() > .8  # taken for normal, the tails are too heavy
    assert np.isfinite(qq_points([-30., 30.], 200).observed).all()
    assert qq_points([]).empty and points.cell.tolist() == np.argsort(t, kind="stable").tolist()


@pytest.mark.parametrize("text, expected", [
    (format_p(.0009999), "<0.001"), (format_p(.001), "= 0.001"), (format_p(1), "= 1.000"), (format_p(.0049, 2), "<0.01"), (format_var_p(.04), "= 0.04"),
    (format_var_p(float("nan")), "--"), (format_points(-.0004), "-0.0"), (format_points(.03), "+3.0"), (format_points(float("nan")), "--"),
    (format_share(.0001), "0.0001"), (format_share(.00951), "0.01"), (format_share(.01), "0.01"), (format_share(.999), "1.00"), (format_share(0), "0.00"),
    (format_number(-.005, 1), "-0.0"), (format_number(4.576), "4.58"),
])
def test_texts(text, expected):
    assert text == expected
