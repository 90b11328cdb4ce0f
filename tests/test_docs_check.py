"""The site's checker finds a planted fault of each kind, and nothing in a sound site."""
import pytest
import sitecheck

ADDRESS, SOURCE = "https://example.org/site", "https://example.org/repo/blob/main/"
SOUND = """<html><head><meta name="description" content="What a page says."></head><body><nav>menu</nav><main><h1 id="top">A page</h1>
<p>Text that is long enough to count as a page of its own, with a link <a href="b/c.html#there">inside</a> and one
<a href="https://example.org/site/b/c.html">by address</a>, <a href="https://example.org/repo/blob/main/code.py#L2">source</a>.</p>
<img src="x.png" alt="Accuracy rises with data"><pre>x = "/home/me/data.csv" # a path that is nobody's; 50 % | or more</pre></main></body></html>"""
FAULTS = {  # what is put into the page → what is said of it
    "dead link": '<a href="gone.html">x</a>',
    "dead link: https": '<a href="https://example.org/site/gone.html">x</a>',
    "dead anchor: #": '<a href="#nowhere">x</a>',
    "dead anchor: b": '<a href="b/c.html#nowhere">x</a>',
    "dead anchor: https": '<a href="https://example.org/site/b/c.html#nowhere">x</a>',
    "dead source link": '<a href="https://example.org/repo/blob/main/gone.py#L1">source</a>',
    "dead line": '<a href="https://example.org/repo/blob/main/code.py#LNone">source</a>',
    "dead line of": '<a href="https://example.org/repo/blob/main/code.py#L4">source</a>',
    "dead link: gone.png": '<img src="gone.png" alt="A figure that is not there">',
    "dead link: https://example.org/site/gone.png": '<meta property="og:image" content="https://example.org/site/gone.png">',
    "anchor on two places": '<h2 id="top">again</h2>',
    "without alternative text": '<img src="x.png" alt="">',
    "figures without alternative": '<img src="x.png">',
    "share an alternative text": '<img src="x.png" alt="Accuracy rises with data">',
    "raw directive": "<pre>\n#| fig-cap: a caption</pre>",
    "machine path: /tmp": "<pre>saved to /tmp/tmpab12/model</pre>",
    "machine path: /work": "<pre>File /work/me/x.py</pre>",
    "machine path: /root": "<pre>'/root/.cache'</pre>",
    "machine path: /home": "<pre>/home/anna/x</pre>",
    "progress bar": "<pre>Loading:  40%|████      | 2/5</pre>",
    "progress bar: 3it/s": "<pre>12/12 [00:04, 3it/s]</pre>",
    "raw div": "<p>\n::: {.callout}</p>",
    "raw markdown in the description": '<meta name="description" content="Says *how much*.">',
    "raw markdown in the desc": '<meta property="og:description" content="Says `how`.">',
}


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site/b").mkdir(parents=True)
    (tmp_path / "site/x.png").touch()
    (tmp_path / "code.py").write_text("one\ntwo\nthree\n")
    (tmp_path / "site/index.html").write_text(SOUND)
    (tmp_path / "site/b/c.html").write_text(SOUND.replace("b/c.html#there", "../index.html#top").replace('id="top"', 'id="there"').replace("x.png", "../x.png"))
    return tmp_path / "site"


def said(site): return sitecheck.problems(site, ADDRESS, SOURCE, site.parent)


def test_a_sound_site_has_no_problems(site):
    assert said(site) == []


@pytest.mark.parametrize("expected", FAULTS)
def test_a_planted_fault_is_found(site, expected):
    (site / "index.html").write_text(SOUND.replace("</main>", FAULTS[expected] + "</main>"))
    assert len(said(site)) == 1 and expected in said(site)[0]


def test_an_empty_page_is_found_unless_it_leads_elsewhere(site):
    (site / "d.html").write_text("<html><body><nav>" + "menu " * 50 + "</nav><main><h1>Empty</h1></main></body></html>")
    assert said(site) == ["d.html: empty page"]
    (site / "d.html").write_text('<html><head><meta http-equiv="refresh" content="0; url=index.html"></head><body></body></html>')
    assert said(site) == []


def test_dead_links_of_a_readme_are_found(site):
    readme = site.parent / "README.md"
    readme.write_text("[a](https://example.org/site/b/c.html#there) [b](https://example.org/site/gone.html) [c](https://example.org/repo/blob/main/gone.md)")
    assert sitecheck.problems(site, ADDRESS, SOURCE, site.parent, [readme]) == [
        "README.md: dead link: https://example.org/site/gone.html", "README.md: dead source link: https://example.org/repo/blob/main/gone.md"]
