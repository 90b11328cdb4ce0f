"""Full disks are said and repaired."""
import os
import shutil
import subprocess

import pytest
from sweeping import SMALL, linux, start, states, words

from responserank.llm.sweep import _Sweep, sweep_grid


def test_nothing_is_begun_on_a_full_disk(sixty_pairs, tmp_path):
    runs = sweep_grid("bt", "1", "0-2", data=str(sixty_pairs), overrides=SMALL)
    state = _Sweep(runs, tmp_path, 1, lambda line: None)
    run = state.next()["run"]
    state.ended(run, 0, dict(kind="OSError", text="OSError: [Errno 28] No space left on device: 'curve.csv'"), 1.0)
    assert state.full and state.next() is None and state.ends[run]["status"] == "failed"


@linux
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root may mount a small disk")
def test_a_full_disk_is_said_and_repaired(root, sixty_pairs, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", tmp_path], capture_output=True).returncode: pytest.skip("no mounts here")
    try:
        process = start(root, *words(sixty_pairs, tmp_path, 1, "--workers", "1"))
        stdout, stderr = process.communicate(timeout=500)
        assert process.returncode == 1 and "the disk is full" in stderr and "No space left on device" in stderr, stderr
        assert "finished" not in states(tmp_path)
        subprocess.run(["mount", "-o", "remount,size=50m", tmp_path], check=True)
        process = start(root, *words(sixty_pairs, tmp_path, 1))
        stdout, stderr = process.communicate(timeout=500)
        assert process.returncode == 0 and "4 finished" in stdout and states(tmp_path) == ["finished"] * 4, stderr
    finally: subprocess.run(["umount", "-l", tmp_path], check=False)


# ---- bad input --------------------------------------------------------------------------------------------------
