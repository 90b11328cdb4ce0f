"""A signal, a stratification and a loss from outside the package: one function and one row each, and they train."""
import json

import numpy as np
import pandas as pd
import pytest
import torch

from small import SHAPE
from responserank.llm.methods import LOSSES, resolve_settings
from responserank.llm.preferences import SIGNALS
from responserank.llm.trainer import train
from responserank.settings import UserError

SMALL = SHAPE | dict(batch_size=16, epochs=1)


@pytest.fixture
def frame(tmp_path):
    """Sixty ranked pairs of four people."""
    g = np.random.default_rng(0)
    return pd.DataFrame([dict(prompt=f"question {i}", chosen="yes " * int(g.integers(3, 12)), rejected="no " * int(g.integers(1, 12)),
                              strength=float(g.random()), annotator=f"w{i % 4}") for i in range(60)])


@pytest.fixture
def go(frame, tmp_path):
    """Train on that frame for one epoch."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in frame.to_dict("records")))
    return lambda method="rr", **changes: train(method, data=str(path), overrides=SMALL | changes)


def by_length_difference(table, settings):
    "Rank by the difference of the lengths."
    return -(table["completion_a"].map(len) - table["completion_b"].map(len)).abs().to_numpy(float)


def squared_loss(diff, batch, settings):
    "Sum the squared distance of each difference from 1."
    return ((diff - 1) ** 2).sum()


def said(result, step):
    return next(s for s in result.metrics["data_report"]["steps"] if s["step"] == step)


def test_a_signal_is_one_function_and_one_row(go, monkeypatch):
    monkeypatch.setitem(SIGNALS, "length_difference", by_length_difference)
    result = go(strength="length_difference")
    assert said(result, "signal")["strength"] == result.metrics["settings"]["strength"] == "length_difference"
    assert said(result, "signal")["distinct"] > 2 and np.isfinite(result.curve.loss.dropna()).all()


def test_a_signal_may_be_passed_as_a_function(go, monkeypatch):
    monkeypatch.setattr("responserank.llm.preferences.SIGNALS", dict(SIGNALS))
    assert said(go(strength=by_length_difference), "signal")["strength"] == "by_length_difference"


def test_a_loss_is_one_function_and_one_row(go, monkeypatch):
    monkeypatch.setitem(LOSSES, "squared", squared_loss)
    result = go(loss="squared")
    start = result.curve.loss.iloc[0]
    assert result.metrics["settings"]["loss"] == "squared" and start == pytest.approx(1, abs=0.2)  # the first differences are near 0
    assert go("bt", loss=squared_loss, strength="given").metrics["settings"]["loss"] == "squared_loss"
    LOSSES.pop("squared_loss")


def test_rows_of_the_package_stay_its_own():
    def agreement(table, settings): return table["rank"]
    with pytest.raises(UserError, match="'agreement' is a row already"): resolve_settings("rr_agree", overrides=dict(strength=agreement))
    with pytest.raises(UserError, match="give the function a name"): resolve_settings("rr_agree", overrides=dict(loss=lambda d, b, s: d.sum()))
    assert SIGNALS["agreement"].__module__ == "responserank.llm.preferences"
    assert torch.isfinite(LOSSES["rank"](torch.zeros(2), dict(rank=torch.arange(2.), ranking_id=torch.zeros(2, dtype=int), target=torch.ones(2)),
                                         resolve_settings("rr")))
