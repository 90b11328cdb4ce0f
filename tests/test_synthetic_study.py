"""The study's bookkeeping: parameters, chunks, resuming, what is written and what is never written over."""
import json
import signal
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from responserank.cli import main
from responserank.files import repo_root
from responserank.settings import UserError
from responserank.synthetic import study as module
from responserank.synthetic.data import DATASETS
from responserank.synthetic.learners import LEARNERS, fit_chunk
from responserank.synthetic.study import MINI, SIZES, Study, _chunks, _compute_chunks, _part_file, _parts_folder, read_study, run_study, _summarize_trials
from waiting import wait_for

SMALL = dict(datasets="stochastic,drift_diffusion", learners="bt,rr", trials=5, sizes="0.5,1.0", seed=3)
FILES = ("trials.csv.gz", "summary.csv", "kendall.csv", "confusion.csv")


def contents(folder): return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return run_study(**SMALL, out=out, workers=1), out


def test_tables(whole):
    result, out = whole
    assert len(result.fits) == 2 * 2 * 2 * 5 and not result.fits.isna().any().any()
    assert list(result.fits)[:6] == ["dataset", "learner", "size", "trial", "accuracy", "pdc"]
    assert not (out / ".parts").exists()
    assert (result.summary["count"] == 5).all() and len(result.kendall) == len(result.confusion) == 10
    cell = result.fits.query("dataset == 'stochastic' and learner == 'rr' and size == 1.0").pdc
    row = result.summary.query("dataset == 'stochastic' and learner == 'rr' and size == 1.0 and metric == 'pdc'").squeeze()
    assert np.allclose([row["mean"], row["std"]], [cell.mean(), cell.std(ddof=1)]) and np.isclose(row.ci95, cell.sem() * 2.7764451)
    about = json.loads((out / "study.json").read_text())
    assert about["study"]["seed"] == 3 and about["fits"] == 40 and "torch" in about["versions"]


def test_chunks_and_workers_change_nothing(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_chunks", lambda study, members=60: _chunks(study, members=4))
    result = run_study(**SMALL, out=tmp_path, workers=2)
    pd.testing.assert_frame_equal(result.fits, whole[0].fits, check_exact=True)
    assert contents(tmp_path) == contents(whole[1])


def test_a_subset_equals_those_rows(whole, tmp_path):
    part = run_study("drift_diffusion", ["rr"], 3, 1.0, 3, tmp_path, workers=1).fits
    full = whole[0].fits.query("dataset == 'drift_diffusion' and learner == 'rr' and size == 1.0 and trial < 3").reset_index(drop=True)
    pd.testing.assert_frame_equal(part, full, check_exact=True)


def test_killed_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    settings = dict(datasets=["stochastic", "drift_diffusion"], learners=["bt", "rr"], trials=90, sizes=[.5], seed=3)  # four chunks
    code = f"from responserank.synthetic.study import run_study; run_study(**{settings!r}, out={str(tmp_path / 'a')!r}, workers=1)"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    parts = tmp_path / "a/.parts"
    wait_for(lambda: list(parts.glob("*/[!.]*.csv")) or child.poll() is not None, 120, .01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = list(parts.glob("*/[!.]*.csv"))
    assert child.returncode == -signal.SIGKILL and 0 < len(done) < len(_chunks(read_study(**settings))) == 4 and not (tmp_path / "a/trials.csv.gz").exists()
    done[0].with_name("stochastic-99-99.csv").write_text("half a fi")  # rubbish beside the parts is no part
    seen = []
    monkeypatch.setattr(module, "_compute_chunks", lambda jobs, workers, **more: seen.extend(jobs) or _compute_chunks(jobs, workers, **more))
    run_study(**settings, out=tmp_path / "a", workers=1)
    assert len(seen) == 4 - len(done)  # the finished chunks were not computed again
    run_study(**settings, out=tmp_path / "b", workers=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_broken_part_is_computed_again(whole, tmp_path):
    study = read_study(**SMALL)
    for i, job in enumerate(_chunks(study)):
        path = _part_file(_parts_folder(study, tmp_path), job)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if i else "\0\0")
    run_study(**SMALL, out=tmp_path, workers=1)
    assert contents(tmp_path) == contents(whole[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_workers_end_with_their_parent(tmp_path):
    code = f"if __name__ == '__main__':\n from responserank.synthetic.study import run_study\n run_study('stochastic', 'bt', 4000, out={str(tmp_path)!r}, workers=2)"
    (tmp_path / "script.py").write_text(code)
    child = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], stderr=subprocess.DEVNULL)
    children = lambda: [int(p) for p in open(f"/proc/{child.pid}/task/{child.pid}/children").read().split()]
    workers = wait_for(lambda: len(found := children()) >= 3 and found, 90)  # two, and the tracker that Python adds
    child.kill()
    child.wait()
    def runs(p):
        try: return open(f"/proc/{p}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
        except OSError: return False
    wait_for(lambda: not any(map(runs, workers)), 60)


def test_finished_studies_are_read_and_others_not_written_over(whole):
    result, out = whole
    before = contents(out)
    again = run_study(**SMALL, out=out)
    for a, b in zip(again[:4], result[:4]): pd.testing.assert_frame_equal(a, b, check_exact=True)
    fewer = run_study("stochastic", "rr", 2, "0.5", 3, out)
    assert len(fewer.fits) == 2 and (fewer.summary["count"] == 2).all()
    for other in (dict(SMALL, seed=4), dict(SMALL, trials=6), dict(SMALL, learners="all"), dict(SMALL, sizes="0.6")):
        with pytest.raises(UserError, match="holds another study"): run_study(**other, out=out)
    assert contents(out) == before


def test_redo_and_keep(tmp_path):
    run_study("stochastic", "bt", 3, 1.0, 1, tmp_path, workers=1)
    result = run_study("stochastic", "bt", 4, 1.0, 2, tmp_path, workers=1, keep=2, redo=True)
    assert result.about["kept"] == 2 and set(result.fits.trial) == {0, 1} and (result.summary["count"] == 4).all()
    with pytest.raises(UserError, match="holds another study"): run_study("stochastic", "bt", 4, 1.0, 2, tmp_path)
    assert len(run_study("stochastic", "bt", 2, 1.0, 2, tmp_path).fits) == 2


def test_parameters_from_text_and_lists():
    full = read_study()
    assert full == Study(tuple(DATASETS), tuple(LEARNERS), 100, SIZES, 42) == read_study("all", ["all"], "100", "0.5,0.6,0.7,0.8,0.9,1.0", "42")
    assert read_study(sizes=.7).sizes == (.7,) and read_study(**MINI).trials == 2 and MINI["sizes"] == (.5, 1.0)
    assert read_study("stochastic, drift_diffusion").datasets == ("stochastic", "drift_diffusion")


@pytest.mark.parametrize("wrong, says", [
    (dict(datasets="stochastik"), "unknown data set 'stochastik'; did you mean stochastic"),
    (dict(datasets=""), "no data set given"),
    (dict(learners="bt,rrr"), "unknown learner 'rrr'"),
    (dict(trials=0), "trials must be a whole number of at least 1, not 0"),
    (dict(trials=-3), "trials must be a whole number of at least 1, not -3"),
    (dict(trials=1.5), "trials must be a whole number"),
    (dict(trials="many"), "trials must be a whole number"),
    (dict(seed=-1), "seed must be a whole number of at least 0"),
    (dict(sizes="0"), "size 0 of 50 training comparisons"),
    (dict(sizes="-0.5,1"), "size -0.5 of 50"),
    (dict(sizes="0.5,1.01"), "size 1.01 of 50"),
    (dict(sizes="nan"), "size nan of 50"),
    (dict(sizes="0.03"), "leave at least 2 comparisons"),
    (dict(sizes="half"), "sizes must be numbers"),
    (dict(sizes=""), "no sizes given"),
    (dict(workers=0), "workers must be a whole number of at least 1"),
    (dict(keep=0), "keep must be a whole number of at least 1"),
])
def test_bad_parameters_are_one_line_and_write_nothing(wrong, says, tmp_path):
    with pytest.raises(UserError) as e: run_study(**dict(dict(trials=1), **wrong), out=tmp_path / "new")
    assert says in str(e.value) and "\n" not in str(e.value) and not (tmp_path / "new").exists()


def command(*words): return CliRunner().invoke(main, ["synthetic", *map(str, words)])


@pytest.mark.parametrize("words, says", [
    (["--datasets", "stochastik"], "unknown data set 'stochastik'; did you mean stochastic"),
    (["--learners", "bt,rrr"], "unknown learner 'rrr'; did you mean rr"),
    (["--learners", ","], "no learner given"),
    (["--trials", 0], "trials must be a whole number of at least 1, not 0"),
    (["--trials", -2], "trials must be a whole number of at least 1, not -2"),
    (["--trials", "many"], "--trials"),
    (["--sizes", "0"], "size 0 of 50 training comparisons: sizes lie in (0, 1]"),
    (["--sizes", "0.5,1.2"], "size 1.2 of 50"),
    (["--sizes", "0.02"], "leave at least 2 comparisons"),
    (["--sizes", "half"], "sizes must be numbers"),
    (["--seed", -1], "seed must be a whole number of at least 0"),
    (["--workers", 0], "workers must be a whole number of at least 1"),
    (["--keep", 0], "keep must be a whole number of at least 1"),
    (["--datasets", "stochastic", "--learners", "rr", "--trials", 10, "--sizes", ".04", "--workers", 1],
     "data set stochastic, size 0.04, among trials 0 to 9: no ranking has two comparisons"),
    (["--size", "1"], "--size"),
])
def test_bad_input_of_the_command(words, says, tmp_path):
    done = command("--mini", "--out", tmp_path / "new", *words)
    assert done.exit_code == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and says in done.stderr, done.output
    assert not any((tmp_path / "new" / name).exists() for name in FILES)


def test_the_command_never_writes_over(whole, tmp_path):
    before = contents(whole[1])
    for out, says in ((whole[1], "holds another study"), (tmp_path / "file", "cannot write there"), (tmp_path / "lone", "without the study.json"),
                      (tmp_path / "odd", "does not describe a study"), (tmp_path / "torn", "not valid JSON")):
        if out.parent == tmp_path and out.name != "file": out.mkdir()
        if out.name == "file": out.write_text("precious")
        if out.name == "lone": (out / "trials.csv.gz").write_text("precious")
        if out.name in ("odd", "torn"): (out / "study.json").write_text("[1]" if out.name == "odd" else "{")
        there = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        done = command("--mini", "--datasets", "stochastic", "--learners", "bt", "--seed", 9, "--out", out)
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and says in done.stderr, done.output
        assert there == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert contents(whole[1]) == before


def test_the_command_is_the_function(whole, tmp_path):
    words = [w for k, v in SMALL.items() for w in (f"--{k}", v)]
    done = command(*words, "--workers", 1, "--out", tmp_path / "a")
    assert done.exit_code == 0 and contents(tmp_path / "a") == contents(whole[1]) and str(tmp_path / "a") in done.stdout
    assert "means of 5 trials at size 1" in done.stdout
    assert command("--mini", "--datasets", "stochastic", "--learners", "bt", "--out", tmp_path / "b").exit_code == 0
    assert len(pd.read_csv(tmp_path / "b/trials.csv.gz")) == 4
    assert command("--mini", "--trials", 1, "--datasets", "stochastic", "--learners", "bt", "--out", tmp_path / "c").exit_code == 0
    assert len(pd.read_csv(tmp_path / "c/trials.csv.gz")) == 2


def test_unwritable_outputs(tmp_path):
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file/below", "/proc/nowhere"):
        with pytest.raises(UserError, match="cannot write there"): run_study("stochastic", "bt", 1, 1.0, out=out)
    assert (tmp_path / "file").read_text() == "precious"


def test_an_unlucky_trial_is_named(tmp_path):
    with pytest.raises(UserError, match="data set stochastic, size 0.04.*no ranking has two comparisons"):
        run_study("stochastic", "rr", 10, .04, out=tmp_path, workers=1)
    assert not (tmp_path / "trials.csv.gz").exists()


def test_summary_of_one_trial_has_no_spread():
    table = _summarize_trials(fit_chunk("stochastic", [0], ["bt"]))
    assert table["std"].isna().all() and table["ci95"].isna().all() and (table["count"] == 1).all()


def test_the_front_door_has_its_parameters(root):
    nb = nbformat.read(root / "nbs/12_synthetic_study.ipynb", 4)
    tagged = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert {line.split(" =")[0] for line in tagged[0].source.splitlines()} >= {"datasets", "learners", "trials", "sizes", "seed", "out"}


def test_papermill_passes_parameters(root, tmp_path):
    papermill = pytest.importorskip("papermill")
    papermill.execute_notebook(str(root / "nbs/12_synthetic_study.ipynb"), str(tmp_path / "out.ipynb"), kernel_name="python3", progress_bar=False,
                               parameters=dict(datasets="stochastic", learners="bt,rr", trials=2, sizes="1.0", out=str(tmp_path / "s")))
    assert len(pd.read_csv(tmp_path / "s/trials.csv.gz")) == 4


def test_own_numbers_agree_with_the_published_ones(shared, root):
    if not (root / "results/synthetic/summary.csv").exists(): pytest.skip("no results of our own yet")
    ours, theirs = pd.read_csv(root / "results/synthetic/summary.csv"), pd.read_csv(shared / "reference/synthetic_summary.csv")
    both = ours.merge(theirs, on=["dataset", "learner", "size", "metric"], suffixes=("", "_published"))
    t = (both["mean"] - both["mean_published"]) / np.sqrt(both["std"]**2 / both["count"] + both["std_published"]**2 / both["count_published"])
    assert len(both) == 432 and np.abs(t).max() <= 4.5 and (np.abs(t) > 1.96).mean() <= .15


def paired_signs(own, published, size=1.0):
    """Pairs of learners that differ significantly in the published trials (Holm), with the sign of both differences."""
    from itertools import combinations

    from scipy.stats import wilcoxon

    from responserank.statistics import holm
    rows = []
    for (dataset, metric) in ((d, m) for d in DATASETS for m in ("accuracy", "pdc")):
        theirs = published[(published.dataset == dataset) & (published["size"] == size)].pivot(index="trial", columns="learner", values=metric)
        ours = own[(own.dataset == dataset) & (own["size"] == size) & (own.metric == metric)].set_index("learner")["mean"]
        for a, b in combinations(LEARNERS, 2): rows.append((dataset, metric, a, b, wilcoxon(theirs[a], theirs[b]).pvalue, (theirs[a] - theirs[b]).mean(), ours[a] - ours[b]))
    table = pd.DataFrame(rows, columns="dataset metric a b p published own".split())
    table["p"] = table.groupby("metric").p.transform(lambda p: holm(p))
    return table


def test_significant_published_differences_have_our_sign(shared, root):
    own, published = pd.read_csv(root / "results/synthetic/summary.csv"), pd.read_csv(shared / "reference/synthetic_trials.csv.gz")
    for size in SIZES:
        table = paired_signs(own, published, size)
        clear = table[table.p < .05]
        assert len(clear) > 100 and (np.sign(clear.published) == np.sign(clear.own)).all(), clear[np.sign(clear.published) != np.sign(clear.own)]


def test_no_stream_of_random_numbers_hangs_on_a_name_in_the_code():
    """The committed rows come out again: renaming a class, a function or a field must not change a number."""
    committed = pd.read_csv(repo_root() / "results/synthetic/trials.csv.gz")
    again = fit_chunk("stochastic", [0, 1], ["bt", "rr", "rr_perm", "rt_regression_perm"], [0.5, 1.0])
    keys = ["dataset", "learner", "size", "trial"]
    both = again.merge(committed, on=keys, suffixes=("", "_committed"))
    assert len(both) == 16
    for measure in ("accuracy", "pdc"):  # another processor rounds differently, another stream gives another number
        np.testing.assert_allclose(both[measure], both[f"{measure}_committed"], atol=0.011)
    assert (both.pdc - both.pdc_committed).abs().median() < 1e-4
