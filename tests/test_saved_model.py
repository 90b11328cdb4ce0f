"""A saved model read by other programs: the same rewards from each, for decoders and encoders."""
import warnings

import numpy as np
import pytest
import torch
from encoders import save_encoder
from llama import save_llama, tokenizer as llama_tokenizer

from responserank.llm.methods import resolve_settings
from responserank.llm.models import load_model, load_tokenizer, save_classifier, score, train_tokenizer
from responserank.llm.tokenizers import carry_convention, own_padding, text_marks

CHATS = [[dict(role="user", content=f"question {q}"), dict(role="assistant", content=a)]
         for q, a in (("one", "a good answer"), ("two", "bad"), ("three", "a good answer, or none " * 3))]
BASES = dict(tiny=None, llama=save_llama, bert=save_encoder, roberta=lambda folder: save_encoder(folder, "roberta"),
             gpt=lambda folder: save_llama(folder, tokenizer=train_tokenizer(["a good answer"] * 9, 300)))


def save_reward_model(name, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if BASES[name]: settings = resolve_settings("bt", "small", dict(model=str(BASES[name](folder / "base"))))
        else: settings = resolve_settings("bt", overrides="vocab_size=300 hidden_size=16 num_layers=1 num_heads=2 intermediate_size=32")
        tokenizer = load_tokenizer(settings, ["question one two three", "a good answer, or none"])
    model = load_model(settings, tokenizer, 0)
    for n, p in model.named_parameters():
        if n.startswith(("score", "classifier", "bert.pooler")): p.data.normal_()  # so that rewards differ
    return save_classifier(model, tokenizer, folder / "rm")


@pytest.fixture(scope="module", params=BASES)
def saved(request, tmp_path_factory):
    folder = save_reward_model(request.param, tmp_path_factory.mktemp(request.param))
    return request.param, folder, score(folder, CHATS)


def test_five_readers_or_four_agree(saved):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
    name, folder, ours = saved
    assert np.ptp(ours) > 1e-3
    model, tok = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = [tok.apply_chat_template(c, tokenize=False) for c in CHATS]
    bare = [tok(t, add_special_tokens=name != "bert").input_ids for t in texts]
    chats = tok.apply_chat_template(CHATS, tokenize=True, return_dict=True, padding=True, return_tensors="pt")
    pipe = pipeline("text-classification", model=model, tokenizer=tok, device=-1)
    found = dict(pipeline=[r["score"] for r in pipe(texts, add_special_tokens=False)])
    if name != "bert": found["what the template wrote, read as any text"] = [r["score"] for r in pipe(texts)]
    if name != "llama":
        found["bare texts"] = [r["score"] for r in pipe(["\n\n".join(m["content"] for m in c) for c in CHATS])]
    with torch.no_grad():
        found["plain"] = model(**chats).logits[:, 0]
        if hasattr(model, "score"):  # an engine that pools the last token
            last = [model.model(torch.tensor([ids])).last_hidden_state[:, -1] for ids in bare]
            found["last token"] = torch.cat([model.score(h) for h in last])[:, 0]
    for reader, rewards in found.items(): np.testing.assert_allclose(rewards, ours, atol=1e-5, err_msg=reader)
    assert model.config.problem_type == "regression" and tok.pad_token_id == model.config.pad_token_id != tok.eos_token_id


def test_trl_evaluates_to_the_same_rewards(saved, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    _, folder, ours = saved
    rows = Dataset.from_list([dict(chosen=c, rejected=CHATS[0]) for c in CHATS])
    arguments = trl.RewardConfig(str(tmp_path), report_to=[], use_cpu=True, bf16=False, per_device_eval_batch_size=8, disable_tqdm=True)
    trainer = trl.RewardTrainer(AutoModelForSequenceClassification.from_pretrained(folder), arguments, train_dataset=rows, eval_dataset=rows,
                                processing_class=AutoTokenizer.from_pretrained(folder))
    rewards = np.ravel(trainer.predict(trainer.eval_dataset).predictions)
    np.testing.assert_allclose(rewards[:len(ours)], ours, atol=1e-5)


def test_padding_is_no_end_token():
    def llama(**more):
        from transformers import PreTrainedTokenizerFast
        made = PreTrainedTokenizerFast(tokenizer_object=llama_tokenizer().backend_tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
        if more: made.add_special_tokens(more)
        return made
    assert own_padding(llama()) == "<|finetune_right_pad_id|>"
    assert own_padding(llama(pad_token="<|end_of_text|>")) == "<|end_of_text|>"
    plain = train_tokenizer(["a"], 300)
    plain._special_tokens_map.update(pad_token=plain.eos_token)
    size = len(plain)
    assert own_padding(plain) == "<pad>" and len(plain) == size


def test_a_new_padding_token_gets_an_embedding(tmp_path):
    from transformers import PreTrainedTokenizerFast
    inner = train_tokenizer(["a good answer"] * 9, 300).backend_tokenizer
    plain = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>", chat_template="{{ messages[0]['content'] }}<eos><pad>")
    settings = resolve_settings("bt", "small", dict(model=str(save_llama(tmp_path, tokenizer=plain))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paper = load_tokenizer(resolve_settings("bt", "paper", dict(model=str(tmp_path))))
        tok = load_tokenizer(settings)
    assert paper.pad_token == "<eos>" and tok.pad_token == "<pad>" and tok.model_max_length == 131072
    assert load_model(settings, tok, 0).config.pad_token_id == tok.pad_token_id < load_model(settings, tok, 0).get_input_embeddings().num_embeddings


def test_ids_stay_what_they_were():
    from responserank.llm.preferences import encode_texts, render_chat
    plain = train_tokenizer(["the cat sat on the mat"] * 9, 300)
    made = carry_convention(plain)
    texts = ["the cat", "a\n\nb ", "é 😀 | <eos", "\n"]
    assert encode_texts([render_chat("q", t, made) for t in texts], made) == encode_texts([render_chat("q", t, plain) for t in texts], plain)
    assert text_marks(plain) == ("", "<eos>") and len(made) == len(plain) and made("").input_ids in ([], [1])
