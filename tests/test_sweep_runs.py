"""Sweeps at work: what is skipped, repaired, refused and collected."""
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from sweeping import SMALL, linux, words

from responserank.files import read_json, write_text
from responserank.llm.collect import collect
from responserank.llm.sweep import status_table, sweep, sweep_grid
from responserank.llm.trainer import train_once
from responserank.runs import claim_run
from responserank.settings import UserError


@linux
def test_finished_is_skipped_corrupt_is_repaired_mistakes_are_not_repeated(root, sixty_pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setenv("IN_TEST", "1")  # as under nbdev_test: a run must not shrink for it
    runs = sweep_grid("bt,rr,rr_stated", "1", "0-1", data=str(sixty_pairs), overrides=f"{SMALL} epochs=1")
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


def test_a_wheel_has_no_notebooks(sixty_pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = sweep_grid("bt", "1", "0", data=str(sixty_pairs), overrides=f"{SMALL} epochs=1")
    assert list(sweep(runs, "runs", 1, wandb_mode="disabled", warm=False).status) == ["finished"]
    assert sorted(os.listdir(tmp_path / "runs" / runs.run[0])) == ["curve.csv", "metrics.json", "predictions.csv"]


# ---- a full disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more, says", [
    (["--methods", "rr_agre"], "did you mean rr_agree"), (["--seeds", "a"], "seeds"), (["--fractions", "2"], "(0, 1]"), (["--preset", "tinny"], "tiny"),
    (["--overrides", "epoch=1"], "epochs"), (["--data", "no/such.jsonl"], "no/such.jsonl"), (["--wandb-mode", "onlin"], "online"), (["--workers", "0"], "workers"),
    (["--share", "3/3"], "I/N"), (["--slurm"], "no sbatch")])
def test_a_bad_sweep_starts_nothing(more, says, sixty_pairs, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from responserank.cli import main
    monkeypatch.setenv("PATH", str(tmp_path))
    call = dict(zip(*[iter(words(sixty_pairs, tmp_path / "runs", 1)[1:])] * 2)) | dict(zip(*[iter(more if len(more) == 2 else [*more, ""])] * 2))
    done = CliRunner().invoke(main, ["sweep", *(w for pair in call.items() for w in pair if w)])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and says in done.stderr
    assert not list(tmp_path.rglob("metrics.json"))


def test_no_workers(sixty_pairs):
    with pytest.raises(UserError, match="at least one"): sweep(sweep_grid("bt", "1", "0", data=str(sixty_pairs)), workers=0)


def test_dry_run_counts_and_notes_are_waiting(sixty_pairs, tmp_path):
    from responserank.llm.sweep import grid_lines, note_grid
    runs = sweep_grid("bt,rr", "0.5,1", "0-1", data=str(sixty_pairs), overrides=SMALL)
    with claim_run(tmp_path / runs.run[0]) as claim: claim.finish({"seconds": {"total": 9}})
    assert grid_lines(runs, tmp_path)[-1] == "8 runs, 1 finished, 7 to do; finished ones took 9 s each"
    note_grid(runs, tmp_path, "")
    write_text(tmp_path / "sweep-bad.json", "{")
    assert status_table(tmp_path).status.value_counts().to_dict() == {"waiting": 7, "finished": 1}


# ---- wandb -------------------------------------------------------------------------------------------------------


def test_offline_runs_can_be_synced_and_collected_under_the_same_names(sixty_pairs, tmp_path):
    result = train_once("rr", data=str(sixty_pairs), out=tmp_path, seed=3, overrides=f"{SMALL} epochs=1 rank_weight=0.5", wandb_mode="offline")
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
    assert list(ours.overrides) == [" ".join(sorted(f"{SMALL} epochs=1 rank_weight=0.5".split()))]
