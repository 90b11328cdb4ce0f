"""A worker that was suspended beyond its claim's expiry, and continues, reaches no file of the one that took its run over."""
import os
import signal
import subprocess
import sys
import time

import pytest

from responserank import runs
from responserank.files import read_json, write_text
from responserank.llm import trainer as T
from responserank.llm.workers import _may_publish
from responserank.runs import claim_run, run_status, tidy_run
from responserank.settings import UserError
from small import small
from waiting import wait_for

FILES = ("curve.csv", "predictions.csv", "dropped.csv", "model/weights", "model/more/config", "wandb/run-1/log", "checkpoints/checkpoint-3/state")


def write_files(claim, who, names=FILES):
    for name in names: write_text(claim.work / name, who)


def content(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def take_over(late, who="winner"):
    """Do the run of a claim that has been silent since 1970."""
    os.utime(late.path, (1, 1))
    with claim_run(late.folder) as claim:
        write_files(claim, who, FILES[:5])
        claim.finish({"who": who})
    return content(late.folder)


@pytest.mark.parametrize("ends", ["finish", "fail", "interrupt", "release"])
@pytest.mark.parametrize("renames", range(10))
def test_taken_over_at_each_rename(tmp_path, monkeypatch, renames, ends):
    """The worker is suspended just before its n-th rename or removal of a file in publishing: whatever it does afterwards changes nothing."""
    (tmp_path / "model").mkdir()  # of an earlier attempt
    late, seen, after = claim_run(tmp_path), [], []
    late._stop.set()
    write_files(late, "late")

    def suspended(do):
        def call(*args, **kwargs):
            seen.append(args)
            if len(seen) == renames + 1 and not after:
                monkeypatch.undo()
                after.append(take_over(late) if late.path and late.path.exists() and run_status(tmp_path)[0] != "finished" else None)
            return do(*args, **kwargs)
        return call
    for name in ("replace", "rename"): monkeypatch.setattr(os, name, suspended(getattr(os, name)))
    try: {"finish": lambda: late.finish({"who": "late"}), "fail": lambda: late.fail("late"), "interrupt": late.interrupt, "release": late.release}[ends]()
    except UserError as e: assert "claim was lost" in str(e)
    monkeypatch.undo()
    if after and after[0]:
        assert content(tmp_path) == after[0] and read_json(tmp_path / "metrics.json")["who"] == "winner"
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("claim-*"))


def test_what_a_late_worker_makes_anew_is_removed(tmp_path):
    late = claim_run(tmp_path)
    late._stop.set()
    after = take_over(late)
    write_files(late, "late")  # it has not noticed yet
    with pytest.raises(UserError, match="claim was lost"): late.finish({"who": "late"})
    assert content(tmp_path) == after
    write_files(late, "late")  # and then it was killed
    tidy_run(tmp_path)
    assert content(tmp_path) == after and not list(tmp_path.glob(".*"))


def test_a_late_worker_learns_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PROGRESS_SECONDS", .05)
    late = claim_run(tmp_path)
    late.check()
    take_over(late)
    wait_for(lambda: late.lost, seconds=5)
    with pytest.raises(UserError, match="another worker took the run over"): late.check()


def test_whose_notebook(tmp_path, monkeypatch):
    """A notebook is kept where the token says that its attempt ended the run, or that nobody has run it yet."""
    assert _may_publish(tmp_path, "late-")
    monkeypatch.setenv(runs.ATTEMPT_VARIABLE, "late-")
    late = claim_run(tmp_path)
    assert not _may_publish(tmp_path, "late-")  # it is not over
    late._stop.set()
    monkeypatch.setenv(runs.ATTEMPT_VARIABLE, "winner-")
    (tmp_path / ".notebook-late-.ipynb").write_text("late")
    take_over(late)
    assert _may_publish(tmp_path, "winner-") and not _may_publish(tmp_path, "late-") and not list(tmp_path.glob(".notebook-*"))


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no such signal here")
def test_a_training_that_was_stopped_and_continued(pairs, tmp_path, monkeypatch):
    overrides = small(max_length=48, batch_size=8, epochs=2, checkpoint_steps=2, evaluate="end")
    given = dict(data=str(pairs), out=str(tmp_path / "out"), wandb_mode="disabled", overrides=overrides, save_model=True)
    code = f"import sys; from responserank.llm.trainer import train_once; train_once('rr', **{given!r})"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(tmp_path.glob("out/*/*/*/.attempt-*/checkpoints/checkpoint-*")), seconds=120)
    child.send_signal(signal.SIGSTOP)
    try:
        monkeypatch.setattr(runs, "EXPIRY_SECONDS", .5)
        time.sleep(1)
        winner = T.train_once("rr", **given)
        after, times = content(winner.folder), {p: p.stat().st_mtime_ns for p in winner.folder.rglob("*")}
    finally: child.send_signal(signal.SIGCONT)
    assert "claim was lost" in child.communicate(timeout=120)[1] and child.returncode == 1
    assert winner.metrics["train"]["continued_from"] >= 2 and "attempt" in read_json(winner.folder / "metrics.json")
    assert content(winner.folder) == after and times == {p: p.stat().st_mtime_ns for p in winner.folder.rglob("*")}
    assert sorted(p.name for p in winner.folder.iterdir()) == ["curve.csv", "metrics.json", "model", "predictions.csv"]
