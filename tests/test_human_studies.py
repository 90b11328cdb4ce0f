"""The studies on real people: their tables are whole, hold no text, and their functions do what they say."""
import numpy as np
import pandas as pd
import pytest
import torch

from responserank.human_votes import VOTE_METHODS, gain_table, vote_study, votes_table, weights_table
from responserank.probing import group_splits, paired_gains

torch.set_num_threads(1)


def toy(n=300, items=40, seed=0):
    """Votes of five people on pairs of items with two features."""
    r = np.random.default_rng(seed)
    x = r.normal(size=(items, 2))
    a, b = np.stack([r.permutation(items)[:2] for _ in range(n)]).T
    p = 1 / (1 + np.exp(-(x[a] - x[b]) @ [1.5, -1.]))
    up = r.binomial(5, p)
    return torch.tensor(x / np.sqrt(2)), pd.DataFrame(dict(item_a=a, item_b=b, votes_a=up, votes_b=5 - up, ties=0, group=np.arange(n) % 12))


def test_the_study_on_toy_votes():
    x, pairs = toy()
    splits = group_splits(pairs.group.to_numpy(), 4)
    predictions, weights = vote_study(x, pairs, splits, sizes=(1.,))
    assert {loss for loss, _ in predictions} == set(VOTE_METHODS)
    for p in predictions.values(): assert (np.isfinite(p).sum(0) == 1).all()
    gains = paired_gains(predictions, votes_table(pairs).m.to_numpy(), pairs.group.to_numpy()).set_index("loss")
    assert gains.accuracy["bt"] > .75 and gains.accuracy_gain["rr, permuted"] <= gains.accuracy_gain["rr"] + .02
    w = weights_table(weights).set_index(["drawn", "permuted"]).value
    assert w[False, False] > w[False, True]


@pytest.mark.parametrize("name, rows", [("arguments", 39), ("jokes", 39), ("faces", 72)])
def test_tables_are_whole_and_hold_no_text(root, name, rows):
    table = pd.read_csv(root / f"results/human/{name}.csv")
    assert len(table) == rows
    words = table.select_dtypes(exclude="number").astype(str)
    assert words.map(len).to_numpy().max() < 30


@pytest.mark.parametrize("study", ["arguments", "jokes"])
def test_nine_cells_of_ten_agree_with_the_prototype(root, study):
    gains, prototype = (pd.read_csv(root / f"results/human/{f}.csv") for f in (study, "prototype"))
    table = gain_table(gains, prototype, study)
    cells = pd.concat([table.accuracy_agrees, table.pdc_agrees]).dropna().astype(bool)
    assert len(cells) == 48 and cells.mean() >= .9


def test_the_estimated_weight_does_what_it_has_to(root):
    faces, weights = (pd.read_csv(root / f"results/human/{f}.csv") for f in ("faces", "faces_weights"))
    gain = faces.set_index(["signal", "n", "loss"]).gain
    for n in (1000, 3000):
        assert gain["real", n, "λ estimated"] >= .7 * gain["real", n, "λ .2"]
        assert gain["permuted", n, "λ estimated"] > -.002
    assert gain["real", 300, "λ estimated"] > 0 and gain["permuted", 300, "λ estimated"] > -.004
    value = weights.pivot(index=["n", "sample"], columns="signal", values="value")
    for n in (1000, 3000): assert (value.permuted[n] < value.real[n].mean() / 2).mean() >= .9
