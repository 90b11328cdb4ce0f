"""Killed kernels, workers and sweeps are repaired by the same command given again."""
import os
import signal

import psutil
from sweeping import holders, linux, start, states, wait_for, words


@linux
def test_killed_kernels_workers_and_sweeps(root, sixty_pairs, tmp_path):
    call = words(sixty_pairs, tmp_path, 60)
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
    process.kill()  # the fork server sees its input close
    process.communicate()
    assert not psutil.wait_procs(family, timeout=40)[1] and not list(tmp_path.rglob("claim-*"))
    process = start(root, *call)
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0 and "4 runs: 4 finished" in stdout, stderr
    assert states(tmp_path) == ["finished"] * 4 and len(list(tmp_path.rglob("notebook.ipynb"))) == 4
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]
