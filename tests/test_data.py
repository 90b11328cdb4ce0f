"""What a user says about the data reaches the run: mappings, test data of one's own, rows left out, from every door."""
import csv
import json

import pandas as pd
import pytest
from click.testing import CliRunner

from small import small
from responserank.cli import main
from responserank.llm.data import open_data, report_lines
from responserank.llm.shapes import SHAPES
from responserank.llm.sweep import sweep_grid
from responserank.llm.trainer import train_once
from responserank.settings import UserError

TINY = small(max_length=64, batch_size=8, epochs=1)


def many(shape, path, copies=10):
    """Write a shape's three rows ten times over, with other texts each time."""
    rows = [r for k in range(copies) for r in json.loads(json.dumps(list(shape.example)).replace("Seven", f"Seven{k}").replace("Nine", f"Nine{k}")
                                                       .replace("Yes", f"Yes{k}").replace('"4', f'"4{k}').replace(": 4", f": 4{k}").replace("whale", f"whale{k}")
                                                       .replace("A cod", f"A cod{k}").replace("Red", f"Red{k}"))]
    for i, r in enumerate(rows):
        if "id" in r: r["id"] = i
        if "annotation_id" in r: r["annotation_id"] = i
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_from_the_file_as_downloaded_to_a_dry_run_in_one_command(shape, tmp_path):
    path = many(shape, tmp_path / "data.jsonl")
    done = CliRunner().invoke(main, ["train", "bt", "--data", str(path), "--dry-run", "--out", str(tmp_path / "runs"), "--overrides", f"{TINY} test_size=10"])
    assert done.exit_code == 0, done.output
    assert f"read as {shape.name}: 30 rows" in done.stderr and "the first comparison as the model reads it:" in done.stderr
    for column in shape.example[0]: assert column in done.stderr  # every column has a fate


@pytest.fixture
def renamed(tmp_path):
    """A file of forty pairs under names of its own, one row of which has no number."""
    rows = [{"Frage": f"q{i}", "good": f"yes {i}", "bad": f"no {i}", "force": "much" if i == 5 else i} for i in range(40)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


MAPPING = "prompt=Frage chosen=good rejected=bad strength=force"


def test_a_mapping_reaches_the_run_and_its_name(renamed, tmp_path):
    with pytest.raises(UserError, match="row 6, column 'strength': a finite number is expected, found 'much'"):
        train_once("rr", data=str(renamed), out=tmp_path / "runs", overrides=TINY, wandb_mode="disabled", columns=MAPPING)
    said = []
    result = train_once("rr", data=str(renamed), out=tmp_path / "runs", overrides=TINY, wandb_mode="disabled", columns=MAPPING, bad_rows="drop", say=said.append)
    assert result.metrics["reading"] == dict(columns=dict(prompt="Frage", chosen="good", rejected="bad", strength="force"), bad_rows="drop")
    with (result.folder / "dropped.csv").open() as f: dropped = list(csv.DictReader(f))
    assert [(r["row"], r["column"]) for r in dropped] == [("6", "strength")]
    assert said[0] == "columns: Frage as prompt, good as chosen, bad as rejected, force as strength" and "39 used; left out: 1 bad rows" in " ".join(said)
    assert said == report_lines(result.metrics["data_report"])
    grid = sweep_grid("rr", seeds="42", data=str(renamed), overrides=TINY, columns=MAPPING, bad_rows="drop")
    assert grid["run"].tolist() == [result.folder.relative_to(tmp_path / "runs").as_posix()]  # a sweep finds the run that `train` made
    assert open_data(str(renamed), columns=MAPPING).content_hash != open_data(str(renamed), columns=MAPPING, bad_rows="drop").content_hash


def test_test_data_of_ones_own_are_never_trained_on(tmp_path):
    rows = pd.DataFrame([dict(prompt=f"q{i}", chosen=f"yes {i}", rejected=f"no {i}", strength=i) for i in range(30)])
    own = pd.concat([rows.head(2), rows.tail(8).assign(prompt="other", chosen=lambda t: t["chosen"] + "!")])
    result = train_once("rr", data=rows, test_data=own, out=tmp_path, overrides=TINY, wandb_mode="disabled")
    split = next(s for s in result.metrics["data_report"]["steps"] if s["step"] == "split")
    assert (split["rows"], split["test_rows"], split["by"]) == (30, 10, "test_data") and (split["shared_pairs"], split["shared_texts"]) == (2, 10)
    assert result.metrics["reading"] == {"test_data": "data in memory"} and len(result.predictions) == 10
    again = train_once("rr", data=rows, out=tmp_path, overrides=TINY, wandb_mode="disabled", dry_run=True)
    assert again.metrics["group"] != result.metrics["group"] and "reading" not in again.metrics
    with pytest.raises(UserError, match="has our own columns"): open_data("simulated", columns="prompt=x").load()


def test_a_split_by_name_is_part_of_a_runs_name(tmp_path):
    for split in ("train_a", "train_b", "test_a"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps(dict(chosen=f"{split} yes {i}", rejected=f"no {i}")) for i in range(5)))
    named = {s: open_data(f"{tmp_path}:{s}") for s in ("train_a", "train_b")}
    assert named["train_a"].content_hash != named["train_b"].content_hash and named["train_a"].load()[0]["completion_a"][0] == "train_a yes 0"
    with pytest.raises(UserError, match="several splits for training"): open_data(str(tmp_path)).load()


def test_a_fault_is_the_same_line_from_the_command_line(renamed):
    done = CliRunner().invoke(main, ["train", "rr", "--data", str(renamed), "--dry-run"])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "say which column holds what: --columns" in done.stderr
    done = CliRunner().invoke(main, ["train", "rr", "--data", str(renamed), "--columns", "prmpt=Frage"])
    assert done.exit_code == 2 and "did you mean prompt" in done.stderr
