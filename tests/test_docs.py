"""What the site adds to a chapter: links, the API, texts for figures."""
import inspect
from types import SimpleNamespace

import docs
import pytest

from responserank.rankings import tied_with_next

CHAPTER = "nbs/01_strata.ipynb"


@pytest.mark.parametrize("text, expected", [
    ("use `deal` here", "use [`deal`](#api-deal) here"),
    ("`ranking_loss()` and `rankings.ranking_loss`", "[`ranking_loss()`](00_rankings.ipynb#api-ranking_loss) and [`rankings.ranking_loss`](00_rankings.ipynb#api-ranking_loss)"),
    ("[`deal`](x.html), ``deal``, `no_such_name`", "[`deal`](x.html), ``deal``, `no_such_name`"),
    ("## `deal`\n| `deal` |\n```\n`deal`\n```", "## `deal`\n| `deal` |\n```\n`deal`\n```"),
])
def test_names_become_links_to_chapters(text, expected):
    assert docs.linked(text, CHAPTER) == expected


def test_every_symbol_stands_on_its_line():
    for s in docs.symbols():
        assert (docs.ROOT / s.chapter).exists()
        assert any((docs.ROOT / s.file).read_text().splitlines()[s.line - 1].startswith(f"{k} {s.name}") for k in ("def", "class", "async def")), s
    assert len(docs.symbols()) > 500


def test_the_api_of_a_function_names_its_parameters():
    text = docs.api(next(s for s in docs.symbols() if s.name == "tied_with_next"))
    assert f"rankings.py#L{inspect.getsourcelines(tied_with_next)[1]}" in text and "tied_with_next(values, tol=1e-09) -> ndarray | Tensor" in text
    assert "<tr><td><code>tol</code></td><td><code>float</code></td><td><code>1e-09</code></td><td>absolute and relative</td></tr>" in text


def test_code_is_cut_after_each_documented_definition():
    source = "X = 1\n\ndef a(): pass\n\ndef _b(): pass\n\nclass C: pass\n\nY = 2"
    assert docs.pieces(source, {"a", "C"}) == [("a", "X = 1\n\ndef a(): pass"), ("C", "def _b(): pass\n\nclass C: pass\n\nY = 2")]
    assert docs.pieces("X = 1", {"a"}) == [(None, "X = 1")]


@pytest.mark.parametrize("text, heading, expected", [
    ("A picture: what *one* `loss` does to a prediction that is far from its target. More.", "", "A picture: what one loss does to a prediction that is far from its target."),
    ("Short.", "Bars", "Bars: Short."),
    ("Short. Then a sentence that is long enough to say what a figure shows. More.", "Bars", "Short. Then a sentence that is long enough to say what a figure shows."),
    ("", "Bars", "Bars"),
])
def test_what_stands_before_a_figure_describes_it(text, heading, expected):
    assert docs.opening(docs.prose(text), heading) == expected


def test_a_caption_below_a_figure_describes_it():
    cell = lambda source: SimpleNamespace(cell_type="markdown", source=source)
    assert docs.caption(cell("*Gains over Bradley–Terry, with 95 % intervals, for `bt`.* More.")) == "Gains over Bradley–Terry, with 95 % intervals, for bt."
    assert docs.caption(cell("**Bold text that is as long as a caption would be**")) == docs.caption(None) == ""
