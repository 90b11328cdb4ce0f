"""What somebody has who installs the package: the wheel in an environment of its own, in a folder without a checkout."""
import csv
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from small import small

NOT_NEEDED = ("nbdev", "papermill", "jupyterlab", "IPython", "ipykernel", "pytest", "wandb")
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def run(*words, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=600, **kwargs)


def needed_by(name: str, extras: frozenset = frozenset(), found: dict | None = None) -> dict:
    """Return a distribution and all it needs, as its metadata say, by name."""
    found = {} if found is None else found
    if (name, extras) in found: return found
    found[name, extras] = metadata.distribution(name)
    for text in found[name, extras].requires or []:
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras or {""}):
            needed_by(canonicalize_name(need.name), frozenset(need.extras), found)
    return found


def link_needed(site_packages: Path):
    """Link what the package needs, and nothing else, from this environment: nothing is fetched, and nothing is compiled again."""
    for (name, _), distribution in needed_by("responserank").items():
        for part in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"} if name != "responserank" else ():
            if not (site_packages / part).exists(): (site_packages / part).symlink_to(distribution.locate_file(part))


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory) -> Path:
    """Build the wheel from a copy, so that the checkout stays clean."""
    if UV is None: pytest.skip("needs uv, which `make setup` installs")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"): shutil.copy(root / name, source)
    shutil.copytree(root / "responserank", source / "responserank", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "results/published", source / "results/published")
    built = run(UV, "build", "--wheel", "--offline", "-o", out, source)
    if built.returncode: built = run(UV, "build", "--wheel", "-o", out, source)
    assert built.returncode == 0, built.stderr[-2000:]
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """Install the wheel into an environment that has what its metadata say it needs, without extras."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    assert run(UV, "venv", "--python", sys.executable, folder).returncode == 0
    link_needed(next(folder.glob("lib/python*/site-packages")))
    done = run(UV, "pip", "install", "--offline", "--no-deps", "--python", folder / "bin/python", wheel)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def responserank(environment, tmp_path_factory):
    """Return a function that runs the installed command in an empty folder."""
    folder = tmp_path_factory.mktemp("empty")
    rows = [dict(prompt=f"question {i}", chosen="yes " * (3 + i % 5), rejected="no " * (1 + i % 4), strength=i % 7) for i in range(60)]
    with open(folder / "answers.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")} | dict(OMP_NUM_THREADS="1")

    def command(*words, code=0):
        done = run(environment / "bin/responserank", *words, cwd=folder, env=env)
        assert done.returncode == code, done.stdout[-1500:] + done.stderr[-3000:]
        return done
    command.folder, command.python, command.env = folder, environment / "bin/python", env
    return command


SMALL = small(epochs=1, max_length=64)


def test_the_environment_has_what_is_needed_and_no_more(responserank):
    code = f"import importlib.util as u; print([m for m in {NOT_NEEDED!r} if u.find_spec(m)])"
    assert run(responserank.python, "-c", code, env=responserank.env, cwd=responserank.folder).stdout.strip() == "[]"


def test_methods(responserank):
    assert "rr_agree" in responserank("methods").stdout
    assert responserank("methods", "--csv").stdout.count("\n") == 61


def test_train_status_collect_and_score(responserank):
    done = responserank("train", "bt", "rr", "--data", "answers.csv", "--save-model", "--overrides", SMALL)
    assert "accuracy" in done.stdout
    assert done.stderr.count("no wandb log") == 1, done.stderr  # said once, in one line
    runs = sorted((responserank.folder / "runs").glob("*/*/*/metrics.json"))
    assert len(runs) == 2
    assert "2 finished" in responserank("status").stdout
    responserank("collect")
    assert (responserank.folder / "results/llm/runs.csv").read_text().count("finished") == 2
    scored = responserank("score", runs[0].parent, "answers.csv", "--out", "scores.csv")
    assert (responserank.folder / "scores.csv").read_text().count("\n") == 61, scored.stdout


def test_sweep_runs_without_notebooks(responserank):
    done = responserank("sweep", "--methods", "bt", "--seeds", "0-1", "--data", "answers.csv", "--overrides", SMALL, "--out", "swept")
    assert "2 finished" in done.stdout
    assert not list((responserank.folder / "swept").rglob("*.ipynb"))


def test_synthetic(responserank):
    assert "means of 2 trials" in responserank("synthetic", "--mini", "--datasets", "stochastic", "--learners", "bt,rr").stdout


def test_paper_from_the_published_tables(responserank):
    responserank("paper", "--only", "main_comparison,stats")
    assert (responserank.folder / "paper/figures/main_comparison.png").is_file()
    assert (responserank.folder / "paper/stats.tex").read_text().count("newcommand") > 60
