"""The command line: statuses, one line per error, help that costs nothing."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import responserank.llm.trainer  # noqa: F401 (transformers may print when it is first imported; not inside a test, please)
from small import small
from responserank.cli import _explain, main, _method_lines
from responserank.llm.methods import METHODS
from waiting import wait_for

COMMANDS = sorted(main.commands)
SCRIPT = Path(sys.executable).with_name("responserank")


def run(*words): return CliRunner().invoke(main, list(words))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    done = run(command, "--help")
    assert done.exit_code == 0
    assert f"  responserank {command}" in done.output and "Example" in done.output


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_help_names_every_preset_and_wandb_mode(command):
    """The command line imports no chapter for its help, so the help repeats names of their tables."""
    from responserank.llm.methods import PRESETS
    from responserank.llm.trainer import WANDB_MODES
    says = run(command, "--help").output
    for name in [*PRESETS, *WANDB_MODES]: assert name in says, name


@pytest.mark.parametrize("words, says", [
    (["trian"], "train"),
    (["train"], "METHOD"),
    (["train", "rr_agre"], "did you mean rr_agree"),
    (["train", "bt", "rr_agre"], "rr_agre"),
    (["train", "bt", "--preset", "tinny"], "tiny"),
    (["train", "bt", "--overrides", "epoch=2"], "epochs"),
    (["train", "bt", "--overrides", "epochs"], "key=value"),
    (["train", "bt", "--overrides", "epochs=many"], "whole number"),
    (["train", "bt", "--fraction", "half"], "half"),
    (["train", "bt", "--fraction", "1.5"], "fraction"),
    (["train", "bt", "--seed", "x"], "x"),
    (["train", "bt", "--data", "no/such/file.csv"], "no/such/file.csv"),
    (["train", "bt", "--wandb-mode", "onlin"], "online"),
    (["--nonsense"], "--nonsense"),
    (["methods", "extra"], "extra"),
    (["collect", "--control"], "--wandb ENTITY/PROJECT"),
    (["collect", "--control", "--wandb", "control"], "ENTITY/PROJECT"),
    (["paper", "--dpi", "5"], "dpi"),
])
def test_bad_input_is_one_line_and_status_2(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert says in done.stderr
    assert not list(tmp_path.rglob("metrics.json"))


def test_a_failure_is_status_1(monkeypatch):
    import responserank.llm.methods as methods
    def broken(): raise OSError("disk on fire")
    monkeypatch.setattr(methods, "methods_csv", broken)
    done = run("methods", "--csv")
    assert done.exit_code == 1 and done.stderr == "error: OSError: disk on fire\n"
    done = run("--traceback", "methods", "--csv")
    assert isinstance(done.exception, OSError)


def test_explain_flattens_lines():
    assert _explain(click.UsageError("one\n  two")) == ("one two", 2)
    assert _explain(KeyboardInterrupt()) == ("stopped", 130)


def test_methods_lists_all_and_writes_the_published_table(shared):
    listed = [line.split()[0] for line in _method_lines() if line.startswith("  ")]
    assert sorted(listed) == sorted(METHODS)
    assert run("methods", "--csv").stdout_bytes.decode().splitlines() == (shared / "reference/llm_methods.csv").read_text().splitlines()


def test_dry_run_reports_the_data(tmp_path):
    done = run("train", "bt", "rr_agree", "--dry-run", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert done.stdout.count("tokenise") == 2 and f"{tmp_path}/rr_agree-" in done.stdout
    assert {json.loads(p.read_text())["status"] for p in tmp_path.rglob("metrics.json")} == {"dry_run"}


def test_training_two_methods_prints_the_gain_and_then_reads_the_files(tmp_path):
    pairs = [{"chosen": f"a good answer to {i}", "rejected": f"a bad one to {i}", "strength": i} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(p) for p in pairs))
    words = ["train", "bt", "rr", "--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "runs"), "--wandb-mode", "disabled",
             "--overrides", small(epochs=1, batch_size=16)]
    first = run(*words)
    assert first.exit_code == 0, first.output
    starts = [line.split(" ")[0] for line in first.stdout.splitlines()]
    assert starts[:4] == ["", "bt", "rr", "rr"] and "rr - bt" in first.stdout and "accuracy" in first.stdout
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.json")}
    assert len(files) == 2 and run(*words).stdout == first.stdout
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.json")}


def test_help_imports_nothing_heavy():
    code = "import sys, responserank.cli; print(sorted({'torch', 'transformers', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "train" in done.stdout


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(f"'{SCRIPT}' methods --csv | head -1", shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("method,") and done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_so_and_is_marked(number, tmp_path):
    words = [SCRIPT, "train", "rr_agree", "--out", tmp_path, "--wandb-mode", "disabled", "--overrides", "epochs=500"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        wait_for(lambda: [*tmp_path.rglob("checkpoints"), *tmp_path.rglob("claim-*.json")] or process.poll() is not None, 120)
        assert process.poll() is None
        time.sleep(1)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    finally: process.kill()
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].startswith("error: stopped by SIG")
    assert [json.loads(p.read_text())["status"] for p in tmp_path.rglob("metrics.json")] == ["interrupted"]
