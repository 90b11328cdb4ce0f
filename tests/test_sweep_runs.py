"""Sweeps at work: failures, kills, races, full disks; every one of them is repaired by the same command given again."""
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import waiting

from responserank.llm.sweep import _Sweep, sweep_grid, status_table, sweep
from responserank.llm.collect import collect
from responserank.llm.trainer import train_once
from responserank.settings import UserError
from responserank.runs import claim_run, run_status
from responserank.files import read_json, write_text

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
SCRIPT = str(Path(sys.executable).with_name("responserank"))
SMALL = "batch_size=16 vocab_size=300 hidden_size=16"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    rows = [dict(chosen=f"a good answer to {i}", rejected=f"a bad one to {i}", strength=i) for i in range(60)]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def words(pairs, out, epochs, *more):
    return ["sweep", "--methods", "bt,rr", "--seeds", "0-1", "--data", str(pairs), "--out", str(out), "--overrides", f"{SMALL} epochs={epochs}",
            "--wandb-mode", "disabled", *more]


def start(root, *args, **kwargs):
    return subprocess.Popen([SCRIPT, *args], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **kwargs)


wait_for = partial(waiting.wait_for, seconds=300, every=.05)


def holders(out):
    """Kernels at work: process numbers by run folder, once they train."""
    found = {}
    for path in out.glob("*/*/*/claim-*.json"):
        try: found[path.parent] = json.loads(path.read_text())["pid"]
        except (OSError, ValueError): pass
    return found


def states(out): return sorted(run_status(p.parent)[0] for p in out.glob("*/*/*/metrics.json"))


# ---- one sweep, in which much goes wrong -------------------------------------------------------------------------

@linux
def test_finished_is_skipped_corrupt_is_repaired_mistakes_are_not_repeated(root, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setenv("IN_TEST", "1")  # as under nbdev_test: a run must not shrink for it
    runs = sweep_grid("bt,rr,rr_stated", "1", "0-1", data=str(pairs), overrides=f"{SMALL} epochs=1")
    done, broken = tmp_path / runs.run[0], tmp_path / runs.run[1]
    with claim_run(done) as claim: claim.finish({"eval": {"accuracy": .5}})
    before = (done / "metrics.json").stat().st_mtime_ns
    broken.mkdir(parents=True)
    (broken / "metrics.json").write_text('{"status": "fini')
    (broken / ".notebook-1.ipynb").write_text("of a worker that was killed")
    said = []
    ended = sweep(runs, tmp_path, 2, retries=2, wandb_mode="disabled", say=said.append).set_index(["method", "seed"])
    assert (done / "metrics.json").stat().st_mtime_ns == before and not (done / "notebook.ipynb").exists()
    assert ended.status.to_dict() == {("bt", 0): "finished", ("rr", 0): "finished", ("rr_stated", 0): "failed", ("bt", 1): "finished",
                                      ("rr", 1): "finished", ("rr_stated", 1): "failed"}
    assert ended.tries["rr_stated", 0] == 1 and "stated" in ended.error["rr_stated", 0] and len(said) == 5
    assert [p.read_text() for p in broken.glob("metrics.corrupt-*")] == ['{"status": "fini']
    assert {p.name for p in broken.iterdir() if "corrupt" not in p.name} == {"metrics.json", "notebook.ipynb", "curve.csv", "predictions.csv"}
    notebook = read_json(broken / "notebook.ipynb")
    shown = {kind for c in notebook["cells"] for o in c.get("outputs", []) for kind in o.get("data", {})}
    assert "image/png" in shown and notebook["metadata"]["papermill"]["parameters"]["method"] == "rr"
    failed = read_json(tmp_path / ended.run["rr_stated", 0] / "notebook.ipynb")
    assert any(o.get("ename") == "UserError" for c in failed["cells"] for o in c.get("outputs", []))


# ---- kills -------------------------------------------------------------------------------------------------------

@linux
def test_killed_kernels_workers_and_sweeps(root, pairs, tmp_path):
    call = words(pairs, tmp_path, 200)
    process = start(root, *call)
    first = wait_for(lambda: len(h := holders(tmp_path)) == 2 and h)
    kernel, other = list(first.values())
    worker = psutil.Process(other).parent()
    os.kill(kernel, signal.SIGKILL), worker.kill()
    wait_for(lambda: not any(map(psutil.pid_exists, first.values())))  # the killed worker's kernel ends by itself
    wait_for(lambda: len(holders(tmp_path)) == 2)  # others have their turn
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr.splitlines()[-1].endswith("the same command goes on from here")
    assert "its worker was killed (SIGKILL)" in stderr and "its worker died" in stderr
    assert not psutil.wait_procs(family, timeout=10)[1] and set(states(tmp_path)) <= {"interrupted", "finished"} and not list(tmp_path.rglob("claim-*"))
    process = start(root, *call)
    wait_for(lambda: len(holders(tmp_path)) == 2)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()  # unheard: the nursery sees its input close
    process.communicate()
    assert not psutil.wait_procs(family, timeout=40)[1] and not list(tmp_path.rglob("claim-*"))
    process = start(root, *call)
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0 and "4 runs: 4 finished" in stdout, stderr
    assert states(tmp_path) == ["finished"] * 4 and len(list(tmp_path.rglob("notebook.ipynb"))) == 4
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]


# ---- races -------------------------------------------------------------------------------------------------------

@linux
def test_two_sweeps_share_a_grid(root, pairs, tmp_path):
    both = [start(root, *words(pairs, tmp_path, 40, "--workers", "1")) for _ in range(2)]
    said = [p.communicate(timeout=500) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    finished = [line.split()[1] for _, stderr in said for line in stderr.splitlines() if line.startswith("finished ")]
    assert len(finished) == len(set(finished)) == 4 and states(tmp_path) == ["finished"] * 4


def test_what_another_worker_is_at_is_left_to_it(pairs, tmp_path):
    runs = sweep_grid("bt", "1", "0-1", data=str(pairs), overrides=SMALL)
    state = _Sweep(runs, tmp_path, 1, print)
    with claim_run(tmp_path / runs.run[0]) as claim:
        assert state.next()["run"] == runs.run[1] and state.elsewhere == [runs.run[0]]
        state.ended(runs.run[0], 0, {}, 1.0)
        assert runs.run[0] not in state.ends
        claim.finish({})


# ---- without a checkout, and without forks --------------------------------------------------------------------------

def test_a_wheel_has_no_notebooks(pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = sweep_grid("bt", "1", "0", data=str(pairs), overrides=f"{SMALL} epochs=1")
    assert list(sweep(runs, "runs", 1, wandb_mode="disabled", warm=False).status) == ["finished"]
    assert sorted(os.listdir(tmp_path / "runs" / runs.run[0])) == ["curve.csv", "metrics.json", "predictions.csv"]


# ---- a full disk ---------------------------------------------------------------------------------------------------

def test_nothing_is_begun_on_a_full_disk(pairs, tmp_path):
    runs = sweep_grid("bt", "1", "0-2", data=str(pairs), overrides=SMALL)
    state = _Sweep(runs, tmp_path, 1, lambda line: None)
    run = state.next()["run"]
    state.ended(run, 0, dict(kind="OSError", text="OSError: [Errno 28] No space left on device: 'curve.csv'"), 1.0)
    assert state.full and state.next() is None and state.ends[run]["status"] == "failed"


@linux
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root may mount a small disk")
def test_a_full_disk_is_said_and_repaired(root, pairs, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", tmp_path], capture_output=True).returncode: pytest.skip("no mounts here")
    try:
        process = start(root, *words(pairs, tmp_path, 1, "--workers", "1"))
        stdout, stderr = process.communicate(timeout=500)
        assert process.returncode == 1 and "the disk is full" in stderr and "No space left on device" in stderr, stderr
        assert "finished" not in states(tmp_path)
        subprocess.run(["mount", "-o", "remount,size=50m", tmp_path], check=True)
        process = start(root, *words(pairs, tmp_path, 1))
        stdout, stderr = process.communicate(timeout=500)
        assert process.returncode == 0 and "4 finished" in stdout and states(tmp_path) == ["finished"] * 4, stderr
    finally: subprocess.run(["umount", "-l", tmp_path], check=False)


# ---- bad input --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("more, says", [
    (["--methods", "rr_agre"], "did you mean rr_agree"), (["--seeds", "a"], "seeds"), (["--fractions", "2"], "(0, 1]"), (["--preset", "tinny"], "tiny"),
    (["--overrides", "epoch=1"], "epochs"), (["--data", "no/such.jsonl"], "no/such.jsonl"), (["--wandb-mode", "onlin"], "online"), (["--workers", "0"], "workers"),
    (["--share", "3/3"], "I/N"), (["--slurm"], "no sbatch")])
def test_a_bad_sweep_starts_nothing(more, says, pairs, tmp_path, monkeypatch):
    from click.testing import CliRunner
    from responserank.cli import main
    monkeypatch.setenv("PATH", str(tmp_path))
    call = dict(zip(*[iter(words(pairs, tmp_path / "runs", 1)[1:])] * 2)) | dict(zip(*[iter(more if len(more) == 2 else [*more, ""])] * 2))
    done = CliRunner().invoke(main, ["sweep", *(w for pair in call.items() for w in pair if w)])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and says in done.stderr
    assert not list(tmp_path.rglob("metrics.json"))


def test_no_workers(pairs):
    with pytest.raises(UserError, match="at least one"): sweep(sweep_grid("bt", "1", "0", data=str(pairs)), workers=0)


def test_dry_run_counts_and_notes_are_waiting(pairs, tmp_path):
    from responserank.llm.sweep import grid_lines, note_grid
    runs = sweep_grid("bt,rr", "0.5,1", "0-1", data=str(pairs), overrides=SMALL)
    with claim_run(tmp_path / runs.run[0]) as claim: claim.finish({"seconds": {"total": 9}})
    assert grid_lines(runs, tmp_path)[-1] == "8 runs, 1 finished, 7 to do; finished ones took 9 s each"
    note_grid(runs, tmp_path, "")
    write_text(tmp_path / "sweep-bad.json", "{")
    assert status_table(tmp_path).status.value_counts().to_dict() == {"waiting": 7, "finished": 1}


# ---- wandb -------------------------------------------------------------------------------------------------------

def test_offline_runs_can_be_synced_and_collected_under_the_same_names(pairs, tmp_path):
    result = train_once("rr", data=str(pairs), out=tmp_path, seed=3, overrides=f"{SMALL} epochs=1 rank_weight=0.5", wandb_mode="offline")
    logs = list(result.folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(logs) == 1
    inspect = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect"]
    records = [json.loads(line) for line in subprocess.run([*inspect, "--json", logs[0]], capture_output=True, text=True, check=True).stdout.splitlines()]
    logged = next(r["run"] for r in records if r["type"] == "run")
    whole = json.loads(subprocess.run([*inspect, "--summary", "--json", logs[0]], capture_output=True, text=True, check=True).stdout)
    group = result.metrics["group"]
    assert (logged["display_name"], logged["run_group"]) == (f"{group}/1/3", group)
    summary = whole.get("summary") or whole.get("metrics") or whole.get("latest")
    synced = SimpleNamespace(name=logged["display_name"], group=logged["run_group"], state="finished", config=logged["config"]["update"], summary=summary)
    theirs, _ = collect(out=None, wandb="me/p", api=SimpleNamespace(runs=lambda path: [synced]))
    ours, _ = collect(tmp_path, None)
    pd.testing.assert_frame_equal(theirs, ours)
    assert list(ours.overrides) == ["batch_size=16 epochs=1 hidden_size=16 rank_weight=0.5 vocab_size=300"]
