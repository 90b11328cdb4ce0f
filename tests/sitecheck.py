"""Check a rendered site, page by page: links, anchors, figures, and what a reader should never see."""
import functools
import http.server
import json
import queue
import re
import shutil
import subprocess
import tempfile
import threading
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
            if a.get("property", a.get("name")) in ("og:image", "twitter:image"): self.links.append(a.get("content") or "")
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
    texts: list = (), # Markdown files whose links into the site and to source files are checked as well
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
    for text in texts:
        for link in dict.fromkeys(re.findall(r"\]\((https?://[^)\s]+)\)", text.read_text())):
            if wrong := dead(link, site / "index.html", pages, site, address, source, repository, lines): found.append(f"{text.name}: {wrong}: {link}")
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


WIDTHS = {"desk": 1280, "phone": 390}  # pixels
MEASURE = """<html><body><script>
const pages = %s, widths = %s, out = [], rest = ms => new Promise(r => setTimeout(r, ms));
const parts = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const light = c => { const [r, g, b] = c.map(x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
function behind(e, view) {  // the color behind a text, through what is transparent
  const found = [];
  for (; e; e = e.parentElement) { const c = parts(view.getComputedStyle(e).backgroundColor); found.push(c); if (c.length < 4 || c[3] == 1) break; }
  return found.reverse().reduce((under, c) => { const a = c.length < 4 ? 1 : c[3]; return under.map((u, i) => u * (1 - a) + c[i] * a); }, [255, 255, 255]);
}
function contrast(e, view) {
  const a = light(parts(view.getComputedStyle(e).color).slice(0, 3)), b = light(behind(e, view));
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
}
function look(doc, view) {
  const code = [...doc.querySelectorAll("main pre.sourceCode")].filter(e => e.offsetWidth), main = doc.querySelector("main");
  let worst = 21, what = "";
  for (const e of doc.querySelectorAll("main p a, main li a, main pre.sourceCode span, main :not(pre) > code")) {
    if (!e.offsetWidth || !e.textContent.trim()) continue;
    const c = contrast(e, view);
    if (c < worst) [worst, what] = [c, e.outerHTML.slice(0, 90)];
  }
  const wide = [...doc.querySelectorAll("main *")].find(e => e.getBoundingClientRect().right > doc.documentElement.clientWidth + 1);
  return {column: Math.round(main.clientWidth), blocks: code.length, scroll: code.filter(e => e.scrollWidth > e.clientWidth + 1).length,
          overflow: doc.documentElement.scrollWidth - doc.documentElement.clientWidth, wide: wide ? wide.outerHTML.slice(0, 90) : "", contrast: worst, what};
}
(async () => {
  for (const width of widths) for (const mode of ["light", "dark"]) for (const page of pages) {
    if (mode == "dark" && width != widths[0]) continue;
    const frame = document.createElement("iframe");
    frame.style = `width:${width}px;height:800px;border:0`;
    document.body.append(frame);
    await new Promise(done => { frame.onload = done; frame.src = page; setTimeout(done, 15000); });
    const doc = frame.contentDocument;
    if (mode == "dark") {
      doc.documentElement.classList.add("quarto-dark"); doc.body.classList.add("quarto-dark");
      doc.querySelectorAll("link.quarto-color-scheme").forEach(l => { l.media = l.dataset.mode == "dark" || l.classList.contains("quarto-color-alternate") ? "all" : "not all"; });
      await rest(150);
    }
    out.push({page, width, mode, ...look(doc, frame.contentWindow)});
    frame.remove();
  }
  document.body.innerHTML = "<pre id=out></pre>";
  document.getElementById("out").textContent = JSON.stringify(out);
  fetch("/done", {method: "POST", body: JSON.stringify(out)});
})();
</script></body></html>"""


def measure(
    site: Path, # the folder of the rendered site
    pages: list, # paths in it
    browser: str, # a Chromium
    seconds: float = 240, # at most
) -> list: # a row for each page, width and mode: column, code blocks, those that scroll, overflow in pixels, lowest contrast
    """Open pages in headless Chromium, narrow and wide, light and dark, and measure them."""
    rows = queue.Queue()

    class Site(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
        def do_GET(self):
            if self.path != "/measure": return super().do_GET()
            self.answer((MEASURE % (json.dumps(pages), json.dumps(list(WIDTHS.values())))).encode())
        def do_POST(self):
            rows.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(b"")
        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Site, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
             "--window-size=1400,900", "--remote-debugging-port=0"]
    with tempfile.TemporaryDirectory() as folder:
        command = [browser, *flags, f"--user-data-dir={folder}", f"http://127.0.0.1:{server.server_port}/measure"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try: return rows.get(timeout=seconds)
        except queue.Empty: raise RuntimeError(f"{browser} measured nothing in {seconds:.0f} s") from None
        finally:
            process.terminate()
            process.wait()
            server.shutdown()


def layout_problems(site: Path, most: int = 10) -> list:
    """List what a reader would stumble over on the pages with most code, at a desk and on a phone; nothing where there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser: return []
    pages = {p: p.read_text().count("sourceCode") for p in Path(site).rglob("*.html") if "site_libs" not in p.parts}
    chosen = sorted(pages, key=pages.get, reverse=True)[:most] + [p for p in pages if p.parent.name in ("paper", "nbs") and p.name == "index.html"]
    rows = measure(site, [p.relative_to(site).as_posix() for p in dict.fromkeys(chosen)], browser)
    desk = [r for r in rows if r["width"] == WIDTHS["desk"] and r["mode"] == "light"]
    blocks, scroll = sum(r["blocks"] for r in desk), sum(r["scroll"] for r in desk)
    print(f"{len(desk)} pages in Chromium: column {min(r['column'] for r in desk)} px or more, {scroll} of {blocks} code blocks scroll, "
          f"lowest contrast {min(r['contrast'] for r in rows):.1f}, overflow on a phone {max(r['overflow'] for r in rows if r['width'] == WIDTHS['phone'])} px")
    found = [f"{r['page']}: {r['overflow']} px wider than a window of {r['width']}: {r['wide']}" for r in rows if r["overflow"] > 0]
    found += [f"{r['page']} ({r['mode']}): contrast {r['contrast']:.2f} of {r['what']}" for r in rows if r["contrast"] < 4.5]
    return found + ([f"{scroll} of {blocks} code blocks scroll sideways"] if scroll > .05 * blocks else [])
