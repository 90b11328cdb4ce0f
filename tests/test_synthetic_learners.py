"""Learners of the synthetic study: each setting, each loss by hand, and the ensemble against single models."""
import math
import os

import numpy as np
import pandas as pd
import pytest
import torch

from responserank.settings import UserError
from responserank.synthetic.data import DATASETS, TrialSettings, make_trials
from responserank.synthetic.learners import (LEARNERS, _SCAN_FROM, Learner, TrainingSet, TrainingSettings, _compare_precisions, design_matrix, predict_differences, fit_network, fit_chunk, fit_many, fit_one_by_one,
                                             fit_rngs, has_ranking_mate, initial_weights, _learner_loss, make_training_set, loss_slopes, _one_thread, _to_network,
                                             rows_at_size)


@pytest.fixture(autouse=True)
def single_thread():
    with _one_thread(): yield


def generators(dataset, trials, size=1.0, keys=LEARNERS, seed=42): return {k: fit_rngs(dataset, trials, k, size, seed) for k in keys}


def one_lesson(key="bt", dataset="stochastic", n=30, trial=0):
    rngs = fit_rngs(dataset, [trial], key, 1.0, 42)
    training_sets = make_training_set(make_trials(dataset, [trial]), n, LEARNERS[key], rngs)
    return TrainingSet(*(x[0] for x in training_sets)), torch.tensor(initial_weights(rngs, 20, 64))[0]


# The settings, against a fit written out by hand: AdamW from its paper, gradients from autograd, bookkeeping as specified.

def adamw_by_hand(net, loss_of, steps, lr, decay, keep_best):
    p = [q.detach().clone() for q in net.parameters()]
    m, v = [torch.zeros_like(q) for q in p], [torch.zeros_like(q) for q in p]
    lowest, kept = math.inf, None
    for t in range(1, steps + 1):
        for q, value in zip(net.parameters(), p): q.data.copy_(value)
        loss = loss_of(net)
        grads = torch.autograd.grad(loss, list(net.parameters()))
        for i, g in enumerate(grads):
            m[i] = .9 * m[i] + .1 * g
            v[i] = .999 * v[i] + .001 * g * g
            p[i] = p[i] * (1 - lr * decay) - lr * (m[i] / (1 - .9**t)) / ((v[i] / (1 - .999**t)).sqrt() + 1e-8)
        if loss.item() < lowest or not keep_best: lowest, kept = loss.item(), [q.clone() for q in p]
    return kept


def bt_by_hand(items):
    def loss(net):
        u = net(torch.tensor(items))[..., 0]
        return torch.log1p(torch.exp(-(u[:, 0] - u[:, 1]))).mean()
    return loss


@pytest.mark.parametrize("how", ["plain", "ensemble"])
@pytest.mark.parametrize("spec", [dict(), dict(lr=2e-3), dict(decay=0.), dict(decay=.1), dict(steps=199), dict(steps=201)])
def test_the_defaults_are_200_steps_of_adamw_at_1e3_with_decay_001(how, spec):
    examples, block = one_lesson()
    net = _to_network(block, 20)
    wanted = adamw_by_hand(net, bt_by_hand(examples.items), **dict(dict(steps=200, lr=1e-3, decay=.01, keep_best=True), **spec))
    if how == "plain": got = [p.detach() for p in fit_network(_to_network(block, 20), LEARNERS["bt"], examples).parameters()]
    else:
        data = make_trials("stochastic", [0])
        w = fit_many(data, generators("stochastic", [0], keys=["bt"]), 30, dtype=torch.float64).weights[0]
        got = [w[:20].T, w[20], w[21:22], w[22, :1]]
    far = max((a - b).abs().max().item() for a, b in zip(wanted, got))
    assert far < 1e-8 if not spec else far > 1e-5  # any other setting is noticed


@pytest.mark.parametrize("how", [fit_one_by_one, fit_many])
def test_weights_of_the_lowest_loss_are_kept(how):
    examples, block = one_lesson(n=50)
    data, wild = make_trials("stochastic", [0]), dict(learning_rate=.2, steps=6)  # the loss rises at the last step
    args = lambda: (data, generators("stochastic", [0], keys=["bt"]), 50)
    by_hand = {keep: adamw_by_hand(_to_network(block, 20), bt_by_hand(examples.items), 6, .2, .01, keep) for keep in (True, False)}
    assert max((a - b).abs().max() for a, b in zip(*by_hand.values())) > .01  # it matters here
    for keep, wanted in by_hand.items():
        w = how(*args(), training=TrainingSettings(keep_best=keep, **wild), dtype=torch.float64).weights[0]
        assert max((a - b).abs().max() for a, b in zip(wanted, (w[:20].T, w[20], w[21:22], w[22, :1]))) < 1e-8


# The losses, by a loop over rankings and positions.

def ranking_by_hand(d, time, stratum):
    total, count = 0., 0
    for s in set(stratum.tolist()):
        members = np.flatnonzero(stratum == s)
        if len(members) < 2: continue
        members = members[time[members].argsort(kind="stable")]
        for i, k in enumerate(members): total += math.log(sum(math.exp(d[j]) for j in members[i:]) + 1) - d[k]
        count += len(members)
    return total / count


@pytest.mark.parametrize("key", LEARNERS)
@pytest.mark.parametrize("dataset", ["deterministic_all", "drift_diffusion"])
def test_losses_by_hand(key, dataset):
    n, trials = 7, range(5)  # small, so that strata with one comparison occur
    data = make_trials(dataset, trials)
    training_sets = make_training_set(data, n, LEARNERS[key], fit_rngs(dataset, trials, key, 1.0, 42))
    assert any(np.bincount(s[:n]).min(initial=9, where=np.bincount(s[:n]) > 0) == 1 for s in data.stratum)
    time = data.time[:, :n]
    if LEARNERS[key].permuted: time = np.stack([t[r.permutation(n)] for t, r in zip(time, fit_rngs(dataset, trials, key, 1.0, 42))])
    d = torch.randn(5, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ensemble, _ = loss_slopes([LEARNERS[key]], [training_sets], torch.float64)(d)
    for i in trials:
        x = d[i].tolist()
        if key == "bt": wanted = np.mean([math.log1p(math.exp(-v)) for v in x])
        elif "regression" in key: wanted = np.mean([(v - (10 / t - 1)) ** 2 for v, t in zip(x, time[i])])
        else: wanted = ranking_by_hand(x, time[i], np.zeros(n, int) if key == "rr_pooled" else data.stratum[i, :n])
        plain = _learner_loss(d[i], LEARNERS[key], TrainingSet(*(a[i] for a in training_sets))).item()
        assert plain == pytest.approx(wanted, rel=1e-10) and ensemble[i].item() == pytest.approx(wanted, rel=1e-10)


def test_the_divisor_counts_comparisons_in_company_only():
    ranking = np.array([0, 0, 0, 1, 2])
    assert has_ranking_mate(ranking).tolist() == [True] * 3 + [False] * 2
    examples = TrainingSet(np.zeros((5, 2, 20)), np.arange(5.), ranking, np.zeros(5))
    wanted = (math.log(4) + math.log(3) + math.log(2)) / 3
    assert _learner_loss(torch.zeros(5).double(), LEARNERS["rr"], examples).item() == pytest.approx(wanted, rel=1e-12)
    assert wanted != pytest.approx((math.log(4) + math.log(3) + 3 * math.log(2)) / 5)


def test_permutations_stay_among_the_training_rows_and_are_drawn_per_fit():
    data, seen = make_trials("stochastic", [0, 1]), set()
    for size in (.5, 1.0):
        n = rows_at_size(size, TrialSettings())
        for key in ("rr_perm", "rt_regression_perm"):
            for seed in (0, 1):
                t = make_training_set(data, n, LEARNERS[key], fit_rngs("stochastic", [0, 1], key, size, seed))
                assert (np.sort(t.rank) == np.sort(data.time[:, :n])).all()
                assert (t.ranking == data.stratum[:, :n]).all()
                seen.add(tuple(t.rank[0].argsort()[:10]))
    assert len(seen) == 8


def test_first_rows_are_used_and_the_chosen_item_comes_first():
    data = make_trials("drift_diffusion", range(3))
    t = make_training_set(data, 25, LEARNERS["rr"], [None] * 3)
    assert (t.rank == data.time[:, :25]).all()
    for i in range(3):
        for j in range(25): assert (t.items[i, j, 0] == data.items[i, j, 0 if data.first[i, j] else 1]).all()


def test_initial_weights_are_pytorchs_and_independent():
    w = initial_weights([np.random.default_rng(s) for s in range(50)], 20, 64)
    assert w.shape == (50, 24, 64) and (w[:, 22, 1:] == 0).all() and (w[:, 23] == 0).all()
    for part, fan_in in ((w[:, :21], 20), (w[:, 21:22], 64), (w[:, 22, 0], 64)):
        x = part.ravel() * fan_in**.5
        assert np.abs(x).max() <= 1 and abs(x.var() - 1 / 3) < 6 / x.size**.5
    same = {k: initial_weights(r, 20, 64).tobytes() for k, r in generators("stochastic", [0]).items()}
    assert len(set(same.values())) == len(LEARNERS)


# The ensemble.

@pytest.mark.parametrize("n", [25, _SCAN_FROM + 10])
def test_slopes_are_the_gradients_of_the_plain_losses(n):
    learners = [*LEARNERS.values(), Learner("", "rank", ranking_size=3), Learner("", "rank", ties="breslow"), Learner("", "rank", rank_weight=.3)]
    data = make_trials("stochastic", range(2), settings=TrialSettings(train=n, test=0, resolution=1.))
    training_sets = [make_training_set(data, n, l, [np.random.default_rng(s) for s in range(2)]) for l in learners]
    d = (4 * torch.randn(2 * len(learners), n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).requires_grad_()
    plain = torch.stack([_learner_loss(d[2 * i + j], l, TrainingSet(*(x[j] for x in t))) for i, (l, t) in enumerate(zip(learners, training_sets)) for j in range(2)])
    loss, slope = loss_slopes(learners, training_sets, torch.float64)(d.detach())
    assert torch.allclose(loss, plain.detach(), rtol=1e-10) and torch.allclose(slope, torch.autograd.grad(plain.sum(), d)[0], atol=1e-10)


@pytest.mark.parametrize("scale", [0., 10., 1e4])
def test_large_differences_stay_finite(scale):
    data = make_trials("stochastic", range(2))
    training_sets = [make_training_set(data, 50, LEARNERS[k], [np.random.default_rng(0)] * 2) for k in ("bt", "rr", "rr_pooled")]
    d = scale * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    loss, slope = loss_slopes([LEARNERS[k] for k in ("bt", "rr", "rr_pooled")], training_sets, torch.float32)(d)
    assert loss.isfinite().all() and slope.isfinite().all()
    if scale < 1e4:
        exact, _ = loss_slopes([LEARNERS[k] for k in ("bt", "rr", "rr_pooled")], training_sets, torch.float64)(d.double())
        assert torch.allclose(loss.double(), exact, rtol=1e-5)


@pytest.mark.parametrize("size", [.5, 1.0])
def test_ensemble_equals_single_models_in_double_precision(size):
    name, n = "stochastic_no_variability", rows_at_size(size, TrialSettings())
    data = make_trials(name, [0, 1])
    a = fit_many(data, generators(name, [0, 1], size), n, dtype=torch.float64)
    b = fit_one_by_one(data, generators(name, [0, 1], size), n, dtype=torch.float64)
    assert a.learners == b.learners and (a.weights - b.weights).abs().max() < 1e-8


def test_ensemble_measures_as_single_models_do_in_single_precision(root):
    slow = bool(os.environ.get("RESPONSERANK_SLOW"))  # 504 fits take minutes; without it, 24 of them and the saved ones
    fits = pd.concat([_compare_precisions(d, range(14 if slow else 2)) for d in (DATASETS if slow else ("deterministic_all", "drift_diffusion"))])
    saved = pd.read_csv(root / "results/synthetic/single_precision.csv")
    assert len(saved) == 6 * 6 * 14
    for table in (fits, saved):
        for k, most in (("accuracy", 2e-3), ("pdc", 1e-3)):
            gap = table[k] - table[k + "_plain"]
            assert gap.abs().mean() <= most and (len(table) < 500 or abs(gap.mean()) < 4 * gap.sem())
    same = fits.merge(saved, on=["dataset", "learner", "trial"], suffixes=("", "_saved"))
    assert len(same) == len(fits) and (same.pdc - same.pdc_saved).abs().mean() < 2e-3  # another processor rounds otherwise


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_subset_of_the_fits_has_the_same_numbers(dataset):
    keys = ["dataset", "learner", "size", "trial"]
    whole = fit_chunk(dataset, range(5), sizes=(.6, .9)).set_index(keys)
    for trials, learners, sizes in (([3], ["rr"], (.9,)), ([0, 4], ["rt_regression", "rr_perm"], (.6,)), (range(1, 4), ["bt", "rr_pooled"], (.6, .9))):
        part = fit_chunk(dataset, trials, learners, sizes).set_index(keys)
        assert part.equals(whole.loc[part.index])


def test_predictions_are_the_networks():
    data = make_trials("stochastic", [2])
    fitted = fit_many(data, generators("stochastic", [2], keys=["rr"]), 50, training=TrainingSettings(steps=5))
    net = _to_network(fitted.weights[0], 20)
    x = np.where(data.first[0, 50:, None, None], data.items[0, 50:], data.items[0, 50:, ::-1])
    with torch.no_grad(): u = net(torch.tensor(x).float())[..., 0]
    assert np.allclose(fitted.predict(50)[0, 0], u[:, 0] - u[:, 1], atol=1e-6)
    assert design_matrix(x[None], 24, torch.float32).shape == (1, 400, 24) and predict_differences(design_matrix(x[None], 24, torch.float32), fitted.weights, 20).shape == (1, 200)


def test_steps_can_be_zero_and_then_nothing_is_learnt():
    data = make_trials("stochastic", [2])
    fitted = fit_many(data, generators("stochastic", [2], keys=["rr"]), 50, training=TrainingSettings(steps=0))
    assert torch.equal(fitted.weights.double(), torch.tensor(initial_weights(fit_rngs("stochastic", [2], "rr", 1.0, 42), 20, 64)).float().double())


@pytest.mark.parametrize("call, says", [
    (lambda: fit_chunk("stochastic", [0], ["rrr"]), "unknown learner 'rrr'; did you mean rr"),
    (lambda: fit_chunk("stochastic", [0], ["rr"], (1.2,)), "size 1.2 of 50 training comparisons"),
    (lambda: fit_chunk("stochastic", [0], ["rr"], (.02,)), "leave at least 2 comparisons"),
    (lambda: fit_chunk("stochastic", range(9), ["rr"], (.04,)), "data set stochastic, size 0.04, among trials 0 to 8: no ranking has two comparisons"),
])
def test_bad_requests_are_refused(call, says):
    with pytest.raises(UserError) as e: call()
    assert says in str(e.value) and "\n" not in str(e.value)
