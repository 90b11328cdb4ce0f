"""The numbers in the claims of the figures, computed from the runs that the figures show."""
import pytest

from responserank.llm.results import LLM_ARTEFACTS, gain_points, override_points, read_llm_runs, read_own
from responserank.paper import COMPARISON_ARTEFACTS
from responserank.rl.results import CONTROL_ARTEFACTS, read_control

ARTEFACTS = {a.name: a for a in [*LLM_ARTEFACTS, *CONTROL_ARTEFACTS, *COMPARISON_ARTEFACTS]}
CLAIMS = {name: a.claim for name, a in ARTEFACTS.items()}


def shown(name, runs):
    """Return the points of a figure as it would be drawn from `runs`."""
    return ARTEFACTS[name].rows(runs, **ARTEFACTS[name].params)


def claims(name, *words):
    """Fail unless the claim of a figure still has these words."""
    for w in words: assert w in CLAIMS[name], (name, w)


@pytest.fixture(scope="module")
def runs():
    return read_llm_runs()


@pytest.fixture(scope="module")
def control():
    return read_control()


@pytest.fixture(scope="module")
def points(runs):
    """Return a function: the mean difference of two methods at all the data, in points, on MultiPref or RewardBench 2."""
    means = 100 * runs[runs["fraction"] == 1].groupby("method")[["multipref_accuracy", "rewardbench_v2"]].mean()
    columns = {"MultiPref": "multipref_accuracy", "RewardBench 2": "rewardbench_v2"}
    return lambda measure, method, against="bt": float(means.loc[method, columns[measure]] - means.loc[against, columns[measure]])


@pytest.mark.parametrize("artefact, words, measure, method, against, low, high", [
    ("stated_ablation", "Stated strength shuffled is six points below BT on RewardBench 2", "RewardBench 2", "rr_stated_partialshuffle100", "bt", -6.5, -5.5),
    ("randrank_size", "Random ranks cost five points on RewardBench 2 in rankings of two", "RewardBench 2", "rr_randrank_randsize2", "bt", -5.5, -4.5),
    ("randrank_size", "and ten in rankings of four", "RewardBench 2", "rr_randrank_randsize4", "bt", -10.5, -9.5),
    ("randrank_size", "on MultiPref they are still not below BT", "MultiPref", "rr_randrank_randsize4", "bt", 0, 2),
    ("consensus_size", "cut to four or six without loss", "RewardBench 2", "rr_consensus_spread4", "rr_consensus", -.5, .5),
    ("consensus_size", "cut to four or six without loss", "MultiPref", "rr_consensus_spread6", "rr_consensus", -.5, .5),
    ("consensus_size", "rankings of two lose a point or two", "RewardBench 2", "rr_consensus_spread2", "rr_consensus", -2.5, -.5),
    ("consensus_size", "rankings of two lose a point or two", "MultiPref", "rr_consensus_spread2", "rr_consensus", -2.5, -.5),
    ("hyperparam_lr", "both lose three points by leaving 1.5e-5", "RewardBench 2", "bt_lr1em5", "bt", -3.5, -2.5),
    ("hyperparam_lr", "both lose three points by leaving 1.5e-5", "RewardBench 2", "bt_lr2em5", "bt", -3.5, -2.5),
    ("hyperparam_lr", "both lose three points by leaving 1.5e-5", "RewardBench 2", "rr_agree_lr2em5", "rr_agree", -3.5, -2.5),
    ("hyperparam_epochs", "BT gains three points on MultiPref", "MultiPref", "bt_ep2", "bt", 2.5, 3.5),
    ("hyperparam_epochs", "RR-Agree hardly any", "MultiPref", "rr_agree_ep2", "rr_agree", -.5, .5),
    ("hyperparam_warmup", "A short warm-up costs RR-Agree a point and a half on RewardBench 2", "RewardBench 2", "rr_agree_warmup0p01", "rr_agree", -1.75, -1.25),
    ("noise_robustness", "fully shuffled rankings of two fall six points below BT", "RewardBench 2", "rr_agree_spread2_partialshuffle100", "bt", -6.5, -5.5),
    ("noise_robustness", "longer ones seventeen", "RewardBench 2", "rr_agree_partialshuffle100", "bt", -17.5, -16.5),
    ("filter_robustness", "with three quarters missing, RewardBench 2 is at BT", "RewardBench 2", "rr_agree_filter75", "bt", -.5, .5),
    *[("response_time_length_strat", "Response times cost five to six points on RewardBench 2 however finely they are compared", "RewardBench 2",
       f"rr_rt_{how}", "bt", -6, -4.5) for how in ("spread2_global", "annostrat_spread2", *(f"annolength{k}_spread2" for k in (2, 4, 8, 16, 32)))],
])
def test_points_in_claims(points, artefact, words, measure, method, against, low, high):
    assert words in CLAIMS[artefact]
    assert low <= points(measure, method, against) <= high


def test_shares_in_claims(points, runs):
    kept = points("MultiPref", "rr_agree_filter50") / points("MultiPref", "rr_agree")
    third = points("RewardBench 2", "rr_agree_filter50") / points("RewardBench 2", "rr_agree")
    assert "most of the gain on MultiPref and a third of that on RewardBench 2 is left" in CLAIMS["filter_robustness"]
    assert kept > .75 and abs(third - 1 / 3) < .1
    runs = runs.query("method == 'rr_rt_annolength32_spread2' and fraction == 1")
    assert f"where {100 * (1 - runs['non_singleton_fraction'].mean()):.0f} % of comparisons are alone" in CLAIMS["response_time_length_strat"]


def test_seeds_in_claims(runs, control):
    assert (control.runs.groupby(["env", "noise", "method"])["seed"].nunique() == 5).all()
    for name, claim in CLAIMS.items():
        if "over 30 seeds" in claim:
            counts = runs[runs["fraction"] <= 1].groupby(["method", "fraction"])["seed"].nunique()
            assert counts.max() == 30, name


def test_shares_of_the_data(runs):
    means = 100 * runs.groupby(["method", "fraction"])[["multipref_accuracy", "rewardbench_v2"]].mean()
    ours, bt, two_epochs = (means.loc[m] for m in ("rr_agree", "bt", "bt_ep2"))
    gain, closed = ours - bt, (two_epochs - bt) / (ours - bt)
    late = slice(.2, 1)
    claims("multipref_datasize", "on MultiPref at every share of it, on RewardBench 2 from a fifth on",
           "closes most of the gap on MultiPref from a fifth on and none on RewardBench 2")
    assert (gain["multipref_accuracy"] > 0).all() and (gain.loc[late, "rewardbench_v2"] > 0).all() and gain.loc[.1, "rewardbench_v2"] < 0
    assert (closed.loc[late, "multipref_accuracy"] > .5).all() and ((two_epochs - bt).loc[late, "rewardbench_v2"] < 0).all()

    needed = ARTEFACTS["data_efficiency_table"].rows(runs).set_index(["metric", "baseline"])
    share, rb2 = needed["fraction"], needed.loc[("rewardbench_v2", "bt")]
    claims("data_efficiency", "RewardBench 2 RR-Agree needs two thirds of the data to get where BT gets with all of it",
           "on MultiPref it is there with a tenth or less", "needs a fifth for BT with two epochs")
    assert (abs(rb2["fraction"] - 2 / 3) < .05).all()
    assert (share[("multipref_accuracy", "bt")] == .1).all() and (needed.loc[("multipref_accuracy", "bt"), "censored"] > .99).all()
    assert (abs(share[("multipref_accuracy", "bt_ep2")] - .2) < .05).all()


def test_categories_of_rewardbench(runs):
    points = shown("multipref_datasize_rb", runs)
    ends = points[points["x"] == points["x"].max()].pivot(index="by", columns="panel", values="y")
    gain = 100 * (ends["RR-Agree"] - ends["BT"])
    claims("multipref_datasize_rb", "nine points in safety, five in math, four in ties and less than one in the others")
    assert {name: round(gain[name]) for name in ("safety", "math", "ties")} == {"safety": 9, "math": 5, "ties": 4}
    assert (gain.drop(["safety", "math", "ties"]).abs() < 1).all()


def test_dose_and_response(runs):
    points = shown("dose_response", runs).dropna(subset=["x"])
    claims("dose_response", "up to a tenth, most of the gain on MultiPref stays", "at a half", "RewardBench 2 is below BT, and the more so the longer")
    means = runs[runs["fraction"] == 1].groupby("method")[["multipref_accuracy", "rewardbench_v2"]].mean()
    bt, ours = means.loc["bt"], means.loc["rr_agree"]
    multipref, bench2 = (points[points["panel"] == p] for p in ("MultiPref", "RewardBench 2"))
    tenth = multipref[(multipref["by"] == "rr_agree") & multipref["x"].between(.05, .12)]
    assert len(tenth) and ((tenth["y"] - bt.iloc[0]) / (ours.iloc[0] - bt.iloc[0]) > .75).all()
    half = bench2[bench2["x"] == .5].groupby("by")["y"].max()
    assert half["rr_agree"] < half["rr_agree_spread2"] < bt.iloc[1]


def test_control(control):
    def means(measure): return shown(f"rl_control_{measure}_lines", control).pivot(index=["panel", "noise"], columns="by", values=["mean", "lo", "hi"])
    largest, last, valid = (means(m) for m in ("max_reward", "final_reward", "rew_model_accuracy"))
    def ahead(t): return t["mean", "RR"] - t["mean", "BT"]
    def apart(t): return ((t["lo", "RR"] > t["hi", "BT"]) | (t["lo", "BT"] > t["hi", "RR"])).mean()
    gain = ahead(largest)
    claims("rl_control_max_reward_lines", "above that of BT at every level of noise in Swimmer and merge, and mostly in HalfCheetah",
           "in Walker2d it falls below as the noise grows", "overlap nearly everywhere")
    assert (gain[["Swimmer", "merge"]] > 0).all() and (gain["HalfCheetah"] > 0).mean() > .5
    assert (gain["Walker2d"].loc[:.1] > 0).all() and (gain["Walker2d"].loc[.25:] < 0).all() and apart(largest) < .1
    claims("rl_control_final_reward_lines", "with wider intervals", "in Walker2d RR has lost more of what it had reached")
    lost = (largest["mean"] - last["mean"]).loc["Walker2d"].mean()
    assert lost["RR"] > lost["BT"] and ((last["hi"] - last["lo"]).mean(axis=1) > (largest["hi"] - largest["lo"]).mean(axis=1)).mean() > .5
    claims("rl_control_rew_model_accuracy_lines", "a little better in Swimmer at little noise; elsewhere the two are alike")
    better = ahead(valid)
    assert (better["Swimmer"].loc[:.1] > .015).all() and (better.drop([("Swimmer", 0), ("Swimmer", .1)]).abs() < .015).all()


def test_control_interquartile_means(control):
    table = ARTEFACTS["rl_control_iqm_table"].rows(control).set_index(["env", "measure"])
    merge, cheetah = table.loc["merge"], table.loc["HalfCheetah"]
    claims("rl_control_iqm", "RR gains three to six per cent in merge and about six in HalfCheetah", "zero is barely excluded or not at all",
           "Swimmer and Walker2d could be anything")
    assert sorted((100 * merge["relative_difference"]).round()) == [3, 6] and (merge["lo"] > 0).all()
    assert (abs(100 * cheetah["relative_difference"] - 6) < 1).all() and (cheetah["lo"].abs() < .02).all()
    for env in ("Swimmer", "Walker2d"): assert (table.loc[env, "lo"] < 0).all() and (table.loc[env, "hi"] > .05).all()


def test_own_runs(runs):
    own = read_own()
    claims("own_gains", "agreement and consensus gain at every share of the data, and so do soft labels", "shuffled ranks cost, and response times gain nothing")
    points = gain_points({"MultiPref": runs, **own}).dropna(subset=["y"])
    simulated = points[points["panel"].str.startswith("simulated")].pivot(index="x", columns="panel", values=["lo", "hi"])
    for gains in ("RR-Agree", "RR-Consensus", "BT, soft: agreement", "BT, soft: mean preference"): assert (simulated.loc[gains, "lo"] > 0).all()
    assert (simulated.loc["RR-Agree, shuffled", "hi"] < 0).all() and (simulated.loc["RR-RT", "lo"] < 0).all()
    claims("own_rank_weight", "take back some of the harm of bad ranks, and costs good ones little")
    change = override_points(own).pivot(index="x", columns="panel", values="y")
    assert (change.loc[["RR-RT", "RR-Agree, half shuffled"]] > 0).all(axis=None) and (change.loc["RR-Agree"] > -.02).all()


def test_every_claim_with_numbers_is_computed():
    """A claim that quotes a number has a test here, or brings its own computation (`Artefact.numbers`)."""
    from pathlib import Path
    from responserank.artefacts import quotes_numbers
    source = Path(__file__).read_text()
    for name, a in ARTEFACTS.items():
        only_seeds = "± sd" in a.claim  # tables of cells: nothing but the number of seeds
        if quotes_numbers(a.claim) and not a.numbers and not only_seeds:
            assert f'"{name}"' in source or f'"{name.replace("_bars", "_lines")}"' in source or "rl_control_curves" in name, name
