"""Jobs in several processes: the same results as in one, one thread each, errors that name the job, and an end that leaves no process."""
import functools
import operator
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from waiting import wait_for

from responserank.processes import run_parallel
from responserank.settings import UserError

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals on Linux")
_seen = []


def square(x): return x * x
def remember(*values): _seen.extend(values)
def seen(job): return job, tuple(_seen)
def process(job): return os.getpid()
def environment(job): return os.environ["OMP_NUM_THREADS"], signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def refuse(job):
    if job == 2: raise UserError("two is refused")
    if job == 3: os.kill(os.getpid(), signal.SIGKILL)
    return job


@pytest.mark.parametrize("workers, fork", [(1, False), (2, False), (2, True)])
def test_results_do_not_depend_on_the_processes(workers, fork):
    assert list(run_parallel(square, range(7), workers, ordered=True, fork=fork)) == [(i, i * i) for i in range(7)]
    assert sorted(run_parallel(square, range(7), workers, fork=fork, desc="squares")) == [(i, i * i) for i in range(7)]
    assert list(run_parallel(square, [], workers, fork=fork)) == []


def test_setup_is_called_in_each_process():
    for workers in (1, 2):
        _seen.clear()
        assert [s for _, (_, s) in run_parallel(seen, range(3), workers, setup=remember, setup_arguments=("a", "b"))] == [("a", "b")] * 3
    _seen.clear()
    assert {pid for _, pid in run_parallel(process, range(3), 1)} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in run_parallel(process, range(3), 2)}


def test_workers_use_one_thread_and_leave_the_keyboard_to_their_parent(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert {e for _, e in run_parallel(environment, range(3), 2)} == {("1", True)}


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_name_their_job(workers):
    with pytest.raises(UserError, match="^number 2: two is refused$"):
        list(run_parallel(refuse, [1, 2], workers, name="number {}".format))
    with pytest.raises(RuntimeError, match="^job x: TypeError: bad operand") as caught:
        list(run_parallel(operator.neg, [1, "x"], workers, name="job {}".format))
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(TypeError): list(run_parallel(operator.neg, [1, "x"], workers))


@linux
def test_a_killed_worker_is_an_error():
    with pytest.raises(RuntimeError, match="a worker process was killed"): list(run_parallel(refuse, [1, 3, 1], 2))


@linux
@pytest.mark.parametrize("end", ["close", "error"])
def test_nothing_is_left_when_the_caller_stops(end):
    began, others = time.monotonic(), psutil.Process().children()
    jobs = run_parallel(time.sleep, [.01, 60, 60, 60], 2)
    assert next(jobs)[0] == .01
    workers = [p for p in psutil.Process().children() if p not in others and "spawn_main" in " ".join(p.cmdline())]
    if end == "close": jobs.close()
    else:
        with pytest.raises(KeyboardInterrupt): jobs.throw(KeyboardInterrupt())
    assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=20)[1] and time.monotonic() - began < 30


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_their_parent(number):
    code = """if __name__ == '__main__':
    import time
    from responserank.runs import interruptible
    from responserank.processes import run_parallel
    with interruptible(): print(list(run_parallel(time.sleep, [60] * 9, 2)))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    def sleeping():
        found = psutil.Process(parent.pid).children(recursive=True)
        return [p for p in found if p.num_threads() and "spawn_main" in " ".join(p.cmdline())]
    workers = wait_for(lambda: len(found := sleeping()) == 2 and found, 60)
    time.sleep(2)  # the workers import
    parent.send_signal(number)
    said = parent.communicate(timeout=30)[1]
    assert parent.returncode in (-signal.SIGKILL, 1, 130) or number == signal.SIGINT
    assert number == signal.SIGKILL or said.strip().splitlines()[-1].endswith(f"stopped by {number.name}")
    assert not psutil.wait_procs(workers, timeout=30)[1]


def test_a_bound_function_is_a_job_too():
    assert list(run_parallel(functools.partial(operator.add, 1), [1, 2], 2, ordered=True)) == [(1, 2), (2, 3)]
