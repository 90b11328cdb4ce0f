"""Files with something wrong in them are refused in one line or read for what they say: no internal error, no hang, no row that says something else.

RESPONSERANK_CHAOS=10 makes ten times as many random mutations.
"""
import gzip
import json
import os
import random
import time
import warnings
import zlib

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from responserank.llm.formats import read_preferences
from responserank.llm.trainer import train_once
from responserank.settings import UserError
from small import small

KINDS = ("csv", "tsv", "json", "jsonl", "jsonl.gz", "parquet")
COLUMNS = ("prompt", "chosen", "rejected", "strength")
ROWS = [dict(prompt=f"what is p{i:02}q", chosen=f"it is c{i:02}q, and more", rejected=f"it may be x{i:02}q", strength=1 + i / 8) for i in range(16)]
MARKS = {f"{letter}{i:02}q": (i, column) for i in range(len(ROWS)) for letter, column in zip("pcx", COLUMNS)}
TINY = small(max_length=512, batch_size=8, epochs=1, test_size=4)
SECONDS = 10


def separated(rows, sep, columns=COLUMNS):
    quoted = [[f'"{r[c]}"' if sep in str(r[c]) else str(r[c]) for c in columns] for r in rows]
    return ("\n".join(sep.join(cells) for cells in [list(columns), *quoted]) + "\n").encode()


def good(kind):
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(ROWS), sink)
        return sink.getvalue().to_pybytes()
    if kind in ("csv", "tsv"): return separated(ROWS, "," if kind == "csv" else "\t")
    if kind == "json": return json.dumps(ROWS, indent=1).encode()
    lines = "".join(json.dumps(r) + "\n" for r in ROWS).encode()
    return gzip.compress(lines, mtime=0) if kind.endswith("gz") else lines


GOOD = {kind: good(kind) for kind in KINDS}


def mutate(raw, kind, rng):
    """Change one thing: a byte, a few bytes, a line, or the end of the file."""
    raw, how = bytearray(raw), rng.choice(("flip", "delete", "insert", "special", "special", "cut", "line", "twice"))
    at = rng.randrange(len(raw))
    if how == "flip": raw[at] ^= 1 << rng.randrange(8)
    elif how == "delete": del raw[at:at + rng.choice((1, 1, 1, 4))]
    elif how == "insert": raw[at:at] = bytes([rng.randrange(256)])
    elif how == "special": raw[at:at] = rng.choice([b'"', b"'", b",", b"\t", b"\n", b"\r", b"\0", b"[", b"}", b"\\", b"\\ud800", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"1e999", b"NaN", b"true", b"null"])
    elif how == "cut": del raw[at:]
    else:
        lines = bytes(raw).split(b"\n")
        i = rng.randrange(len(lines))
        lines[i:i + 1] = [] if how == "line" else [lines[i]] * 2
        raw = bytearray(b"\n".join(lines))
    return how, bytes(raw)


def _a_slip(row, other):
    """Return whether a row is another one but for a few characters of one text."""
    odd = [(str(a), b) for a, b in zip(row, other) if a != b]
    return len(odd) == 1 and abs(len(odd[0][0]) - len(odd[0][1])) < 12


def wrong(table, how):
    """Say what is wrong with a table that was read from a file in which one thing had been changed; None: nothing."""
    was, changed = {tuple(r[c] for c in COLUMNS[:3]): i for i, r in enumerate(ROWS)}, []
    for row in zip(table["prompt"], table["completion_a"], table["completion_b"], strict=True):
        if row in was: continue
        changed.append(row)
        if how != "cut" and any(_a_slip(row, other) for other in was): continue
        held = {}
        for column, cell in zip(COLUMNS, row):
            for mark in MARKS:
                if mark in str(cell): held.setdefault(MARKS[mark][0], []).append((MARKS[mark][1], column))
        if len(held) > 1: return f"a row with texts of rows {sorted(held)}"
        if any(a != b for pairs in held.values() for a, b in pairs): return f"a text in the wrong column: {row}"
    lost = len(ROWS) - (len(table) - len(changed))
    if len(changed) > 2: return f"{len(changed)} rows say something else"
    if lost > 2 and how != "cut": return f"{lost} rows are gone"
    if "strength" in table and not table["strength"].map(lambda v: v == v and abs(v) < 1e308).all(): return "a strength that is no number"
    return None


def attempt(path, folder):
    """Read a file and prepare a run; return the table, or the line that refuses it."""
    start = time.process_time()  # the machine may be busy with other tests
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table, _ = read_preferences(path)
            train_once("rr" if "strength" in table else "bt", data=str(path), out=folder / "runs", wandb_mode="disabled", dry_run=True, overrides=TINY)
        return table
    except UserError as e:
        assert "\n" not in str(e) and len(str(e)) < 4000, str(e)[:300]
        return str(e)
    finally: assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("kind", KINDS)
def test_the_good_file_is_read(kind, tmp_path):
    path = tmp_path / f"d.{kind}"
    path.write_bytes(GOOD[kind])
    table = attempt(path, tmp_path)
    assert len(table) == len(ROWS) and wrong(table, "") is None and list(table["strength"]) == [r["strength"] for r in ROWS]


@pytest.mark.parametrize("kind", KINDS)
def test_random_mutations(kind, tmp_path):
    rng, problems, accepted = random.Random(f"mutations of {kind}"), [], []
    for n in range(45 * int(os.environ.get("RESPONSERANK_CHAOS", 1))):
        how, raw = mutate(GOOD[kind], kind, rng)
        path = tmp_path / f"{n}.{kind}"
        path.write_bytes(raw)
        try: table = attempt(path, tmp_path)
        except Exception as e: problems.append((n, how, f"{type(e).__name__}: {e}"[:300]))
        else:
            if isinstance(table, str): assert str(path) in table or "comparisons" in table or "tie" in table, (how, table)
            else:
                accepted.append(path)
                if kind == "parquet" and how == "flip": continue  # it has no checksums, and a flipped bit may point to another value
                if said := wrong(table, how): problems.append((n, how, said))
    assert not problems, problems
    assert accepted or kind == "jsonl.gz"  # which has a checksum
    for path in rng.sample(accepted, min(2, len(accepted))):
        result = train_once("bt", data=str(path), out=tmp_path / "trained", wandb_mode="disabled", overrides=TINY)
        assert result.metrics["status"] == "finished"


LINES = [json.dumps(r) for r in ROWS]


def jsonl(*odd): return ("\n".join([*LINES[:10], *odd, *LINES[10:]]) + "\n").encode()


def row(**changes): return json.dumps(ROWS[0] | changes)


def table_of(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({c: [r[c] for r in ROWS] for c in COLUMNS} | columns), sink)
    return sink.getvalue().to_pybytes()


CSV = GOOD["csv"].decode().splitlines()
ODD = {  # name → file name, content, what the refusal says; None: it is read, and nothing in it is wrong
    "a row longer than the header": ("d.csv", "\n".join([*CSV[:5], CSV[5] + ",more", *CSV[6:]]).encode(), "line 6: 5 cells, but the header has 4 columns"),
    "all rows longer than the header": ("d.csv", "\n".join([CSV[0], *(c + ",1" for c in CSV[1:])]).encode(), "5 cells, but the header has 4"),
    "a short row": ("d.tsv", GOOD["tsv"] + b"one\ttwo\n", "line 18: 2 cells"),
    "two columns of one name": ("d.csv", "\n".join(["prompt,chosen,rejected,chosen", *CSV[1:]]).encode(), "two columns are called 'chosen'"),
    "names that differ in blanks": ("d.csv", "\n".join(["prompt,chosen,rejected, chosen ", *CSV[1:]]).encode(), "two columns are called 'chosen'"),
    "a key twice": ("d.jsonl", jsonl('{"prompt": "p", "chosen": "a", "chosen": "b", "rejected": "c", "strength": 1}'), "line 11: the key 'chosen' stands twice"),
    "a key twice, inside": ("d.json", b'[{"prompt": [{"role": "user", "role": "system", "content": "a"}], "chosen": "b", "rejected": "c"}]', "the key 'role' stands twice"),
    "true as a strength": ("d.jsonl", jsonl(row(strength=True)), "row 11, column 'strength': a finite number is expected, found True"),
    "booleans as strengths": ("d.parquet", table_of(strength=[True, False] * 8), "a finite number is expected"),
    "TRUE in a spreadsheet": ("d.csv", GOOD["csv"] + b"p,a,b,TRUE\n", "found 'TRUE'"),
    "two quotes around thirteen rows": ("d.csv", "\n".join([*CSV[:2], '"' + CSV[2], *CSV[3:14], CSV[14] + '"', *CSV[15:]]).replace('q, and more"', "q and more").replace('"it is', "it is").encode(), "cells|quote"),
    "a quote that is not closed": ("d.csv", "\n".join([*CSV[:2], '"' + CSV[2].replace('"', ""), *CSV[3:]]).replace('"it is', "it is").replace('more"', "more").encode(), "quote|cells"),
    "an infinite strength": ("d.jsonl", jsonl(row()[:-4] + "1e999}"), "finite number"),
    "NaN as a strength": ("d.jsonl", jsonl(row(strength=float("nan"))), "finite number"),
    "400 digits": ("d.jsonl", jsonl(row(strength=10 ** 400)), "finite number"),
    "5000 digits": ("d.jsonl", jsonl(f'{{"prompt": "p", "chosen": "a", "rejected": "b", "strength": {"9" * 5000}}}'), "line 11"),
    "400 digits in a spreadsheet": ("d.csv", GOOD["csv"] + b"p,a,b," + b"9" * 400 + b"\n", "finite number"),
    "half a surrogate pair": ("d.jsonl", jsonl(row(chosen="a \ud800 b")), "U+D800 is half of a surrogate pair"),
    "half a pair as a key": ("d.jsonl", jsonl(json.dumps(ROWS[0] | {"\udfff": 1})), "surrogate"),
    "half a pair in a name": ("d.jsonl", ("\n".join(json.dumps(r | {"annotator": "\ud83d"}) for r in ROWS)).encode(), "surrogate"),
    "half a pair as an id": ("d.jsonl", ("\n".join(json.dumps(r | {"id": f"\ud83d{i}"}) for i, r in enumerate(ROWS))).encode(), "surrogate"),
    "half a pair in a role": ("d.jsonl", jsonl(row(prompt=[{"role": "us\udc00er", "content": "a"}])), "surrogate"),
    "half a pair in a field": ("d.jsonl", jsonl(row(chosen=[{"role": "assistant", "content": "a", "tool_calls": "\udc00"}])), "surrogate"),
    "half a pair in a topic": ("d.jsonl", ("\n".join(json.dumps(r | {"topic": "\ud83d"}) for r in ROWS)).encode(), "surrogate"),
    "a NUL": ("d.jsonl", jsonl(row(chosen="a \0 b")), "U+0000 is a NUL"),
    "nested lists": ("d.json", b"[" * 200_000, "nested too deeply"),
    "nested objects in a line": ("d.jsonl", jsonl('{"prompt": ' + '{"a":' * 100_000), "nested too deeply"),
    "a nested cell": ("d.csv", GOOD["csv"] + b"p,a," + b"[" * 100_000 + b",1\n", None),
    "nested, but closed": ("d.jsonl", jsonl(row(prompt=None)[:-1].replace('"prompt": null', '"prompt": ' + "[" * 500 + "]" * 500) + "}"), ""),
    "gzip, cut off": ("d.jsonl.gz", GOOD["jsonl.gz"][:-20], "cannot be read"),
    "gzip with a wrong sum": ("d.jsonl.gz", GOOD["jsonl.gz"][:-8] + b"\0" * 8, "cannot be read"),
    "gzip, then rubbish": ("d.jsonl.gz", GOOD["jsonl.gz"] + b"rubbish", "cannot be read"),
    "gzip with a damaged middle": ("d.jsonl.gz", GOOD["jsonl.gz"][:60] + b"\xff" * 20 + GOOD["jsonl.gz"][80:], "cannot be read"),
    "no gzip": ("d.jsonl.gz", GOOD["jsonl"], "cannot be read"),
    "an empty gzip": ("d.jsonl.gz", gzip.compress(b""), "empty"),
    "an empty file": ("d.csv", b"", "empty"), "blank lines": ("d.jsonl", b"\n\n \n", "empty"), "a header alone": ("d.csv", CSV[0].encode() + b"\n", "no rows"),
    "an empty Parquet file": ("d.parquet", b"", "Parquet"), "no Parquet": ("d.parquet", GOOD["csv"], "Parquet"),
    "bytes as texts": ("d.parquet", table_of(chosen=[b"\xff\xfe" for _ in ROWS]), ""),
    "dates as texts": ("d.parquet", table_of(chosen=pd.to_datetime(["2020-01-01"] * 16)), "a text or a list of messages is expected"),
    "a list of lists": ("d.json", b"[[1, 2], [3]]", "a JSON object {…} is expected, found list"),
    "not UTF-8": ("d.csv", GOOD["csv"] + "p,é,b,1\n".encode("latin-1"), "line 18: not UTF-8"),
    "UTF-16": ("d.csv", GOOD["csv"].decode().encode("utf-16"), None), "a byte order mark": ("d.jsonl", b"\xef\xbb\xbf" + GOOD["jsonl"], None),
    "Windows line ends": ("d.csv", GOOD["csv"].replace(b"\n", b"\r\n"), None),
    "a million letters": ("d.jsonl", jsonl(row(chosen="a" * 1_000_000)), None), "a million marks": ("d.jsonl", jsonl(row(chosen="é東" * 500_000)), None),
    "a million random letters": ("d.jsonl", jsonl(row(chosen="".join(random.Random(0).choices("abcdefgh", k=1_000_000)))), None),
    "a million blanks": ("d.jsonl", jsonl(row(chosen="a" + " " * 1_000_000 + "b")), None), "a million line ends": ("d.jsonl", jsonl(row(chosen="a" + "\n" * 1_000_000 + "b")), None),
    "a list as Python prints it": ("d.csv", GOOD["csv"] + b"p,a,\"['" + b"x" * 300_000 + b"'\",1\n", None),
    "two thousand columns": ("d.jsonl", jsonl(row(**{f"c{i}": i for i in range(2_000)})), None),
    "a name of a megabyte": ("d.jsonl", jsonl(row(**{"c" * 1_000_000: 1})), None),
    "a directory": ("d.csv", None, "no data files"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files(name, tmp_path):
    file, raw, said = ODD[name]
    path = tmp_path / file
    if raw is None: path.mkdir()
    else: path.write_bytes(raw)
    table = attempt(path, tmp_path)
    if said is None: assert not isinstance(table, str), table[:300]
    elif said: assert isinstance(table, str) and any(s in table for s in said.split("|")), (table if isinstance(table, str) else "it was read")


def test_a_damaged_gzip_is_damaged():
    """The cases above are what they say."""
    for name in ("gzip with a damaged middle", "gzip with a wrong sum"):
        with pytest.raises((zlib.error, OSError, EOFError)): gzip.decompress(ODD[name][1])
