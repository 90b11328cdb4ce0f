"""The ranking loss against vectors, a plain loop, finite differences, and bad input."""
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from responserank.rankings import arrange, bradley_terry_loss, ordered_terms, preference_loss, ranking_loss, linear_recurrence, tied_with_next

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
GEN = torch.Generator()


def plain_terms(d, rank, ids, ties="arbitrary"):
    "Terms in the order of the rows, one comparison at a time, in float64."
    terms = [None] * len(d)
    for r in set(ids.tolist()):
        rows = sorted((i for i in range(len(d)) if ids[i] == r), key=lambda i: (rank[i].item(), i))
        for k, i in enumerate(rows):
            tail = rows[k:] if ties == "arbitrary" else [j for j in rows if rank[j] >= rank[i]]
            terms[i] = torch.logsumexp(torch.cat([d[tail], d.new_zeros(1)]), 0) - d[i]
    return torch.stack(terms)


def problem(seed, ties=False):
    "A random batch: heavy-tailed ranking sizes, arbitrary ranking numbers, negative and fractional ranks."
    gen = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 40, (), generator=gen))
    d = (10 ** (2 * torch.rand((), generator=gen)) * torch.randn(n, generator=gen, dtype=torch.float64)).requires_grad_()
    rank = torch.randint(-3, 4, (n,), generator=gen).double() / 3 if ties else torch.randn(n, generator=gen, dtype=torch.float64)
    ids = 10**12 - (10 * torch.rand(n, generator=gen) ** 3).long()
    return d, rank, ids


def close(a, b, rtol): torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_vectors(shared, device, dtype, tol):
    cases = json.loads((shared / "reference/vectors.json").read_text())["ranking_loss"]
    assert len(cases) >= 9
    for case in cases:
        d = torch.tensor(case["diff"], dtype=dtype, device=device, requires_grad=True)
        loss = ranking_loss(d, case["rank"], case["ranking_id"], reduction="sum")
        loss.backward()
        assert loss.item() == pytest.approx(case["loss_sum"], rel=tol, abs=tol)
        np.testing.assert_allclose(d.grad.cpu().double(), case["grad"], rtol=tol, atol=tol)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("ties", ["error", "arbitrary", "breslow"])
def test_equals_plain_loop(seed, ties):
    d, rank, ids = problem(seed, ties=ties != "error")
    ours, plain = ranking_loss(d, rank, ids, ties=ties, reduction="none"), plain_terms(d, rank, ids, "breslow" if ties == "breslow" else "arbitrary")
    close(ours, plain, 1e-12)
    weight = torch.randn(len(d), generator=GEN.manual_seed(seed), dtype=torch.float64)
    close(*(torch.autograd.grad((x * weight).sum(), d)[0] for x in (ours, plain)), 1e-10)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", ["arbitrary", "breslow"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_first_and_second_derivatives(seed, ties, reduction):
    gen = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 12, (), generator=gen))
    d = (2 * torch.randn(2, n, generator=gen, dtype=torch.float64)).requires_grad_()
    rank, ids = torch.randint(0, 6, (2, n) if seed % 2 else (n,), generator=gen), torch.randint(0, 3, (n,), generator=gen)
    def f(d): return ranking_loss(d, rank, ids, ties=ties, reduction=reduction)
    assert torch.autograd.gradcheck(f, (d,)) and torch.autograd.gradgradcheck(f, (d,))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["one", "few", "alone"])
def test_extremes(device, dtype, shape):
    "|d| up to 1e3, spread over the whole range: value and gradient as in float64."
    gen, n = torch.Generator().manual_seed(3), 200
    d = (torch.linspace(-1000, 1000, n)[torch.randperm(n, generator=gen)]).to(device, dtype).requires_grad_()
    rank = torch.randperm(n, generator=gen)
    ids = {"one": torch.zeros(n), "few": torch.randint(0, 9, (n,), generator=gen), "alone": torch.arange(n)}[shape]
    exact = d.detach().double().requires_grad_()
    got, want = (ranking_loss(x, rank, ids, reduction="none") for x in (d, exact))
    assert got.dtype == torch.float32 and got.isfinite().all()
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-30)
    got.sum().backward(), want.sum().backward()
    assert d.grad.dtype == dtype and d.grad.isfinite().all()
    torch.testing.assert_close(d.grad.double(), exact.grad, rtol=5e-5 if dtype == torch.float32 else 1e-2, atol=1e-7)


def test_confident_model_keeps_a_gradient():
    d = torch.tensor([40.0, 30.0], requires_grad=True)
    ranking_loss(d, [0, 0], [0, 1], reduction="sum").backward()
    np.testing.assert_allclose(d.grad, [-math.exp(-40), -math.exp(-30)], rtol=1e-5)


@pytest.mark.parametrize("sizes", [[1], [1] * 50, [300], [1, 300, 1, 2, 299, 1], list(range(1, 30))])
def test_any_mixture_of_sizes(sizes):
    gen, n = torch.Generator().manual_seed(1), sum(sizes)
    mix = torch.randperm(n, generator=gen)
    d, rank, ids = torch.randn(n, generator=gen, dtype=torch.float64), torch.randperm(n, generator=gen), torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[mix]
    close(ranking_loss(d, rank, ids, reduction="none"), plain_terms(d, rank, ids), 1e-12)


def test_broadcasting():
    gen = torch.Generator().manual_seed(0)
    d = torch.randn(4, 30, generator=gen, dtype=torch.float64, requires_grad=True)
    ranks = torch.stack([torch.randperm(30, generator=gen) for _ in range(4)])
    ids = torch.randint(0, 6, (4, 30), generator=gen)
    for r, i in ((ranks[0], ids[0]), (ranks, ids[0]), (ranks[0], ids), (ranks, ids), (ranks[:1], ids[:1]), (ranks, None)):
        rows = [(r if r.ndim == 1 else r[min(k, len(r) - 1)], i if i is None or i.ndim == 1 else i[min(k, len(i) - 1)]) for k in range(4)]
        together = ranking_loss(d, r, i)
        apart = torch.stack([ranking_loss(x, *row) for x, row in zip(d, rows)])
        assert together.shape == (4,)
        close(together, apart, 1e-12)
        close(*(torch.autograd.grad(x.square().sum(), d)[0] for x in (together, apart)), 1e-12)
        assert ranking_loss(d, r, i, reduction="none").shape == (4, 30)
    assert ranking_loss(d.view(2, 2, 30), ranks.view(2, 2, 30)).shape == (2, 2)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, pd.Series, lambda x: pd.Series(x, index=range(5, 5 + len(x)))])
def test_input_kinds(kind):
    loss = preference_loss(kind([1.0, 0.5, -2.0]), kind([3, 1, 2]), kind([0, 0, 1]), rank_weight=0.5, target=kind([1.0, 0.9, 0.8]))
    want = preference_loss(torch.tensor([1, 0.5, -2]).double(), torch.tensor([3, 1, 2]), torch.tensor([0, 0, 1]), rank_weight=0.5,
                           target=torch.tensor([1, 0.9, 0.8]).double())
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)


def test_reductions_agree():
    d, rank, ids = problem(11)
    for f in (lambda r: ranking_loss(d, rank, ids, reduction=r), lambda r: bradley_terry_loss(d, 0.7, reduction=r),
              lambda r: preference_loss(d, rank, ids, rank_weight=0.3, reduction=r)):
        close(f("none").sum(), f("sum"), 1e-12), close(f("mean") * len(d), f("sum"), 1e-12)


def test_missing_ranks_are_bradley_terry():
    d = torch.tensor([2.0, -1.0, 0.5])
    terms = ranking_loss(d, [math.nan, 1, math.nan], [0, 1, 2], reduction="none")
    torch.testing.assert_close(terms, bradley_terry_loss(d, reduction="none"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_other_device():
    "Ranks may live elsewhere than differences, in both directions."
    d, rank, ids = problem(9)
    want = ranking_loss(d, rank, ids)
    for a, b in (("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")):
        got = ranking_loss(d.detach().to(a), rank.to(b), ids.to(b))
        assert got.device.type == a and got.item() == pytest.approx(want.item(), rel=1e-12)


def test_ties():
    assert tied_with_next(np.array([0.3, 0.1 + 0.2, 1e9, 1e9 + 0.5, np.inf, np.inf, np.nan, np.nan])).tolist() == [True, False, True, False, True, False, False]
    d, rank = [0.0, 3.0, 1.0], [0.3, 0.1 + 0.2, 0.2]
    a, b = arrange(rank, ties="arbitrary"), arrange(rank[1::-1] + rank[2:], ties="arbitrary")
    assert a.order.tolist() == b.order.tolist() == [2, 0, 1]  # by position, whichever is a rounding error smaller
    shuffled = [2, 0, 1]
    breslow = ranking_loss(d, rank, ties="breslow"), ranking_loss([d[i] for i in shuffled], [rank[i] for i in shuffled], ties="breslow")
    assert breslow[0].item() == pytest.approx(breslow[1].item(), rel=1e-14)


BAD = [
    ({"rank": [1, 1, 2]}, "ranking 0: comparisons 0 and 1 are tied, with ranks 1 and 1"),
    ({"rank": [1, 2, 2], "ranking_id": [5, 7, 7]}, "ranking 7: comparisons 1 and 2 are tied"),
    ({"rank": [[1, 2, 3], [1, 2, 2]], "diff": torch.zeros(2, 3)}, "ranking 0 of model 1: comparisons 1 and 2 are tied"),
    ({"rank": [1, math.nan, 2]}, "ranking 0: comparison 1 has no rank (NaN); it must be alone"),
    ({"rank": [math.nan] * 3, "ranking_id": [3, 4, 4]}, "ranking 4: comparison 2 has no rank"),
    ({"rank": [1, math.nan, 2], "ties": "breslow"}, "has no rank"),
    ({"rank": [1, 2]}, "rank of shape (2,) does not fit differences of shape (3,)"),
    ({"rank": [1]}, "rank of shape (1,) does not fit"),
    ({"rank": np.arange(6).reshape(2, 3)}, "rank of shape (2, 3) does not fit differences of shape (3,)"),
    ({"rank": [1, 2, 3], "ranking_id": [0, 0]}, "must have one entry per comparison"),
    ({"rank": [1, 2, 3], "ranking_id": [0, 0.5, 1]}, "ranking_id must be integers"),
    ({"rank": [1, 2, 3], "ranking_id": [0, math.nan, 1]}, "ranking_id must be integers"),
    ({"rank": ["a", "b", "c"]}, "rank must be a column of numbers"),
    ({"rank": [[1, 2], [3]]}, "rank must be a column of numbers"),
    ({"rank": []}, "rank must hold at least one comparison"),
    ({"rank": 2.0}, "rank must hold at least one comparison"),
    ({"diff": []}, "diff must hold at least one comparison"),
    ({"diff": 1.0}, "diff must hold at least one comparison"),
    ({"diff": "abc"}, "diff must be a column of numbers"),
    ({"ties": "efron"}, "ties must be 'error', 'arbitrary' or 'breslow', not 'efron'"),
    ({"reduction": "max"}, "reduction must be 'mean', 'sum' or 'none', not 'max'"),
    ({"rank_weight": 1.5}, "rank_weight must be between 0 and 1, not 1.5"),
    ({"rank_weight": math.nan}, "rank_weight must be between 0 and 1, not nan"),
    ({"rank_weight": 0.5, "target": [1, 1]}, "target of shape (2,) does not fit"),
    ({"rank_weight": 0.5, "target": [1, 1, 1.2]}, "target must be between 0 and 1"),
    ({"rank_weight": 0.5, "target": math.nan}, "target must be between 0 and 1"),
    ({"rank_weight": 0.5, "label_smoothing": -0.1}, "label_smoothing must be between 0 and 1, not -0.1"),
]


@pytest.mark.parametrize("change, message", BAD, ids=[m for _, m in BAD])
def test_bad_input(change, message):
    with pytest.raises(ValueError) as error: preference_loss(**({"diff": [1.0, 2.0, 3.0], "rank": [1, 2, 3]} | change))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_scan_adjoint():
    "Walking the other way is the transpose."
    gen = torch.Generator().manual_seed(0)
    x, y, link = torch.rand(3, 37, generator=gen), torch.rand(3, 37, generator=gen), torch.rand(3, 36, generator=gen)
    torch.testing.assert_close((y * linear_recurrence(x, link, 6)).sum(), (x * linear_recurrence(y, link, 6, forward=True)).sum())


def test_line_terms_weighs_terms():
    d, rank, ids = problem(5)
    line, weight = arrange(rank, ids), torch.rand(len(d), generator=GEN.manual_seed(0), dtype=torch.float64)
    terms, push = ordered_terms(d[line.order], line, weight)
    want, = torch.autograd.grad((ranking_loss(d, line, reduction="none")[line.order] * weight).sum(), d)
    assert not push.requires_grad and not terms.requires_grad
    close(push, want[line.order], 1e-12)


def test_bradley_terry_is_exact_far_out():
    d = torch.tensor([1e3, -1e3, 30.0, -30.0])
    torch.testing.assert_close(bradley_terry_loss(d, reduction="none"), torch.tensor([0, 1e3, math.exp(-30), 30.0]), rtol=1e-6, atol=0)
    assert bradley_terry_loss(d, 0.5).isfinite()


def test_memory_is_linear_in_comparisons():
    "One giant ranking beside many singletons: a padded layout would need n² / 4 entries, 8 GB here."
    n = 2**16
    d, ids = torch.randn(n, generator=GEN.manual_seed(0), requires_grad=True), torch.arange(n).clamp(min=n // 2)
    ranking_loss(d, torch.arange(n), ids).backward()
    assert d.grad.isfinite().all()


def test_compiles():
    "The arranged loss in one graph; the loss from raw ranks with a break at the check, whose errors stay readable."
    d, rank, ids = (x.float() if x.is_floating_point() else x for x in problem(7))
    d = d.detach().requires_grad_()
    line = arrange(rank, ids)
    for f, full in ((lambda d: ranking_loss(d, line), True), (lambda d: preference_loss(d, rank, ids, rank_weight=0.5), False)):
        loss, plain = torch.compile(f, fullgraph=full, backend="aot_eager")(d), f(d)
        torch.testing.assert_close(loss, plain)
        torch.testing.assert_close(*(torch.autograd.grad(x, d)[0] for x in (loss, plain)))
    with pytest.raises(ValueError, match="are tied"): torch.compile(ranking_loss, backend="aot_eager")(torch.zeros(3), torch.ones(3))
