"""A run that was stopped goes on from its last whole checkpoint, and ends as if nothing had happened."""
import contextlib
import json
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from small import small
from transformers import TrainerCallback

from responserank.llm import trainer as T
from responserank.runs import Interrupted
from waiting import wait_for

SMALL = small(max_length=48, batch_size=8, gradient_accumulation_steps=2, redeal=True, ranking_size=4, dropout=.1)
# 80 rows: 5 steps an epoch, 3 epochs unless a test says otherwise


@pytest.fixture
def go(pairs, tmp_path):
    def run(out, overrides="", **kwargs):
        if "epochs=" not in overrides: overrides += " epochs=3"
        return T.train_once("rr", **dict(data=str(pairs), out=tmp_path / out, wandb_mode="disabled", overrides=f"{SMALL} {overrides}") | kwargs)
    return run


class Stop(TrainerCallback):
    """End the run at a step, as a signal would."""
    def __init__(self, step): self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step: raise Interrupted("stopped by SIGTERM")


def stopping(monkeypatch, step):
    @contextlib.contextmanager
    def log(*args, **kwargs): yield [Stop(step)]
    monkeypatch.setattr(T, "_wandb_log", log)


def same(one, two):
    for frame in ("curve", "predictions"): pd.testing.assert_frame_equal(getattr(one, frame), getattr(two, frame), check_exact=True)
    assert one.metrics["eval"] == two.metrics["eval"]
    assert [one.metrics["train"][k] for k in ("first_loss", "last_loss", "steps")] == [two.metrics["train"][k] for k in ("first_loss", "last_loss", "steps")]


@pytest.mark.parametrize("every, stop, begins, scope", [(2, 9, 8, "micro_batch"), (5, 12, 10, "micro_batch"), (3, 13, 12, "step")])
def test_a_stopped_run_goes_on(go, monkeypatch, every, stop, begins, scope):
    """Stopped within an epoch, after a checkpoint at an epoch's end, and in the step scope; rankings are dealt anew each epoch."""
    overrides = f"checkpoint_steps={every} loss_scope={scope}"
    whole = go("whole", f"loss_scope={scope}")
    with monkeypatch.context() as m:
        stopping(m, stop)
        with pytest.raises(Interrupted): go("cut", overrides)
    left, = (whole.folder.parents[3] / "cut").rglob("metrics.json")
    assert json.loads(left.read_text())["status"] == "interrupted"
    kept = left.parent / "checkpoints"
    assert sorted(p.name for p in kept.iterdir()) == [f"checkpoint-{begins}", "origin.json"]
    files = {p.name for p in (kept / f"checkpoint-{begins}").iterdir()}
    assert "model.safetensors" in files and not files & {"training_args.bin", "pytorch_model.bin"}
    (kept / ".writing/checkpoint-99").mkdir(parents=True)  # the process died while it wrote
    (kept / ".writing/checkpoint-99/model.safetensors").write_bytes(b"half")
    again = go("cut", overrides)
    assert again.metrics["train"]["continued_from"] == begins
    same(again, whole)
    assert not kept.exists() and again.metrics["group"] == whole.metrics["group"]


def test_lora_goes_on(go, monkeypatch):
    overrides = "checkpoint_steps=4 peft=lora lora_r=2 epochs=2"
    whole = go("whole", overrides)
    with monkeypatch.context() as m:
        stopping(m, 6)
        with pytest.raises(Interrupted): go("cut", overrides)
    again = go("cut", overrides)
    assert again.metrics["train"]["continued_from"] == 4
    np.testing.assert_allclose(again.predictions.predicted_diff, whole.predictions.predicted_diff, atol=1e-7)


def test_redo_begins_anew_and_another_commit_is_named(go, monkeypatch):
    overrides = "checkpoint_steps=4"
    with monkeypatch.context() as m:
        stopping(m, 6)
        with pytest.raises(Interrupted): go("cut", overrides)
        m.undo()
        m.setattr(T, "git_state", lambda: dict(commit="f" * 40, dirty=False, diff=""))
        with pytest.warns(UserWarning, match="ffffffff"): first = go("cut", overrides)
    (first.folder / "checkpoints/checkpoint-4").mkdir(parents=True)  # left behind: the process died when all was written
    assert "continued_from" not in go("cut", overrides, redo=True).metrics["train"]


def test_a_killed_process_loses_no_checkpoint(go, tmp_path, pairs):
    overrides = "checkpoint_steps=1 epochs=12 evaluate=end"
    code = f"from responserank.llm.trainer import train_once; train_once('rr', data={str(pairs)!r}, out={str(tmp_path / 'cut')!r}, wandb_mode='disabled', overrides={SMALL + ' ' + overrides!r})"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("cut/*/*/*/.attempt-*/checkpoints/checkpoint-1?")), seconds=120)
    child.send_signal(signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    again = go("cut", overrides)
    assert again.metrics["train"]["continued_from"] >= 10
    same(again, go("whole", overrides.replace("checkpoint_steps=1", "")))
