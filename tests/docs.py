"""Render the site into _docs and check it: python tests/docs.py

Every chapter gets its API first (into _proc): above the code of each public name a heading, a link to its source, its signature and a
table of its parameters. Then Quarto renders it or, where Quarto isn't installed, smalldocs, which is enough to find what is broken.
Smalldocs lists the options it does not know, `sitecheck.py` what is wrong with the pages.
"""
import ast
import csv
import dataclasses
import html
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
from copy import deepcopy
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import nbdev.serve
import sitecheck
from execnb.nbio import mk_cell
from nbdev.config import get_config
from nbdev.process import Processor
from nbdev.processors import (FilterDefaults, add_fold, add_links, add_show_docs, clean_show_doc, exec_show_docs, mv_exports,
                              rm_export)
from notebooks import EXPORTS

from responserank._modidx import d as modidx
from responserank.docs import _described, _field_notes, _type_text
from responserank.figures import PALETTE, theme

ROOT = Path(__file__).resolve().parents[1]
SMALLDOCS = str(Path(sys.executable).with_name("smalldocs"))
ADDRESS = modidx["settings"]["doc_host"] + modidx["settings"]["doc_baseurl"]
SOURCE = modidx["settings"]["git_url"] + f"/blob/{modidx['settings']['branch']}/"
QUARTO_ONLY = {"execute.enabled is ignored: smalldocs runs no code", "format.html.grid is ignored"}  # what smalldocs need not know
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
MARK = re.compile(r"^# %% (?:\.\./)+(nbs/\S+\.ipynb) ", re.MULTILINE)
BACKTICKS = re.compile(r"(?<![`\[\w])`([A-Za-z_][\w.]*)(\(\))?`(?![`\]])")


def is_exported(cell) -> bool: return cell.cell_type == "code" and bool(set(EXPORTS) & set(cell.directives_ or {}))


@dataclasses.dataclass(frozen=True)
class Symbol:
    """Where a function or a class stands."""

    module: str
    name: str
    chapter: str  # nbs/….ipynb, whose page shows it
    file: str
    line: int

    @property
    def source(self) -> str: return f"{SOURCE}{self.file}#L{self.line}"

    @property
    def anchor(self) -> str: return f"api-{self.name}"  # a chapter's own headings may be called the same


@cache
def symbols() -> tuple:
    """List the functions and classes of the package. nbdev's index names them; the exported files say at which line, from which chapter."""
    found = []
    for module, names in modidx["syms"].items():
        top = {n.rpartition(".")[2]: file for n, (_, file) in names.items() if n.rpartition(".")[0] == module}
        for file in sorted(set(top.values())):
            text = (ROOT / file).read_text()
            marks = [(text.count("\n", 0, m.start()) + 1, m[1]) for m in MARK.finditer(text)]
            for node in ast.parse(text).body:
                above = [chapter for line, chapter in marks if line < node.lineno]
                if isinstance(node, DEFINITIONS) and node.name in top and above:
                    found.append(Symbol(module, node.name, above[-1], file, node.lineno))
    return tuple(found)


@cache
def link_table() -> dict:
    """Map what may stand in backticks, a name with or without its module, to the symbols it may mean."""
    table = {}
    for s in symbols():
        parts = s.module.split(".")
        for i in range(len(parts) + 1): table.setdefault(".".join([*parts[i:], s.name]), []).append(s)
    return table


def target(name: str, chapter: str) -> str | None:
    """Return the link from a chapter to a name's place on the page that shows it; none where the name may mean several things."""
    meant = link_table().get(name) or link_table().get(name.rpartition(".")[0]) or []
    meant = [s for s in meant if s.chapter == chapter] or meant
    if len(meant) != 1: return None
    page = os.path.relpath(meant[0].chapter, Path(chapter).parent)
    return ("" if meant[0].chapter == chapter else page) + f"#{meant[0].anchor}"


def linked(text: str, chapter: str) -> str:
    """Turn names in backticks into links, outside of headings, tables and code."""
    def link(m):
        to = target(m[1], chapter)
        return f"[`{m[1]}{m[2] or ''}`]({to})" if to else m[0]

    lines, fenced = text.split("\n"), False
    for i, line in enumerate(lines):
        if line.lstrip().startswith("```"): fenced = not fenced
        elif not fenced and not re.match(r"#|\s*\||    ", line): lines[i] = BACKTICKS.sub(link, line)
    return "\n".join(lines)


def code_in(text: str) -> str: return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text or "", quote=False))


def shown_default(about: dict) -> str:
    """Return a default as text, empty where there is none."""
    default = about.get("default", inspect.Parameter.empty)
    if default is inspect.Parameter.empty or default is dataclasses.MISSING: return ""
    text = getattr(default, "__name__", None) or repr(default)
    return "" if " object at 0x" in text else text if len(text) <= 60 else text[:57] + "…"


def parameters(obj: object) -> dict:
    """Read what a reader may pass: a function's parameters, a dataclass's or a named tuple's fields, or those of a class's own `__init__`."""
    if hasattr(obj, "_fields"):
        notes = _field_notes(obj)
        return {k: dict(anno=obj.__annotations__[k], docment=notes.get(k)) | ({"default": obj._field_defaults[k]} if k in obj._field_defaults else {})
                for k in obj._fields}
    own = not inspect.isclass(obj) or dataclasses.is_dataclass(obj) or "__init__" in vars(obj) and not issubclass(obj, BaseException)
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return {stars.get(a.get("kind"), "") + k: a for k, a in _described(obj).items() if k not in ("self", "cls")} if own else {}


def api(s: Symbol) -> str:
    """Write what a reader wants above the code: heading, source, signature, parameters with type, default and note, and what is returned."""
    obj = getattr(importlib.import_module(s.module), s.name)
    about = parameters(obj)
    returned = about.pop("return", None) or {}
    names = [f"{k}={shown_default(a)}" if shown_default(a) else k for k, a in about.items()]
    kind = _type_text(returned.get("anno", inspect.Parameter.empty)) if not inspect.isclass(obj) else ""
    signature = f"{s.name}({', '.join(names)})" + (f" -> {kind}" if kind else "")
    rows = [(f"<code>{html.escape(k)}</code>", code_in(f"`{t}`" if (t := _type_text(a['anno'])) else ""),
             code_in(f"`{shown}`" if (shown := shown_default(a)) else ""), code_in(a["docment"])) for k, a in about.items()]
    if kind and kind != "None": rows.append(("returns", f"<code>{html.escape(kind)}</code>", "", code_in(returned.get("docment"))))
    text = [f"### `{s.name}` {{#{s.anchor}}}", f"[source]({s.source}){{.api-source}}"]
    if about or not inspect.isclass(obj): text.append("```python\n" + "\n".join(textwrap.wrap(signature, 92, subsequent_indent="    ", break_long_words=False)) + "\n```")
    if rows:
        body = "\n".join("<tr>" + "".join(f"<td>{' '.join(c.split())}</td>" for c in row) + "</tr>" for row in rows)
        head = "<tr><th>name</th><th>type</th><th>default</th><th>note</th></tr>"
        text.append(f'<div class="api-table">\n<table class="table">\n<caption>Parameters of {s.name}</caption>\n<thead>{head}</thead>\n<tbody>\n{body}\n'
                    f"</tbody>\n</table>\n</div>")
    return "\n\n".join(text)


def pieces(source: str, documented: set) -> list:
    """Cut exported code after each documented definition: pairs of the definition's name, or none, and its lines."""
    nodes = [n for n in ast.parse(source).body if isinstance(n, DEFINITIONS) and n.name in documented]
    lines, at, out = source.splitlines(), 0, []
    for node in nodes:
        until = len(lines) if node is nodes[-1] else node.end_lineno
        out.append((node.name, "\n".join(lines[at:until]).strip("\n")))
        at = until
    return out or [(None, source)]


def plain(text: str) -> str:
    """Strip links, emphasis, formulas and code marks off a line of markdown."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(re.sub(r"[*`$\\]|(?<!\w)_|_(?!\w)", "", text).split())


def prose(markdown: str) -> str:
    """Return a cell's prose on one line, without headings, code and formulas on lines of their own."""
    text = re.sub(r"```.*?```|^\$\$.*?\$\$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    return plain(" ".join(x.lstrip("> ") for x in text.splitlines() if x.strip() and not x.startswith(("#", "|"))))


def opening(text: str, heading: str) -> str:
    """Return the first sentence, more where it is short, and the heading before it where that is all there is."""
    said = ""
    for sentence in re.findall(r".+?(?:[.!?](?=\s|$)|$)", text):
        said = f"{said} {sentence.strip()}".strip()
        if len(said) >= 60: break
    return f"{heading}: {said}".strip(": ") if len(said) < 60 else said


def is_image(output) -> bool: return any(k.startswith("image/") for k in output.get("data", {}))


class Page(Processor):
    """What the site adds to a chapter: links between pages, the API, texts for figures."""

    def begin(self):
        self.chapter = Path(self.nb.path_).resolve().relative_to(ROOT).as_posix()
        self.names = {s.name: s for s in symbols() if s.chapter == self.chapter}
        self.texts, before, heading, cells = set(), "", "", []
        for cell in self.nb.cells:
            if cell.cell_type == "markdown":
                headings = re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE)
                before, heading = prose(cell.source) or before * (not headings), plain((headings or [heading])[-1])
                cell.source = linked(cell.source, self.chapter)
            if is_exported(cell) and "hide" not in cell.directives_: cells += self.documented(cell)
            elif any(map(is_image, cell.get("outputs", []))): cells += self.described(cell, opening(before, heading))
            else: cells.append(cell)
        self.nb.cells[:] = cells

    def documented(self, cell) -> list:
        """Put headings, signatures and tables above an exported cell, cut so that each stands above its own code."""
        cells = []
        for name, source in pieces(cell.source, {n for n in self.names if not n.startswith("_")}):
            private = [n.name for n in ast.parse(source).body if isinstance(n, DEFINITIONS) and n.name in self.names and n.name.startswith("_")]
            places = "".join(f'<span id="{self.names[n].anchor}"></span>' for n in private)
            if places: cells.append(self.cell(places))
            if name: cells.append(self.cell(api(self.names[name])))
            part = deepcopy(cell)
            part.source, part.directives_ = source, cell.directives_
            part["outputs"] = []
            cells.append(part)
        cells[-1]["outputs"] = cell.get("outputs", [])
        return cells

    def described(self, cell, said: str) -> list:
        """Give every figure of a cell an alternative text, and a cell of its own from the second on."""
        if re.search(r"^#\| *fig-(alt|cap):", cell.source, re.MULTILINE): return [cell]
        cells, images = [cell], [o for o in cell.outputs if is_image(o)]
        for extra in images[1:]:
            cell.outputs.remove(extra)
            more = mk_cell("pass", "code", outputs=[extra])
            more.directives_ = {}
            cells.append(more)
        for i, c in enumerate(cells):
            c.source = f"#| fig-alt: {yaml_text(self.text(said))}\n" + ("#| echo: false\n" if i else "") + c.source
        return cells

    def text(self, said: str) -> str:
        """Number what is said before a figure where several figures follow it."""
        text, n = said or "Figure", 1
        while text in self.texts: text, n = f"{said} (figure {n + 1})", n + 1
        self.texts.add(text)
        return text

    @staticmethod
    def cell(text: str):
        """Make a markdown cell."""
        made = mk_cell(text, "markdown")
        made.directives_ = {}
        return made


def yaml_text(text: str) -> str: return '"' + text.replace("\\", "").replace('"', "'") + '"'


def drop_hidden(cell):
    """Leave out what a reader need not see; unlike nbdev, keep the exported code, which is what the chapters are about."""
    if cell.directives_ and cell.directives_.keys() & {"hide", "default_exp"}: del cell["source"]


def finish_metadata(cell):
    """Let a page be called as its notebook is, nbdev would drop the number; its description is read by machines, so it has no markdown."""
    if cell.cell_type != "raw": return
    cell.source = re.sub(r"^output-file:.*\n", "", cell.source, flags=re.MULTILINE)
    cell.source = re.sub(r"^(description: )(.*(?:\n  .*)*)", lambda m: m[1] + re.sub(r"[*`]", "", m[2]), cell.source, flags=re.MULTILINE)


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
        changed = {add_show_docs: Page, rm_export: drop_hidden}
        unused = {exec_show_docs, clean_show_doc, add_links, add_fold, mv_exports}  # nbdev's own API and links
        return [changed.get(p, p) for p in super().base_procs() if p not in unused] + [finish_metadata]

    def __call__(self, nb):
        split_title(nb)
        return super().__call__(nb)


def claims_as_texts(page: Path) -> None:
    """Describe the paper's figures by what they show, as the manifest says it."""
    rows = csv.DictReader((page.parent / "manifest.csv").read_text().splitlines())
    claims = {f: plain(row["claim"]).replace('"', "'") for row in rows for f in row["files"].split() if row["claim"]}
    image = re.compile(r"^!\[(.*)\]\((\S+)\)$", re.MULTILINE)
    used = set()

    def described(m):
        claim = claims.get(m[2])
        if not claim: return m[0]
        text = claim if claim not in used else f"{Path(m[2]).stem.replace('_', ' ')}: {claim}"
        used.add(claim)
        return f'![{m[1]}]({m[2]}){{fig-alt="{text}"}}'

    page.write_text(image.sub(described, page.read_text()))


def draw_icons(folder: Path) -> None:
    """Draw the site's icon and its picture for other sites in the package's own colors, from the front page's figure."""
    folder.mkdir(parents=True)
    with theme():
        icon, ax = plt.subplots(figsize=(1, 1))
        ax.bar(range(4), [4, 3, 2, 1], width=.8, color=[PALETTE["blue"]] * 3 + [PALETTE["orange"]])
        ax.set_axis_off()
        icon.savefig(folder / "favicon.png", dpi=64, bbox_inches=None, transparent=True)
        social, ax = plt.subplots(figsize=(12, 6.3))
        ax.imshow(plt.imread(ROOT / "results/figures/strength.png"))
        ax.set_axis_off()
        ax.set_position((.05, .03, .9, .72))
        social.text(.05, .89, get_config().title, size=44, weight="bold", color=PALETTE["charcoal"])
        social.text(.05, .8, get_config().description, size=19, color=PALETTE["charcoal"])
        social.savefig(folder / "social.png", dpi=100, bbox_inches=None)
        plt.close("all")


def finish(site: Path) -> None:
    """Name the one address of every page, which neither renderer does by itself, and that of the picture, which smalldocs gets wrong."""
    for page in site.rglob("*.html"):
        if "site_libs" in page.parts: continue
        text, at = page.read_text(), page.relative_to(site).as_posix()
        text = re.sub(f'content="{ADDRESS}/[^"]*icons/social.png"', f'content="{ADDRESS}/nbs/icons/social.png"', text)
        if 'rel="canonical"' not in text: text = text.replace("</head>", f'<link rel="canonical" href="{ADDRESS}/{at}"></head>', 1)
        page.write_text(text)


def process() -> Path:
    """Copy the site's sources into _proc, with the API of exported functions in the chapters."""
    shutil.rmtree(ROOT / "_proc", ignore_errors=True)
    nbdev.serve.FilterDefaults = Chapters
    proc = Path(nbdev.serve.proc_nbs(".", folder_re="nbs", force=True, n_workers=0))
    shutil.copy2(ROOT / "index.qmd", proc)
    shutil.move(proc / "nbs/404.qmd", proc)  # a server looks for it at the top
    draw_icons(proc / "nbs/icons")
    shutil.copytree(ROOT / "paper", proc / "paper", ignore=shutil.ignore_patterns("*.pdf"))
    claims_as_texts(proc / "paper/index.qmd")
    return proc


def render(proc: Path) -> None:
    """Render _proc with Quarto, or with smalldocs, and move the site to _docs."""
    command = ["quarto", "render"] if shutil.which("quarto") else [SMALLDOCS, "render", "--quiet"]
    subprocess.run([*command, str(proc)], check=True)
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(proc / "_docs", ROOT / "_docs")
    finish(ROOT / "_docs")


def check(proc: Path) -> list:
    """List unknown options, broken links, and what else is wrong with the pages."""
    said = subprocess.run([SMALLDOCS, "check", str(proc)], capture_output=True, text=True)
    if said.returncode not in (0, 1): raise RuntimeError(said.stderr)
    options = [line for line in said.stdout.splitlines() if line not in QUARTO_ONLY]
    pages = sitecheck.problems(ROOT / "_docs", ADDRESS, SOURCE, ROOT, texts=[ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
    return options + pages + sitecheck.layout_problems(ROOT / "_docs")


if __name__ == "__main__":
    os.chdir(ROOT)
    proc = process()
    render(proc)
    problems = check(proc)
    print("\n".join([*problems, f"_docs: {len(list((ROOT / '_docs').rglob('*.html')))} pages, {len(problems)} problems"]))
    sys.exit(bool(problems))
