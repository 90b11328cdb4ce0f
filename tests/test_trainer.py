"""What chapter 25 can't show: whole runs, their files, bad input, kills, and the divisor under the wrong hands."""
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from small import SHAPE, small
from transformers import TrainerCallback

from responserank.llm import optimizer_step as S
from responserank.llm import trainer as T
from responserank.llm.methods import resolve_settings
from responserank.llm.models import train_tokenizer
from responserank.settings import UserError
from waiting import wait_for

SMALL = small(max_length=48)


@pytest.fixture
def pairs(tmp_path):
    """Ranked pairs: the longer answer is better, by as much as it is longer."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(120):
        n, gap = int(rng.integers(2, 5)), int(rng.integers(1, 9))
        rows.append(dict(prompt=f"question {i}", chosen="yes " * (n + gap), rejected="yes " * n, strength=gap + rng.uniform(0, 0.9)))
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def tiny_run(pairs, tmp_path):
    def go(method="rr", **kwargs):
        kwargs = dict(data=str(pairs), out=tmp_path / "runs", wandb_mode="disabled", overrides=SMALL) | kwargs
        return T.train_once(method, **kwargs)
    return go


def gradient(layout, wrong=1, monkeypatch=None, **overrides):
    """The step's gradient before clipping for the same 64 comparisons in 16 rankings of four."""
    batch, accumulation = layout
    settings = resolve_settings("rr_agree", overrides=SHAPE | dict(
        epochs=1, max_grad_norm=0, batch_size=batch, gradient_accumulation_steps=accumulation, **overrides))
    g = np.random.default_rng(1)
    rows = [dict(chosen_ids=g.integers(2, 250, 4 + i % 7), rejected_ids=g.integers(2, 250, 4 + i % 5), rank=float(i // 16),
                 ranking=i % 16, target=1.0, index=i) for i in range(64)]
    test = pd.DataFrame(dict(label=[1], tokens_a=[[2, 3]], tokens_b=[[4]]))
    tokenizer = train_tokenizer(["a b c d"] * 9, 300)

    class Catch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            self.gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).clone()

    catch = Catch()
    trainer = S.RankingTrainer(T.load_model(settings, tokenizer, 0).double(), S.training_arguments(settings, tempfile.mkdtemp(), 0), settings,
                               rows, test, 0, callbacks=[catch])
    if wrong != 1:
        count = trainer._get_num_items_in_batch
        trainer._get_num_items_in_batch = lambda *a: count(*a) / wrong
    trainer.train()
    return catch.gradient


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("layout, scope", [((16, 4), "micro_batch"), ((4, 16), "micro_batch"), ((16, 4), "step"), ((8, 8), "step")])
def test_gradient_does_not_depend_on_the_layout(layout, scope):
    assert apart(gradient(layout, loss_scope=scope), gradient((64, 1))) < 1e-6


@pytest.mark.parametrize("wrong", [4, 1 / 4])
def test_a_divisor_off_by_four_is_seen(wrong):
    assert apart(gradient((16, 4), wrong=wrong), gradient((64, 1))) > 0.5


def test_same_seed_same_numbers(tiny_run, tmp_path):
    one, two, other = (tiny_run(out=tmp_path / n, model_seed=s) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    pd.testing.assert_frame_equal(one.predictions, two.predictions)
    assert not np.allclose(one.predictions.predicted_diff, other.predictions.predicted_diff)
    assert one.metrics["group"] == two.metrics["group"] != other.metrics["group"]


def test_a_run_is_done_once_and_its_files_tell_all(tiny_run, monkeypatch):
    first = tiny_run()
    assert first.metrics["status"] == "finished"
    assert {p.name for p in first.folder.iterdir()} >= {"metrics.json", "curve.csv", "predictions.csv"}
    written = json.loads((first.folder / "metrics.json").read_text())
    for key in ("method", "preset", "data", "fraction", "seed", "group", "status", "settings", "versions", "git", "data_report", "train",
                "eval", "seconds"):
        assert key in written, key
    monkeypatch.setattr(T, "prepare_data", lambda *a: pytest.fail("a finished run was done again"))
    second = tiny_run()
    pd.testing.assert_frame_equal(second.predictions, first.predictions, check_exact=False)
    assert second.metrics["eval"] == pytest.approx(first.metrics["eval"])
    with pytest.raises(UserError, match="redo"):
        second.model
    with pytest.raises(UserError, match="redo"):
        tiny_run(save_model=True)


def test_saved_model_is_an_ordinary_classifier(tiny_run):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    result = tiny_run(save_model=True)
    files = {p.name for p in (result.folder / "model").iterdir()}
    assert "model.safetensors" in files and not any(f.endswith((".bin", ".pt", ".pkl")) for f in files)
    model = AutoModelForSequenceClassification.from_pretrained(result.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(result.folder / "model")
    assert model.config.num_labels == 1
    texts = ["yes yes yes", "no", "yes yes yes yes yes yes"]
    ids = [tokenizer(t).input_ids for t in texts]  # the tokenizer ends a text itself
    assert all(i[-1] == tokenizer.eos_token_id for i in ids)
    with torch.no_grad():
        ours = [model(torch.tensor([i])).logits.item() for i in ids]
    assert result.score(texts) == pytest.approx(ours, abs=1e-5)
    reopened = tiny_run(save_model=True)
    assert reopened.score(texts) == pytest.approx(ours, abs=1e-5)


def test_lora_trains_few_weights_and_is_saved_merged(tiny_run):
    from transformers import AutoModelForSequenceClassification
    result = tiny_run(overrides=SMALL + " peft=lora lora_r=2 epochs=3", save_model=True)
    model = AutoModelForSequenceClassification.from_pretrained(result.folder / "model")
    assert not any("lora" in n for n, _ in model.named_parameters())
    assert result.metrics["settings"]["peft"] == "lora"


def test_dry_run_reports_and_never_counts_as_done(tiny_run):
    dry = tiny_run(dry_run=True)
    assert dry.metrics["status"] == "dry_run" and dry.metrics["data_report"]["train_examples"] > 0
    assert not (dry.folder / "predictions.csv").exists()
    assert tiny_run().metrics["status"] == "finished"


def test_fraction_and_seed_share_a_group(tiny_run):
    a, b = tiny_run(fraction=0.5, dry_run=True), tiny_run(seed=7, dry_run=True)
    assert a.metrics["group"] == b.metrics["group"]
    assert a.folder.relative_to(a.folder.parents[2]).parts[1:] == ("0.5", "42")
    assert a.metrics["data_report"]["train_examples"] == pytest.approx(b.metrics["data_report"]["train_examples"] / 2, abs=1)


def test_step_scope_trains_rankings_wider_than_a_micro_batch(tiny_run):
    result = tiny_run(overrides=SMALL + " loss_scope=step batch_size=4 gradient_accumulation_steps=8 ranking_size=32")
    assert result.metrics["data_report"]["avg_fragment_size"] > 8
    assert result.metrics["eval"]["accuracy"] > 0.7


def test_redealing_changes_who_meets_whom_and_nothing_else(pairs, tiny_run):
    ready = T.prepare_data(resolve_settings("rr", overrides=f"{SMALL} ranking_size=8 redeal=True"), str(pairs), seed=0)
    rows = T._chosen_rejected_rows(ready.rows)
    deal, loader = T._RedealCallback(ready, rows, 0), SimpleNamespace(batch_sampler=SimpleNamespace(ranking=None))
    partners = lambda: {frozenset(i for i, r in enumerate(rows) if r["ranking"] == k) for k in {r["ranking"] for r in rows}}  # noqa: E731
    first, ranks = partners(), [r["rank"] for r in rows]
    deal.on_epoch_begin(None, SimpleNamespace(epoch=0), None, loader)
    assert partners() == first
    deal.on_epoch_begin(None, SimpleNamespace(epoch=1.0), None, loader)
    assert partners() != first and [r["rank"] for r in rows] == ranks
    assert loader.batch_sampler.ranking.tolist() == [r["ranking"] for r in rows]
    assert tiny_run(overrides=f"{SMALL} ranking_size=8 redeal=True").metrics["status"] == "finished"


def test_arguments_of_real_people(shared, tmp_path):
    kwargs = dict(data=str(shared / "data/ukpconvarg1"), out=tmp_path, fraction=0.02, wandb_mode="disabled")
    for method in ("bt", "rr_agree", "rr_consensus"):
        small = SMALL.replace("max_length=48", "max_length=256") + " epochs=1"
        result = T.train_once(method, overrides=small, **kwargs)
        report, measures = result.metrics["data_report"], result.metrics["eval"]
        assert "margin_correlation" in measures and "pdc" not in measures
        assert report["about"]["longer_text_wins"] == pytest.approx(0.718, abs=0.05)
        assert next(r for r in report["steps"] if r["step"] == "split")["by"] == "topic"
    with pytest.raises(UserError, match="stated"):
        T.train_once("rr_stated", **kwargs)


BAD = {
    "unknown method": (dict(method="rr_agre"), "rr_agree"),
    "unknown override": (dict(overrides="epoch=2"), "epochs"),
    "unknown preset": (dict(preset="tiney"), "tiny"),
    "fraction": (dict(fraction=1.5), "fraction"),
    "missing file": (dict(data="nowhere.jsonl"), "nowhere.jsonl"),
    "agreement without annotators": (dict(method="rr_agree"), "agreement"),
    "wandb mode": (dict(wandb_mode="of"), "offline"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing_that_looks_done(case, tiny_run, tmp_path):
    kwargs, says = BAD[case]
    with pytest.raises(UserError, match=says) as e:
        tiny_run(**kwargs)
    assert "\n" not in str(e.value)
    for left in tmp_path.glob("runs/**/metrics.json"):
        assert json.loads(left.read_text())["status"] == "failed"


def papermill(notebook, **parameters):
    args = [a for k, v in parameters.items() for a in ("-p", k, str(v))]
    return [sys.executable, "-m", "papermill", "nbs/20_llm_train.ipynb", str(notebook), "--no-progress-bar", *args]


def last_line(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", [line for line in text.splitlines() if line.strip()][-1])


def test_papermill_runs_what_it_is_asked(root, pairs, tmp_path):
    done = subprocess.run(papermill(tmp_path / "out.ipynb", method="bt", data=pairs, out=tmp_path / "runs", wandb_mode="disabled",
                                    overrides=SMALL), cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics, = tmp_path.glob("runs/**/metrics.json")
    assert json.loads(metrics.read_text())["method"] == "bt"


def test_papermill_ends_with_the_line(root, tmp_path):
    done = subprocess.run(papermill(tmp_path / "out.ipynb", method="rr_agre", out=tmp_path / "runs"), cwd=root, capture_output=True,
                          text=True)
    assert done.returncode != 0
    assert "rr_agree" in last_line(done.stderr) and "rr_agre'" in last_line(done.stderr), done.stderr[-800:]
    assert not list(tmp_path.glob("runs/**/metrics.json"))


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_is_told_apart_and_redone(blow, tiny_run, pairs, tmp_path):
    code = (f"from responserank.llm.trainer import train_once; train_once('rr', data={str(pairs)!r}, out={str(tmp_path / 'runs')!r}, "
            f"wandb_mode='disabled', overrides={SMALL + ' epochs=2000'!r})")
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_for(lambda: [*tmp_path.glob("runs/**/checkpoints"), *tmp_path.glob("runs/**/claim*")], 120)
    time.sleep(6)
    child.send_signal(blow)
    child.wait(30)
    left = [json.loads(p.read_text())["status"] for p in tmp_path.glob("runs/**/metrics.json")]
    assert left == (["interrupted"] if blow == signal.SIGTERM else [])
    again = tiny_run(dry_run=True, overrides=SMALL + " epochs=2000")  # the dead claim does not stop the next worker
    assert again.metrics["status"] == "dry_run"


@pytest.mark.parametrize("value, step", [(float("nan"), 1), (float("inf"), 4)])
def test_a_diverged_run_fails_and_saves_no_model(tiny_run, tmp_path, monkeypatch, value, step):
    """At the first step as after the first evaluation; the run is failed, and a sweep would not try it again."""
    from responserank.llm.optimizer_step import RankingTrainer
    honest, taken = RankingTrainer.step_loss, []
    def diverge(self, *a, **k):
        taken.append(1)
        return honest(self, *a, **k) * (value if len(taken) >= step else 1.)
    monkeypatch.setattr(RankingTrainer, "step_loss", diverge)
    with pytest.raises(UserError, match=rf"training diverged at step {step}: the loss is {value} at learning rate .*try a lower learning_rate"):
        tiny_run(overrides=SMALL + " batch_size=32 epochs=3", save_model=True)
    (folder,) = (tmp_path / "runs").glob("*/*/*")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["status"] == "failed" and "diverged" in metrics["error"] and not (folder / "model").exists()


def test_rewards_that_are_not_finite_are_no_result(tiny_run, monkeypatch):
    from responserank.llm.optimizer_step import RankingTrainer
    def spoiled(self, *a, **k): self.rewards = (np.array([np.nan]), np.array([0.]))
    monkeypatch.setattr(RankingTrainer, "evaluate", spoiled)
    with pytest.raises(UserError, match="rewards that are not finite"): tiny_run(overrides=SMALL + " epochs=1")


FIRST_ROW = """
import sys
from responserank.llm import data as D, trainer as T
def look(*args): raise SystemExit(" ".join(m for m in ("transformers", "scipy.stats", "matplotlib.pyplot", "accelerate", "datasets") if m in sys.modules) or 0)
D._load_data = look
T.train("bt", data="simulated")
"""


def test_data_are_read_before_the_slow_libraries_are_loaded():
    """Whoever misspells a file's name should not wait for libraries that train."""
    done = subprocess.run([sys.executable, "-c", FIRST_ROW], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
