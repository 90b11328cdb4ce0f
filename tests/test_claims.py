"""The numbers in the claims of the language-model figures, computed from the published runs."""
import pytest

from responserank.llm.results import LLM_ARTEFACTS, read_llm_runs

CLAIMS = {a.name: a.claim for a in LLM_ARTEFACTS}


@pytest.fixture(scope="module")
def points():
    """Return a function: the mean difference of two methods at all the data, in points, on MultiPref or RewardBench 2."""
    runs = read_llm_runs()
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
    ("response_time_length_strat", "Response times cost five points on RewardBench 2", "RewardBench 2", "rr_rt_annostrat_spread2", "bt", -5.5, -4.5),
    ("response_time_length_strat", "even with 32 length buckets", "RewardBench 2", "rr_rt_annolength32_spread2", "bt", -5.5, -4.5),
])
def test_points_in_claims(points, artefact, words, measure, method, against, low, high):
    assert words in CLAIMS[artefact]
    assert low <= points(measure, method, against) <= high


def test_shares_in_claims(points):
    kept = points("MultiPref", "rr_agree_filter50") / points("MultiPref", "rr_agree")
    third = points("RewardBench 2", "rr_agree_filter50") / points("RewardBench 2", "rr_agree")
    assert "most of the gain on MultiPref and a third of that on RewardBench 2 is left" in CLAIMS["filter_robustness"]
    assert kept > .75 and abs(third - 1 / 3) < .1
    runs = read_llm_runs().query("method == 'rr_rt_annolength32_spread2' and fraction == 1")
    assert f"where {100 * (1 - runs['non_singleton_fraction'].mean()):.0f} % of comparisons are alone" in CLAIMS["response_time_length_strat"]


def test_seeds_in_claims():
    runs = read_llm_runs()
    for name, claim in CLAIMS.items():
        if "over 30 seeds" in claim:
            counts = runs[runs["fraction"] <= 1].groupby(["method", "fraction"])["seed"].nunique()
            assert counts.max() == 30, name
