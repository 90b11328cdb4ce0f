"""The front door: public names, loaded when they are used, with documented parameters."""
import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import responserank


def in_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_is_fast_and_loads_nothing():
    code = "import sys, time; t = time.perf_counter(); import responserank; s = time.perf_counter() - t; " \
           "print(s < .2 and not {'torch', 'numpy', 'pandas', 'transformers'} & set(sys.modules))"
    assert in_new_process(code) == "True"


def test_editors_see_what_python_sees():
    tree = ast.parse(Path(responserank.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and n.test.id == "TYPE_CHECKING")
    seen = {alias.asname: (node.module.removeprefix("responserank."), alias.name) for node in block.body for alias in node.names}
    table = {name: where if isinstance(where, tuple) else (where, name) for name, where in responserank._DEFINED_IN.items()}
    assert seen == table
    assert Path(responserank.__file__).with_name("py.typed").is_file()


@pytest.mark.parametrize("name", responserank.__all__)
def test_help_shows_every_parameter(name):
    found = getattr(responserank, name)
    assert found is getattr(responserank, name) and name in dir(responserank)
    if name == "UserError": return
    parameters = [p for p in inspect.signature(found).parameters if p not in ("self", "kwargs", "args")]
    missing = [p for p in parameters if f"{p} :" not in inspect.getdoc(found)]
    assert not missing, f"{name}: {missing}"
    hints = {f.name: f.type for f in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else found.__annotations__
    bare = [p for p in parameters if p not in hints]
    assert not bare, f"{name}: no type for {bare}"


def test_an_unknown_name_is_an_attribute_error_that_lists_the_names():
    with pytest.raises(AttributeError, match="no attribute 'rank_loss'.*ranking_loss"): responserank.rank_loss
    with pytest.raises(ImportError): exec("from responserank import rank_loss")
    assert not hasattr(responserank, "nothing")


def test_the_example_of_the_readme_runs(root):
    """README opens with eight lines that train on a frame and score two texts."""
    readme = (root / "README.md").read_text()
    code = readme.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    accuracy, rewards = done.stdout.strip().splitlines()[-2:]
    assert 0 <= float(accuracy) <= 1 and len(rewards.strip("[]").split()) == 2
