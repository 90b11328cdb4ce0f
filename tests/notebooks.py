"""Run the notebooks against the exported modules, in parallel: python tests/notebooks.py [NOTEBOOK …] [--workers N] [--flags FLAGS] [--coverage]

`nbdev_test` runs an exported cell where it stands, inside the notebook, and never looks at the module made from it: the module can
be broken, or stale, while its notebook passes. Here each exported cell is replaced by an import of the names it binds. Every notebook
has a process of its own, so that none leans on what another one left behind.
"""
import argparse
import ast
import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import symtable
import sys
import tempfile
import time
from pathlib import Path

import nbdev.test

EXPORTS = ("export", "exporti", "exports")
QUIET = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "offline",
         "WANDB_SILENT": "true", "TOKENIZERS_PARALLELISM": "false"}
FORK = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")  # a fork inherits what `preload` imported


def bound_names(source: str) -> list:
    """List the names that a cell binds at the top level, without those that are there for type checkers only."""
    tree = ast.parse(source)
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))]
    symbols = symtable.symtable(ast.unparse(tree), "cell", "exec").get_symbols()
    return sorted(s.get_name() for s in symbols if s.is_assigned() or s.is_imported())


def import_exported(nb, package: str) -> None:
    """Replace every exported cell of a processed notebook by an import from the module it was exported to."""
    default = next((c.directives_["default_exp"][0] for c in nb.cells if "default_exp" in (c.directives_ or {})), None)
    for cell in nb.cells:
        kind = next((e for e in EXPORTS if cell.cell_type == "code" and e in cell.directives_), None)
        if kind is None: continue
        module = f"{package}.{(cell.directives_[kind] or [default])[0]}".removesuffix(".__init__")
        names = bound_names(cell.source)
        cell.source = f"import {module}" if not names else f"from {module} import {', '.join(names)}"


def use_exported_modules() -> None:
    """Let nbdev's own test runner see exported cells as imports."""
    from nbdev.config import get_config
    package = get_config().lib_path.name

    class Processor(nbdev.process.NBProcessor):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            import_exported(self.nb, package)
    nbdev.test.NBProcessor = Processor


def run_notebook(path: Path, log: Path, flags: list, coverage_of: str | None) -> None:
    """Run one notebook in this process, which ends with exit status 1 if it fails; everything it says goes to `log`."""
    said = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1), os.dup2(said, 2)
    from nbdev.config import get_config
    if coverage_of:
        import coverage
        cover = coverage.Coverage(source=[coverage_of], data_suffix=True, messages=False)
        cover.start()
    use_exported_modules()
    passed, _ = nbdev.test.test_nb(path, skip_flags=get_config().tst_flags.split(), force_flags=flags, basepath=get_config().config_path)
    if coverage_of: cover.stop(), cover.save()
    if not passed: sys.exit(1)


def preload() -> None:
    """Import what most notebooks import, once, before the first fork."""
    for name in ("numpy", "pandas", "scipy.stats", "matplotlib.pyplot", "torch", "transformers.models.llama.modeling_llama", "datasets",
                 "responserank.llm.optimizer_step", "responserank.figures"):
        with contextlib.suppress(ImportError): importlib.import_module(name)


class Job:
    """A notebook in a process of its own."""
    def __init__(self, path: Path, name: str, folder: Path, *args):
        self.name, self.log, self.start = name, folder / f"{name.replace('/', '-')}.log", time.time()
        self.process = FORK.Process(target=run_notebook, args=(path, self.log, *args))
        self.process.start()

    def finish(self) -> bool:
        """Print the notebook's line and, where it failed, everything it said; return whether it passed."""
        self.process.join()
        passed, code = self.process.exitcode == 0, self.process.exitcode
        print(f"{'passed' if passed else 'FAILED'}  {time.time() - self.start:6.1f} s  {self.name}", flush=True)
        if not passed:
            text = self.log.read_text(errors="replace") if self.log.exists() else ""
            print("\n".join("    " + line for line in text.strip().splitlines()), flush=True)
            if code not in (0, 1): print(f"    the process died: {signal.Signals(-code).name if code < 0 else f'exit status {code}'}", flush=True)
        return passed


def run_all(paths: list, workers: int, flags: list, coverage_of: str | None) -> list:
    """Run notebooks side by side; return the names of those that failed."""
    top, failed, running = Path(os.path.commonpath([p.parent for p in paths])), [], []
    with tempfile.TemporaryDirectory() as folder:
        waiting = [(p, p.relative_to(top).as_posix(), Path(folder), flags, coverage_of) for p in paths]
        while waiting or running:
            while waiting and len(running) < workers: running.append(Job(*waiting.pop(0)))
            ended = multiprocessing.connection.wait([job.process.sentinel for job in running])
            failed += [job.name for job in running if job.process.sentinel in ended and not job.finish()]
            running = [job for job in running if job.process.sentinel not in ended]
    return sorted(failed)


def print_coverage(package: str) -> None:
    """Print how much of the package the notebooks ran."""
    import coverage
    whole = coverage.Coverage(source=[package], messages=False)
    whole.combine()
    whole.report(show_missing=True, skip_empty=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of them without")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--flags", default="", help='run cells so marked, too: "slow gpu"')
    parser.add_argument("--coverage", action="store_true", help="report the lines of the package that the notebooks ran")
    given = parser.parse_args()
    from nbdev.config import get_config
    from nbdev.doclinks import nbglob
    paths = sorted((p.absolute() for p in given.notebooks or nbglob(as_path=True)), reverse=True)  # long chapters have high numbers
    if missing := [str(p) for p in paths if not p.is_file()]: parser.error(f"no such notebook: {', '.join(missing)}")
    if not paths: parser.error("no notebooks here")
    package, start = get_config().lib_path.name, time.time()
    os.environ.update(QUIET)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // given.workers)))
    if len(paths) > given.workers: preload()
    failed = run_all(paths, min(given.workers, len(paths)), given.flags.split(), package if given.coverage else None)
    if given.coverage: print_coverage(package)
    print(f"notebooks against {package}: {len(paths) - len(failed)} passed, {len(failed)} failed in {time.time() - start:.0f} s"
          + (f" ({', '.join(failed)})" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__": sys.exit(main())
