"""Check a rendered site, page by page: links, anchors, figures, and what a reader should never see."""
import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

NEVER = {  # what a reader should not see → its pattern
    "raw directive": re.compile(r"(?m)^\s*#\|\s*[a-z]"),
    "machine path": re.compile(r"(?<![\w.~:/])/(?:tmp|work|root)/[\w.][^\s'\"]*|/home/(?!me/)\w[^\s'\"]*"),
    "progress bar": re.compile(r"\d+%\|.{0,20}|\d(?:it/s|s/it)\b"),
    "raw div": re.compile(r"(?m)^\s*:::+.*"),
}
VOID = {"img", "meta", "link", "br", "hr", "input", "source", "col", "area", "base", "wbr"}
SHORTEST = 80  # characters of text, without which a page counts as empty


class Page(HTMLParser):
    """What the checks need of one page."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids, self.images, self.descriptions, self.text = [], [], [], [], []
        self.redirect, self.silent, self.inside = False, 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get("id"): self.ids.append(a["id"])
        if tag == "a" and a.get("name"): self.ids.append(a["name"])
        if tag in ("a", "link") and a.get("href") is not None: self.links.append(a["href"])
        if tag in ("img", "script", "source") and a.get("src"): self.links.append(a["src"])
        if tag == "img": self.images.append((a.get("alt") or "").strip())
        if tag == "meta":
            self.redirect |= a.get("http-equiv") == "refresh"
            if a.get("name") == "description" or a.get("property") == "og:description": self.descriptions.append(a.get("content") or "")
        if tag in ("script", "style"): self.silent += 1
        if tag not in VOID: self.inside.append(tag if "main" not in self.inside and tag != "main" else "main")

    def handle_endtag(self, tag):
        if tag in ("script", "style"): self.silent -= 1
        if tag not in VOID and self.inside: self.inside.pop()

    def handle_data(self, data):
        if not self.silent and (not self.inside or self.inside[-1] == "main" or "body" not in self.inside): self.text.append(data)


def problems(
    site: Path, # the folder of the rendered site
    address: str, # of the published site, without a slash at the end; absolute links that start with it must resolve
    source: str = "", # start of the links to source files, up to the file's path in the repository
    repository: Path | None = None, # where those files are
) -> list: # a line each
    """List what is wrong with the pages of a site."""
    site = Path(site).resolve()
    pages = {p: Page(p.read_text()) for p in sorted(site.rglob("*.html")) if "site_libs" not in p.parts}
    lines = cache(lambda file: file.read_bytes().count(b"\n"))
    found = []
    for path, page in pages.items():
        say = lambda what, p=path: found.append(f"{p.relative_to(site).as_posix()}: {what}")
        for link in dict.fromkeys(page.links):
            if wrong := dead(link, path, pages, site, address, source, repository, lines): say(f"{wrong}: {link[:120]}")
        for name, n in Counter(page.ids).items():
            if n > 1: say(f"anchor on two places: #{name}")
        for alt, n in Counter(page.images).items():
            if alt.lower() in ("", "png", "image", "figure", "alt"): say(f"{n} figures without alternative text")
            elif n > 1: say(f"{n} figures share an alternative text: {alt[:60]}")
        text = "".join(page.text)
        for what, pattern in NEVER.items():
            if hit := pattern.search(text): say(f"{what}: {hit.group().strip()[:80]}")
        if len(text.strip()) < SHORTEST and not page.redirect: say("empty page")
        for description in set(page.descriptions):
            if re.search(r"[*`]", description): say(f"raw markdown in the description: {description[:60]}")
    return found


def dead(link, path, pages, site, address, source, repository, lines) -> str | None:
    """Return what is wrong with a link, or nothing."""
    if source and link.startswith(source): return dead_source(link.removeprefix(source), repository, lines)
    if link == address or link.startswith(address + "/"): link, path = link.removeprefix(address).lstrip("/") or "index.html", site / "index.html"
    parts = urlsplit(link)
    if parts.scheme or parts.netloc: return None
    to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if to.is_dir(): to = to / "index.html"
    if site not in to.parents or not to.is_file(): return "dead link"
    if parts.fragment and to in pages and unquote(parts.fragment) not in pages[to].ids: return "dead anchor"
    return None


def dead_source(link: str, repository: Path, lines) -> str | None:
    """Return what is wrong with a link to a source file."""
    name, _, place = link.partition("#")
    if not (repository / unquote(name)).exists(): return "dead source link"
    if not place: return None
    number = re.fullmatch(r"L([1-9]\d*)(-L\d+)?", place)
    return None if number and int(number[1]) <= lines(repository / name) else "dead line of a source file"
