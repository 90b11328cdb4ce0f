"""Other people's files: every published shape, every kind of small fault that is easily read wrongly, and the rows that must add up."""
import gzip
import json

import datasets
import numpy as np
import pandas as pd
import pytest

from responserank.llm.formats import read_preferences
from responserank.llm.shapes import SHAPES
from responserank.settings import UserError

PAIR = dict(prompt="Name a prime.", chosen="Seven.", rejected="Nine.")


def lines(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def chat(answer, question="Hi?", **more):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]


def adds_up(table, report):
    assert report["rows"] == report["used"] + sum(report["left_out"].values())
    votes = "preferences" in table and report["used"] != len(table)
    assert report["used"] == (sum(map(len, table["preferences"])) if votes else len(table))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("form", ["frame", "jsonl", "csv", "parquet"])
def test_every_shape_from_every_form(shape, form, tmp_path):
    """A shape reads the same from memory, JSON lines, a spreadsheet and Parquet, and names each of its columns."""
    rows, path = list(shape.example), tmp_path / f"data.{form}"
    flat = pd.DataFrame(rows).map(lambda v: json.dumps(v) if isinstance(v, (dict, list)) else v)
    if form == "jsonl": lines(path, rows)
    if form == "csv": flat.to_csv(path, index=False)
    if form == "parquet": pd.DataFrame(rows).to_parquet(path)
    table, report = read_preferences(pd.DataFrame(rows) if form == "frame" else path)
    assert report["shape"] == shape.name and list(report["columns"]) == list(rows[0]) and len(table) == 3
    expected, _ = read_preferences(rows)
    pd.testing.assert_frame_equal(table[["prompt", "completion_a", "completion_b", "label"]], expected[["prompt", "completion_a", "completion_b", "label"]])
    adds_up(table, report)


def test_hub_layout_with_several_splits(tmp_path):
    """A clone of a hub data set whose card lists its splits; one for training must be named where there are several."""
    shape = next(s for s in SHAPES if s.name == "UltraFeedback binarized")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files:\n" + "".join(
        f"  - split: {s}\n    path: data/{s}-*\n" for s in ("train_prefs", "train_sft", "test_prefs")) + "---\n")
    (tmp_path / "data").mkdir()
    for s in ("train_prefs", "train_sft", "test_prefs"): pd.DataFrame(list(shape.example)).to_parquet(tmp_path / f"data/{s}-00000-of-00001.parquet")
    with pytest.raises(UserError, match="several splits for training, train_prefs, train_sft; name one"): read_preferences(tmp_path)
    table, report = read_preferences(f"{tmp_path}:train_prefs")
    assert len(table) == 3 and report["columns"]["score_chosen"] == "strength"
    with pytest.raises(UserError, match="no split 'train'"): read_preferences(f"{tmp_path}:train")
    memory = datasets.DatasetDict({s: datasets.Dataset.from_list(list(shape.example)) for s in ("train_prefs", "test_prefs")})
    assert len(read_preferences(memory)[0]) == 3


def test_a_test_file_beside_the_data_is_not_read(tmp_path):
    lines(tmp_path / "answers.jsonl", [PAIR, PAIR | {"chosen": "Two."}])
    lines(tmp_path / "answers_test.jsonl", [PAIR | {"chosen": "Five."}])
    assert len(read_preferences(tmp_path)[0]) == 2
    assert read_preferences(f"{tmp_path}:answers_test")[0]["completion_a"].tolist() == ["Five."]
    with pytest.raises(UserError, match="is one file and has no splits"): read_preferences(f"{tmp_path / 'answers.jsonl'}:test")


READ_RIGHT = {  # kind of file: rows; prompt, first text, label and number of comparisons that are right
    "prompt beside conversations": ([dict(prompt="Hi?", chosen=chat("Yes."), rejected=chat("No."))], [chat("Yes.")[0]], [chat("Yes.")[1]], 1),
    "instruction": ([dict(instruction="Add.", input="2, 3", chosen="5", rejected="6")], "Add.\n\n2, 3", "5", 1),
    "capitals": ([{"Prompt": "Hi?", "Chosen": "Yes.", "chosen": "Yes.", "rejected": "No."}], None, None, 0),
    "capital prompt": ([{"Prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}], "Hi?", "Yes.", 1),
    "system": ([dict(system="Be brief.", question="Hi?", chosen="Yes.", rejected="No.")],
               [dict(role="system", content="Be brief."), dict(role="user", content="Hi?")], "Yes.", 1),
    "turns": ([dict(prompt=json.dumps(["Hi?", "So?"]), chosen=json.dumps(["Yes.", "So."]), rejected=json.dumps(["Yes.", None]))],
              [dict(role="user", content="Hi?"), dict(role="assistant", content="Yes."), dict(role="user", content="So?")],
              [dict(role="assistant", content="So.")], 1),
    "parts": ([dict(chosen=[dict(role="user", content=[dict(type="text", text="Hi?")]), dict(role="assistant", content=[dict(type="text", text="Yes.")])],
                    rejected=chat("No."))], [chat("Yes.")[0]], [chat("Yes.")[1]], 1),
    "tool calls": ([dict(chosen=chat(None, tool_calls=[dict(id="1", function=dict(name="f"))]), rejected=chat("No."))], [chat("")[0]],
                   [dict(role="assistant", content="", tool_calls=[dict(id="1", function=dict(name="f"))])], 1),
    "equal sides": ([PAIR, PAIR | {"rejected": "Seven."}], "Name a prime.", "Seven.", 1),
}


@pytest.mark.parametrize("kind", READ_RIGHT)
def test_read_right(kind, tmp_path):
    rows, prompt, first, count = READ_RIGHT[kind]
    if not count:
        with pytest.raises(UserError, match="column 'Chosen' is not used, but looks like chosen"): read_preferences(rows)
        return
    for source in (rows, lines(tmp_path / "x.jsonl", rows)):
        table, report = read_preferences(source)
        assert len(table) == count and table["prompt"][0] == prompt and table["completion_a"][0] == first
        adds_up(table, report)


REFUSED = {  # kind of file: name, content, what the line says
    "a list as Python prints it": ("x.csv", "chosen,rejected\n\"[{'role': 'user', 'content': 'Hi'}]\",no\n", "row 1, column 'chosen': a list as Python prints it"),
    "an image": ("x.jsonl", json.dumps(dict(chosen=[dict(role="user", content=[dict(type="image_url", image_url="x")])], rejected="no")), "content part of type 'image_url'"),
    "half a surrogate": ("x.jsonl", '{"chosen": "a\\ud83d", "rejected": "b"}', "row 1, column 'chosen': the character U+D83D"),
    "a NUL": ("x.jsonl", '{"chosen": "a\\u0000", "rejected": "b"}', "row 1, column 'chosen': the character U+0000 is a NUL"),
    "a true strength": ("x.jsonl", '{"chosen": "a", "rejected": "b", "strength": true}', "row 1, column 'strength': a finite number is expected, found True"),
    "a decimal comma": ("x.csv", 'chosen,rejected,strength\na,b,"1,5"\n', "a decimal comma; write a point"),
    "a row too long": ("x.csv", "chosen,rejected\na,b,c\n", "line 2: 3 cells, but the header has 2 columns"),
    "backslashes": ("x.csv", 'chosen,rejected\n"say \\"yes\\"","no"\n', "line 2: a quoted cell in this row is not closed"),
    "an open quote": ("x.tsv", 'chosen\trejected\n"a\tb\nc\td\n', "line 2: a quoted cell in this row is not closed"),
    "a misspelled column": ("x.jsonl", json.dumps(PAIR | {"strenght": 2}), "looks like strength: say --columns strength=strenght, or --ignore strenght"),
    "a second prompt": ("x.jsonl", json.dumps(PAIR | {"question": "Which?"}), "column 'question' is not used, but looks like prompt"),
    "strength and rank": ("x.jsonl", json.dumps(PAIR | {"strength": 2, "rank": 1}), "both 'strength' and 'rank' are given"),
    "milliseconds": ("x.jsonl", json.dumps(PAIR | {"response_time": 1500}), "looks like milliseconds"),
    "a moment": ("x.jsonl", json.dumps(PAIR | {"response_time": 1.7e9}), "is a moment, no duration"),
    "a date": ("x.jsonl", json.dumps(PAIR | {"response_time": "2024-01-01T10:00:00"}), "is a date, no duration"),
    "a negative time": ("x.jsonl", json.dumps(PAIR | {"response_time": -3}), "row 1, column 'response_time': a finite number of at least 0"),
    "another prompt": ("x.jsonl", json.dumps(dict(prompt="Why?", chosen=chat("Yes."), rejected=chat("No."))), "not with the prompt"),
    "equal sides only": ("x.jsonl", json.dumps(PAIR | {"rejected": "Seven."}), "both sides of every row are equal"),
    "a wrong winner": ("x.jsonl", json.dumps(dict(history="q", human_ref_A="a", human_ref_B="b", labels=2, score_ratio=1)), "one of 1, 0 is expected, found 2"),
    "unequal turns": ("x.jsonl", json.dumps(dict(prompt=["a", "b"], chosen=["c"], rejected=["d"])), "1 answers, but 2 questions"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_line(kind, tmp_path):
    name, content, says = REFUSED[kind]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as e: read_preferences(tmp_path / name)
    assert says in str(e.value) and name in str(e.value) and "\n" not in str(e.value)


def test_ten_faults_at_once_or_rows_left_out(tmp_path):
    rows = [PAIR | {"chosen": f"answer {i}", "strength": "x" if i % 2 else i} for i in range(30)]
    path = lines(tmp_path / "x.jsonl", rows)
    with pytest.raises(UserError) as e: read_preferences(path)
    said = str(e.value).removesuffix("; --bad-rows drop leaves them out").split("; ")
    assert len(said) == 11 and "row 2, column 'strength'" in said[0] and said[-1] == "15 bad rows in all"
    table, report = read_preferences(path, bad_rows="drop")
    assert table["strength"].tolist() == list(range(0, 30, 2)) and report["left_out"] == {"bad rows": 15}
    dropped = pd.DataFrame(table.attrs["dropped"])
    assert dropped["row"].tolist() == list(range(2, 31, 2)) and set(dropped["column"]) == {"strength"}
    adds_up(table, report)
    with pytest.raises(UserError, match="every row is bad"): read_preferences([PAIR | {"strength": "x"}], bad_rows="drop")


def test_judgements_of_one_pair_become_one_comparison():
    rows = [dict(chosen=c, rejected=r, annotator=f"w{i}", seconds=float(i)) for i, (c, r) in enumerate([("yes", "no"), ("no", "yes"), ("yes", "no"), ("a", "b")])]
    table, report = read_preferences(rows)
    assert table["preferences"].map(list).tolist() == [[2, -2, 2], [2]] and table["seconds"].map(list).tolist() == [[0, 1, 2], [3]]
    assert report["annotations"] == report["used"] == 4
    unnamed, _ = read_preferences([{k: v for k, v in r.items() if k != "annotator"} for r in rows])
    assert len(unnamed) == 4 and "preferences" not in unnamed  # kept apart; the split keeps them on one side


def test_a_batch_of_mechanical_turk_by_mapping(tmp_path):
    frame = pd.DataFrame({"HITId": ["h1", "h1", "h2"], "WorkerId": ["A", " B ", "A"], "WorkTimeInSeconds": [12, 30, 8], "Input.question": ["q", "q", "p"],
                          "Input.left": ["l", "l", "x"], "Input.right": ["r", "r", "y"], "Answer.choice": ["left", "same", "right"], "AssignmentStatus": "Approved"})
    frame.to_csv(tmp_path / "batch.csv", index=False)
    table, report = read_preferences(tmp_path / "batch.csv", columns="prompt=Input.question a=Input.left b=Input.right preference=Answer.choice",
                                     values="left=A right=B same=Tie")
    assert table["preferences"].map(list).tolist() == [[2, 0], [-2]] and table["annotators"][0].tolist() == ["A", "B"]
    assert table["seconds"][0].tolist() == [12, 30] and report["columns"]["WorkTimeInSeconds"] == "seconds" and report["columns"]["AssignmentStatus"] == "not used"
    with pytest.raises(UserError, match="unknown preference 'left'"):
        read_preferences(tmp_path / "batch.csv", columns="prompt=Input.question a=Input.left b=Input.right preference=Answer.choice")


def test_times_from_two_columns_and_in_other_units():
    rows = [dict(PAIR, start="2026-01-01 10:00:00", end=f"2026-01-01 10:00:{9 + i:02d}", chosen=f"s{i}") for i in range(3)]
    table, report = read_preferences(rows, columns="seconds=end-start")
    assert table["response_time"].tolist() == [9, 10, 11] and report["columns"]["start"] == "seconds"
    table, _ = read_preferences([PAIR | {"response_time": 1500}], columns="unit=ms")
    assert table["response_time"].tolist() == [1.5]


def test_people_are_compared_as_text():
    rows = [dict(PAIR, chosen=f"s{i}", annotator=a) for i, a in enumerate([1, "1.0", " Ann", "ann"])]
    table, report = read_preferences(rows)
    assert table["annotator"].tolist() == ["1", "1", "Ann", "ann"] and report["warnings"] == ["annotators whose names differ in capitals only: Ann, ann"]


def test_three_levels_of_preference():
    rows = [dict(id=str(i), prompt="q", completion_a=f"a{i}", completion_b=f"b{i}", preference=p)
            for i, p in enumerate(["A-is-much-better", "B-is-clearly-better", "A-is-slightly-better", "tie"])]
    table, _ = read_preferences(rows)
    from responserank.llm.formats import mean_preferences
    np.testing.assert_allclose(mean_preferences(table), [1, -2 / 3, 1 / 3, 0])


def test_encodings(tmp_path):
    text = "chosen,rejected\nZoë,no\n"
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "x.csv").write_bytes(text.encode(encoding))
        assert read_preferences(tmp_path / "x.csv")[0]["completion_a"].tolist() == ["Zoë"]
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert len(read_preferences(tmp_path / "x.csv.gz")[0]) == 1


CASES = {"02_orca.jsonl": "system", "02_alpaca.jsonl": "input", "02_caps.csv": "prompt", "01_ufb.jsonl": "strength", "04_shp.jsonl": "strength",
         "06_kaggle.csv": "preference", "07_hs.jsonl": "preference", "20_worker.jsonl": "annotator", "26_parts.csv": "chosen"}


@pytest.mark.parametrize("name", CASES)
def test_small_files_that_were_misread(name, shared):
    table, report = read_preferences(shared / "cases" / name)
    assert CASES[name] in report["columns"].values() and len(table) == 120
    assert not table["prompt"].map(str).str.contains(r"\[\{'role': 'user', 'content': \"\[", regex=True).any()
    adds_up(table, report)


@pytest.mark.parametrize("name, says", [
    ("08_repr.csv", "as Python prints it"), ("10_surrogate.jsonl", "row 58, column 'rejected'"), ("18_quotes.tsv", "line 12"), ("34_backslash.csv", "line 2"),
    ("34_shift.csv", "line 2: 4 cells"), ("16_shards", "several splits for training")])
def test_small_files_that_are_refused(name, says, shared):
    with pytest.raises(UserError, match=says): read_preferences(shared / "cases" / name)
