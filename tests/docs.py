"""Render the site into _docs and check it: python tests/docs.py

nbdev first adds the API to every chapter (into _proc); then Quarto renders it or, where Quarto isn't installed, smalldocs, which is
enough to find what is broken. Either way smalldocs lists the options it does not know and the links that lead nowhere.
"""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbdev.serve
from execnb.nbio import mk_cell
from nbdev.config import get_config
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, exec_show_docs, mv_exports, rm_export
from notebooks import EXPORTS, bound_names

ROOT = Path(__file__).resolve().parents[1]
SMALLDOCS = str(Path(sys.executable).with_name("smalldocs"))


def is_exported(cell) -> bool: return cell.cell_type == "code" and bool(set(EXPORTS) & set(cell.directives_ or {}))


class ImportExported(exec_show_docs):
    """Give the API what it documents by importing it; nbdev would run the chapter's cells, and every cell with an import among them."""

    def __call__(self, cell):
        if "default_exp" in (cell.directives_ or {}): self.module = cell.directives_["default_exp"][0]
        if getattr(cell, "has_sd", False): self.head(cell)
        elif is_exported(cell) and (names := bound_names(cell.source)):
            kind = next(e for e in EXPORTS if e in cell.directives_)
            module = f"{get_config().lib_path.name}.{(cell.directives_[kind] or [self.module])[0]}".removesuffix(".__init__")
            self.k.run_cell(f"from {module} import {', '.join(names)}")
        if self.k.exc: raise RuntimeError(f"cell {cell.idx_}:\n{cell.source}") from self.k.exc

    def head(self, cell):
        """Keep name and link to the source of what nbdev documents; its signature and docstring stand in the code below."""
        self.k.cell(cell)
        if isinstance(self.k.exc, NameError):  # an inherited signature with annotations that only type checkers can read
            self.k.exc, cell.outputs = None, []
        for output in cell.outputs:
            text = "".join(output.get("data", {}).get("text/markdown", ""))
            output["data"] = {"text/markdown": text.partition("```")[0].partition("---\n")[2]}


class headings_first(Processor):
    """Move the headings that nbdev puts below the code to above it."""

    def begin(self):
        cells, at = [], 0
        for cell in self.nb.cells:
            if getattr(cell, "has_sd", False):
                cells.insert(at, cell)
                at += 1
            else:
                at = len(cells) if is_exported(cell) else at
                cells.append(cell)
        self.nb.cells[:] = cells


def drop_hidden(cell):
    """Leave out what a reader need not see; unlike nbdev, keep the exported code, which is what the chapters are about."""
    if cell.directives_ and cell.directives_.keys() & {"hide", "default_exp"}: del cell["source"]


def keep_name(cell):
    """Let a page be called as its notebook is; nbdev would drop the number."""
    if cell.cell_type == "raw": cell.source = re.sub(r"^output-file:.*\n", "", cell.source, flags=re.MULTILINE)


def split_title(nb):
    """Cut the prose off the cell that holds title and claim: nbdev makes that cell the page's metadata and drops the rest."""
    at = next(i for i, c in enumerate(nb.cells) if c.cell_type == "markdown")
    head = re.match(r"# .*\n+(> .*(\n|$))*", nb.cells[at].source)
    prose = nb.cells[at].source[head.end():].strip() if head else ""
    if prose:
        nb.cells[at].source = head.group()
        nb.cells.insert(at + 1, mk_cell(prose, "markdown"))


class Chapters(FilterDefaults):
    """What happens to a chapter before it is rendered."""

    def base_procs(self):
        changed = {exec_show_docs: ImportExported, rm_export: drop_hidden, mv_exports: headings_first}
        return [changed.get(p, p) for p in super().base_procs()] + [keep_name]

    def __call__(self, nb):
        split_title(nb)
        return super().__call__(nb)


def process() -> Path:
    """Copy the site's sources into _proc, with the API of exported functions in the chapters."""
    shutil.rmtree(ROOT / "_proc", ignore_errors=True)
    nbdev.serve.FilterDefaults = Chapters
    proc = Path(nbdev.serve.proc_nbs(".", folder_re="nbs", force=True, n_workers=0))
    shutil.copy2(ROOT / "index.qmd", proc)
    shutil.copytree(ROOT / "paper", proc / "paper", ignore=shutil.ignore_patterns("*.pdf"))
    return proc


def render(proc: Path) -> None:
    """Render _proc with Quarto, or with smalldocs, and move the site to _docs."""
    command = ["quarto", "render"] if shutil.which("quarto") else [SMALLDOCS, "render", "--quiet"]
    subprocess.run([*command, str(proc)], check=True)
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(proc / "_docs", ROOT / "_docs")


def check(proc: Path) -> list:
    """List unknown options and broken links."""
    said = subprocess.run([SMALLDOCS, "check", str(proc)], capture_output=True, text=True)
    if said.returncode not in (0, 1): raise RuntimeError(said.stderr)
    return [line for line in said.stdout.splitlines() if line != "execute.enabled is ignored: smalldocs runs no code"]


if __name__ == "__main__":
    os.chdir(ROOT)
    proc = process()
    render(proc)
    problems = check(proc)
    print("\n".join([*problems, f"_docs: {len(list((ROOT / '_docs').rglob('*.html')))} pages, {len(problems)} problems"]))
    sys.exit(bool(problems))
