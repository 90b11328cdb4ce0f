"""Paths with blanks, quotes, percent signs and letters of any script; folders that can't be written; cells that a spreadsheet would compute."""
import shlex
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from responserank.cli import main
from responserank.files import write_csv
from responserank.llm.sweep import array_script, check_out
from responserank.runs import claim_run, run_status
from responserank.settings import UserError
from small import small

NAMES = ["two words", "it's", 'a "quote"', "50%", "%A", "東京 é", "-dash", "semi;colon", "$HOME", "back\\slash", "a#b", "new*?[x]"]


@pytest.mark.parametrize("name", NAMES)
def test_logs_of_an_array(name):
    folder = Path("/runs") / name / "logs"
    line = next(v for v in array_script([0, 1], 2, ["--methods", "bt"], folder, 1).splitlines() if v.startswith("#SBATCH --output="))
    said, = shlex.split(line.removeprefix("#SBATCH --output="))  # as sbatch cuts its options
    assert said.removesuffix("/%A_%a.log").replace("%%", "%") == str(folder) and "%" not in said.removesuffix("/%A_%a.log").replace("%%", "")


@pytest.mark.parametrize("name", NAMES)
def test_runs_anywhere(name, tmp_path):
    with claim_run(tmp_path / name / "bt-00000001/1/1") as claim:
        (claim.work / "curve.csv").write_text("step\n")
        claim.finish({})
    assert run_status(tmp_path / name / "bt-00000001/1/1")[0] == "finished"


def test_a_dry_run_of_a_strange_file(pairs, tmp_path):
    folder = tmp_path / "東京 it's 50% \"x\""
    folder.mkdir()
    pairs.rename(folder / "pairs 1.jsonl")
    done = CliRunner().invoke(main, ["train", "rr", "--data", str(folder / "pairs 1.jsonl"), "--out", str(folder / "my runs"), "--dry-run", "--overrides", small(max_length=64)])
    assert done.exit_code == 0 and list(folder.glob("my runs/*/1/42/metrics.json")), done.output


def test_out_of_a_sweep(tmp_path, pairs):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match="can't be a folder of runs"): check_out(out)
        done = CliRunner().invoke(main, ["sweep", "--methods", "bt", "--seeds", "1", "--data", str(pairs), "--out", str(out), "--overrides", small()])
        assert done.exit_code != 0 and "can't be a folder of runs" in f"{done.output}{done.exception}"
    with pytest.raises(UserError, match="Operation not permitted|denied|No such file|Read-only|can't be"): check_out(Path("/proc/self/runs"))


@pytest.mark.parametrize("cell, written", [
    ("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("+49 30", "'+49 30"), ("-cmd|x", "'-cmd|x"), ("\t=1", "'\t=1"), ("-1.5e-3", "-1.5e-3"), ("+3", "+3"), ("-.5", "-.5"),
    ("a=1", "a=1"), ("", ""), (None, ""), (-2.5, "-2.5"), ("--x", "'--x")])
def test_cells_that_a_spreadsheet_would_compute(cell, written, tmp_path):
    path = write_csv(tmp_path / "x.csv", pd.DataFrame(dict(id=[cell, "z"], n=[-1, 2])))
    assert pd.read_csv(path, dtype=str, keep_default_na=False)["id"][0] == written and pd.read_csv(path)["n"].tolist() == [-1, 2]


def test_a_model_of_a_hundred_thousand_layers(tmp_path):
    from transformers import LlamaConfig
    from responserank.llm.models import load_classifier
    LlamaConfig(num_hidden_layers=100_000, num_labels=1, architectures=["LlamaForSequenceClassification"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="says 100000 layers, more than 1000"): load_classifier(tmp_path)
