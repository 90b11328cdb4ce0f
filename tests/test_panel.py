"""The panel of losses in training: every row on one file of votes, limit cases end to end, and the parameters of a loss."""
import contextlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import TrainerCallback

from small import small
from responserank.llm import trainer as T
from responserank.llm.methods import LOSSES, PANEL_LOSSES, resolve_settings
from responserank.llm.models import load_classifier
from responserank.llm.strength import load_loss_parameters
from responserank.runs import Interrupted
from responserank.settings import UserError
from responserank.strength_losses import STRENGTH_LOSSES, symmetric_thresholds

pytestmark = pytest.mark.filterwarnings("ignore:.*its tokenizer has no chat template")
PANEL = ("bt", "bt_soft", "bt_scaled", "bt_margin", "ordinal", "bt_ties", "regression", "orthogonal", "rr", "rr_light")
SMALL = small(max_length=48, batch_size=8, gradient_accumulation_steps=2)


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    """What a run says of its surroundings takes longer than the run."""
    monkeypatch.setattr(T, "library_versions", dict)
    monkeypatch.setattr(T, "git_state", lambda: dict(commit=None, dirty=None, diff=None))


def votes(n=50, seed=0, people=3):
    """Three people's votes and times; more good words win, the more the clearer and the quicker; some votes are ties."""
    r, rows = np.random.default_rng(seed), []
    for i in range(n):
        a, b = sorted(r.permutation(9)[:2], reverse=True)
        for p in range(people):
            d = .6 * (a - b)
            word = r.choice(["A", "equal", "B"], p=[.85 / (1 + np.exp(-d)), .15, .85 / (1 + np.exp(d))])
            rows.append(dict(id=f"c{i}", prompt=f"q{i}", completion_a="good " * int(a) + f"w{i}", completion_b="good " * int(b) + f"v{i}", preference=str(word),
                             annotator=f"p{p}", seconds=float(2 * np.exp(-.2 * d + .3 * r.normal()))))
    return rows


def ranked(n=50, **columns):
    """Ranked pairs with the columns that are named, functions of the row's number."""
    return [dict(prompt=f"q{i}", chosen="yes " * (2 + i % 5), rejected=f"no {i}") | {k: f(i) for k, f in columns.items()} for i in range(n)]


def go(tmp_path, method, rows, overrides="", **kwargs):
    if "epochs=" not in overrides: overrides += " epochs=1"
    return T.train_once(method, data=rows, out=tmp_path, wandb_mode="disabled", overrides=f"{SMALL} {overrides}", **kwargs)


def step(result, name): return next(s for s in result.metrics["data_report"]["steps"] if s["step"] == name)


def test_the_table_of_losses_has_the_panel():
    assert set(PANEL_LOSSES) == set(STRENGTH_LOSSES) - {"bt", "bt_soft", "rr", "rr_light"} == set(LOSSES) - {"bt", "rank"}


def test_every_row_trains_on_one_file(tmp_path):
    rows, result = votes(), {}
    for method in PANEL:
        r = result[method] = go(tmp_path, method, rows)
        assert np.isfinite(r.curve.loss.dropna()).all() and np.isfinite(r.predictions.predicted_diff).all(), method
        assert r.metrics["settings"]["method"] == method
    assert len({r.metrics["group"] for r in result.values()}) == 10
    assert len({r.curve.loss.iloc[0] for r in result.values()}) == 10  # ten losses
    drawn, kept = step(result["bt"], "draw"), step(result["bt_ties"], "draw")
    assert drawn["ties_dropped"] == kept["ties_kept"] > 0 and kept["rows"] == drawn["rows"] + drawn["ties_dropped"]
    assert result["bt_ties"].metrics["data_report"]["train_examples"] == kept["rows"]
    weight = json.loads((result["rr_light"].folder / "metrics.json").read_text())["rank_weight"]
    lo, hi = weight["interval"]
    assert 0 <= lo <= weight["value"] <= hi <= 1 and "decides at this size" in weight["origin"]
    assert result["rr_light"].metrics["settings"]["rank_weight"] == "auto" and step(result["rr_light"], "rank_weight")["value"] == weight["value"]
    assert "rank_weight" not in result["rr"].metrics
    with pytest.raises(UserError, match="no response times"): go(tmp_path, "orthogonal", [{k: v for k, v in r.items() if k != "seconds"} for r in rows])


def test_limit_cases_are_bradley_terry(tmp_path, monkeypatch):
    """No margin, equal strengths, two categories, and no weight on ties: ν = e^−30, which stays there."""
    monkeypatch.setattr(T, "starting_parameters", lambda rows, settings, start=T.starting_parameters:
                        torch.full((1,), -30.) if settings.loss == "bt_ties" else start(rows, settings))
    bt = go(tmp_path, "bt", ranked(strength=lambda i: 1.))
    for method, strength, overrides in (("bt_margin", 0., ""), ("bt_scaled", 3., ""), ("ordinal", 1., ""), ("bt_ties", 1., "loss_learning_rate=0")):
        one = go(tmp_path, method, ranked(strength=lambda i: strength), overrides)
        np.testing.assert_allclose(one.curve.loss, bt.curve.loss, rtol=1e-6, err_msg=method)
        np.testing.assert_allclose(one.curve.grad_norm, bt.curve.grad_norm, rtol=1e-4, err_msg=method)
        np.testing.assert_allclose(one.predictions.predicted_diff, bt.predictions.predicted_diff, atol=1e-6, err_msg=method)


def test_a_scale_multiplies_strengths():
    d, batch = torch.tensor([1., -1.]), dict(strength=torch.tensor([.5, 2.]))
    twice = LOSSES["bt_margin"](d, batch, resolve_settings("bt_margin", overrides="loss_scale=2"))
    torch.testing.assert_close(twice, LOSSES["bt_margin"](d, dict(strength=2 * batch["strength"]), resolve_settings("bt_margin")))


@pytest.mark.parametrize("method", ["ordinal", "bt_ties"])
def test_parameters_of_a_loss_are_learned_saved_and_taken_up_again(tmp_path, method):
    """The same in both scopes, no part of the model, and where training goes on from a saved model it goes on from them."""
    rows = votes()
    micro, step_scope = (go(tmp_path / s, method, rows, f"loss_scope={s} loss_learning_rate=0.1", save_model=True) for s in ("micro_batch", "step"))
    np.testing.assert_allclose(micro.curve.loss, step_scope.curve.loss, rtol=1e-5)
    saved = load_loss_parameters(micro.folder)[method]
    assert saved.dtype == torch.float32 and (saved != 0).all() and micro.metrics["train"]["loss_parameters"] == saved.tolist()
    torch.testing.assert_close(saved, load_loss_parameters(step_scope.folder)[method], rtol=1e-3, atol=1e-5)
    if method == "ordinal": assert (symmetric_thresholds(saved).diff() > 0).all()
    if method == "bt_ties": return
    model, tokenizer = load_classifier(micro.folder)
    texts = [("q", "good good"), ("q", "bad")]
    before = micro.score(texts)
    np.testing.assert_allclose(T.score_texts(model, tokenizer, texts), before, atol=1e-6)
    more = go(tmp_path / "more", method, rows, f"model={micro.folder / 'model'} learning_rate=1e-9 loss_learning_rate=0")
    assert more.metrics["train"]["loss_parameters"] == saved.tolist()
    other = ranked(strength=lambda i: float(i % 2))
    with pytest.raises(UserError, match="as many categories"): go(tmp_path / "other", method, other, f"model={micro.folder / 'model'}")


class Stop(TrainerCallback):
    """End the run at a step, as a signal would."""
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3: raise Interrupted("stopped by SIGTERM")


def test_a_stopped_run_goes_on_with_the_parameters_of_its_loss(tmp_path, monkeypatch):
    rows, overrides = votes(), "epochs=2 loss_learning_rate=0.1 checkpoint_steps=2"
    whole = go(tmp_path / "whole", "ordinal", rows, overrides)
    @contextlib.contextmanager
    def log(*args, **kwargs): yield [Stop()]
    with monkeypatch.context() as m:
        m.setattr(T, "_wandb_log", log)
        with pytest.raises(Interrupted): go(tmp_path / "cut", "ordinal", rows, overrides)
    again = go(tmp_path / "cut", "ordinal", rows, overrides)
    assert again.metrics["train"]["continued_from"] == 2
    pd.testing.assert_frame_equal(again.curve, whole.curve, check_exact=True)
    assert again.metrics["train"]["loss_parameters"] == whole.metrics["train"]["loss_parameters"]


@pytest.mark.parametrize("method, rows, says", [
    ("bt_scaled", ranked(), "no signal of strength"),
    ("bt_margin", ranked(), "no signal of strength"),
    ("bt_scaled", ranked(strength=lambda i: 0.), "all strengths are 0"),
    ("orthogonal", ranked(strength=lambda i: 1. + i), "no response times"),
    ("orthogonal", ranked(20, response_time=lambda i: 1. + i), "too few for a first estimate"),
    ("bt_soft", ranked(strength=lambda i: 1. + i), "no votes to make it from"),
    ("rr_light", ranked(strength=lambda i: 1.), "ranks are tied"),
])
def test_data_that_lack_what_a_loss_reads_are_refused(tmp_path, method, rows, says):
    with pytest.raises(UserError, match=says) as e: go(tmp_path, method, rows, dry_run=True)
    assert "\n" not in str(e.value)


def test_margins_of_another_shape_are_refused():
    settings = resolve_settings("bt_margin")
    with pytest.raises(ValueError, match="does not fit"): LOSSES["bt_margin"](torch.zeros(4, 1), dict(strength=torch.ones(4)), settings)
    assert LOSSES["bt_margin"](torch.zeros(4), dict(strength=torch.ones(4)), settings).shape == ()
