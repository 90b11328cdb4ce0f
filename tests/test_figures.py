"""The same bytes from every process, looks that never collide, and forms that survive holes in their tables."""
import os
import subprocess
import sys

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from responserank import figures
from responserank.figures import (
    PALETTE,
    _THEME,
    _VISION,
    _WIDTH,
    bars,
    boxes,
    curves,
    heatmap,
    histogram,
    intervals,
    method_style,
    panels,
    percent_ticks,
    percent_text,
    qq,
    reference_line,
    save_figure,
    scatter,
    separation,
    shared_legend,
    figure_size,
    theme,
)

DRAW = """
import sys
import matplotlib
matplotlib.use("agg")
import numpy as np, pandas as pd
from responserank.figures import *
theme()
random = np.random.default_rng(0)
t = pd.DataFrame({"method": ["bt", "rr_agree"] * 20, "x": np.arange(40.0), "y": random.normal(size=40)})
t["lo"], t["hi"] = t.y - 1, t.y + 1
draw = [lambda t, ax: bars(t[:2], "method", "y", "lo", "hi", ax=ax),
        lambda t, ax: curves(t, "x", "y", "lo", "hi", by="method", ax=ax),
        lambda t, ax: boxes(t, "method", "y", ax=ax), lambda t, ax: histogram(t, "y", by="method", ax=ax),
        lambda t, ax: intervals(t[:2], "method", "y", "lo", "hi", ax=ax),
        lambda t, ax: scatter(t, "x", "y", by="method", identity=True, ax=ax),
        lambda t, ax: qq(t, "x", "y", "lo", "hi", ax=ax), lambda t, ax: heatmap(pd.DataFrame(np.eye(3)), ax=ax)]
forms = iter(draw)
tables = {f"$\\\\Delta u_{i}$ – {i}": t for i in range(8)}
fig = panels(tables, lambda t, ax: next(forms)(t, ax), columns=4, share="none", xlabel="x", ylabel="y (%)")
save_figure(fig, sys.argv[1])
"""


@pytest.fixture(autouse=True)
def fresh():
    with theme():
        yield
    plt.close("all")


@pytest.fixture
def table():
    rows = [(m, f, 0.7 + 0.1 * f) for m in ("bt", "rr_agree", "rr_stated") for f in (0.1, 0.5, 1.0)]
    return pd.DataFrame(rows, columns=["method", "fraction", "y"]).assign(lo=lambda t: t.y - 0.01, hi=lambda t: t.y + 0.01)


def test_every_form_gives_the_same_bytes_in_two_processes(tmp_path):
    for name, seed in (("a", "1"), ("b", "2")):
        subprocess.run([sys.executable, "-c", DRAW, str(tmp_path / name)], check=True, env=os.environ | {"PYTHONHASHSEED": seed})
    for suffix in (".pdf", ".png"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"CreationDate" not in pdf and b"/FontType 3" not in pdf and b"Type3" not in pdf


@pytest.mark.parametrize("name", ["f", "f.pdf", "f.png", "noise_0.5"])
def test_both_files_are_named_after_the_path(tmp_path, name):
    stem = name.removesuffix(".pdf").removesuffix(".png")
    written = save_figure(plt.figure(), tmp_path / "deep" / name)
    assert [p.name for p in written] == [f"{stem}.pdf", f"{stem}.png"] and all(p.stat().st_size for p in written)


def test_failed_saving_leaves_the_old_file(tmp_path, monkeypatch):
    save_figure(plt.figure(), tmp_path / "f")
    before = (tmp_path / "f.pdf").read_bytes()
    figure = plt.figure()

    def broken(part, **kwargs):
        part.write_text("half")
        raise OSError("no space")
    monkeypatch.setattr(figure, "savefig", broken)
    with pytest.raises(OSError):
        save_figure(figure, tmp_path / "f")
    assert (tmp_path / "f.pdf").read_bytes() == before and sorted(os.listdir(tmp_path)) == ["f.pdf", "f.png"]


@pytest.mark.parametrize("vision", _VISION)
def test_hues_are_far_apart_for_every_eye(vision):
    far = separation(list(PALETTE.values()), vision)
    assert far[np.triu_indices(len(PALETTE), 1)].min() > 15


def test_hues_stand_out_from_the_page():
    assert min(separation([*PALETTE.values(), "white"])[-1, :-1]) > 30


def look(name):
    return str(sorted(method_style(name).items(), key=str))


@pytest.mark.parametrize("together", [
    "bt bt_ep2 rr_stated rr_agree rr_rt_annostrat_spread2 rr_randrank_randsize2 rr_consensus",
    "bt rr_agree_spread2 rr_agree_spread3 rr_agree_spread4 rr_agree",
    "bt rr rr_pooled rr_perm rt_regression rt_regression_perm", "BT RR", "rr_agree_slight25 rr_agree rr_agree_slight75 bt",
    "rr_stated rr_stated_global rr_stated_partialshuffle100 bt rr_agree", "bt rr_randrank_randsize2 rr_randrank_randsize4",
    "bt rr_agree rr_consensus_spread2 rr_consensus_spread4 rr_consensus_spread6 rr_consensus", "bt bt_agree bt_meanpref rr_agree bt_soft",
    "rr_agree_spread2 rr_agree bt", "bt rr_agree_bt rr_agree",
    "rr_agree_partialshuffle25 rr_agree_partialshuffle50 rr_agree_partialshuffle75 rr_agree",
    "rr_rt_spread2_global rr_rt_annostrat_spread2 " + " ".join(f"rr_rt_annolength{n}_spread2" for n in (2, 4, 8, 16, 32)),
])
def test_methods_drawn_together_differ(together):
    names = together.split()
    assert len({look(n) for n in names}) == len(names)
    colors = [method_style(n)["color"] for n in names]
    far = separation(colors, "deuteranopia")[np.triu_indices(len(names), 1)]
    assert (far > 4).all() or len({(method_style(n)["marker"], str(method_style(n)["linestyle"])) for n in names}) > 1


def test_every_published_method_has_a_look(shared):
    for name in pd.read_csv(shared / "reference" / "llm_methods.csv").method:
        plt.plot([0, 1], [0, 1], **method_style(name))


def test_style_of_an_unknown_name_is_the_same_elsewhere():
    code = "from responserank.figures import method_style; print(method_style('nobody_knows'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "9"})
    assert out.stdout.strip() == str(method_style("nobody_knows"))


def test_theme_is_undone():
    matplotlib.rcdefaults()
    with theme():
        assert matplotlib.rcParams["font.size"] == _THEME["font.size"]
    assert matplotlib.rcParams["font.size"] == 10


def test_letters_are_legible_at_half_width():
    assert figure_size()[0] == _WIDTH["half"] < 3.5
    letters = ["font.size", "axes.labelsize", "axes.titlesize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize", "figure.labelsize"]
    assert min(_THEME[k] for k in letters) >= 7


def test_bars_leave_gaps_where_groups_miss_a_category(table):
    ax = bars(table.drop(index=4), "fraction", "y", "lo", "hi", by="method")
    assert len(ax.patches) == 8 and [t.get_text() for t in ax.get_xticklabels()] == ["0.1", "0.5", "1.0"]
    assert len({round(p.get_x(), 6) for p in ax.patches}) == 8


def test_intervals_are_drawn_where_they_are(table):
    ax = bars(table[:3], "fraction", "y", "lo", "hi")
    ends = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([[a[1], b[1]] for a, b in ends], table[["lo", "hi"]][:3])


def test_missing_values_are_holes_not_errors(table):
    table.loc[[1, 4], ["y", "lo", "hi"]] = np.nan
    for ax in (bars(table, "fraction", "y", "lo", "hi", by="method"), curves(table, "fraction", "y", "lo", "hi", by="method"),
               boxes(table, "fraction", "y", by="method"), histogram(table, "y", by="method"), scatter(table, "fraction", "y"),
               intervals(table, "fraction", "y", "lo", "hi", by="method")):
        ax.figure.canvas.draw()


def test_curves_are_drawn_in_order_of_x(table):
    ax = curves(table.iloc[::-1], "fraction", "y", by="method", labels={"bt": "Bradley–Terry"})
    assert all((np.diff(line.get_xdata()) > 0).all() for line in ax.lines)
    assert [line.get_label() for line in ax.lines] == ["rr_stated", "rr_agree", "Bradley–Terry"]


def test_histograms_share_their_bins(table):
    table = pd.DataFrame({"g": ["a"] * 50 + ["b"] * 50, "x": np.r_[np.zeros(50), np.ones(50)]})
    ax = histogram(table, "x", by="g", bins=4)
    assert [p.get_height() for p in ax.patches if isinstance(p, matplotlib.patches.Rectangle)] == [50, 0, 0, 0, 0, 0, 0, 50]


def test_panels_share_one_legend(table):
    def draw(rows, ax): reference_line(curves(rows, "fraction", "y", by="method", ax=ax), 0.7)
    fig = panels({str(i): table for i in range(5)}, draw, columns=3)
    assert [ax.get_visible() for ax in fig.axes] == [True] * 5 + [False]
    assert [t.get_text() for t in fig.legends[0].texts] == ["bt", "rr_agree", "rr_stated"]
    fig.canvas.draw()


def test_panel_of_one(table):
    assert len(panels({"only": table}, lambda t, ax: scatter(t, "fraction", "y", ax=ax), legend_rows=0).axes) == 1


def test_forms_draw_where_they_are_told(table):
    _, ax = plt.subplots()
    assert bars(table[:3], "fraction", "y", ax=ax) is ax and qq(table, "fraction", "y", ax=ax) is ax
    assert heatmap(pd.DataFrame(np.eye(2)), ax=ax) is ax


def test_heat_map_of_equal_or_missing_values():
    ax = heatmap(pd.DataFrame([[1.0, 1.0], [1.0, np.nan]]))
    ax.figure.canvas.draw()
    assert [t.get_text() for t in ax.texts] == ["1.00", "1.00", "1.00", "--"]


def test_percent():
    ax = percent_ticks(plt.subplots()[1], "both", 1)
    assert ax.xaxis.get_major_formatter()(0.123) == "12.3" and ax.yaxis.get_major_formatter()(1) == "100.0"
    assert percent_text(None) == "--" and percent_text(0.5, 0) == "50"


def test_share_legend_without_labels_draws_none():
    fig = plt.figure()
    shared_legend(fig)
    assert not fig.legends and figures.FAINT
