"""Every method starts and takes three steps, on the simulated annotators and on MultiPref's files; its settings are the published ones."""
import csv
import json

import numpy as np
import pytest
from small import small
from llama import save_multipref

from responserank.llm import data as D
from responserank.llm import optimizer_step as S
from responserank.llm import trainer as T
from responserank.llm.methods import METHODS, METHOD_ROWS, _OPTIMIZER_FIELDS, PRESETS, current_names, resolve_settings

SMALL = small(vocab_size=400, batch_size=16)
PUBLISHED_METHODS = sorted(METHOD_ROWS.index[METHOD_ROWS["published"]])
OWN = sorted(set(METHODS) - set(PUBLISHED_METHODS))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Data that are read and tokenised once."""
    folder = tmp_path_factory.mktemp("methods")
    save_multipref(folder / "multipref", n=160, too_long=0)
    g = np.random.default_rng(0)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(dict(
        prompt=f"question {i}", chosen="yes " * int(g.integers(2, 9)), rejected="no", strength=float(g.uniform()), stratum="ab"[i % 2],
        response_time=float(g.uniform(1, 9)),
        bt_target=float(g.uniform(.5, 1)))) + "\n" for i in range(120)))
    return dict(simulated="simulated", multipref=str(folder / "multipref"), pairs=str(folder / "pairs.jsonl"))


@pytest.fixture(scope="module", autouse=True)
def shared_work(sources):
    """Read each source, train its tokenizer and tokenise it once; stop after three steps."""
    with pytest.MonkeyPatch.context() as patch:
        read, table, tokenizers, tokens, arguments = {}, D.simulated_table, {}, {}, S.training_arguments
        load, make, cut = D._load_data, T.load_tokenizer, T.tokenize
        patch.setattr(D, "simulated_table", lambda: table(n=160))
        patch.setattr(D, "SIMULATED_TEST", 32)
        patch.setattr(D, "_load_data", lambda data, *options: read[data] if data in read else read.setdefault(data, load(data, *options)))
        patch.setattr(T, "load_tokenizer", lambda s, texts: tokenizers.get(len(texts)) or tokenizers.setdefault(len(texts), make(s, texts)))
        patch.setattr(T, "tokenize", lambda t, tok, n: tokens[id(tok)] if id(tok) in tokens else tokens.setdefault(id(tok), cut(t, tok, n)))

        def three_steps(*args, **kwargs):
            made = arguments(*args, **kwargs)
            made.max_steps = 3
            return made
        patch.setattr(S, "training_arguments", three_steps)
        patch.setattr(T, "library_versions", dict), patch.setattr(T, "git_state", lambda: dict(commit=None, dirty=None, diff=None))
        yield


@pytest.fixture(scope="module")
def published(shared):
    with open(shared / "reference/llm_methods.csv", newline="") as f: return {r.pop("method"): current_names(r) for r in csv.DictReader(f)}


def same(value, text):
    """A setting and its cell in the published table."""
    if text in ("", "True", "False"): return value == {"": None, "True": True, "False": False}[text]
    try: return float(value) == float(text)
    except (TypeError, ValueError): return value == text


@pytest.mark.parametrize("method", PUBLISHED_METHODS)
@pytest.mark.parametrize("data", ["simulated", "multipref"])
def test_a_published_method_starts_and_takes_three_steps(data, method, sources, published, tmp_path):
    def go(**kwargs): return T.train_once(method, data=sources[data], out=tmp_path, wandb_mode="disabled", overrides=SMALL, **kwargs)
    if data == "multipref": assert go(dry_run=True).metrics["status"] == "dry_run"
    result = go()
    assert result.metrics["train"]["steps"] == 3 and np.isfinite(result.curve.loss.dropna()).all() and np.isfinite(result.curve.grad_norm.dropna()).all()
    written = json.loads((result.folder / "metrics.json").read_text())["settings"]
    wrong = {k: (written[k], v) for k, v in published[method].items() if k not in _OPTIMIZER_FIELDS and not same(written[k], v)}
    assert not wrong


@pytest.mark.parametrize("method", OWN)
def test_a_method_for_your_own_data_takes_three_steps(method, sources, tmp_path):
    result = T.train_once(method, data=sources["pairs"], out=tmp_path, wandb_mode="disabled", overrides=SMALL)
    assert result.metrics["train"]["steps"] == 3 and np.isfinite(result.curve.loss.dropna()).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_of_all_methods_in_every_preset(preset, published):
    assert len(published) == 60 and sorted(published) == sorted(PUBLISHED_METHODS)
    data = T.open_data("simulated")
    for method, row in published.items():
        written = json.loads(json.dumps(T._describe_run(resolve_settings(method, preset), data, 0, None)["settings"]))
        held = {k: v for k, v in row.items() if preset == "paper" or k not in _OPTIMIZER_FIELDS}
        assert not {k: (written[k], v) for k, v in held.items() if not same(written[k], v)}, method
        if preset == "paper": assert (written["bf16"], written["gradient_checkpointing"], written["max_length"]) == (True, True, 1024)
