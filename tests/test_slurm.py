"""The real SLURM, where it is installed: submit, throttle, cancel, submit again. Its set-up is tests/slurm/slurm.sh."""
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import waiting

from small import small
from responserank.runs import run_status

SCRIPT = str(Path(sys.executable).with_name("responserank"))
pytestmark = pytest.mark.skipif(not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))) or os.geteuid() != 0,
                                reason="no SLURM here (slurmctld slurmd slurm-client munge, and root)")


@pytest.fixture(scope="module")
def slurm(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    script = root / "tests/slurm/slurm.sh"
    subprocess.run([script, "start", folder], check=True, timeout=90)
    yield os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    subprocess.run([script, "stop", folder], check=False, timeout=90)


wait_for = partial(waiting.wait_for, seconds=500, every=.2)


@pytest.fixture
def sweep(root, slurm, tmp_path):
    rows = [dict(chosen=f"a good answer to {i}", rejected=f"a bad one to {i}", strength=i) for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def call(*more, epochs, seeds="0-2"):
        words = ["sweep", "--methods", "rr", "--seeds", seeds, "--data", tmp_path / "pairs.jsonl", "--out", tmp_path / "runs", "--wandb-mode", "disabled",
                 "--overrides", small(batch_size=16, epochs=epochs), *more]
        return subprocess.run([SCRIPT, *map(str, words)], cwd=root, env=slurm, capture_output=True, text=True, timeout=120)
    return call


def queue(slurm, states=None):
    said = subprocess.run(["squeue", "-h", "-r", "-t", states or "all", "-o", "%T"], env=slurm, capture_output=True, text=True, check=True)
    return said.stdout.split()


def states(tmp_path): return sorted(run_status(p)[0] for p in (tmp_path / "runs").glob("*/*/*") if p.is_dir() and (list(p.glob("claim-*")) or (p / "metrics.json").exists()))


def test_an_array_is_shown_throttled_cancelled_and_finished(sweep, slurm, tmp_path):
    done = sweep("--slurm", "--workers", "1", "--sbatch=--mem=500M", epochs=60)
    assert done.returncode == 0, done.stderr
    script, = (tmp_path / "runs").glob("sweep-*.sh")
    text = script.read_text()
    assert text in done.stdout and "#SBATCH --array=0-2%1\n" in text and "#SBATCH --mem=500M\n" in text and "submitted as job" in done.stdout
    most = 0

    def training():
        nonlocal most
        most = max(most, len(queue(slurm, "RUNNING")))
        return states(tmp_path) == ["running"]
    wait_for(training)
    subprocess.run(["scancel", "--user=root"], env=slurm, check=True)
    wait_for(lambda: not queue(slurm, "RUNNING,PENDING,COMPLETING"))
    assert most == 1 and states(tmp_path) == ["interrupted"]  # one at a time, told to stop, and it said so
    again = sweep("--slurm", "--workers", "2", "--sbatch=--mem=500M", epochs=60)
    assert again.returncode == 0 and "3 runs, 0 finished, 3 to do" in again.stdout
    wait_for(lambda: not queue(slurm, "RUNNING,PENDING,COMPLETING,CONFIGURING"))
    logs = "\n".join(p.read_text() for p in (tmp_path / "runs").glob("sweep-*/*.log"))
    assert states(tmp_path) == ["finished"] * 3, logs
    assert len(list((tmp_path / "runs").rglob("notebook.ipynb"))) == 3
    last = sweep("--slurm", epochs=60)
    assert last.returncode == 0 and "submitted" not in last.stdout and "3 finished, 0 to do" in last.stdout


def test_a_requeued_task_goes_on(sweep, slurm, tmp_path):
    sweep("--slurm", "--workers", "1", "--sbatch=--mem=500M", epochs=60, seeds="0")
    wait_for(lambda: states(tmp_path) == ["running"])
    job = subprocess.run(["squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i"], env=slurm, capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["scontrol", "requeue", *job], env=slurm, check=True)
    wait_for(lambda: states(tmp_path) == ["interrupted"])
    subprocess.run(["scontrol", "update", f"JobId={job[0]}", "StartTime=now"], env=slurm, check=False)
    wait_for(lambda: states(tmp_path) == ["finished"])


def test_a_refusal_is_one_line(sweep):
    done = sweep("--slurm", "--sbatch=--partition=nowhere", epochs=1)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "sbatch refused" in done.stderr
