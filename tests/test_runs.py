"""Claims under race and kill, atomic files, bad input: what the chapter only tells."""
import dataclasses
import errno
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Literal

import nbformat
import numpy as np
import pandas as pd
import pytest
import waiting

from responserank import files, runs
from responserank.runs import Interrupted, claim_run, flatten_keys, group_name, interruptible, resolve_status, run_folder, run_folders, run_status
from responserank.settings import UserError, check_name, coerce, parse_overrides, with_overrides
from responserank.files import canonical_json, content_hash, derive_seed, git_state, read_json, rng, write_csv, write_json, write_text

fork = multiprocessing.get_context("fork")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and prctl")


def dead_claim(folder, number=1, **changes):
    """A claim whose process (this one's number, another start) is gone."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    holder = {"place": runs._place(), "pid": os.getpid(), "started": "0", "token": f"dead{number}"} | changes
    (folder / f"claim-{number}.json").write_text(json.dumps(holder))
    return folder / f"claim-{number}.json"


wait_for = partial(waiting.wait_for, seconds=30)


# ---- settings, names, seeds ----------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Recipe:
    epochs: int = 3
    size: int | Literal["auto", "all"] = "auto"
    rate: float = 1e-3
    flag: bool = False
    ties: str | None = None
    noise: float | Literal["random"] = 0.0
    loss: Literal["bt", "rank"] = "rank"
    cap: int | None = None
    model: str = "scratch"

    def __post_init__(self):
        if self.rate <= 0:
            raise ValueError(f"rate={self.rate} should be positive")


@pytest.mark.parametrize("text, changes", [
    ("epochs=2", {"epochs": 2}), ("epochs=2.0", {"epochs": 2}), ({"epochs": np.int64(2)}, {"epochs": 2}),
    ("size=4", {"size": 4}), ("size=all", {"size": "all"}),
    ("rate=1e-4, flag=yes", {"rate": 1e-4, "flag": True}), ("flag=0", {"flag": False}), ("noise=random", {"noise": "random"}),
    ("noise=1", {"noise": 1.0}), ("cap=none", {"cap": None}), ("cap=3", {"cap": 3}), ("ties=breslow", {"ties": "breslow"}),
    ('{"loss": "bt"}', {"loss": "bt"}), (["epochs=2", "loss=bt"], {"epochs": 2, "loss": "bt"}), ("model='a b'", {"model": "a b"}),
    ("", {}), (None, {}), ("epochs=2 epochs=2", {"epochs": 2}), ("model=a=b", {"model": "a=b"}),
])
def test_overrides_read_as_declared(text, changes):
    assert with_overrides(Recipe(), text) == dataclasses.replace(Recipe(), **changes)


@pytest.mark.parametrize("text, words", [
    ("epoch=2", "unknown setting 'epoch'; did you mean epochs?"), ("epochs=two", "epochs='two' should be a whole number"),
    ("epochs=2.5", "a whole number"), ("epochs=true", "a whole number"), ({"epochs": True}, "a whole number"),
    ("rate=fast", "rate='fast' should be a number"), ("rate=nan", "a finite number"), ("rate=inf", "a finite number"),
    ("flag=maybe", "true or false"), ("loss=rnk", "one of bt, rank (did you mean rank?)"), ("size=some", "whole number"),
    ("cap=x", "a whole number or none"), ("noise=rand", "did you mean random"), ("epochs", "not of the form key=value"),
    ("=3", "key=value"),
    ("epochs=2 epochs=3", "given twice"), ("{bad", "not JSON"), ("model='a", "overrides"), (3.5, "neither text"),
    ("rate=-1", "rate=-1.0 should be positive"),
    ({"model": 3}, "should be text"),
])
def test_bad_overrides_say_what_is_right(text, words):
    with pytest.raises(UserError) as e:
        with_overrides(Recipe(), text)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_coerce_leaves_unknown_types_alone():
    assert coerce((1, 2), tuple) == (1, 2)


def test_unknown_name_without_a_near_one_lists_the_known():
    with pytest.raises(UserError, match="known: a, b"):
        check_name("zzz", ["a", "b"], "method")


def test_seeds_are_the_same_in_another_process():
    code = "from responserank.files import derive_seed, rng; print(derive_seed(3, 'draw'), rng(3, 'draw').integers(10**9))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env=os.environ | {"PYTHONHASHSEED": "7"}).stdout
    assert out.split() == [str(derive_seed(3, "draw")), str(rng(3, "draw").integers(10**9))]


def test_seeds_of_numpy_numbers_equal_those_of_python_ones():
    assert derive_seed(np.int64(3), "a") == derive_seed(3, "a")


@pytest.mark.parametrize("change", [{"epochs": 4}, {"size": 4}, {"noise": "random"}, {"flag": True}])
def test_every_setting_changes_the_group(change):
    base = group_name("rr", Recipe(), "tiny", "h")
    assert group_name("rr", dataclasses.replace(Recipe(), **change), "tiny", "h") != base


def test_group_ignores_what_is_no_identity():
    settings = dataclasses.asdict(Recipe())
    base = group_name("rr", settings, "tiny", "h")
    for key in ("seed", "fraction", "save_model", "dry_run", "out", "redo"):
        assert group_name("rr", settings | {key: 1}, "tiny", "h") == base
    assert group_name("rr", settings | {"noise": 0}, "tiny", "h") == base
    others = [("rr", settings, "small", "h"), ("rr", settings, "tiny", "i"), ("bt", settings, "tiny", "h"),
              ("rr", settings, "tiny", "h", 0)]
    assert len({base, *(group_name(*other) for other in others)}) == 5
    assert re.fullmatch(r"rr-[0-9a-f]{8}", base)


def test_content_hash_sees_content_only(tmp_path):
    table = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", "yé"], "c": [[1, 2], [3]], "d": [np.array([1.0]), np.array([])]})
    assert content_hash(table) == content_hash(table.copy())
    for column, value in (("a", 2.0), ("b", "z"), ("c", [9]), ("d", np.array([2.0]))):
        other = table.copy()
        other.at[0, column] = value
        assert content_hash(other) != content_hash(table)
    assert content_hash(table.rename(columns={"a": "e"})) != content_hash(table)
    write_text(tmp_path / "d/x.csv", "1")
    before = content_hash(tmp_path / "d")
    write_text(tmp_path / "d/.hidden", "1")
    assert content_hash(tmp_path / "d") == before
    write_text(tmp_path / "d/y.csv", "1")
    assert content_hash(tmp_path / "d") != before


def test_canonical_json_refuses_nan():
    with pytest.raises(ValueError):
        canonical_json({"x": float("nan")})


# ---- files ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = write_json(tmp_path / "metrics.json", {"old": 1})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError):
        write_json(path, {"new": 2})
    monkeypatch.undo()
    assert read_json(path) == {"old": 1} and os.listdir(tmp_path) == ["metrics.json"]


def test_unwritable_value_leaves_the_old_file(tmp_path):
    path = write_json(tmp_path / "metrics.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}


def test_json_has_no_nan_and_csv_gz_no_date(tmp_path):
    write_json(tmp_path / "a.json", {"x": [float("inf"), np.float32("nan"), {"y": np.array([1.0, np.nan])}]})
    assert "NaN" not in (tmp_path / "a.json").read_text() and read_json(tmp_path / "a.json") == {"x": [None, None, {"y": [1.0, None]}]}
    table = pd.DataFrame({"a": [1.5, np.nan], "b": ["x", "ü"]})
    first = write_csv(tmp_path / "t.csv.gz", table).read_bytes()
    time.sleep(1.1)
    assert write_csv(tmp_path / "t.csv.gz", table).read_bytes() == first
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv.gz"), table)


@pytest.mark.parametrize("content, words", [
    (None, "no such file"), (b"{", "line 1: not valid JSON"), (b"\xff\xfe{}", "not UTF-8"), (b"", "not valid JSON")])
def test_bad_json_is_named(tmp_path, content, words):
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as e:
        read_json(path)
    assert words in str(e.value) and str(path) in str(e.value)


def test_git_state_outside_a_checkout(monkeypatch):
    monkeypatch.setattr(files, "_git", lambda *a: None)
    assert git_state() == {"commit": None, "dirty": None, "diff": None}


# ---- claims --------------------------------------------------------------------------------------------------

def _racer(folders, barrier, wins, stay):
    for i, folder in enumerate(folders):
        barrier.wait()
        try:
            claim = claim_run(folder)
        except UserError as e:
            assert "is being run by" in str(e)
            claim = None
        if claim is not None and claim.finished is None:
            with wins.get_lock():
                wins[i] += 1
        if stay:
            barrier.wait()
        if claim is not None and claim.finished is None:
            claim.finish({"winner": os.getpid()})


def _race(folders, stay, workers=8):
    barrier, wins = fork.Barrier(workers), fork.Array("i", len(folders))
    racers = [fork.Process(target=_racer, args=(folders, barrier, wins, stay)) for _ in range(workers)]
    for r in racers:
        r.start()
    for r in racers:
        r.join(120)
    assert [r.exitcode for r in racers] == [0] * workers
    return list(wins)


@pytest.mark.parametrize("stay", [True, False], ids=["while the winner works", "while winners come and go"])
@pytest.mark.parametrize("stale", [0, 1, 2])
def test_of_eight_racers_exactly_one_wins(tmp_path, stale, stay):
    folders = [tmp_path / str(i) for i in range(40)]
    for folder in folders:
        for number in range(1, stale + 1):
            dead_claim(folder, number)
    assert _race(folders, stay) == [1] * len(folders)
    for folder in folders:
        assert os.listdir(folder) == ["metrics.json"] and run_status(folder)[0] == "finished"


def _hammer(folder, rounds, counts, violated):
    random = np.random.default_rng(os.getpid())
    for _ in range(rounds):
        try:
            claim = claim_run(folder)
        except UserError:
            time.sleep(random.uniform(0, 0.005))
            continue
        try:
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            violated.value = 1
        time.sleep(random.uniform(0, 0.001))
        with counts.get_lock():
            counts.value += 1
        (folder / "inside").unlink(missing_ok=True)
        if random.random() < 0.5:
            claim.fail("again")
        else:  # die without a word: the claim stays, its process doesn't
            claim._stop.set()
            holder = json.loads(claim.path.read_text())
            write_text(claim.path, json.dumps(holder | {"started": "0"}))


def test_never_two_inside(tmp_path):
    counts, violated = fork.Value("i", 0), fork.Value("i", 0)
    workers = [fork.Process(target=_hammer, args=(tmp_path, 150, counts, violated)) for _ in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(120)
    assert [w.exitcode for w in workers] == [0] * 8
    assert counts.value > 50 and not violated.value


@pytest.mark.parametrize("status", ["failed", "interrupted", "dry_run"])
def test_only_finished_satisfies(tmp_path, status):
    with claim_run(tmp_path) as claim:
        claim.finish({}, status=status)
    with claim_run(tmp_path) as claim:
        assert claim.finished is None
        claim.finish({"x": 1})
    assert claim_run(tmp_path).finished["x"] == 1


def test_redo_keeps_the_old_result_until_the_new_one(tmp_path):
    with claim_run(tmp_path) as claim:
        claim.finish({"x": 1})
    with pytest.raises(RuntimeError), claim_run(tmp_path, redo=True) as claim:
        assert claim.finished is None and run_status(tmp_path)[0] == "running"
        assert read_json(tmp_path / "metrics.previous.json")["x"] == 1
        raise RuntimeError("boom")
    assert run_status(tmp_path)[0] == "failed"


@pytest.mark.parametrize("content", ['{"status": "fini', "", "[1]", '{"eval": 1}', "\x00"])
def test_corrupt_metrics_are_moved_aside_and_redone(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    assert run_status(tmp_path)[0] == "corrupt"
    with pytest.warns(UserWarning, match="could not be read"):
        claim = claim_run(tmp_path)
    assert claim.finished is None
    claim.finish({})
    assert next(tmp_path.glob("metrics.corrupt-*.json")).read_text() == content


def test_finished_under_another_commit_warns(tmp_path, monkeypatch):
    with claim_run(tmp_path) as claim:
        claim.finish({"git": {"commit": "a" * 40}})
    monkeypatch.setattr(runs, "git_state", lambda: {"commit": "b" * 40})
    with pytest.warns(UserWarning, match="finished under commit aaaaaaaa"):
        assert claim_run(tmp_path).finished
    monkeypatch.setattr(runs, "git_state", lambda: {"commit": "a" * 40})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert claim_run(tmp_path).finished


def test_error_in_one_line_and_facts_kept(tmp_path):
    with pytest.raises(ValueError), claim_run(tmp_path, facts={"method": "bt", "n": np.int64(3)}):
        raise ValueError("first\n  second")
    assert read_json(tmp_path / "metrics.json") | {"attempt": "x"} == {"method": "bt", "n": 3, "status": "failed", "error": "ValueError: first second", "attempt": "x"}


def test_no_result_is_a_failure(tmp_path):
    with claim_run(tmp_path):
        pass
    assert run_status(tmp_path)[0] == "failed"


def test_heartbeat_elsewhere_expires(tmp_path):
    path = dead_claim(tmp_path, place=["elsewhere", "boot", "ns"], started="1")
    with pytest.raises(UserError, match="is being run by elsewhere"):
        claim_run(tmp_path)
    os.utime(path, (time.time() - runs.EXPIRY_SECONDS - 5,) * 2)
    with claim_run(tmp_path) as claim:
        claim.finish({})


def test_unreadable_claim_blocks_until_it_expires(tmp_path):
    (tmp_path / "claim-3.json").write_text("")
    with pytest.raises(UserError, match="another worker"):
        claim_run(tmp_path)
    os.utime(tmp_path / "claim-3.json", (1, 1))
    claim_run(tmp_path).finish({})


def test_heartbeat_is_refreshed(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.05)
    claim = claim_run(tmp_path)
    os.utime(claim.path, (1, 1))
    wait_for(lambda: claim.path.stat().st_mtime > 1000, seconds=5)
    claim.finish({})


def test_who_lost_the_claim_may_not_write(tmp_path):
    asleep = claim_run(tmp_path)
    asleep._stop.set()
    os.utime(asleep.path, (1, 1))  # silent since 1970
    with claim_run(tmp_path) as taker:
        with pytest.raises(UserError, match="claim was lost"):
            asleep.finish({"x": "old"})
        taker.finish({"x": "new"})
    asleep.interrupt()
    assert read_json(tmp_path / "metrics.json")["x"] == "new"


def test_a_passing_racers_claim_costs_no_result(tmp_path):
    claim = claim_run(tmp_path)
    dead_claim(tmp_path, 2, started=runs._process_start(os.getpid()))  # created by a slow worker about to withdraw it
    claim.finish({"x": 1})
    assert run_status(tmp_path) == ("finished", {"x": 1, "status": "finished", "attempt": claim.token})


def test_forked_child_cannot_end_the_parents_run(tmp_path):
    claim = claim_run(tmp_path)
    child = fork.Process(target=claim.interrupt)
    child.start()
    child.join()
    assert run_status(tmp_path)[0] == "running"
    claim.finish({})


def test_disk_full_at_the_end_leaves_no_result(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")
    claim = claim_run(tmp_path)
    monkeypatch.setattr(runs, "write_json", full)
    with pytest.raises(OSError):
        claim.finish({"x": 1})
    with pytest.warns(UserWarning, match="could not write"):
        claim.fail("a full disk")
    monkeypatch.undo()
    assert run_status(tmp_path)[0] == "empty" and claim_run(tmp_path).finished is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot"):
        claim_run(tmp_path / "x")


def test_folder_under_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="cannot make this folder"):
        claim_run(tmp_path / "runs" / "a")


def test_without_hard_links(tmp_path, monkeypatch):
    def no_links(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")
    monkeypatch.setattr(os, "link", no_links)
    claim = claim_run(tmp_path)
    with pytest.raises(UserError, match=socket.gethostname()):
        claim_run(tmp_path)
    claim.finish({})


# ---- stopping ------------------------------------------------------------------------------------------------

WORKER = """
import sys, time
from responserank.files import write_text
from responserank.runs import *
with interruptible(with_parent={with_parent}), claim_run({folder!r}, facts=dict(method="bt")) as claim:
    print("started", flush=True)
    end = time.time() + 60
    while time.time() < end: time.sleep(.01)
    claim.finish({{}})
"""


def start(folder, with_parent=False):
    code = WORKER.format(folder=str(folder), with_parent=with_parent)
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "started\n"
    return worker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_run_is_interrupted(tmp_path, number):
    worker = start(tmp_path)
    assert run_status(tmp_path) == ("running", {"method": "bt"})
    worker.send_signal(number)
    assert worker.wait(30) != 0
    written = read_json(tmp_path / "metrics.json")
    assert len(written.pop("attempt")) == 32 and written == {"method": "bt", "status": "interrupted", "error": f"stopped by {number.name}"}
    assert os.listdir(tmp_path) == ["metrics.json"]


@linux
def test_killed_run_is_redone_at_once(tmp_path):
    worker = start(tmp_path / "a" / "1" / "2")
    with pytest.raises(UserError, match=f"process {worker.pid}"):
        claim_run(tmp_path / "a" / "1" / "2")
    worker.kill()
    wait_for(lambda: runs._process_start(worker.pid) is None)  # a zombie: nobody has reaped it yet
    assert run_status(tmp_path / "a" / "1" / "2")[0] == "dead"
    with claim_run(tmp_path / "a" / "1" / "2") as claim:
        assert claim.finished is None
        claim.finish({})
    worker.wait()


@linux
def test_reader_marks_dead_claims(tmp_path):
    worker = start(tmp_path / "bt-0" / "0.5" / "2")
    folder, = run_folders(tmp_path)
    assert resolve_status(folder)[0] == "running"
    worker.kill()
    worker.wait()
    status, known = resolve_status(folder)
    assert (status, known["error"]) == ("interrupted", "its worker died")
    assert read_json(folder / "metrics.json")["status"] == "interrupted"


@linux
def test_death_of_the_parent_interrupts(tmp_path):
    code = WORKER.format(folder=str(tmp_path), with_parent=True)
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    parent.stdout.readline()
    parent.kill()
    parent.wait()
    wait_for(lambda: run_status(tmp_path)[0] == "interrupted")


def test_signals_wait_while_a_result_is_written(tmp_path, monkeypatch):
    write = runs.write_json

    def slow(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        return write(*args)
    monkeypatch.setattr(runs, "write_json", slow)
    with pytest.raises(Interrupted), interruptible(), claim_run(tmp_path) as claim:
        claim.finish({"x": 1})
    assert run_status(tmp_path)[0] == "finished" and os.listdir(tmp_path) == ["metrics.json"]


def test_a_signal_is_not_lost_while_an_object_is_deleted(tmp_path):
    class Deleted:
        def __del__(self): os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.01)  # an exception here would be ignored
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible(), claim_run(tmp_path):
        Deleted()
        time.sleep(20)
    assert run_status(tmp_path)[0] == "interrupted"


def test_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) is runs._on_signal
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# ---- under papermill -----------------------------------------------------------------------------------------

def notebook(folder, *cells):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
    nbformat.write(nb, folder / "in.ipynb")
    return [sys.executable, "-m", "papermill", str(folder / "in.ipynb"), str(folder / "out.ipynb"), "--no-progress-bar"]


def test_user_error_is_the_last_line_under_papermill(tmp_path):
    command = notebook(tmp_path, "from responserank.runs import *", "from responserank.settings import UserError", "def f(): raise UserError('pairs.csv, row 3: \\n no text')\nf()")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", done.stderr).splitlines() if line.strip()]
    assert done.returncode != 0 and lines[-1] == "UserError: pairs.csv, row 3: no text"


KERNEL = """
import os, time
from responserank.files import write_text
from responserank.runs import *
with interruptible(), claim_run({folder!r}) as claim:
    write_text({pid!r}, str(os.getpid()))
    {work}
    claim.finish({{}})
"""
LOOP = "end = time.time() + 60\n    while time.time() < end: time.sleep(.01)"
DEAF = "import hashlib\n    while True: hashlib.pbkdf2_hmac('sha256', b'', b'', 10**7)"  # seconds in C, no Python in between


def test_a_signal_that_repeats_the_first_does_not_cut_its_last_words_short(tmp_path, monkeypatch):
    last_words = runs.Claim.interrupt

    def told_again(claim, error):
        os.kill(os.getpid(), signal.SIGTERM)  # by the scheduler, after the parent
        last_words(claim, error)
    monkeypatch.setattr(runs.Claim, "interrupt", told_again)
    with pytest.raises(Interrupted), interruptible(), claim_run(tmp_path / "run"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert run_status(tmp_path / "run")[0] == "interrupted"


@linux
@pytest.mark.parametrize("number, work", [(signal.SIGTERM, LOOP), (signal.SIGKILL, LOOP), (signal.SIGINT, LOOP), (signal.SIGKILL, DEAF)],
                         ids=["SIGTERM", "SIGKILL", "SIGINT", "SIGKILL during a long step"])
def test_end_of_papermill_ends_the_run(tmp_path, number, work):
    run, pid = tmp_path / "run", tmp_path / "pid"
    command = notebook(tmp_path, KERNEL.format(folder=str(run), pid=str(pid), work=work))
    papermill = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: pid.exists() and pid.read_text())
    kernel = int(pid.read_text())
    time.sleep(0.3)
    papermill.send_signal(number)
    papermill.wait(60)
    wait_for(lambda: runs._process_start(kernel) is None)
    assert run_status(run)[0] == "interrupted"
    assert os.listdir(run) == ["metrics.json"]


@linux
def test_sigterm_to_the_kernel_interrupts(tmp_path):
    run, pid = tmp_path / "run", tmp_path / "pid"
    command = notebook(tmp_path, KERNEL.format(folder=str(run), pid=str(pid), work=LOOP))
    papermill = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: pid.exists() and pid.read_text())
    os.kill(int(pid.read_text()), signal.SIGTERM)
    stderr = papermill.communicate(timeout=60)[1]
    assert papermill.returncode != 0 and stderr.strip().splitlines()[-1].endswith("Interrupted: stopped by SIGTERM")
    assert run_status(run)[0] == "interrupted"


# ---- collecting ----------------------------------------------------------------------------------------------

def test_listing_hides_nothing(tmp_path):
    with claim_run(run_folder(tmp_path, "bt-00000000", 1.0, 42), facts={"method": "bt", "settings": {"epochs": 2}}) as claim:
        claim.finish({"fraction": 1.0, "seed": 42, "eval": {"accuracy": 0.7, "rewardbench_v2": {"math": 0.5}},
                      "data_report": [{"step": "draw"}]})
    write_text(run_folder(tmp_path, "rr_agree-00000000", 0.1, 1) / "metrics.json", "{")
    dead_claim(run_folder(tmp_path, "rr_agree-00000000", 0.1, 2), place=["elsewhere", None, None])
    run_folder(tmp_path, "rr_agree-00000000", 0.1, 3).mkdir()
    found = {folder.name: resolve_status(folder) for folder in run_folders(tmp_path)}
    assert {name: status for name, (status, _) in found.items()} == {"42": "finished", "1": "corrupt", "2": "running"}
    flat = flatten_keys(found["42"][1])
    assert flat["eval.rewardbench_v2.math"] == 0.5 and flat["settings.epochs"] == 2 and "data_report" not in flat
    assert "not valid JSON" in found["1"][1]["error"]


def test_listing_nothing(tmp_path):
    assert run_folders(tmp_path) == []
    with pytest.raises(UserError, match="no such folder"):
        run_folders(tmp_path / "absent")


def test_parse_overrides_keeps_text():
    assert parse_overrides("a=1 b='two words'") == {"a": "1", "b": "two words"}
