"""The panel of losses: limits, extremes, and what it refuses."""
import numpy as np
import pytest
import torch

from responserank.rankings import bradley_terry_loss, preference_loss
from responserank.strength_losses import (STRENGTH_LOSSES, davidson_loss, expected_time, loss_terms, margin_loss, ordinal_loss, orthogonal_loss, regression_loss,
                                          scaled_loss, strength_categories, strength_from_rank, symmetric_thresholds)


def batch(n, dtype=torch.float32):
    """Every column that any loss reads."""
    gen = torch.Generator().manual_seed(n)
    u = lambda: torch.rand(n, generator=gen, dtype=torch.float64).to(dtype)
    return dict(target=u(), strength=2 * u(), mean_preference=2 * u() - 1, category=torch.arange(n) % 3 + 3, won=u() / 2, tied=u() / 2, rank=u(),
                ranking_id=torch.arange(n) % 4, rank_weight=.2, time=u(), nuisance=4 * u() - 2)


def extra(row, b): return row.extra(b) if row.extra else None


@pytest.mark.parametrize("name", STRENGTH_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_far_out(name, dtype):
    b = batch(6, dtype)
    d = torch.tensor([1e3, -1e3, 30, -30, 0, 1], dtype=dtype, requires_grad=True)
    terms = loss_terms(name, d, b, extra(STRENGTH_LOSSES[name], b))
    terms.sum().backward()
    assert terms.dtype == dtype and terms.isfinite().all() and d.grad.isfinite().all()


@pytest.mark.parametrize("name", STRENGTH_LOSSES)
def test_models_do_not_mix(name):
    b, d = batch(12), torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    together = loss_terms(name, d, b, extra(STRENGTH_LOSSES[name], b))
    alone = torch.stack([loss_terms(name, x, b, extra(STRENGTH_LOSSES[name], b)) for x in d])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", STRENGTH_LOSSES)
def test_gradients(name):
    b = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch(8).items()}
    d = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    own = [extra(STRENGTH_LOSSES[name], b).double().requires_grad_()] if STRENGTH_LOSSES[name].extra else []
    assert torch.autograd.gradcheck(lambda x, *e: loss_terms(name, x, b, *e), (d, *own))


def test_limits():
    d = torch.linspace(-5, 5, 11, dtype=torch.float64)
    bt = bradley_terry_loss(d, reduction="none")
    close = lambda x, y: torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
    close(margin_loss(d, 0., reduction="none"), bt)
    close(scaled_loss(d, torch.ones(11), "none"), bt)
    close(ordinal_loss(d, torch.ones(11), torch.zeros(1), "none"), bt)
    close(davidson_loss(d, -60., reduction="none"), bt)
    t = expected_time(d)
    close(orthogonal_loss(d + 1, t, d, "none"), (1 - (d + 1) * t) ** 2)
    rank, ids = torch.rand(11), torch.arange(11) // 3
    close(loss_terms("rr_light", d, dict(rank=rank, ranking_id=ids, rank_weight=.3)), preference_loss(d, rank, ids, rank_weight=.3, reduction="none"))


def test_probabilities_sum_to_one():
    d = torch.linspace(-4, 4, 9, dtype=torch.float64)
    cuts = symmetric_thresholds(torch.tensor([.2, -.5, .1], dtype=torch.float64))
    total = sum((-ordinal_loss(d, torch.full((9,), z), cuts, "none")).exp() for z in range(8))
    torch.testing.assert_close(total, torch.ones(9, dtype=torch.float64))
    parts = [davidson_loss(d, .3, won=w, tied=t, reduction="none") for w, t in ((1., 0.), (0., 1.), (0., 0.))]
    torch.testing.assert_close(sum((-p).exp() for p in parts), torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize("name", [n for n in STRENGTH_LOSSES if STRENGTH_LOSSES[n].reads])
def test_broadcasting_trap(name):
    b = batch(8)
    with pytest.raises(ValueError, match="does not fit differences of shape"):
        loss_terms(name, torch.zeros(8, 1), b, extra(STRENGTH_LOSSES[name], b))


BAD = [
    (lambda: margin_loss(torch.zeros(3), torch.zeros(3, 1)), "strength of shape (3, 1) does not fit"),
    (lambda: regression_loss(torch.zeros(2, 3), torch.zeros(2)), "mean_preference of shape (2,) does not fit"),
    (lambda: scaled_loss(torch.zeros(2, 3), torch.zeros(3, 3)), "strength of shape (3, 3) does not fit"),
    (lambda: scaled_loss(torch.zeros(0), 1.), "at least one comparison"),
    (lambda: scaled_loss(torch.zeros(2), 1., "max"), "reduction must be"),
    (lambda: ordinal_loss(torch.zeros(2), [0, 4], torch.tensor([-1., 1.])), "category must be a whole number from 0 to 2"),
    (lambda: loss_terms("bt_scaled", torch.zeros(2), {}), "needs the column strength"),
    (lambda: loss_terms("bt_scald", torch.zeros(2), {}), "unknown loss 'bt_scald'"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[m for _, m in BAD])
def test_refuses(call, message):
    with pytest.raises(ValueError) as e: call()
    assert message in str(e.value)


def test_strength_from_rank():
    r = np.random.default_rng(0)
    rank, stratum = r.random(50), r.integers(0, 4, 50)
    s = strength_from_rank(rank, stratum)
    assert s.mean() == pytest.approx(1) and (s > 0).all() and (s < 2).all()
    for k in range(4): assert (np.argsort(rank[stratum == k]) == np.argsort(-s[stratum == k])).all()
    assert np.bincount(strength_categories(r.random(1000))).tolist() == [200] * 5
