"""Generators of the synthetic study: distributions, independence of trials, bad settings."""
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from responserank.settings import UserError
from responserank.synthetic.data import (DATASETS, _HALF, _ITEMS, _NOISE, _OVERSHOOT, _REACTION, _STEP, _UTILITIES, TrialSettings, confusion, _euler_walk, _exact_passage,
                                         _first_passage_cdf, kendall_tau, make_trials, _random_network, _unit_scale, _trial_table, trial_settings)


@pytest.mark.parametrize("dataset", DATASETS)
def test_trials_do_not_depend_on_company(dataset):
    together = make_trials(dataset, range(4, 9))
    for i, t in enumerate(range(4, 9)):
        for a, b in zip(together, make_trials(dataset, [t])): assert (a[i] == b[0]).all()


def test_data_sets_and_seeds_have_their_own_numbers():
    items = [make_trials(d, [0], seed=s).items for d in DATASETS for s in (0, 1)]
    assert len({x.tobytes() for x in items}) == len(items)


def test_shapes_and_scale():
    t = make_trials("stochastic", range(3))
    assert t.items.shape == (3, 250, 2, 20) and t.time.shape == t.first.shape == t.stratum.shape == (3, 250)
    assert np.allclose(t.utility.reshape(3, -1).std(-1), 1)
    assert abs(t.utility.reshape(3, -1).mean(-1)).max() > .05  # scaled, not shifted
    assert t.items.min() >= 0 and t.items.max() <= 1
    assert set(np.unique(t.stratum)) == set(range(5))


def test_gaussian_items_and_first_feature():
    t = make_trials("deterministic_all", range(20), settings=TrialSettings(items="gaussian", utility="first_feature"))
    assert stats.kstest(t.items[..., 1].ravel(), "norm").pvalue > 1e-3
    assert np.allclose(t.utility, t.items[..., 0] / t.items[..., 0].reshape(20, -1).std(-1)[:, None, None])


def test_network_is_the_formula():
    rng, x = np.random.default_rng(0), np.random.default_rng(1).random((1, 7, 20))
    net = _random_network(x, [np.random.default_rng(0)])
    h = x[0]
    for fan_in, fan_out in ((20, 64), (64, 64), (64, 1)):
        wb = rng.uniform(-1, 1, (fan_in + 1, fan_out)) / fan_in**.5
        h = h @ wb[:-1] + wb[-1]
        if fan_out > 1: h = np.maximum(h, 0)
    assert np.allclose(net[0], h[:, 0])


@pytest.mark.parametrize("variability", [0, 1, 3])
def test_clocks(variability):
    t = make_trials("deterministic_all", range(200), settings=trial_settings("deterministic_all", variability=variability))
    ratio = t.time / (10 / (np.abs(t.diff) + 1))
    clock = np.array([[r[s == k].mean() for k in range(5)] for r, s in zip(ratio, t.stratum)])
    assert np.allclose(ratio, np.take_along_axis(clock, t.stratum, -1))  # one clock for training and test rows of a stratum
    if variability: assert stats.kstest(clock.ravel(), stats.foldnorm(1 / variability, scale=variability).cdf).pvalue > 1e-3
    else: assert np.allclose(clock, 1)


def test_stochastic_moments_in_each_range_of_strength():
    t = make_trials("stochastic_no_variability", range(200))
    size, mean = np.abs(t.diff).ravel(), 10 / (np.abs(t.diff).ravel() + 1)
    z = (t.time.ravel() - mean) / .4
    for lo, hi in ((0, .3), (.3, 1), (1, 9)):
        part = (size >= lo) & (size < hi)
        assert abs(z[part].mean()) < 4 / part.sum()**.5 and abs(z[part].std() - 1) < .03
    p, chosen = expit(t.diff / .2).ravel(), t.first.ravel()
    assert abs((chosen - p).sum()) < 4 * np.sqrt((p * (1 - p)).sum())


@pytest.mark.parametrize("drift", [0., .5, 1.5, 3.])
def test_walk_agrees_with_the_exact_sampler_once_the_boundaries_are_moved(drift):
    n = 20_000
    upper, steps = _euler_walk(np.full(n, drift), np.random.default_rng(1), block=2**20)
    _, exact = _exact_passage(np.full(n, drift), np.random.default_rng(2), _HALF + _OVERSHOOT)
    jittered = (steps + np.random.default_rng(3).uniform(-.5, .5, n)) * _STEP  # off the grid
    assert stats.ks_2samp(jittered, exact).pvalue > 1e-3
    p = expit(2 * drift * (_HALF + _OVERSHOOT) / _NOISE**2)
    assert abs(upper.mean() - p) < 4 * np.sqrt(max(p * (1 - p), 1e-4) / n)


def test_without_the_correction_the_walk_is_seen_to_be_late():
    _, steps = _euler_walk(np.full(60_000, 1.), np.random.default_rng(1), block=2**20)
    _, exact = _exact_passage(np.full(60_000, 1.), np.random.default_rng(2))
    assert steps.mean() * _STEP > exact.mean() and stats.ks_2samp(steps * _STEP, exact).pvalue < 1e-3


def test_exact_passage_choice_and_time_are_independent_and_cover_extremes():
    upper, t = _exact_passage(np.full(40_000, .6), np.random.default_rng(0))
    assert stats.ks_2samp(t[upper], t[~upper]).pvalue > 1e-3
    _, t = _exact_passage(np.array([-40., 0., 40.]), np.random.default_rng(0))
    assert np.isfinite(t).all() and abs(t[0] - _HALF / 40) < .01
    assert (np.diff(_first_passage_cdf(np.linspace(.01, 20, 2000), np.full(2000, 2.))) >= -1e-12).all()


def test_drift_is_scaled_by_the_population_sd_and_time_has_a_reaction():
    t = make_trials("drift_diffusion_no_variability", range(4))
    assert t.time.min() > _REACTION
    ticks = (t.time - _REACTION) / _STEP
    assert np.allclose(ticks, ticks.round(), atol=1e-6)  # the walk's grid
    assert abs((t.first == (t.diff > 0)).mean() - expit(2 * np.abs(t.diff / t.diff.std(-1, keepdims=True)) * _HALF / _NOISE**2).mean()) < .04


def test_exact_walk_option():
    a, b = (make_trials("drift_diffusion_no_variability", range(30), settings=trial_settings("drift_diffusion_no_variability", walk=w)) for w in ("euler", "exact"))
    assert (a.items == b.items).all() and stats.ks_2samp(a.time.ravel(), b.time.ravel()).pvalue > 1e-3


def test_kendall_against_scipy_and_confusion():
    t = make_trials("drift_diffusion", range(3))
    for i, tau in enumerate(kendall_tau(t)):
        order = t.time[i, 50:].argsort(kind="stable").argsort()
        assert np.isclose(tau, stats.kendalltau(np.abs(t.diff[i, 50:]), -order).statistic)
    assert (confusion(t).sum(axis=1) == 200).all()


def test_coarse_clock_and_table():
    t = make_trials("deterministic_all", [0], settings=trial_settings("deterministic_all", resolution=.5))
    assert np.allclose(t.time % .5, 0) and t.time.min() >= .5
    assert list(_trial_table(t)) == ["choice", "response_time", "rank", "stratum", "true_diff"] and len(_trial_table(t)) == 250


@pytest.mark.parametrize("build, says", [
    (lambda: trial_settings("deterministic"), "unknown data set 'deterministic'; did you mean deterministic_all"),
    (lambda: TrialSettings(variability=-1), "variability must be at least 0"),
    (lambda: TrialSettings(strata=0), "strata must be at least 1"),
    (lambda: TrialSettings(choice_noise=0), "choice_noise must be above 0"),
    (lambda: make_trials("stochastic", [0], settings=TrialSettings(items="poisson")), "unknown item generator 'poisson'"),
    (lambda: make_trials("stochastic", [0], settings=TrialSettings(utility="linear")), "unknown utility 'linear'"),
    (lambda: make_trials("drift_diffusion", [0], settings=trial_settings("drift_diffusion", walk="random")), "unknown walk 'random'"),
])
def test_bad_settings_are_refused(build, says):
    with pytest.raises(UserError) as e: build()
    assert says in str(e.value) and "\n" not in str(e.value)


def test_registries():
    assert set(_ITEMS) == {"uniform", "gaussian"} and set(_UTILITIES) == {"network", "first_feature"}
    assert np.allclose(_unit_scale(np.array([[1., 3.]])).std(), 1)
