"""Sweeps: grids, status, collecting; bad tables, broken runs, projects of wandb."""
import json
from types import SimpleNamespace

import pandas as pd
import pytest
from click.testing import CliRunner

from responserank.cli import main
from responserank.llm.methods import resolve_settings
from responserank.llm.results import read_llm_runs
from responserank.llm.collect import _PUBLISHED_COLUMNS
from responserank.llm.sweep import (data_name, sweep_grid, _format_duration, read_fractions, read_methods, read_seeds, status_table,
                                    status_lines, _time_left)
from responserank.llm.collect import _RUN_COLUMNS, collect, _override_text, _score_columns
from responserank.settings import UserError
from responserank.runs import claim_run, group_name, run_folder, run_status
from responserank.files import write_json, write_text


def command(*words): return CliRunner().invoke(main, [str(w) for w in words])


def facts_of(method="bt", seed=0, fraction=.3, overrides="", data="simulated", **more):
    settings = resolve_settings(method, "tiny", overrides).record()
    return dict(method=method, preset="tiny", data=data, fraction=fraction, seed=seed, settings=settings,
                group=group_name(method, settings, "tiny", data)) | more


def put_run(out, accuracy=.7, status="finished", **of):
    facts = facts_of(**of)
    folder = run_folder(out, facts["group"], facts["fraction"], facts["seed"])
    with claim_run(folder, redo=True, facts=facts) as claim:
        (folder / "curve.csv").write_text("step\n")
        claim.finish({"eval": {"accuracy": accuracy, "pdc": .2}, "data_report": {"train_examples": 470, "test_examples": 4000}}, status=status)
    return folder


# ---- the grid --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("read, text, says", [
    (read_methods, "rr_agre", "did you mean rr_agree"), (read_methods, "nothing*", "no method matches"), (read_methods, "", "no methods"),
    (read_seeds, "0-x", "neither a number below"), (read_seeds, "9-0", "did you mean 0-9"), (read_seeds, "", "no seeds"), (read_seeds, "-3", "range"),
    (read_fractions, "half", "not a number"), (read_fractions, "0", "(0, 1]"), (read_fractions, "1.5", "(0, 1]"), (read_fractions, "", "no fractions"),
    (read_fractions, "nan", "(0, 1]"),
])
def test_bad_parts_of_a_grid(read, text, says):
    with pytest.raises(UserError) as e: read(text)
    assert says in str(e.value)


@pytest.mark.parametrize("changes, says", [
    (dict(preset="tinny"), "tiny"), (dict(overrides="epoch=2"), "epochs"), (dict(overrides=["", "rank_weight=1"]), "twice"),
    (dict(methods="bt,rr_agre"), "rr_agree"), (dict(data="no/such/file.jsonl"), "no/such/file.jsonl")])
def test_a_bad_grid_is_refused_as_a_whole(changes, says):
    with pytest.raises(UserError) as e: sweep_grid(**dict(methods="bt", seeds="0") | changes)
    assert says in str(e.value)


def test_a_grid_goes_seed_by_seed_and_repeats_nothing():
    table = sweep_grid("bt,rr_agree,bt", "1,0.1,1.0", "3,0-1,1")
    assert list(table.seed) == [3] * 4 + [0] * 4 + [1] * 4 and not table.run.duplicated().any()


# ---- status ----------------------------------------------------------------------------------------------------

def test_status_changes_nothing_and_names_what_is_broken(tmp_path):
    put_run(tmp_path, seed=0), put_run(tmp_path, seed=1, status="failed"), put_run(tmp_path, seed=2, status="dry_run")
    write_text(put_run(tmp_path, seed=3) / "metrics.json", "{")
    dead = run_folder(tmp_path, "bt-00000000", .3, 4)
    dead.mkdir(parents=True)
    (dead / "claim-1.json").write_text(json.dumps(dict(place=["x", None, None], pid=1, started="1", token="t")))
    import os
    os.utime(dead / "claim-1.json", (1, 1))
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    done = command("status", "--runs", tmp_path)
    assert done.exit_code == 0 and sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
    assert "5 runs: 1 finished, 1 waiting, 1 failed, 1 dead, 1 corrupt" in done.output
    assert "not valid JSON" in done.output and "bt-00000000/0.3/4" in done.output


def test_time_left():
    table = pd.DataFrame(dict(status=["finished", "running", "running", "waiting", "waiting"], seconds=[10., None, None, None, None], left=[None, 4., None, None, None]))
    assert _time_left(table) == (4 + 10 + 10 + 10) / 2
    assert _time_left(table[:3]) == 10
    assert pd.isna(_time_left(table[table.status == "waiting"]))
    assert [_format_duration(s) for s in (48, 720, 11100, 2 * 86400 + 3 * 3600 + 9, float("nan"))] == ["48 s", "12 min", "3 h 05 min", "2 d 3 h", ""]


@pytest.mark.parametrize("noted", ["", "{", json.dumps(dict(doing="training", done=0, total=5, seconds=1))])
def test_progress_that_says_nothing(tmp_path, noted):
    with claim_run(run_folder(tmp_path, "bt-00000000", 1, 0), facts=facts_of()) as claim:
        write_text(claim.work / "progress.json", noted)
        assert "1 running" in "\n".join(status_lines(status_table(tmp_path)))
        claim.finish({})


def test_no_runs(tmp_path):
    assert status_lines(status_table(tmp_path)) == ["no runs"]
    assert command("status", "--runs", tmp_path / "absent").exit_code == 2


# ---- collecting ------------------------------------------------------------------------------------------------

def test_the_published_columns_come_first(root):
    published = root / "results/published/llm_runs.csv.gz"
    assert _PUBLISHED_COLUMNS == list(pd.read_csv(published, nrows=0)) == _RUN_COLUMNS[:len(_PUBLISHED_COLUMNS)]


def test_collect_twice_gives_the_same_bytes_and_readers_take_it(tmp_path):
    put_run(tmp_path / "runs", method="rr_agree", overrides="rank_weight=.25", accuracy=1 / 3), put_run(tmp_path / "runs", accuracy=.1 + .2)
    out = tmp_path / "t/runs.csv"
    assert command("collect", "--runs", tmp_path / "runs", "--out", out).exit_code == 0
    first = out.read_bytes()
    done = command("collect", "--runs", tmp_path / "runs", "--out", out)
    assert out.read_bytes() == first and "0 new" in done.stdout and done.stderr == ""
    rows = pd.read_csv(out)
    assert list(rows) == _RUN_COLUMNS and list(rows.multipref_accuracy) == [.1 + .2, 1 / 3]


def test_collect_names_what_it_leaves_out(tmp_path):
    put_run(tmp_path, seed=0), put_run(tmp_path, seed=1, status="dry_run"), put_run(tmp_path, seed=2, status="failed")
    write_text(put_run(tmp_path, seed=3) / "metrics.json", "{")
    write_json(put_run(tmp_path, seed=4) / "metrics.json", dict(status="finished", method="bt"))
    write_json(put_run(tmp_path, seed=5) / "metrics.json", facts_of(seed=5, preset="huge") | dict(status="finished"))
    with claim_run(run_folder(tmp_path, "bt-00000000", .3, 6), facts=facts_of(seed=6)) as claim:
        table, said = collect(tmp_path, None)
        claim.finish({})
    said = "\n".join(said)
    assert list(table.run_state) == ["finished", "failed"]
    assert "1 running, 1 dry run" in said and said.count("not collected") == 3
    assert "not valid JSON" in said and "it lacks preset" in said and "unknown preset 'huge'" in said


def test_merging_keeps_replaces_and_says_so(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "runs.csv"
    put_run(runs, seed=0), put_run(runs, seed=1), put_run(runs, seed=2)
    collect(runs, out)
    import shutil
    shutil.rmtree(put_run(runs, seed=0).parents[1])
    put_run(runs, seed=1, accuracy=.8), put_run(runs, seed=2, status="failed"), put_run(runs, seed=10)
    table, said = collect(runs, out)
    assert list(zip(table.seed, table.run_state, table.multipref_accuracy)) == [
        ("0", "finished", "0.7"), ("1", "finished", "0.8"), ("2", "finished", "0.7"), ("10", "finished", "0.7")]
    group = facts_of()["group"]
    assert f"1 rows have changed: {group}/0.3/1" in said and "1 new, 1 kept" in said[0]
    assert any("no longer finished" in s and f"{group}/0.3/2" in s for s in said)


def test_a_failed_row_gives_way_to_a_finished_one(tmp_path):
    put_run(tmp_path / "runs", status="failed")
    collect(tmp_path / "runs", tmp_path / "runs.csv")
    put_run(tmp_path / "runs")
    table, said = collect(tmp_path / "runs", tmp_path / "runs.csv")
    assert list(table.run_state) == ["finished"]


def test_one_point_from_two_groups_is_named(tmp_path):
    put_run(tmp_path, seed=0), put_run(tmp_path, seed=0, group="bt-ffffffff")
    _, said = collect(tmp_path, None)
    assert any("same point more than once: bt tiny simulated 0.3 seed 0" in s and "bt-ffffffff" in s for s in said)


def test_model_seeds_are_told_apart(tmp_path):
    put_run(tmp_path, seed=0), put_run(tmp_path, seed=0, group="bt-ffffffff", model_seed=7)
    table, said = collect(tmp_path, None)
    assert list(table.overrides) == ["", "model_seed=7"] and not any("more than once" in s for s in said)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00", b"method,fraction,seed\n"])
def test_a_file_that_is_no_table_of_runs_is_left_alone(tmp_path, content):
    put_run(tmp_path / "runs")
    (tmp_path / "runs.csv").write_bytes(content)
    done = command("collect", "--runs", tmp_path / "runs", "--out", tmp_path / "runs.csv")
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "runs.csv" in done.stderr
    assert (tmp_path / "runs.csv").read_bytes() == content


def test_columns_of_others_stay(tmp_path):
    put_run(tmp_path / "runs")
    table, _ = collect(tmp_path / "runs", tmp_path / "runs.csv")
    table.assign(note="mine").to_csv(tmp_path / "runs.csv", index=False)
    put_run(tmp_path / "runs", seed=1)
    table, _ = collect(tmp_path / "runs", tmp_path / "runs.csv")
    assert list(table.note) == ["mine", ""] or list(table.note) == ["", ""]


def test_a_dead_worker_is_an_interrupted_run(tmp_path):
    folder = put_run(tmp_path)
    (folder / "metrics.json").unlink()
    (folder / "claim-1.json").write_text(json.dumps(dict(place=["x", None, None], pid=1, started="1", token="t", facts=facts_of())))
    import os
    os.utime(folder / "claim-1.json", (1, 1))
    table, _ = collect(tmp_path, None)
    assert list(table.run_state) == ["interrupted"] and run_status(folder)[0] == "interrupted"


@pytest.mark.parametrize("method, overrides", [
    ("rr_agree", "rank_weight=0.25"), ("bt", "epochs=2"), ("rr", "cap=none ranking_size=all"), ("rr_agree", "rank_noise=random ties=breslow"),
    ("bt", "learning_rate=1.5e-05 model='a b' bf16=true hidden_size=128 num_heads=8")])
def test_overrides_can_be_given_again(method, overrides):
    text = _override_text(facts_of(method, overrides=overrides) | dict(settings=resolve_settings(method, "tiny", overrides).record()))
    assert resolve_settings(method, "tiny", text) == resolve_settings(method, "tiny", overrides)
    assert len(text.split("=")) == len(overrides.split("="))


def test_scores_are_named_as_published():
    scores = dict(accuracy=.7, rewardbench_v1=.6, rewardbench_v2={"overall": .5, "Precise IF": .4, "ties": .3, "items": {"n": 3}})
    assert _score_columns(scores) == dict(multipref_accuracy=.7, rewardbench_v1=.6, rewardbench_v2=.5, rewardbench_v2_precise_if=.4, rewardbench_v2_ties=.3)


def test_data_names(tmp_path):
    assert data_name(str(tmp_path / "a.csv.gz")) == "a" and data_name(str(tmp_path / "v1.5")) == "v1.5" and data_name("me/set") == "me/set"


# ---- wandb -----------------------------------------------------------------------------------------------------

def project(*runs): return SimpleNamespace(runs=lambda path: list(runs))


def logged(name="r", group="bt-v10.2-5cb69cea", state="finished", summary=None, config=None):
    return SimpleNamespace(name=name, group=group, state=state, summary=summary or {}, config=config or {})


def test_own_runs_of_a_project_make_the_same_rows(tmp_path):
    put_run(tmp_path, method="rr_agree", overrides="rank_weight=.25")
    folder_rows, _ = collect(tmp_path, None)
    facts = facts_of("rr_agree", overrides="rank_weight=.25")
    config = facts["settings"] | {k: facts[k] for k in ("data", "fraction", "seed", "group")} | dict(model_seed=None)
    summary = {"eval.accuracy": .7, "eval": {"pdc": .2}, "data_report.train_examples": 470, "data_report.test_examples": 4000, "eval_accuracy": .1, "_runtime": 3}
    rows, said = collect(out=None, wandb="me/p", api=project(logged(f"{facts['group']}/0.3/0", facts["group"], "finished", summary, config)))
    assert rows.to_csv() == folder_rows.to_csv() and len(said) == 1


def test_published_names_and_strangers():
    config = dict(fraction=.1, seed=40)
    rows, said = collect(out=None, wandb="me/p", api=project(
        logged(summary={"final/rewardbench_v2": .5, "multipref_accuracy": .7, "train_examples": 575.0}, config=config), logged(state="running", config=config),
        logged(state="crashed", config=config | dict(seed=41)), logged("lost", config=dict(seed=1)), logged("odd", "bt-v10.2-5cb69ceb")))
    assert list(rows.run_state) == ["finished", "failed"] and list(rows.rewardbench_v2) == ["0.5", ""] and set(rows.preset) == {"paper"}
    said = "\n".join(said)
    assert "1 running" in said and "lost: its configuration lacks fraction" in said and "did you mean bt-v10.2-5cb69cea" in said


@pytest.mark.parametrize("path, says", [("project", "ENTITY/PROJECT"), ("me/p", "wandb login")])
def test_a_project_that_cannot_be_read(path, says):
    def refuse(path): raise ConnectionError("no route\nto host")
    with pytest.raises(UserError) as e: collect(out=None, wandb=path, api=SimpleNamespace(runs=refuse))
    assert says in str(e.value)


def test_a_collected_table_is_read_by_the_results_chapter(tmp_path):
    put_run(tmp_path / "runs"), put_run(tmp_path / "runs", seed=1, status="failed")
    collect(tmp_path / "runs", tmp_path / "runs.csv")
    assert len(read_llm_runs(tmp_path / "runs.csv", ["multipref_accuracy"], ["preset", "data"])) == 1
