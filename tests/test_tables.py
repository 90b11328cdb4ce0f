"""Tables from files, folders and the hub: formats, and one clear line for whatever is wrong."""
import gzip
import json

import pandas as pd
import pytest

from responserank.settings import UserError
from responserank.tables import list_configs, hub_error, is_hub_name, read_table

ROWS = [{"chosen": "Zoë", "rejected": "no", "strength": 1.5}, {"chosen": "NA", "rejected": "1984", "strength": 2}]
README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: default/train-*
- config_name: labels
  data_files:
  - split: train
    path: labels/train-*
---
# Some data
"""


def jsonl(rows): return "".join(json.dumps(r) + "\n" for r in rows)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv", "x.parquet", "x.jsonl.gz", "x.csv.gz", "list.json"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    frame, path = pd.DataFrame(ROWS), tmp_path / name
    write = gzip.open if name.endswith(".gz") else open
    if ".parquet" in name: frame.to_parquet(path)
    else:
        text = (json.dumps(ROWS) if name == "list.json" else jsonl(ROWS) if ".json" in name
                else frame.to_csv(index=False, sep="\t" if ".tsv" in name else ","))
        with write(path, "wb") as f: f.write(("\ufeff" + text if name == "x.csv" else text).encode())
    read = read_table(path)
    assert read[["chosen", "rejected"]].values.tolist() == [["Zoë", "no"], ["NA", "1984"]]
    assert read["strength"].astype(float).tolist() == [1.5, 2.0]


BAD = [
    ("x.csv", b"", "the file is empty"),
    ("x.jsonl", b"\n \n", "the file is empty"),
    ("x.csv", b"chosen,rejected\n", "has no rows"),
    ("x.csv", "chosen\nZoë\n".encode("latin-1"), "line 2: not UTF-8"),
    ("x.jsonl", (jsonl(ROWS) + '{"chosen": "y').encode(), "line 3: not valid JSON"),
    ("x.jsonl", b'["a", "b"]\n', "line 1: a JSON object"),
    ("x.json", b'[{"chosen": 1}, ', "not valid JSON"),
    ("x.json", b'[{"chosen": 1}, 3]', "row 2: a JSON object"),
    ("x.csv", b'chosen,rejected\na,b\nc,d,e\n', "line 3: 3 cells, but the header has 2 columns"),
    ("x.csv", b'chosen,rejected\na,b\n"c"\n', "line 3: 1 cells"),
    ("x.csv", b'chosen\n"open', "line 2: a quoted cell in this row is not closed"),
    ("x.csv", b'chosen,rejected\n"say \\"no\\"",b\n', "line 2: a quoted cell in this row is not closed"),
    ("x.csv", b'chosen,rejected,note\na,b,"c\nd,e,f\ng,h,i"\n', "line 2: a quote opens in this row and closes in line 4"),
    ("x.tsv", b'chosen\trejected\n"a\tb\nc"\td\n', "line 2: "),
    ("x.csv", b'chosen,chosen\na,b\n', "two columns are called 'chosen'"),
    ("x.csv", b'chosen\trejected\na\tb\n', "cut by a tab: name the file .tsv"),
    ("x.jsonl", b'{"chosen": "a", "chosen": "b"}\n', "the key 'chosen' stands twice"),
    ("x.jsonl", b"[" * 100_000, "nested too deeply"),
    ("x.jsonl", b'{"chosen": ' + b"9" * 5000 + b"}", "line 1: "),
    ("x.parquet", b"PAR1 nonsense", "not a readable Parquet file"),
    ("x.jsonl.gz", gzip.compress(jsonl(ROWS).encode())[:-12], "cannot be read"),
    ("x.xlsx", b"x", "unknown format '.xlsx'"),
]


@pytest.mark.parametrize("name, content, said", BAD, ids=[b[2] for b in BAD])
def test_a_wrong_file_ends_in_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as e: read_table(tmp_path / name)
    assert said in str(e.value) and name in str(e.value) and "\n" not in str(e.value)


def test_a_missing_file_offers_its_neighbours(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(jsonl(ROWS))
    with pytest.raises(UserError, match="no such file or folder; did you mean pairs.jsonl"): read_table(tmp_path / "pair.jsonl")
    with pytest.raises(UserError, match="no such file"): read_table("not-a-name")


def hub_clone(folder, readme=True):
    for part, rows in (("default", ROWS), ("labels", [{"x": 1}])):
        (folder / part).mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(folder / part / "train-00000-of-00001.parquet")
    if readme: (folder / "README.md").write_text(README)
    return folder


@pytest.mark.parametrize("readme", [True, False])
def test_a_folder_in_the_hubs_layout(tmp_path, readme):
    folder = hub_clone(tmp_path / "data", readme)
    assert list_configs(folder) == ["default", "labels"]
    assert read_table(folder, "default")["chosen"].tolist() == ["Zoë", "NA"]
    assert read_table(folder, "labels")["x"].tolist() == [1]


def test_saved_folders_and_their_splits(tmp_path):
    import datasets
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data).save_to_disk(tmp_path / "two")
    for name in ("one", "two"): assert read_table(tmp_path / name)["chosen"].tolist() == ["Zoë", "NA"]
    with pytest.raises(UserError, match="no split 'test'; it has train"): read_table(tmp_path / "two", split="test")


def test_folders_that_hold_nothing_or_too_much(tmp_path):
    with pytest.raises(UserError, match="no data files"): read_table(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"y": 1}\n')
    with pytest.raises(UserError, match="b.jsonl has other columns than a.jsonl"): read_table(tmp_path)


def test_hub_names_and_paths_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert is_hub_name("allenai/multipref")
    assert not any(map(is_hub_name, ["data/mine", "../data/mine", "/data/mine", "some/file.jsonl", "pairs", "a/b/c"]))


@pytest.mark.parametrize("error, said", [
    (ConnectionError("Couldn't reach 'a/b' on the Hub"), "the Hugging Face hub cannot be reached"),
    (type("GatedRepoError", (Exception,), {})("403\nlong"), "is gated"),
    (type("DatasetNotFoundError", (FileNotFoundError,), {})("Dataset 'a/b' is a gated dataset on the Hub.\nAsk."), "is gated"),
    (type("DatasetNotFoundError", (FileNotFoundError,), {})("Dataset 'a/b' doesn't exist"), "nor a data set on the hub"),
    (ValueError("Unknown split \"train\".\nmore"), 'Unknown split "train".')])
def test_the_hubs_complaints_become_one_line(error, said):
    text = str(hub_error("a/b", error))
    assert said in text and text.startswith("a/b: ") and "\n" not in text


def test_a_hub_that_cannot_be_reached(monkeypatch):
    import datasets
    def down(*a, **k): raise ConnectionError("Couldn't reach 'allenai/multipref' on the Hub (LocalEntryNotFoundError)")
    monkeypatch.setattr(datasets, "load_dataset", down)
    with pytest.raises(UserError, match="allenai/multipref: cannot be fetched"): read_table("allenai/multipref", "default")
