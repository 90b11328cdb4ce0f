"""The optimiser step where chapter 25 can't show it: two processes, mixed precision, dropout, and a whole run under torchrun."""
import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes as P
import pytest
import test_rewardbench
import torch

from small import small
from responserank.llm import optimizer_step as S
from responserank.llm import trainer as T

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]


def apart(a, b):
    return float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b))


def run_on_two(*words, timeout=240, **kwargs):
    return subprocess.run([*TORCHRUN, *map(str, words)], capture_output=True, text=True, timeout=timeout, **kwargs)


SHARDED = (Path(P.__file__).with_name("sharded.py"), Path(__file__).resolve().parents[1] / "configs/fsdp.yaml")


@pytest.fixture(scope="module", params=["copied", "spread by FSDP"])
def two(request, tmp_path_factory):
    """Every case of processes.py on two processes, with the weights on both or half on each: what each of them found."""
    out = tmp_path_factory.mktemp("two")
    done = run_on_two(*[P.__file__, out] if request.param == "copied" else [*SHARDED, "cases", out])
    assert done.returncode == 0, done.stderr[-3000:]
    return [dict(np.load(out / f"{rank}.npz")) for rank in (0, 1)]


@pytest.mark.parametrize("name", P.CASES)
def test_two_processes_do_what_one_does(two, name):
    n, rankings, wrong, settings = P.CASES[name]
    rows = P.rows_of(n, rankings, prompt=P.PROMPT * ("shared" in name))
    one = P.step(rows, settings | dict(eval_tokens=12, share_prompts="never"))  # whether prompts are shared changes nothing either
    for found in (({k: t[f"{name}/{k}"] for k in one} for t in two)):
        if wrong == 1:
            assert apart(found["gradient"], one["gradient"]) < (1e-7 if "shared" in name else 1e-9)  # a Llama's norms are in single precision
            assert float(found["loss"]) == pytest.approx(one["loss"], rel=1e-6)
            np.testing.assert_allclose(found["rewards"], one["rewards"], rtol=1e-6, atol=1e-9)
        else:
            assert apart(found["gradient"], one["gradient"]) > 0.5


@pytest.mark.parametrize("name", P.OWN_PARAMETERS)
def test_parameters_of_a_loss_are_the_same_on_two_processes(two, name):
    if f"{name}/own" not in two[0]:  # weights spread over devices: refused in a line, see chapter 25b
        return
    n, rankings, _, settings = P.OWN_PARAMETERS[name]  # three steps
    one = P.step(P.rows_of(n, rankings), settings | dict(eval_tokens=12))
    assert (one["own"] != 0).all()
    for found in two:
        np.testing.assert_allclose(found[f"{name}/own"], one["own"], rtol=1e-5)
        assert apart(found[f"{name}/gradient"], one["gradient"]) < 1e-6  # the loss's parameters are in single precision


LAYOUT = dict(batch_size=16, gradient_accumulation_steps=4, loss_scope="step")


def test_dropout_is_the_same_in_both_passes(monkeypatch):
    rows, settings = P.rows_of(64, 1), LAYOUT | dict(dropout=0.3)
    ours = P.step(rows, settings)

    def one_graph(score, parts, n, loss_of, backward, gather=None):
        rewards = torch.cat([score(i, i == len(parts) - 1) for i in range(len(parts))])
        loss = loss_of(torch.empty_like(rewards).scatter(0, torch.cat(parts), rewards))
        backward(loss, True)
        return loss.detach()

    with monkeypatch.context() as m:
        m.setattr(S, "_step_in_parts", one_graph)
        whole = P.step(rows, settings)
    assert apart(ours["gradient"], whole["gradient"]) < 1e-9 and ours["loss"] == pytest.approx(whole["loss"])
    monkeypatch.setattr(S, "_replay_random_state", lambda state: contextlib.nullcontext())
    assert apart(P.step(rows, settings)["gradient"], whole["gradient"]) > 0.01


def test_gradient_checkpointing_changes_nothing():
    rows = P.rows_of(64, 4)
    assert apart(P.step(rows, LAYOUT | dict(gradient_checkpointing=True))["gradient"], P.step(rows, LAYOUT)["gradient"]) < 1e-9


def test_mixed_precision_reaches_every_weight():
    """A pass without gradients must not leave weights behind, cast for autocast, that the next pass would use."""
    rows = P.rows_of(64, 1)
    whole = P.step(rows, dict(batch_size=64, gradient_accumulation_steps=1, bf16=True), torch.float32)
    parts = P.step(rows, LAYOUT | dict(bf16=True), torch.float32)
    exact = P.step(rows, dict(batch_size=64, gradient_accumulation_steps=1), torch.float32)
    assert apart(whole["gradient"], exact["gradient"]) > 1e-4  # bf16 is on
    assert apart(parts["gradient"], exact["gradient"]) < 0.05


def test_more_processes_than_micro_batches_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(S, "distributed_rank", lambda: (0, 8))
    with pytest.raises(T.UserError, match="gradient_accumulation_steps"):
        S.training_arguments(T.resolve_settings("bt", overrides="batch_size=16 gradient_accumulation_steps=4"), tmp_path, 0)


SMALL = small(max_length=48, batch_size=8, gradient_accumulation_steps=3, epochs=2, checkpoint_steps=3) + " loss_scope="


@pytest.mark.parametrize("start", [("--no-python", Path(sys.executable).with_name("responserank")), SHARDED], ids=["copied", "spread by FSDP"])
def test_a_run_on_two_processes_is_the_run_on_one(pairs, tmp_path, start):
    bench = test_rewardbench.jsonl(test_rewardbench.second(), tmp_path / "bench.jsonl")
    common = dict(data=str(pairs), wandb_mode="disabled", overrides=SMALL + "step", rewardbench=str(bench))
    done = run_on_two(*start, "train", "rr", "--rewardbench", bench, "--data", pairs, "--out", tmp_path / "two",
                      "--wandb-mode", "disabled", "--save-model", "--overrides", SMALL + "step", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("accuracy") == 1  # the first process alone prints
    one, two = T.train("rr", out=tmp_path / "one", **common), T.train_once("rr", out=tmp_path / "two", save_model=True, **common)
    assert two.metrics["train"]["processes"] == 2 and two.metrics["group"] == one.metrics["group"]
    np.testing.assert_allclose(two.curve.loss, one.curve.loss, rtol=1e-4)
    np.testing.assert_allclose(two.predictions.predicted_diff, one.predictions.predicted_diff, atol=1e-4)
    assert T.flat_measures(two.metrics["eval"]) == pytest.approx(T.flat_measures(one.metrics["eval"]), abs=1e-5)
    assert len(two.predictions) == two.predictions.id.nunique() == len(one.predictions)
    assert {p.name for p in two.folder.iterdir()} == {"metrics.json", "curve.csv", "predictions.csv", "model"}
    assert two.score(["yes yes yes", "no"]) == pytest.approx(one.score(["yes yes yes", "no"]), abs=1e-4)


MISHAPS = """
import os, sys
from responserank.llm import trainer as T
data, taken, out, overrides = sys.argv[1:]
try: T.train_once("rr", data=data, out=taken, wandb_mode="disabled", overrides=overrides)
except T.UserError as e: print("refused:", e, flush=True)
if os.environ["RANK"] == "1":
    class Broken:
        def on_step_end(self, args, state, control, **kwargs): raise MemoryError("no memory on the second device")
    T._SaveAfterEvaluating = Broken
T.train_once("rr", data=data, out=out, wandb_mode="disabled", overrides=overrides)
"""


def test_processes_stop_together(pairs, tmp_path):
    """A run somebody else is at is refused to every process; a process that fails ends them all."""
    script = tmp_path / "mishaps.py"
    script.write_text(MISHAPS)
    dry = T.train_once("rr", data=str(pairs), out=tmp_path / "taken", wandb_mode="disabled", overrides=SMALL + "step", dry_run=True)
    with T.claim_run(dry.folder):
        done = run_on_two(script, pairs, tmp_path / "taken", tmp_path / "runs", SMALL + "step", timeout=120, cwd=tmp_path)
    assert done.stdout.count("refused:") == done.stdout.count("is being run by") == 2, done.stdout
    assert done.returncode != 0 and "no memory on the second device" in done.stderr
    metrics, = tmp_path.glob("runs/**/metrics.json")
    assert json.loads(metrics.read_text())["status"] in ("failed", "interrupted")
    assert not list(tmp_path.glob("runs/**/claim*"))
