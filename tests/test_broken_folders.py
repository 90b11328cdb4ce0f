"""One broken run folder is named and counted; `status` and `collect` go on with the others."""
import itertools
import json

import pytest

from responserank.llm.collect import collect
from responserank.llm.sweep import status_table
from responserank.runs import claim_run, resolve_status
from responserank.settings import UserError

GOOD = dict(method="bt", preset="tiny", data="x.jsonl", fraction=1.0, seed=1, group="bt-00000001", status="finished", settings={}, eval={"accuracy": .7},
            data_report={"steps": []}, train={}, seconds={"total": 1.0})
ODD = [None, 3, "text", True, [], {}, {"a": 1}, 1e999, -1]
METRICS = {f"{k} is {v!r}": json.dumps(GOOD | {k: v}) for k, v in itertools.product(("status", "settings", "eval", "seed", "data_report", "seconds", "method", "fraction"), ODD)}
METRICS |= {
    "cut off": json.dumps(GOOD)[:-9], "empty": "", "a list": "[]", "a number": "7", "no status": "{\"method\": \"bt\"}", "nested": "[" * 100_000,
    "a number of 5000 digits": "{\"status\": " + "9" * 5000 + "}", "binary": b"\xff\xfe\x00\x01", "no accuracy": json.dumps(GOOD | {"eval": {"accuracy": None}}),
    "a folder": None,
}


@pytest.fixture
def runs(tmp_path):
    """A folder with one good run, and a function that adds another one."""
    def add(name, text=None, **files):
        folder = tmp_path / "bt-00000001/1" / name
        folder.mkdir(parents=True)
        for file, content in {"metrics.json": text, "curve.csv": "step\n1\n", **files}.items():
            file = file.replace("__", "-").replace("_json", ".json")
            if content is None: (folder / file).mkdir()
            else: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder
    add("1", json.dumps(GOOD))
    add.root = tmp_path
    return add


def test_odd_metrics(runs):
    """Ninety odd files at once: none stops the others."""
    for i, text in enumerate(METRICS.values()): runs(str(i + 2), text)
    table = status_table(runs.root)
    assert len(table) == len(METRICS) + 1 and (table["status"] == "finished").sum() >= 1
    rows, lines = collect(runs.root, None)
    assert "1" in set(rows["seed"])
    said = [line for line in lines if line.startswith("not collected: ")]
    assert all("\n" not in line and "bt-00000001/1/" in line for line in said)
    assert int(lines[0].split()[0]) + len(said) + sum(int(n) for line in lines if line.startswith("without a row") for n in line.split() if n.isdigit()) == len(METRICS) + 1
    for name in ("a folder", "nested", "no accuracy", "a number of 5000 digits", "binary", "seed is []", "eval is 3", "settings is 'text'"):
        folder = runs.root / "bt-00000001/1" / str(list(METRICS).index(name) + 2)
        assert resolve_status(folder)[0] == "corrupt", name
        if name != "a folder":
            with pytest.warns(UserWarning, match="could not be read; kept as"), claim_run(folder) as claim: claim.finish(dict(eval={}))
            assert resolve_status(folder)[0] == "finished"  # done again


CLAIMS = {"binary": b"\xff\x00", "a list": "[]", "no place": json.dumps(dict(pid=1, started="1", token="t")), "place is text": json.dumps(dict(place="x", pid=1, started="1", token="t")),
          "no pid": json.dumps(dict(place=["x"], pid="1", started="1", token="t")), "facts are text": json.dumps(dict(place=["x"], pid=1, started="1", token="t", facts="x")),
          "nested": "[" * 100_000, "empty": "", "a folder": None}


@pytest.mark.parametrize("name", CLAIMS)
def test_odd_claims(runs, name):
    folder = runs("2", json.dumps(GOOD | dict(status="failed", seed=2)), claim__1_json=CLAIMS[name])
    assert status_table(runs.root).set_index("run")["status"].to_dict()["bt-00000001/1/2"] == "running"  # somebody's, until it expires
    with pytest.raises(UserError, match="is being run by another worker|is being run by x"): claim_run(folder)


def test_a_claim_that_is_a_link_to_itself(runs):
    folder = runs("2", json.dumps(GOOD | dict(status="failed", seed=2)))
    (folder / "claim-1.json").symlink_to("claim-1.json")
    assert set(status_table(runs.root)["status"]) == {"finished", "failed"}


@pytest.mark.parametrize("progress", ["[]", "{", "7", "{\"done\": \"x\"}", b"\xff"])
def test_odd_progress(runs, progress):
    folder = runs("2", json.dumps(GOOD | dict(status="failed")))
    with claim_run(folder) as claim:
        (claim.work / "progress.json").write_bytes(progress if isinstance(progress, bytes) else progress.encode())
        assert set(status_table(runs.root)["status"]) == {"finished", "running"}
        claim.fail("over")


def test_odd_notes_of_grids(runs):
    for i, note in enumerate(["[]", "{", "{\"runs\": 3}", "{\"runs\": [\"a/b\", 3, null, \"../../x/1/2\", \"/x/1/2\", \"bt-1/1/7\"]}"]): (runs.root / f"sweep-{i}.json").write_text(note)
    assert status_table(runs.root)["run"].tolist() == ["bt-00000001/1/1", "bt-1/1/7"]


def test_a_missing_curve_is_noticed_and_an_empty_folder_said(runs, tmp_path):
    (runs.root / "bt-00000001/1/1/curve.csv").unlink()
    assert any("1 finished runs have lost their curve.csv: bt-00000001/1/1" in line for line in collect(runs.root, None)[1])
    (tmp_path / "none").mkdir()
    assert collect(tmp_path / "none", None)[1] == ["no runs that have ended there"]
