"""Measures against the published vectors, plain loops, and bad input."""
import json
import math
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from responserank.metrics import (accuracy, calibration_error, all_measures, pearson, pearson_distance_correlation, probability_error, reliability,
                                  spearman, strength_log_likelihood)

OURS = {"pearson_distance_correlation": "pdc", "pearson_difference_correlation": "pearson_difference",
        "pearson_utility_correlation": "pearson_utility", "spearman_utility_correlation": "spearman_utility",
        "spearman_difference_correlation": "spearman_difference", "spearman_distance_correlation": "spearman_distance",
        "true_calibration_error_bt_probs": "probability_error"}
UTILITIES = ("true_u1", "true_u2", "pred_u1", "pred_u2", "choice")


@pytest.fixture
def vector(shared):
    return json.loads((shared / "reference/vectors.json").read_text())["metrics"]


@pytest.fixture
def fits():
    rng = np.random.default_rng(1)
    return [rng.normal(size=60), rng.normal(size=60), rng.normal(size=(7, 60)), rng.normal(size=(7, 60)), rng.random(60) < .5]


def test_published_values(vector):
    ours = all_measures(*(vector[k] for k in UTILITIES))
    assert {k for k in vector["values"]} == {*OURS, "log_likelihood_pl_ranking"}
    for name, key in OURS.items():
        assert ours[key] == pytest.approx(vector["values"][name], abs=1e-12), name


def test_published_log_likelihood_is_of_the_signed_differences_second_minus_first(vector):
    t1, t2, p1, p2 = (np.asarray(vector[k], np.float32) for k in UTILITIES[:4])
    assert strength_log_likelihood(t2 - t1, p2 - p1) == pytest.approx(vector["values"]["log_likelihood_pl_ranking"], abs=1e-5)


def test_calibration_error_by_plain_loop(vector):
    p = 1 / (1 + np.exp(np.array(vector["pred_u2"]) - np.array(vector["pred_u1"])))
    y = np.array(vector["choice"])
    bins = [[i for i in range(len(p)) if min(int(10 * p[i]), 9) == b] for b in range(10)]
    expected = sum(len(b) / len(p) * abs(np.mean(p[b]) - np.mean(y[b])) for b in bins if b)
    assert calibration_error(p, y) == pytest.approx(expected, abs=1e-12)
    table = reliability(p, y).dropna()
    assert (table.n * (table.forecast - table.chosen).abs()).sum() / table.n.sum() == pytest.approx(expected, abs=1e-12)
    assert calibration_error(1 - p, y) > 2 * expected  # the probability of the wrong item


def test_correlations_equal_scipy(fits):
    for x, y in zip(fits[2], fits[3]):
        assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
        x, y = x.round(1), y.round(1)  # with ties
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_likelihood_by_plain_loop(fits):
    strength, w = np.abs(fits[0]), fits[2][0]
    order = sorted(range(60), key=lambda i: -strength[i])
    expected = sum(w[i] - math.log(sum(math.exp(w[j]) for j in order[k:])) for k, i in enumerate(order))
    assert strength_log_likelihood(strength, w) == pytest.approx(expected, abs=1e-10)


def test_a_batch_is_its_rows(fits):
    together = all_measures(*fits)
    for i in range(7):
        for name, value in all_measures(*fits[:2], fits[2][i], fits[3][i], fits[4]).items():
            assert isinstance(value, float)
            assert together[name][i] == pytest.approx(value, abs=1e-12), name


def test_whatever_holds_the_numbers(fits):
    t, p = fits[0], fits[2][0]
    exact = accuracy(t, p), pearson_distance_correlation(t, p)
    for kind in (list, torch.tensor, pd.Series, lambda x: torch.tensor(x, requires_grad=True), lambda x: pd.Series(x, dtype="Float64")):
        assert (accuracy(kind(t), kind(p)), pearson_distance_correlation(kind(t), kind(p))) == exact
    assert accuracy(t, torch.tensor(p, dtype=torch.bfloat16)) == exact[0]
    signs = t > 0
    for kind in (list, np.array, torch.tensor, pd.Series, lambda x: pd.Series(x, dtype="boolean"), lambda x: 2 * x.astype(int) - 1):
        assert accuracy(kind(signs), p) == exact[0]
    for kind in (list, torch.tensor, pd.Series, lambda x: x.astype(int), lambda x: 2 * x.astype(int) - 1):
        assert all_measures(t, 0 * t, p, 0 * p, kind(signs))["accuracy"] == exact[0]


@pytest.mark.parametrize("x", [[1., 1., 1.], [.1 + .2, .3, .3], [1.], [], [1., np.nan, 2.], [1., np.inf, 2.], [1e300, 1e300, 1e300]])
def test_undefined_is_nan_and_says_nothing(x):
    y = list(range(len(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for f in (pearson, spearman, pearson_distance_correlation):
            if not (f is spearman and np.isinf(x).any()):  # an infinite value still has a rank
                assert math.isnan(f(x, y)) and math.isnan(f(y, x))
        assert accuracy([], []) != accuracy([], []) and probability_error([], []) != probability_error([], [])
        assert math.isnan(calibration_error([], [])) and math.isnan(calibration_error([np.nan, .2], [1, 0]))
        assert math.isnan(strength_log_likelihood([1., np.nan], [1., 2.]))


def test_one_bad_fit_spoils_no_other(fits):
    fits[2][3, 5] = np.nan
    for name, values in all_measures(*fits).items():
        assert np.isnan(values[3]) and not np.isnan(np.delete(values, 3)).any(), name


def test_a_constant_model_has_no_correlation_and_half_the_accuracy():
    m = all_measures([1., 2., 3.], [2., 1., 0.], [5., 5., 5.], [5., 5., 5.], [0, 1, 1])
    assert m["accuracy"] == m["true_accuracy"] == .5
    assert all(math.isnan(m[k]) for k in ("pdc", "spearman_distance", "pearson_difference", "pearson_utility", "spearman_utility"))
    assert m["log_likelihood"] == pytest.approx(-math.log(6))


@pytest.mark.parametrize("call, message", [
    (lambda: accuracy([1, 2], [1]), "true_diff and predicted_diff have shapes (2,) and (1,)"),
    (lambda: accuracy(np.ones((2, 3)), np.ones((4, 3))), "shapes (2, 3) and (4, 3)"),
    (lambda: accuracy([0, 1, 1], [1, 2, 3]), "write choices as +1 and -1"),
    (lambda: accuracy(["A", "B"], [1, 2]), "true_diff must be numbers"),
    (lambda: accuracy(1., 2.), "must have shape (n,) or (models, n), not ()"),
    (lambda: calibration_error([.5, 1.2], [0, 1]), "probability must lie in [0, 1]"),
    (lambda: calibration_error([.5, .2], [2, 1]), "found 1, 2"),
    (lambda: calibration_error([.5, .2, .1], [-1, 0, 1]), "found -1, 0, 1"),
    (lambda: calibration_error([.5, .2], [np.nan, 1]), "choice must be True / False"),
])
def test_bad_input_in_one_line(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_fast_enough_for_the_study():
    rng = np.random.default_rng(0)
    t, p = rng.normal(size=(2, 3600, 200))
    start = time.perf_counter()
    accuracy(t, p), pearson_distance_correlation(t, p)
    assert time.perf_counter() - start < 2  # 0.1 s on an idle core
