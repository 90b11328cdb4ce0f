"""What holds the repository together: papermill's parameters, the sidebar, the lock."""
import copy
import re
import tomllib

import nbformat
import papermill
import pytest
import yaml
from constraints import constraints
from nbdev.clean import clean_nb

TAGGED = ["12_synthetic_study", "20_llm_train", "30_rl_control"]


def tags(cell): return cell.metadata.get("tags", [])


@pytest.mark.parametrize("name", TAGGED)
def test_parameters_are_tagged_and_arrive(name, root, tmp_path):
    path = root / f"nbs/{name}.ipynb"
    if not path.exists(): pytest.skip(f"{name} is not written yet")
    notebook = nbformat.read(path, 4)
    assert [tags(c) for c in notebook.cells if tags(c)] == [["parameters"]]
    cleaned = copy.deepcopy(notebook)
    clean_nb(cleaned, allowed_cell_metadata_keys=["tags"])
    assert any("parameters" in tags(c) for c in cleaned.cells)
    prepared = papermill.execute_notebook(path, tmp_path / "out.ipynb", {"seed": 12345}, prepare_only=True, progress_bar=False)
    order = [t for c in prepared.cells for t in tags(c)]
    assert order == ["parameters", "injected-parameters"]
    assert notebook.metadata.kernelspec.name == "python3"


def test_the_method_asked_for_is_the_method_that_runs(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters = {"method": "bt", "dry_run": True, "out": str(tmp_path / "runs"), "wandb_mode": "disabled"}
    papermill.execute_notebook(root / "nbs/20_llm_train.ipynb", tmp_path / "out.ipynb", parameters, progress_bar=False)
    assert [p.name.rpartition("-")[0] for p in (tmp_path / "runs").iterdir()] == ["bt"]


def entries(contents):
    """Flatten a sidebar."""
    for entry in contents:
        if isinstance(entry, dict): yield from entries(entry["contents"])
        else: yield entry


def test_the_sidebar_lists_every_chapter_once(root):
    listed = list(entries(yaml.safe_load((root / "_quarto.yml").read_text())["website"]["sidebar"]["contents"]))
    there = [p.relative_to(root).as_posix() for p in (root / "nbs").rglob("*") if p.suffix in (".ipynb", ".qmd")]
    there = [p for p in there if not re.search(r"/[._]|/404", p)]
    assert sorted(listed) == sorted([*there, "paper/index.qmd"])


def test_every_chapter_has_a_title_and_a_claim(root):
    for path in (root / "nbs").rglob("[!_.]*.ipynb"):
        if ".ipynb_checkpoints" in path.parts: continue
        first = next(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
        assert first.startswith("# ") and "\n> " in first, path


def test_the_lock_pins_what_is_declared(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lock = (root / "requirements.lock").read_text()
    pinned = {re.split("==", line)[0] for line in lock.splitlines()}
    declared = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    names = {re.match(r"[\w-]+", d).group() for d in declared} - {"responserank"}
    assert names <= pinned
    assert all(re.fullmatch(r"[a-z0-9._-]+==[\w.]+( ; .+)?", line) for line in lock.splitlines())  # no indexes, no links, no builds


def test_an_installed_torch_is_left_alone():
    lock = "numpy==2.4.6\ntorch==2.13.0\nnvidia-nccl-cu13==2.29.7 ; sys_platform == 'linux'\ntriton==3.7.1\ntorchmetrics==1.0\n"
    assert constraints(lock, None) == lock.splitlines()
    assert constraints(lock, "2.14.0+cu126") == ["numpy==2.4.6", "torchmetrics==1.0", "torch==2.14.0+cu126"]


def test_mathematics_has_single_backslashes(root):
    for path in (root / "nbs").rglob("[!_.]*.ipynb"):
        if ".ipynb_checkpoints" in path.parts: continue
        for cell in nbformat.read(path, 4).cells:
            found = re.findall(r"\$[^$\n]*\\\\[a-zA-Z][^$\n]*\$", cell.source) if cell.cell_type == "markdown" else []
            assert not found, f"{path.name}: {found}"
