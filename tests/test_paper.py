"The paper: complete, the same bytes each time, marked where runs are missing, and held against own runs."
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from responserank import paper
from responserank.artefacts import Artefact, draw_figure, table_cells, escape_latex, make_artefact, _sheet_latex, with_provenance
from responserank.llm import results as llm
from responserank.settings import UserError
from responserank.files import repo_root


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    out = tmp_path_factory.mktemp("paper")
    return out, paper.rebuild_paper(out, results=out / "none", data=out / "none", dpi=60)


def test_every_artefact_of_the_published_runs_is_there(rebuilt):
    out, manifest = rebuilt
    assert (manifest["source"] == "published").all() and manifest["artefact"].is_unique
    for _, row in manifest.iterrows():
        assert row["files"], row["artefact"]
        for f in row["files"].split():
            assert (out / f).stat().st_size > 0
    incomplete = manifest[manifest["status"] != "complete"].set_index("artefact")["status"].to_dict()
    assert incomplete == {"dataset_statistics": "partial", "reproduction_qq": "empty", "beside_llm": "partial", "own_gains": "empty", "own_rank_weight": "empty"}
    wanted = ["multipref_datasize", "multipref_datasize_rb", "size_ablation", "noise_robustness", "filter_robustness", "response_time_length_strat", "main_comparison",
              "slight_weight", "stated_ablation", "randrank_size", "consensus_size", "soft_labels", "stats", *(f"hyperparam_{k}" for k in "lr acc clip epochs warmup wd".split()),
              *(f"{t}_{p}" for t in ("test_accuracy", "rewardbench_v1", "rewardbench_v2") for p in ("part1", "part2")), "choice_accuracy",
              "pearson_distance_correlation", "rl_control_max_reward", "rl_control_final_reward", "rl_control_rew_model_accuracy", "dataset_statistics"]
    assert set(wanted) <= set(manifest["artefact"])
    assert (out / "stats.tex").read_text().count("\\newcommand") == 65


def test_the_manifest_names_its_sources(rebuilt):
    manifest = rebuilt[1].set_index("artefact")
    assert manifest.loc["main_comparison", ["source_rows", "seeds", "unit"]].tolist() == [180, "40-69", "seed"]
    assert manifest.loc["choice_accuracy", ["source_rows", "seeds", "unit"]].tolist() == [10800, "0-99", "trial"]
    assert manifest.loc["rl_control_max_reward", ["source_rows", "seeds"]].tolist() == [160, "12 330 1789 912391 1687123"]


def test_every_table_has_the_published_cells(rebuilt):
    text = (rebuilt[0] / "tables/rewardbench_v2_part2.tex").read_text()
    assert r"55.6 $\pm$ 2.3 [$\pm$ .9]" in text and r"47.2 $\pm$ 5.2 [$\pm$ 2.0]" in text and "RR-RandRank & -- & -- & -- & -- & 47.7" in text
    assert r"\textbf{55.6" in text and text.count(r"\textbf") == 5
    cells = pd.read_csv(rebuilt[0] / "tables/choice_accuracy.csv").set_index(["dataset", "learner", "size"])
    assert cells.loc[("deterministic_all", "rr", 1.0), "text"].startswith("82.1 ±")


def test_twice_is_the_same(rebuilt, tmp_path):
    some = "forest,synthetic_kendall,rl_control_curves_merge,test_accuracy_*,stats,significance"
    paper.rebuild_paper(tmp_path, some, results=tmp_path / "none", data=tmp_path / "none", dpi=60, workers=1)
    again = {f: b for f, b in files(tmp_path).items() if f.startswith(("figures", "tables", "stats"))}
    assert len(again) > 10 and again.items() <= files(rebuilt[0]).items()


def test_only_keeps_the_other_lines_of_the_manifest(rebuilt):
    out, manifest = rebuilt
    again = paper.rebuild_paper(out, "slight_weight", results=out / "none", data=out / "none", dpi=60)
    pd.testing.assert_frame_equal(again.reset_index(drop=True), manifest.reset_index(drop=True), check_dtype=False)
    with pytest.raises(UserError, match="did you mean slight_weight"):
        paper.rebuild_paper(out, "slight_wieght", results=out / "none")


def test_the_page_shows_every_figure_beside_its_claim(rebuilt):
    out, manifest = rebuilt
    page = (out / "index.qmd").read_text()
    for _, row in manifest[manifest["kind"] == "figure"].iterrows():
        assert f"figures/{row['artefact']}.png" in page and row["claim"] in page and row["claim"].endswith(".")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    "Own runs made of the published ones: half of the trials, one environment, and some methods on other data."
    results, published = tmp_path_factory.mktemp("results"), repo_root() / "results/published"
    for folder in ("synthetic", "llm", "rl_control"):
        (results / folder).mkdir()
    for name in ("trials.csv.gz", "kendall.csv", "confusion.csv"):
        table = pd.read_csv(published / f"synthetic_{name}")
        table[table["trial"] < 50].to_csv(results / "synthetic" / name, index=False)
    runs = pd.read_csv(published / "llm_runs.csv.gz")
    small = runs[runs["method"].isin(["bt", "rr_agree"]) & (runs["fraction"] == 1) & (runs["seed"] < 45)]
    tiny = small.assign(preset="tiny", data="simulated", **dict.fromkeys([c for c in runs if c.startswith("rewardbench")], np.nan))
    full = small.assign(preset="paper", data="allenai/multipref")
    light = tiny[tiny["method"] == "rr_agree"].assign(overrides="rank_weight=0.25", multipref_accuracy=tiny["multipref_accuracy"] - .01)
    pd.concat([tiny, full, light]).to_csv(results / "llm" / "runs.csv", index=False)
    highway = pd.read_csv(published / "highway_runs.csv")
    mujoco = pd.read_csv(published / "mujoco_runs.csv")
    short = mujoco[(mujoco["env"] == "Swimmer-v5") & (mujoco["seed"] == 12)].assign(global_step_history="[10000, 20000]", reward_history="[1, 2]")
    pd.concat([highway, short]).to_csv(results / "rl_control" / "runs.csv", index=False)
    shutil.copy(published / "highway_rew_model_data.csv", results / "rl_control" / "reward_models.csv")
    return results


def test_own_runs_are_found_and_kept_apart(own):
    names = [s.name for s in paper._own_sources(own)]
    assert names == ["own/synthetic", "own/llm-paper-multipref", "own/llm-tiny-simulated", "own/control"]


def test_runs_with_overrides_are_other_methods(own, tmp_path):
    tiny = next(s for s in paper._own_sources(own) if s.name == "own/llm-tiny-simulated")
    assert len(tiny.runs) == 10 and (tiny.runs["overrides"] == "").all()
    tables = llm.read_own(own / "llm" / "runs.csv")
    found = llm._gains_of_override(tables["simulated"], "rank_weight=0.25")
    assert found["n"].tolist() == [5] and np.allclose(found[["mean", "sd"]], [-.01, 0])
    manifest = paper.rebuild_paper(tmp_path, "own_*,size_ablation,multipref_datasize_rb", results=own, data=tmp_path, dpi=60).set_index(["source", "artefact"])
    assert manifest.loc[[("published", "own_gains"), ("published", "own_rank_weight")], "status"].tolist() == ["complete"] * 2
    assert manifest.loc[("own/llm-tiny-simulated", "size_ablation"), ["status", "files"]].tolist() == ["nothing new", ""]
    assert manifest.loc[("own/llm-tiny-simulated", "multipref_datasize_rb"), "status"] == "no own runs"
    table = pd.read_csv(own / "llm" / "runs.csv")
    pd.concat([table, table[table["overrides"] == "rank_weight=0.25"].head(1)]).to_csv(tmp_path / "twice.csv", index=False)
    with pytest.raises(UserError, match="more than one finished run of the same method, fraction, seed, preset, data, overrides: line 22"):
        llm.read_own(tmp_path / "twice.csv")


def test_own_cells_are_tested_where_the_design_is_the_same(own):
    found = paper._reproduction(paper._published_sources(), paper._own_sources(own), own)
    assert found.groupby("part").size().to_dict() == {"synthetic": 432, "control": 24, "llm": 6}
    assert not found["cell"].str.contains("Swimmer").any() # too short to be the same design
    assert not found["t"].isna().any() and found["p"].between(0, 1).all()
    assert len(found[found["part"] == "llm"]["cell"].unique()) == 2


def test_own_artefacts_are_made_and_marked(own, tmp_path):
    manifest = paper.rebuild_paper(tmp_path, "main_comparison,multipref_datasize,reproduction_qq,beside_llm,rl_control_max_reward,synthetic_pdc_boxes,stats,forest",
                                   results=own, data=tmp_path, dpi=60).set_index(["source", "artefact"])
    tiny = manifest.loc[("own/llm-tiny-simulated", "main_comparison")]
    assert tiny["status"] == "partial" and "rr_stated" in tiny["note"] and (tmp_path / "own/llm-tiny-simulated/figures/main_comparison.png").exists()
    assert manifest.loc[("published", "reproduction_qq"), "status"] == "complete" and manifest.loc[("published", "beside_llm"), "status"] == "complete"
    assert manifest.loc[("own/control", "rl_control_max_reward"), "status"] == "partial"
    assert manifest.loc[("own/synthetic", "synthetic_pdc_boxes"), "status"] == "short"
    text = (tmp_path / "own/llm-tiny-simulated/stats.tex").read_text()
    assert "agreeRewardBenchMeanD}{--}" in text and text.count("\\newcommand") == 65
    assert len(pd.read_csv(tmp_path / "reproduction.csv")) == 462
    assert "own/llm-tiny-simulated/figures/main_comparison.png" in (tmp_path / "index.qmd").read_text()


def test_short_published_runs_leave_marked_artefacts(tmp_path):
    runs = llm.read_llm_runs()
    runs = runs[(runs["method"] != "rr_stated") & ~((runs["method"] == "bt") & (runs["seed"] > 60))]
    kept = {a.name: make_artefact(a, runs, tmp_path) for a in llm.LLM_ARTEFACTS}
    assert all(line["files"] for line in kept.values())
    assert kept["main_comparison"]["status"] == "partial" and kept["hyperparam_lr"]["status"] == "short" and kept["forest"]["status"] in ("partial", "empty")
    empty = {a.name: make_artefact(a, runs[:0], tmp_path / "none") for a in llm.LLM_ARTEFACTS}
    assert {line["status"] for line in empty.values()} <= {"empty", "refused"}
    assert all((tmp_path / "none" / f).exists() for line in empty.values() for f in line["files"].split())


def test_main_document_compiles(rebuilt):
    if not shutil.which("pdflatex"):
        pytest.skip("no LaTeX here")
    out = rebuilt[0]
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"], cwd=out, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-1500:]
    text = (out / "main.tex").read_text()
    assert all(f"tables/{t.stem}}}" in text for t in (out / "tables").glob("*.tex")) and "\\agreeRewardBenchMeanD;" in text


def test_figures_are_drawn_by_latex_where_it_is(tmp_path):
    if not (shutil.which("latex") and shutil.which("dvipng")):
        pytest.skip("no LaTeX here")
    manifest = paper.rebuild_paper(tmp_path, "hyperparam_warmup,response_time_length_strat,synthetic_kendall,dose_response,data_efficiency", results=tmp_path, data=tmp_path,
                                   latex=True, dpi=60, workers=1)
    assert (manifest["status"] == "complete").all()


@pytest.mark.parametrize("text, tex", [("50 % of a_b & c", r"50 \% of a\_b \& c"), ("55.6 ± .9", r"55.6 $\pm$ .9"), ("a – b", "a -- b"), ("#1", r"\#1")])
def test_text_is_escaped_for_latex(text, tex):
    assert escape_latex(text) == tex


def test_a_row_in_any_form(tmp_path):
    table = pd.DataFrame({"panel": "p", "by": ["bt", "rr"], "x": ["BT", "RR"], "y": [.5, .6], "lo": [.4, .5], "hi": [.6, .7], "n": 5})
    for form in ("curves", "bars", "intervals", "forest"):
        draw_figure(with_provenance(table.copy(), table), form)
    line = make_artefact(Artefact("numbers", "A claim.", lambda runs: with_provenance(table.copy(), table), {}, "sheet"), None, tmp_path)
    assert line["files"].split() == ["tables/numbers.csv", "tables/numbers.tex"]
    assert _sheet_latex(pd.DataFrame({"a": [1.0, np.nan]}), {"a": ".1f"}).count("--") == 1
    with pytest.raises(UserError, match="unknown form"):
        draw_figure(table, "pie")


def test_the_best_of_a_row_is_bold():
    cells = pd.DataFrame({"row": ["a", "a"], "column": ["BT", "RR"], "mean": [1.0, 2.0], "sd": 1.0, "ci95": 1.0, "n": 5})
    assert table_cells(cells, best="row")["bold"].tolist() == [False, True] and table_cells(cells)["bold"].tolist() == [True, True]


@pytest.mark.parametrize("form", ["forest", "intervals"])
@pytest.mark.parametrize("lines", [{"first": dict(BT=.1, EP2=.2, RR=.3), "second": dict(RR=.7, BT=.5), "third": dict(RR=.9)},
                                   {"first": dict(BT=.1, RR=.3), "second": dict(RR=.7, BT=.5)}], ids=["some lacking", "in another order"])
def test_panels_that_share_their_lines_mean_the_same_lines(form, lines):
    points = pd.DataFrame([dict(panel=p, by=x, x=x, y=y, lo=y - .01, hi=y + .01, n=3) for p, line in lines.items() for x, y in line.items()])
    fig = draw_figure(points, form)
    fig.canvas.draw()
    names = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    for ax, line in zip(fig.axes, lines.values()):
        drawn = {(names[int(y)], x) for mark in ax.lines for x, y in zip(mark.get_xdata(), mark.get_ydata())
                 if mark.get_marker() not in ("None", "|") and np.isfinite(x)}
        assert {(n, round(float(x), 6)) for n, x in drawn} == set(line.items())
