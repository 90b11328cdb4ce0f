"""Preset `encoder` on a small BERT: the head first, then all layers, and the same rewards from a saved model."""
import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from responserank.llm.encoders import add_mean_layer, head_features, reward_head
from responserank.llm.methods import resolve_settings
from responserank.llm.models import load_classifier, load_model, load_tokenizer, train_tokenizer
from responserank.llm.trainer import train_once
from responserank.settings import UserError

WORDS = "red blue green tall small old new fast slow calm".split()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Save a BERT without a head, as sentence encoders are, with a tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer([" ".join(WORDS)] * 9, 300)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                         max_position_embeddings=64, pad_token_id=0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Write pairs of which the one with more `red` in it is better."""
    rng = np.random.default_rng(0)
    text = lambda red: " ".join(rng.permutation([*["red"] * red, *rng.choice(WORDS[1:], 6)]))
    rows = [dict(prompt=f"about {i % 12}", chosen=text(3), rejected=text(1), strength=float(rng.random())) for i in range(120)]
    path = tmp_path_factory.mktemp("data") / "words.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def settings(encoder, more=""): return resolve_settings("bt", "encoder", f"model={encoder} {more}")


@pytest.mark.parametrize("method", ["bt", "rr", "ordinal"])
def test_the_head_knows_before_the_first_step(encoder, words, tmp_path, method):
    small = f"model={encoder} max_length=64 epochs=1 learning_rate=1e-9"  # nothing moves but the head
    first = train_once(method, "encoder", str(words), out=tmp_path, overrides=small, wandb_mode="disabled")
    random = train_once(method, "encoder", str(words), out=tmp_path, overrides=small + " head_first=False", wandb_mode="disabled")
    assert first.metrics["eval"]["accuracy"] > .9 > random.metrics["eval"]["accuracy"]
    assert first.metrics["group"] != random.metrics["group"]


def test_a_saved_encoder_is_an_ordinary_bert(encoder, words, tmp_path):
    run = train_once("bt", "encoder", str(words), out=tmp_path, save_model=True, overrides=f"model={encoder} max_length=64 epochs=1", wandb_mode="disabled")
    model, tokenizer = load_classifier(run.folder / "model")
    assert type(model).__name__ == "BertForSequenceClassification" and model.config.num_hidden_layers == 3
    texts = ["red red red calm", "calm old"]
    again = [float(model(**tokenizer(t, return_tensors="pt")).logits) for t in texts]
    assert run.score(texts) == pytest.approx(again, abs=1e-5) and again[0] > again[1]


def test_padding_is_not_part_of_the_mean(encoder):
    s = settings(encoder)
    tokenizer = load_tokenizer(s)
    model = load_model(s, tokenizer, 0)
    alone, short, long = [5, 6, 7], [5, 6, 7], list(range(4, 40))
    together = head_features(model, [short, long], tokenizer.pad_token_id)
    torch.testing.assert_close(head_features(model, [alone], tokenizer.pad_token_id)[0], together[0], rtol=0, atol=1e-6)


def test_the_mean_layer_keeps_its_attention_even(encoder):
    s = settings(encoder)
    model = load_model(s, load_tokenizer(s), 0)
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    last = model.bert.encoder.layer[-1]
    assert last.attention.self.query.weight.grad.abs().max() == last.attention.self.key.weight.grad.abs().max() == 0
    assert last.attention.self.value.weight.grad.abs().max() > 0 and last.output.dense.weight.grad.abs().max() > 0


def test_decoders_are_refused():
    s = resolve_settings("bt", "tiny")
    llama = load_model(s, train_tokenizer(["a b"] * 9, 300), 0)
    with pytest.raises(UserError, match="pooling=mean is for BERT"): add_mean_layer(llama)
    with pytest.raises(UserError, match="head_first is for encoders"): head_features(llama, [[5, 6], [5, 6]], 0)
    assert reward_head(llama) is llama.score


def test_a_body_with_gaps_is_refused(encoder, tmp_path):
    import shutil
    from safetensors.torch import load_file, save_file
    folder = shutil.copytree(encoder, tmp_path / "broken")
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if "layer.1" not in k}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    s = settings(folder)
    with pytest.raises(UserError, match="lack .*layer.1.*random layers"): load_model(s, load_tokenizer(s), 0)
