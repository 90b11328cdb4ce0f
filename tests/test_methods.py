"The table of methods against the published list, and settings that must be refused."
import dataclasses, io

import pandas as pd
import pytest

from responserank.llm.methods import (_BASE_SETTINGS, _PUBLISHED_SETTINGS, METHOD_LABELS, METHODS, _OPTIMIZER_FIELDS, METHOD_ROWS, PRESETS, _RANGES, _MODEL_SHAPE, HASHED_NAMES, Settings, _method_differences, methods_csv,
                                      methods_table, resolve_settings)
from responserank.llm.trainer import open_data, run_group
from responserank.settings import UserError

PUBLISHED_METHODS = sorted(METHOD_ROWS.index[METHOD_ROWS["published"]])
TINY = {k: PRESETS["tiny"][k] for k in _MODEL_SHAPE}


def test_table_equals_the_published_one(shared):
    path = shared / "reference" / "llm_methods.csv"
    assert methods_csv().encode() == path.read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(methods_csv())), pd.read_csv(path))
    assert methods_table().columns.tolist() == pd.read_csv(path).columns.tolist()


def test_labels_equal_the_published_ones(shared):
    registry = pd.read_csv(shared / "reference" / "llm_registry.csv").set_index("method")["display_name"]
    assert {m: METHOD_LABELS[m] for m in PUBLISHED_METHODS} == registry.to_dict()
    assert len(set(METHOD_LABELS.values())) == len(METHODS) == 70


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_optimiser_setting_holds_in_every_preset(method, preset):
    settings = resolve_settings(method, preset)
    for name in _PUBLISHED_SETTINGS:
        wanted = (_BASE_SETTINGS | METHODS[method])[name]
        if name not in _OPTIMIZER_FIELDS or preset == "paper": assert getattr(settings, name) == wanted
    assert settings.model == PRESETS[preset]["model"]


@pytest.mark.parametrize("method,setting,ratio", [("bt_lr1em5", "learning_rate", 2 / 3), ("rr_agree_lr2em5", "learning_rate", 4 / 3), ("bt_ep2", "epochs", 2 / 3),
                                                  ("rr_agree_ep4", "epochs", 4 / 3), ("bt_warmup0p01", "warmup_ratio", 0.2), ("bt_wd0p001", "weight_decay", 0.01),
                                                  ("bt_clip2p0", "max_grad_norm", 2)])
@pytest.mark.parametrize("preset", PRESETS)
def test_ratios(method, setting, ratio, preset):
    base, changed = (getattr(resolve_settings(m, preset), setting) for m in ("bt", method))
    assert changed == pytest.approx(base * ratio, abs=0.5 if setting == "epochs" else None, rel=1e-5)
    assert changed != base


@pytest.mark.parametrize("preset", PRESETS)
def test_steps_and_epochs_stay_distinct(preset):
    epochs = [resolve_settings(m, preset).epochs for m in ("bt_ep2", "bt", "bt_ep4")]
    assert epochs[0] < epochs[1] < epochs[2]
    step = [(s := resolve_settings(m, preset)).batch_size * s.gradient_accumulation_steps for m in ("bt_acc2", "bt", "bt_acc8")]
    assert step == [step[1] // 2, step[1], step[1] * 2]
    if preset == "tiny": assert [resolve_settings(m).batch_size for m in ("bt_acc2", "bt", "bt_acc8")] == [32, 64, 128]


def test_precedence():
    assert Settings(**TINY).learning_rate == 1.5e-5                                         # default
    assert resolve_settings("bt", "tiny").learning_rate == PRESETS["tiny"]["learning_rate"]          # preset over default
    assert resolve_settings("bt_ep2", "tiny").epochs < PRESETS["tiny"]["epochs"]                     # method over preset
    assert resolve_settings("bt_ep2", "tiny", {"epochs": 7}).epochs == 7                             # override over method
    assert resolve_settings("bt", overrides="label_smoothing=0.1, rank_noise=random").rank_noise == "random"


def test_identity_leaves_the_fraction_out():
    a, b = (dataclasses.replace(resolve_settings("rr_agree"), fraction=f) for f in (0.1, 1.0))
    assert a != b and a.identity() == b.identity() and "fraction" not in a.identity()
    assert set(a.record()) == {f.name for f in dataclasses.fields(Settings)} - {"fraction"}


@pytest.mark.parametrize("method, data, group", [
    ("bt", "simulated", "bt-7afe703b"), ("rr_agree", "ukpconvarg1", "rr_agree-a47ce600"),
    ("rr_randrank_randsize2", "simulated", "rr_randrank_randsize2-3a59c14b")])
def test_committed_runs_keep_their_group(method, data, group, root, shared):
    """Renaming a field, or adding one, must not change the hash that names a run's folder."""
    runs = pd.read_csv(root / "results/llm/runs.csv", keep_default_na=False)
    assert runs[(runs["method"] == method) & (runs["data"] == data) & (runs["overrides"] == "")]["group"].unique().tolist() == [group]
    hashed = open_data(data if data == "simulated" else str(shared / "data" / data)).content_hash
    assert run_group(method, "tiny", resolve_settings(method), hashed) == group


def test_a_field_that_is_new_is_hashed_where_it_differs():
    @dataclasses.dataclass(frozen=True)
    class Later(Settings):
        margin: float = 0.0
    old, usual, other = Settings(**TINY).identity(), Later(**TINY).identity(), Later(**TINY, margin=0.5).identity()
    assert usual == old and other == old | dict(margin=0.5)


def test_an_estimated_weight_is_hashed_as_such_and_new_fields_move_no_hash():
    assert resolve_settings("rr_light").identity()["rank_weight"] == "auto"
    for method in METHODS: assert not {"loss_scale", "loss_learning_rate"} & set(resolve_settings(method).identity())
    assert resolve_settings("bt_margin", overrides="loss_scale=2").identity()["loss_scale"] == 2


def test_hashed_names_are_the_first_release_s():
    """`split` and the like may not be tidied away: every run folder is named by them."""
    assert HASHED_NAMES["dealing"] == "split" and len(set(HASHED_NAMES.values())) == len(HASHED_NAMES) == 55
    assert "dealing" not in resolve_settings("bt").identity() and resolve_settings("rr_randrank_randsize2").identity()["split"] == "random"


def test_settings_survive_json():
    import json
    for preset in PRESETS:
        settings = resolve_settings("rr_rt_annolength8_spread2", preset, "rank_noise=0.25 keep_category=code")
        assert Settings(**json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


def test_defaults_are_the_published_baseline():
    assert {c: getattr(Settings(**TINY), c) for c in _PUBLISHED_SETTINGS} == {c: getattr(resolve_settings("bt", "paper"), c) for c in _PUBLISHED_SETTINGS}


def test_every_ranged_name_is_a_field():
    assert {n for names in _RANGES.values() for n in names} <= {f.name for f in dataclasses.fields(Settings)}


@pytest.mark.parametrize("overrides,words", [
    ("epoch=2", ["unknown setting 'epoch'", "epochs"]), ("epochs=0", ["epochs=0", "[1, 2147483647]"]), ("epochs=2.5", ["epochs", "whole number"]),
    ("epochs=two", ["epochs", "whole number"]), ("loss=rankk", ["loss", "bt, rank"]), ("rank_noise=1.5", ["rank_noise", "[0, 1]"]),
    ("rank_noise=shuffle", ["rank_noise", "random"]), ("ranking_size=0", ["ranking_size", "[1, 2147483647]"]), ("ranking_size=big", ["ranking_size", "auto"]),
    ("learning_rate=0", ["learning_rate", "(0, inf)"]), ("learning_rate=nan", ["learning_rate", "finite"]), ("warmup_ratio=1", ["warmup_ratio", "[0, 1)"]),
    ("rank_weight=-0.1", ["rank_weight", "[0, 1]"]), ("loss=bt rank_weight=auto", ["rank_weight=auto", "loss=rank"]), ("loss=ordinal label_smoothing=0.1", ["does not read", "label_smoothing"]), ("drop_rank_fraction=2", ["drop_rank_fraction"]), ("strata=annotator_x_length", ["length_buckets"]),
    ("hidden_size=60", ["hidden_size", "num_heads"]), ("vocab_size=100", ["vocab_size", "[258, 1048576]"]), ("bf16=maybe", ["bf16", "true or false"]),
    ("peft=qlora", ["peft", "none, lora"]), ("label_smoothing=0.6", ["label_smoothing"]), ("hidden_size=none", ["hidden_size", "scratch"]),
    ("fraction=0", ["fraction", "(0, 1]"]), ("epochs", ["key=value"]), ("allow_ties=2", ["allow_ties"]), ("test_size=0", ["test_size"]),
])
def test_bad_overrides(overrides, words):
    with pytest.raises(UserError) as error: resolve_settings("rr_agree", "tiny", overrides)
    assert "\n" not in str(error.value) and all(w in str(error.value) for w in words), str(error.value)


@pytest.mark.parametrize("call,words", [
    (lambda: resolve_settings("rr_agreee"), ["unknown method", "rr_agree"]), (lambda: resolve_settings("bt", "tinny"), ["unknown preset", "tiny"]),
    (lambda: _method_differences("zzz"), ["unknown method"]), (lambda: Settings(), ["vocab_size", "tiny"]), (lambda: Settings(**TINY, epochs="many"), ["epochs"]),
    (lambda: Settings(**TINY, batch_size=-1), ["batch_size", "[1, 2147483647]"]),
])
def test_bad_calls(call, words):
    with pytest.raises(UserError) as error: call()
    assert all(w in str(error.value) for w in words)


def test_differences_shows_only_what_differs():
    table = _method_differences("rr_agree_slight25")
    assert table.columns.tolist() == ["bt", "rr_agree", "rr_agree_slight25"]
    assert table.loc["slight_weight"].tolist() == [0.5, 0.5, 0.25]
    assert "epochs" not in table.index


@pytest.mark.parametrize("overrides,cap", [("", 64), ("batch_size=8", 8), ("cap=5", 5), ("cap=none", None)])
def test_own_rankings_are_capped_at_what_a_loss_evaluation_sees(overrides, cap):
    assert resolve_settings("rr", "tiny", overrides).cap == cap
    assert resolve_settings("rr", "paper").cap == 16 and resolve_settings("rr_agree").cap is None
