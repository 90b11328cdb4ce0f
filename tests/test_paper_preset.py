"""The paper's preset from end to end: a Llama of Llama 3.1's architecture on MultiPref's files, all but the size."""
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from llama import save_llama, save_multipref, tokenizer
from test_rewardbench import clone, first, second

from transformers import TrainerCallback

from responserank.llm import rewardbench as B
from responserank.llm import trainer as T
from responserank.llm.batches import PreferenceCollator
from responserank.llm.methods import resolve_settings
from responserank.llm.models import load_classifier, load_model, load_tokenizer, score_texts, score_tokens
from responserank.llm.preferences import encode_texts, render_chat
from responserank.llm.sweep import sweep_grid
from responserank.settings import UserError

SHORT = "test_size=50 epochs=1 learning_rate=1e-3 batch_size=8 gradient_accumulation_steps=2"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    clone(first(1), folder / "one", ["filtered", "raw"], True), clone(second(1), folder / "two", ["test"], True)
    return dict(llama=save_llama(folder / "llama"), data=save_multipref(folder / "multipref"), one=folder / "one", two=folder / "two")


@pytest.fixture
def paper(made, tmp_path, monkeypatch):
    """A run of the preset; RewardBench lies in local clones."""
    monkeypatch.setattr(B, "_HUB_DATASETS", {"1": (str(made["one"]), "filtered"), "2": (str(made["two"]), "test")})
    def go(method="rr_agree", more="", **kwargs):
        return T.train_once(method, "paper", str(made["data"]), **dict(out=tmp_path / "runs", wandb_mode="disabled",
                                                                overrides=f"model={made['llama']} {SHORT} {more}") | kwargs)
    return go


def steps(result): return {s["step"]: s for s in result.metrics["data_report"]["steps"]}


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_the_whole_run(peft, paper, made):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    result = paper(more=f"peft={peft} lora_r=2", save_model=True, fraction=0.5)
    report, settings, binarized = steps(result), result.metrics["settings"], pd.read_parquet(made["data"] / "human_overall_binarized")
    assert settings["bf16"] and settings["gradient_checkpointing"] and settings["peft"] == peft and settings["dropout"] == 0
    assert (report["tokenise"]["too_long"], report["tokenise"]["max_length"]) == (3, 1024)

    # test rows: the binarized label, common ties dropped
    p, binarized = result.predictions.set_index("id"), binarized.set_index("comparison_id")
    assert report["split"]["held_out"] == 50 == len(p) + report["split"]["test_ties_dropped"] and report["split"]["test_ties_dropped"] > 0
    assert not binarized.tie_is_common[p.index].any()
    texts = pd.read_parquet(made["data"] / "default").set_index("comparison_id")
    chose_a = [binarized.chosen[i][-1]["content"] == texts.completion_a[i] for i in p.index]
    assert (p.label == np.where(chose_a, 1, -1)).all()

    # padding is the end token, as published; the report and the card say which token is read
    assert "read at the token before the closing one" in report["tokenise"]["note"]
    assert "**before** the closing end token" in (result.folder / "model/README.md").read_text()

    # a fraction takes whole annotators
    sample = report["sample"]
    assert sample["by"] == "annotator" and sample["rows"] == round(0.5 * report["signal"]["rows"])
    assert result.metrics["data_report"]["train_examples"] == sample["rows"]

    # RewardBench 1 and 2 at the end, unasked
    written = json.loads((result.folder / "metrics.json").read_text())["eval"]
    assert written["rewardbench_v1"]["rows"] == 23 and set(written["rewardbench_v2"]["subsets"]) == set(B._SUBSETS["2"])

    # the saved model is an ordinary classifier, and whoever pads with its tokenizer gets our rewards
    model = AutoModelForSequenceClassification.from_pretrained(result.folder / "model").float().eval()
    tok = AutoTokenizer.from_pretrained(result.folder / "model")
    assert model.config.num_labels == 1 and model.config.pad_token_id == tok.pad_token_id == tok.eos_token_id == 4
    chats = [[dict(role="user", content=texts.text[i]), dict(role="assistant", content=texts.completion_a[i])] for i in p.index[:12]]
    batch = tok.apply_chat_template(chats, tokenize=True, padding=True, return_dict=True, return_tensors="pt")
    with torch.no_grad(): plain = model(**batch).logits[:, 0].numpy()
    np.testing.assert_allclose(score_texts(*load_classifier(result.folder), chats), plain, atol=1e-5)
    rewards = torch.tensor(p.reward_a.to_numpy(), dtype=torch.float32)
    np.testing.assert_allclose(plain, rewards[:12], atol=3e-3)  # those of the run come from a body in bf16
    assert (rewards.bfloat16().float() != rewards).float().mean() > 0.9  # but are no eight-bit numbers
    base = AutoModelForCausalLM.from_pretrained(made["llama"], dtype=torch.float32)
    change = [float((a.detach() - b).abs().max()) for (n, a), b in zip(model.model.named_parameters(), base.model.parameters()) if "q_proj" in n]
    assert min(change) > 1e-5, "the body did not learn"
    assert not any("lora" in n for n, _ in model.named_parameters())


def test_precision_and_checkpointing_reach_the_trainer(made, tmp_path):
    overrides = f"model={made['llama']} {SHORT} peft=lora lora_r=2"
    ready = T.prepare_data(resolve_settings("rr_agree", "paper", overrides), str(made["data"]), seed=0)
    seen = {}

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            seen.update(checkpointing=model.is_activation_checkpointing, autocast=trainer.accelerator.mixed_precision,
                        still=[n for n, p in model.named_parameters() if p.requires_grad and p.grad is None])
            control.should_training_stop = True

    trainer = T._make_trainer(ready, tmp_path, 0, 0, [Look()])
    layers = []
    body = trainer.model.base_model.model.model
    body.layers[0].self_attn.q_proj.register_forward_hook(lambda m, i, o: layers.append(o.dtype))
    trainer.train()
    assert seen["checkpointing"] and seen["autocast"] == "bf16" and not seen["still"]
    assert torch.bfloat16 in layers
    s = ready.settings
    assert layers.count(torch.bfloat16) >= 2 * s.gradient_accumulation_steps  # forward, and again on the way back
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_the_closing_end_token_is_skipped_alike_by_all(made):
    settings = resolve_settings("bt", "paper", f"model={made['llama']}")
    tok = load_tokenizer(settings)
    model = load_model(settings, tok, 0)
    assert tok.pad_token == tok.eos_token == "<|eot_id|>"
    short, long, other = encode_texts([render_chat("question", c, tok) for c in ("yes", "a good answer " * 20, "no")], tok)
    assert short[-1] == tok.pad_token_id and short.count(tok.eos_token_id) == 2 and short.count(tok.bos_token_id) == 1
    rewards = score_tokens(model, [short, long, other], tok.pad_token_id)
    alone = np.array([score_tokens(model, [i], tok.pad_token_id)[0] for i in (short, long, other)])
    np.testing.assert_allclose(rewards, alone, atol=1e-5)  # the padding, being the end token, changes nothing
    np.testing.assert_allclose(score_tokens(model, [short[:-1], long[:-1], other[:-1]], tok.pad_token_id), alone, atol=1e-5)
    assert abs(rewards[0] - rewards[2]) > 1e-6  # the last token read is the answer's own
    rows = [dict(chosen_ids=short, rejected_ids=long, rank=0., ranking=0, target=1., index=0)]
    batch = PreferenceCollator(tok.pad_token_id)(rows)
    with torch.no_grad(): trained = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].numpy()
    np.testing.assert_allclose(trained, rewards[:2], atol=1e-5)  # what training sees


def test_a_padding_token_that_the_tokenizer_has_is_the_models(made, tmp_path):
    from transformers import AutoModelForSequenceClassification
    tok = tokenizer()
    model = AutoModelForSequenceClassification.from_pretrained(made["llama"], num_labels=1)
    model.config.pad_token_id = 5  # the model pads with a token of its own, its tokenizer says nothing about padding
    model.save_pretrained(tmp_path / "rm"), tok.save_pretrained(tmp_path / "rm")
    model, loaded = load_classifier(tmp_path / "rm")
    assert loaded.pad_token_id == 5 == model.config.pad_token_id
    ids = encode_texts([render_chat("question", c, loaded) for c in ("yes", "a good answer " * 20)], loaded)
    together, alone = score_tokens(model, ids, 5), [score_tokens(model, [i], 5)[0] for i in ids]
    np.testing.assert_allclose(together, alone, atol=1e-2)  # bf16


def describe(model): return T._describe_run(resolve_settings("bt", "paper", dict(model=str(model))), T.open_data("simulated"), 0, None)
def group(model): return describe(model)["group"]


def test_a_local_model_is_known_by_what_it_holds(made, tmp_path):
    copy, other = shutil.copytree(made["llama"], tmp_path / "copy"), save_llama(tmp_path / "other", seed=1)
    assert group(made["llama"]) == group(copy) != group(other)
    assert group("meta-llama/Llama-3.1-8B-Instruct") != group(copy)
    assert describe(copy)["settings"]["model"] == str(copy)  # the record keeps the path
    planned = sweep_grid("bt", seeds="0", preset="paper", overrides=f"model={copy}")
    assert list(planned["group"]) == [group(copy)]  # a sweep looks for its runs where they will be
    (copy / "config.json").write_text((copy / "config.json").read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert group(copy) != group(made["llama"])


def test_a_folder_with_one_configuration_of_two(made, tmp_path):
    shutil.copytree(made["data"], tmp_path / "mp")
    (tmp_path / "mp/README.md").unlink()
    shutil.rmtree(tmp_path / "mp/default")
    with pytest.raises(UserError, match="add the configuration default"): T.prepare_data(resolve_settings("bt"), str(tmp_path / "mp"))
    shutil.copytree(made["data"] / "default", tmp_path / "half/default")
    ready = T.prepare_data(resolve_settings("bt", overrides="vocab_size=300"), str(tmp_path / "half"))
    assert "majority" in ready.report["steps"][0]["note"]
