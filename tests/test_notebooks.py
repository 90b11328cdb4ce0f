"""The runner of `tests/notebooks.py` on a project of one notebook: what it sees that `nbdev_test` does not."""
import os
import subprocess
import sys

import nbformat
import pytest

SETTINGS = """[DEFAULT]
repo = tiny
lib_name = tiny
user = nobody
author = nobody
author_email = nobody@example.org
version = 0.0.1
branch = main
description = A project of one notebook
nbs_path = nbs
lib_path = tiny
doc_path = _docs
recursive = True
tst_flags = slow
update_pyproject = False
readme_nb = none.ipynb
"""
CELLS = """#| default_exp core
#| export
import math
_half = 0.5
def area(radius): return math.pi * radius ** 2
#| exporti
def _quarter(radius): return area(radius) * _half ** 2
assert area(1) == math.pi and _quarter(2) == math.pi and _half == 0.5
#| slow
raise SystemError("slow cells are left out unless asked for")
#| eval: false
raise SystemError("never run")
import os
assert os.environ["IN_TEST"] == "1"
"""


def split_cells(text):
    """Start a cell at each directive and at each check."""
    cells = [[]]
    for line in text.splitlines():
        if line.startswith(("#|", "assert area", "import os")): cells.append([])
        cells[-1].append(line)
    return ["\n".join(c) for c in cells[1:]]


@pytest.fixture
def tiny(tmp_path):
    """Make an exported project of one notebook."""
    (tmp_path / "settings.ini").write_text(SETTINGS)
    (tmp_path / "nbs").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in split_cells(CELLS)])
    nbformat.write(notebook, tmp_path / "nbs/00_core.ipynb")
    assert command(tmp_path, "nbdev_export").returncode == 0
    return tmp_path


def command(folder, *words):
    """Run a command in the project, as a user would."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # `make test` activates nothing
    env = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTHONPATH")} | {"PYTHONPATH": str(folder), "PATH": path}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def against_modules(folder, root, *options):
    return command(folder, sys.executable, str(root / "tests/notebooks.py"), *options)


def test_passes_what_is_sound(tiny, root):
    done = against_modules(tiny, root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "00_core.ipynb" in done.stdout and "1 passed, 0 failed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("change", [("_half = 0.5", "_half = 0.25"), ("def _quarter", "def _third")])
def test_catches_a_broken_module_that_nbdev_test_passes(tiny, root, change):
    module = tiny / "tiny/core.py"
    module.write_text(module.read_text().replace(*change))
    assert command(tiny, "nbdev_test").returncode == 0
    done = against_modules(tiny, root)
    assert done.returncode == 1
    assert "FAILED" in done.stdout and "Error" in done.stdout and "0 passed, 1 failed" in done.stdout.splitlines()[-1]


def test_flags_and_coverage(tiny, root):
    done = against_modules(tiny, root, "--flags", "slow")
    assert done.returncode == 1 and "slow cells are left out" in done.stdout
    done = against_modules(tiny, root, "--coverage")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tiny/core.py" in done.stdout and "100%" in done.stdout


def test_says_who_killed_the_process(tiny, root):
    path = tiny / "nbs/00_core.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells.append(nbformat.v4.new_code_cell("import signal\nos.kill(os.getpid(), signal.SIGKILL)"))
    nbformat.write(notebook, path)
    done = against_modules(tiny, root)
    assert done.returncode == 1 and "SIGKILL" in done.stdout
    assert against_modules(tiny, root, "nbs/99_missing.ipynb").returncode == 2


def test_imports_for_type_checkers_are_not_looked_for():
    from notebooks import bound_names
    assert bound_names("from typing import TYPE_CHECKING\nif TYPE_CHECKING: import torch\nx = 1\ndef f(): y = 2") == ["TYPE_CHECKING", "f", "x"]
