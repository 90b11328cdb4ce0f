"""Small heads, the estimate of the rank weight, and the probe."""
import json

import numpy as np
import pytest
import torch

from responserank.llm.formats import read_preferences
from responserank.probing import needed_comparisons, paired_gains, probe, probe_table, train_command
from responserank.settings import UserError
from responserank.small_heads import (WEIGHT_PRIORS, assign_folds, cross_fit, estimate_rank_weight, fit_heads, item_differences, minimise, order_likelihood,
                                      signal_p, text_features, without)
from responserank.strength_losses import STRENGTH_LOSSES

torch.set_num_threads(1)


def choices(seed, n=600, items=25, noise=0.):
    """Choices by Bradley-Terry between items, with a rank that is the true distance and noise."""
    r = np.random.default_rng(seed)
    u = r.normal(size=items)
    pair = np.stack([r.permutation(items)[:2] for _ in range(n)])
    d = u[pair[:, 0]] - u[pair[:, 1]]
    right = r.random(n) < 1 / (1 + np.exp(-d))
    c, j = np.where(right, *pair.T), np.where(right, *pair.T[::-1])
    return u, torch.tensor(c), torch.tensor(j), -np.abs(d) * np.exp(noise * r.normal(size=n))


def test_minimise_agrees_with_newton():
    r = torch.Generator().manual_seed(0)
    a = torch.randn(4, 6, 6, generator=r, dtype=torch.float64)
    h, b = a @ a.mT + torch.eye(6), torch.randn(4, 6, generator=r, dtype=torch.float64)
    x, converged = minimise(lambda x: (x[:, None] @ h @ x[:, :, None])[:, 0, 0] / 2 - (b * x).sum(-1), torch.zeros(4, 6, dtype=torch.float64), tol=1e-9)
    assert converged.all()
    torch.testing.assert_close(x, torch.linalg.solve(h, b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["bt", "rr", "rr_light"])
def test_a_weight_of_zero_is_leaving_out(loss):
    u, c, j, rank = choices(0, 60)
    kept = torch.arange(60) < 40
    items, ids = torch.eye(25, dtype=torch.float64), np.arange(60) // 6
    batch = dict(rank=torch.tensor(rank).expand(1, -1), ranking_id=without(ids, kept[None]), rank_weight=.3)
    a = fit_heads(items, c, j, loss, batch, [1.], weight=kept.double()[None], tol=1e-9)
    fewer = dict(rank=torch.tensor(rank[:40]), ranking_id=torch.tensor(ids[:40]), rank_weight=.3)
    b = fit_heads(items, c[:40], j[:40], loss, fewer | dict(ranking_id=without(ids, kept[None])[0, :40]), [1.], tol=1e-9)
    torch.testing.assert_close(a.weights, b.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise, low, high", [(0., .6, 1.), (1., .2, .75), (50., 0., .2)])
def test_rank_weight_follows_the_noise(noise, low, high):
    u, c, j, rank = choices(3, 1000, noise=noise)
    d, _ = cross_fit(torch.eye(25, dtype=torch.float64), c, j, assign_folds(range(1000), 5, np.random.default_rng(0)))
    w = estimate_rank_weight(d, rank)
    assert low <= w.value <= high and w.lo <= w.value <= w.hi
    assert (w.p < .01) == (noise < 10)


def test_the_prior_decides_where_data_are_few():
    d, rank = np.zeros(40), np.arange(40.)
    for kind, prior in WEIGHT_PRIORS.items():
        w = estimate_rank_weight(d, rank, kind=kind)
        expected = (1 - prior.nothing - prior.anything) * prior.mean + prior.anything / 2
        assert w.value == pytest.approx(expected, abs=.01)
        assert w.p == 1


def test_false_alarms():
    r = np.random.default_rng(0)
    d = r.normal(size=300)
    p = np.array([signal_p(d, r.random(300), r.integers(0, 20, 300)) for _ in range(1000)])
    assert .002 < (p < .01).mean() < .022 and .45 < (p < .5).mean() < .55


def test_order_likelihood_against_a_loop():
    r = np.random.default_rng(1)
    d, rank, ids = r.normal(size=30), r.random(30), r.integers(0, 6, 30)
    total = 0.
    for k in range(6):
        x = .4 * d[ids == k][np.argsort(rank[ids == k])]
        total += sum(x[i] - np.logaddexp.reduce(x[i:]) for i in range(len(x)))
    assert order_likelihood(d, rank, ids, [.4])[0] == pytest.approx(total, abs=1e-10)


def test_text_features_are_the_same_twice():
    texts = [f"text number {i} about {'cats' if i % 2 else 'shares'}" for i in range(30)] + ["", "äöü 你好", "a\x00b"]
    x = text_features(texts, 10)
    assert np.isfinite(x).all() and (x == text_features(texts, 10)).all()


def write(folder, rows, name="pairs.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def ranked_pairs(n, seed=0, **columns):
    """Pairs in which longer lists of good words win, with a strength that is the difference."""
    r, rows = np.random.default_rng(seed), []
    for i in range(n):
        a, b = sorted(r.permutation(12)[:2], reverse=True)
        rows.append(dict(prompt=f"q{i}", chosen="good " * int(a) + f"w{i}", rejected="good " * int(b) + f"v{i}", strength=float(a - b)) |
                    {k: v(i, r) for k, v in columns.items()})
    return rows


def test_probe_writes_its_files(tmp_path):
    result = probe(write(tmp_path, ranked_pairs(150)), out=tmp_path / "out", sizes=(1.,))
    assert [v.says for v in result.verdicts] == ["signal"]
    saved = json.loads((tmp_path / "out/probe.json").read_text())
    page = (tmp_path / "out/probe.html").read_text()
    assert saved["verdicts"][0]["signal"] == "strength" and saved["facts"]["comparisons"] == 150
    assert "data:image/png" in page and "http" not in page.replace("data:image", "")
    assert "responserank train" in str(result)
    again = probe(tmp_path / "pairs.jsonl", sizes=(1.,))
    assert str(again) == str(result)


ODD = [ # what the rows are, the error, or what the report says
    ("few", ranked_pairs(29), "needs at least 30", None),
    ("one group", [r | dict(prompt="same", prompt_id="p") for r in ranked_pairs(60)], "groups (prompts, topics or pairs) to hold out", None),
    ("constant", [r | dict(strength=1.) for r in ranked_pairs(60)], None, "No strength signal in the file"),
    ("none", [{k: v for k, v in r.items() if k != "strength"} for r in ranked_pairs(60)], None, "No strength signal in the file"),
    ("one person", ranked_pairs(60, annotator=lambda i, r: "Ann"), None, "train"),
    ("people", ranked_pairs(80, annotator=lambda i, r: f"p{i % 4}"), None, "person"),
    ("equal sides", [r | (dict(rejected=r["chosen"]) if i < 5 else {}) for i, r in enumerate(ranked_pairs(60))], None, "with a choice 55"),
    ("noise", ranked_pairs(120, strength=lambda i, r: float(r.random())), None, "Train Bradley–Terry"),
    ("negative", ranked_pairs(60, strength=lambda i, r: -float(i)), None, "Train Bradley–Terry"),
    ("times", [{k: v for k, v in r.items() if k != "strength"} for r in ranked_pairs(60, response_time=lambda i, r: float(r.random() + .1))], None, "time"),
]


@pytest.mark.parametrize("rows, error, said", [o[1:] for o in ODD], ids=[o[0] for o in ODD])
def test_odd_files(tmp_path, rows, error, said):
    path = write(tmp_path, rows)
    if error:
        with pytest.raises(UserError) as e: probe(path)
        assert error in str(e.value) and "\n" not in str(e.value)
    else: assert said in str(probe(path, sizes=(1.,)))


def test_identical_pairs_share_a_group(tmp_path):
    rows = [dict(chosen=f"a{i // 2}", rejected=f"b{i // 2}") if i % 2 else dict(chosen=f"b{i // 2}", rejected=f"a{i // 2}") for i in range(80)]
    table, _ = probe_table(read_preferences(write(tmp_path, rows))[0])
    assert table.group.nunique() == 40


def test_paired_gains_see_a_difference():
    r = np.random.default_rng(0)
    good, bad = r.normal(1, 1, 800), r.normal(.2, 1, 800)
    t = paired_gains({("bt", 1.): bad[None], ("rr", 1.): good[None]}, np.full(800, np.nan), np.arange(800) // 4).set_index("loss")
    assert t.accuracy_lo["rr"] > 0 and t.accuracy_gain["bt"] == 0 and np.isnan(t.pdc["rr"])


def test_commands_and_numbers():
    assert train_command("bt", "strength", .3, "none", "f.csv") == "responserank train bt --data f.csv"
    assert needed_comparisons(.001, 100) < 200 and needed_comparisons(.9, 100) is None


def test_every_loss_can_be_fitted():
    u, c, j, rank = choices(5, 200)
    n, items = 200, torch.eye(25, dtype=torch.float64)
    batch = dict(target=.8, strength=1., mean_preference=.6, category=torch.arange(n) % 3 + 3, won=.7, tied=.2, rank=torch.tensor(rank), rank_weight=.2,
                 ranking_id=torch.arange(n) // 8, time=.8, nuisance=torch.zeros(n))
    for loss in STRENGTH_LOSSES:
        heads = fit_heads(items, c, j, loss, batch, [1., 10.], tol=1e-3)
        assert heads.converged.all(), loss
        d = item_differences(heads.weights, items, c, j)
        assert np.corrcoef(d[0], u[c] - u[j])[0, 1] > .5, loss
