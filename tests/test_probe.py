"""Small heads, the estimate of the rank weight, and the probe."""
import functools
import html
import json
import shlex

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from responserank import probing as P
from responserank.cli import main

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
    p = np.array([signal_p(d, r.random(300), r.integers(0, 20, 300)) for _ in range(400)])
    assert (p < .01).mean() < .025 and .43 < (p < .5).mean() < .57


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


def test_probe_writes_its_files(tmp_path, two_losses):
    result = probe(write(tmp_path, ranked_pairs(150)), out=tmp_path / "out", sizes=(1.,))
    assert [v.says for v in result.verdicts] == ["signal"]
    saved = json.loads((tmp_path / "out/probe.json").read_text())
    page = (tmp_path / "out/probe.html").read_text()
    assert saved["verdicts"][0]["signal"] == "strength" and saved["facts"]["comparisons"] == 150
    assert "data:image/png" in page and "http" not in page.replace("data:image", "")
    assert "responserank train" in str(result)
    again = probe(tmp_path / "pairs.jsonl", sizes=(1.,))
    assert str(again) == str(result)


def without_strength(rows): return [{k: v for k, v in r.items() if k != "strength"} for r in rows]


def voted(n=40, people=3, words=("A", "A", "B"), seconds=lambda i, p, r: float(r.uniform(2, 9)), **more):
    """Votes of several people, one a row, in the order of `words`."""
    r = np.random.default_rng(0)
    return [dict(id=str(i), prompt=f"q{i}", completion_a="good " * (1 + i % 7), completion_b=f"bad {i}", annotator=f"p{p}", preference=words[(i + p) % len(words)]) |
            ({} if seconds is None else dict(seconds=seconds(i, p, r))) | more for i in range(n) for p in range(people)]


TIMES = without_strength(ranked_pairs(60, response_time=lambda i, r: float(r.random() + .1)))
REFUSED = { # rows or whatever else is probed, options, what the one line says
    "nothing": ([], {}, "no rows"),
    "no file": ("no/such/file.csv", {}, "no/such/file.csv"),
    "a number": (3, {}, "data of type int"),
    "other columns": ([dict(x=1, y=2)] * 40, {}, "say which column holds what"),
    "a typo": ([r | dict(strenght=r["strength"]) for r in without_strength([dict(r) for r in ranked_pairs(40)]) for r in [r | dict(strength=1.)]], {}, "strenght"),
    "words as strength": ([r | dict(strength="high") for r in ranked_pairs(40)], {}, "row 1"),
    "no strength in a row": ([r | dict(strength=None) if i == 7 else r for i, r in enumerate(ranked_pairs(40))], {}, "row 8"),
    "an infinite strength": ([r | dict(strength=float("inf")) if i == 3 else r for i, r in enumerate(ranked_pairs(40))], {}, "row 4"),
    "an empty answer": ([r | dict(rejected="") if i == 5 else r for i, r in enumerate(ranked_pairs(40))], {}, "row 6"),
    "an unknown vote": (voted(words=("A", "left")), {}, "unknown preference 'left'"),
    "a negative time": ([r | dict(response_time=-1.) if i == 2 else r for i, r in enumerate(TIMES)], {}, "row 3"),
    "a date as time": ([r | dict(response_time="2024-05-01 10:00") for r in TIMES], {}, "is a date"),
    "milliseconds": ([r | dict(response_time=2000 + i) for i, r in enumerate(TIMES)], {}, "unit=ms"),
    "equal sides": ([r | dict(rejected=r["chosen"]) for r in ranked_pairs(40)], {}, "both sides of every row are equal"),
    "a mapping to nothing": (ranked_pairs(40), dict(columns="prompt=Question"), "Question"),
    "an unknown option": (ranked_pairs(40), dict(bad_rows="dropp"), "dropp"),
    "no encoder": (ranked_pairs(40), dict(encoder="no/such/encoder"), "encoder no/such/encoder: cannot be loaded"),
}
SAID = { # rows, options, what the report says
    "few": (ranked_pairs(29), {}, "29 comparisons with a choice are too few for a probe, which needs 30"),
    "one comparison": (ranked_pairs(1), {}, "1 comparisons with a choice are too few"),
    "ties only": (voted(words=("Tie",)), {}, "every vote is a tie"),
    "one prompt": ([r | dict(prompt="same") for r in ranked_pairs(60)], {}, "there is 1 prompt: pairs are held out instead"),
    "three topics": (ranked_pairs(60, topic=lambda i, r: f"t{i % 3}"), {}, "there are 3 topics: pairs are held out instead"),
    "one pair": ([dict(chosen="yes", rejected="no", strength=float(i)) for i in range(60)], {}, "1 different pairs are too few"),
    "constant": ([r | dict(strength=1.) for r in ranked_pairs(60)], {}, "'strength' is the same for all 60 comparisons"),
    "no signal": (without_strength(ranked_pairs(60)), {}, "no signal of strength: no votes of several people"),
    "no reference": (ranked_pairs(60), {}, "no votes: strengths can only be compared with held-out choices"),
    "one person": (ranked_pairs(60, annotator=lambda i, r: "Ann"), {}, "all judgements are of one person"),
    "one voter": (voted(40, people=1), {}, "all judgements are of one person"),
    "one vote a pair": ([r for r in voted(40, seconds=None) if r["annotator"] == f"p{int(r['id']) % 3}"], {}, "no signal of strength"),
    "people": (ranked_pairs(80, annotator=lambda i, r: f"p{i % 4}"), {}, "person × length"),
    "some equal sides": ([r | (dict(rejected=r["chosen"]) if i < 5 else {}) for i, r in enumerate(ranked_pairs(60))], {}, "with a choice 55"),
    "noise": (ranked_pairs(120, strength=lambda i, r: float(r.random())), {}, "Train Bradley–Terry"),
    "negative": (ranked_pairs(60, strength=lambda i, r: -float(i)), {}, "Train Bradley–Terry"),
    "huge": (ranked_pairs(60, strength=lambda i, r: 1e300 * float(r.random())), {}, "strength"),
    "nobody named": (TIMES, {}, "nobody is named"),
    "mixed units": ([r | dict(response_time=r["response_time"] * 1000 if i % 3 else r["response_time"]) for i, r in enumerate(TIMES)], dict(columns="unit=s"),
                    "are they in different units?"),
    "one class": (voted(words=("A",)), {}, "every vote is for the first text"),
    "times of a few": ([{k: v for k, v in r.items() if k != "seconds" or int(r["id"]) < 10} for r in voted()], {}, "'time' is known for 10 comparisons; 30 are needed"),
    "equal times": (voted(seconds=lambda i, p, r: 4.), {}, "'time' is known for 0 comparisons"),
    "two levels": (ranked_pairs(60, strength=lambda i, r: float(i % 2)), {}, "strength"),
    "a rank": (without_strength(ranked_pairs(60, rank=lambda i, r: float(i))), {}, "strength"),
    "strata": (ranked_pairs(60, stratum=lambda i, r: "ab"[i % 2]), {}, "column"),
    "contradictions": (ranked_pairs(40) + [r | dict(chosen=r["rejected"], rejected=r["chosen"]) for r in ranked_pairs(40)], {}, "with a choice 80"),
    "conversations": ([dict(strength=r["strength"], **{k: [dict(role="user", content=r["prompt"]), dict(role="assistant", content=r[k])] for k in ("chosen", "rejected")})
                       for r in ranked_pairs(40)], {}, "with a choice 40"),
    "odd letters": ([r | dict(chosen=r["chosen"] + " 你好 🙂\u2028") for r in ranked_pairs(40)], {}, "with a choice 40"),
    "one word of everything": ([dict(prompt=f"q{i}", chosen="a", rejected="b", strength=float(i)) for i in range(40)], {}, "texts 80"),
    "bad rows left out": ([r | dict(strength="high") if i < 5 else r for i, r in enumerate(ranked_pairs(60))], dict(bad_rows="drop"), "--bad-rows drop"),
    "mapped": ([dict(Question=r["prompt"], L=r["chosen"], R=r["rejected"], pick="left" if i % 4 else "same", who=f"p{i % 3}") for i, r in enumerate(ranked_pairs(60))],
               dict(columns="prompt=Question a=L b=R preference=pick annotator=who", values="left=A same=tie"), "--values 'left=A same=tie'"),
}


@pytest.fixture
def two_losses(monkeypatch):
    """A forecast of two losses says as much about odd inputs as one of seven."""
    monkeypatch.setattr(P, "PROBED_LOSSES", ("bt", "rr_light"))
    monkeypatch.setattr(P, "held_out_prediction", functools.partial(P.held_out_prediction, priors=(1., 30.)))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_a_line(name, tmp_path):
    data, options, says = REFUSED[name]
    with pytest.raises(UserError) as e: probe(data, out=tmp_path / "out", **options)
    assert says in str(e.value) and not (tmp_path / "out").exists()
    assert "\n" not in str(e.value) or "row" in says  # bad rows have a line each


@pytest.mark.parametrize("name", SAID)
def test_what_can_be_said_is_said_and_what_cannot_is_named(name, tmp_path, two_losses):
    rows, options, says = SAID[name]
    path, written = write(tmp_path, rows), name in ("few", "constant", "people")
    result = probe(path, sizes=(1.,), out=tmp_path if written else None, **options)
    assert says in " ".join(str(result).split()), str(result)
    assert "responserank train bt" in str(result) or result.verdicts
    if not written: return
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert saved["notes"] == result.notes and (tmp_path / "probe.png").exists() == bool(result.verdicts)
    page = (tmp_path / "probe.html").read_text()
    assert all(html.escape(note) in page for note in result.notes)


def test_there_are_forty_of_them(): assert len(REFUSED) + len(SAID) >= 40


FILES = dict(votes=voted(), pairs=ranked_pairs(40, annotator=lambda i, r: f"p{i % 4}", response_time=lambda i, r: float(r.uniform(1, 9)), stratum=lambda i, r: "ab"[i % 2]),
             prompts=[r | dict(prompt=f"q{int(r['prompt'][1:]) % 6}") for r in ranked_pairs(40)],
             stated=[dict(r, preference=w) for r, w in zip(voted(40, people=1, seconds=None), ["A-is-much-better", "A-is-slightly-better", "B-is-clearly-better"] * 20)])


@pytest.mark.parametrize("file, signal, losses, strata", [
    ("votes", "votes", ("bt_soft", "rr_light", "regression"), "none"), ("votes", "time", ("rr_light",), "none"),
    ("pairs", "strength", ("bt_scaled",), "column"), ("pairs", "time", ("rr", "ordinal"), "person"), ("pairs", "time", ("rr_light",), "person × length"),
    ("prompts", "strength", ("rr_light",), "prompt"), ("stated", "stated", ("rr_light",), "none")])
def test_the_command_of_a_verdict_runs_as_it_is_printed(file, signal, losses, strata, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").mkdir()
    given = signal if file != "pairs" else "strength"
    for loss in losses:
        command = train_command(loss, signal, .31, strata, str(write(tmp_path / "my data", FILES[file])), given)
        program, *words = shlex.split(command)
        done = CliRunner().invoke(main, [*words, "--dry-run", "--wandb-mode", "disabled"])
        assert program == "responserank" and done.exit_code == 0, (command, done.output)


def test_the_command_line_probes(tmp_path, two_losses, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [dict(Left=r["chosen"], Right=r["rejected"], Choice="left", Who=f"p{i % 3}") for i, r in enumerate(ranked_pairs(40))]
    words = ["--columns", "a=Left b=Right preference=Choice annotator=Who", "--values", "left=A"]
    done = CliRunner().invoke(main, ["probe", str(write(tmp_path, rows, "my votes.jsonl")), *words])
    assert done.exit_code == 0, done.output
    assert "columns: Left as a" in done.stderr and "comparisons 40" in done.stdout and "features" in done.stderr
    assert "--columns 'a=Left b=Right preference=Choice annotator=Who'" in done.stdout
    assert {p.name for p in (tmp_path / "runs/probe/my_votes").iterdir()} == {"probe.json", "probe.html"}
    done = CliRunner().invoke(main, ["probe", "no.csv"])
    assert done.exit_code == 2 and done.stderr.startswith("error: ") and "no.csv" in done.stderr


def test_data_in_memory_are_probed_and_their_command_is_a_call():
    frame = pd.DataFrame(ranked_pairs(20))
    result = probe(frame)
    assert result.plain == 'responserank.train("bt", data=…)' and result.facts["comparisons"] == 20
    assert str(probe(frame.to_dict("records"))) == str(result)


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
