"""Shared prompts where chapter 24b can't show them: random trees, every way to train, models that must be refused, memory, and what tiny runs do."""
import warnings

import llama
import numpy as np
import processes as P
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, GPT2Config, LlamaConfig, MistralConfig

from responserank.llm import models as M
from responserank.llm import shared_prompts as SP
from responserank.llm.methods import resolve_settings
from responserank.settings import UserError

SHAPE = dict(vocab_size=60, num_labels=1, pad_token_id=0, use_cache=False, initializer_range=0.2)


def gpt2(attention="sdpa"):
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=300, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, attn_implementation=attention, **SHAPE)
    return AutoModelForSequenceClassification.from_config(config).double()


def small_llama(config=LlamaConfig, **more):
    torch.manual_seed(0)
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    return AutoModelForSequenceClassification.from_config(config(**SHAPE | shape | more))


def trees(seed, longest=200, prompts=6):
    """Answers to prompts of 0 to 200 tokens: one to six each, some empty, some alike, some the beginning of another; padding tokens anywhere."""
    g = np.random.default_rng(seed)
    texts = []
    for size in g.integers(0, longest + 1, prompts):
        prompt, answers = g.integers(0, 60, size), [g.integers(0, 60, g.integers(0, 40)) for _ in range(g.integers(1, 7))]
        if len(answers) > 2: answers[1], answers[2] = answers[0], answers[0][:3]
        if seed % 2: answers[-1] = np.concatenate([answers[-1], np.zeros(5, int)])
        texts += [np.concatenate([prompt, a, [1]]).astype(np.int64) for a in answers]
    return [texts[i] for i in g.permutation(len(texts))]


def scored(model, texts, rows):
    """Rewards in the texts' order, a loss of them all, and its gradient; `rows` None: one padded rectangle."""
    one = SP.Pass(np.arange(len(texts))) if rows is None else SP.Pass(np.array([i for r in rows for i in r.texts]), rows)
    rewards = M.score_pass(model, texts, one, 0)[torch.from_numpy(one.texts).argsort()]
    loss = torch.logsumexp(rewards * torch.linspace(-1, 1, len(texts), dtype=rewards.dtype), 0)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    return rewards.detach(), loss.item(), torch.cat([g.flatten() for g in gradient])


@pytest.mark.parametrize("attention", ["eager", "sdpa", "dense"])
@pytest.mark.parametrize("seed", range(4))
def test_random_trees_in_double_precision(attention, seed, monkeypatch):
    if attention == "dense": monkeypatch.setattr(SP, "takes_blocks", lambda model: False)
    model, texts, blocks, plain = gpt2("eager" if attention == "eager" else "sdpa"), trees(seed), [], SP._attend
    monkeypatch.setattr(SP, "_attend", lambda *a, **k: blocks.append(1) or plain(*a, **k))
    monkeypatch.setattr(SP, "_pairs", lambda rows, dense: 0)  # blocks, however many pairs they have
    rows = SP.share_prefixes(texts, np.inf, least=1)
    assert sorted(i for r in rows for i in r.texts) == list(range(len(texts))) and max(len(r.texts) for r in rows) > 1
    (rewards, loss, gradient), (apart, loss_apart, gradient_apart) = scored(model, texts, rows), scored(model, texts, None)
    np.testing.assert_allclose(rewards, apart, rtol=0, atol=1e-10)
    assert loss == pytest.approx(loss_apart, abs=1e-10) and len(blocks) == (2 if attention == "sdpa" else 0)  # layers
    np.testing.assert_allclose(gradient, gradient_apart, rtol=0, atol=1e-10 * max(1, gradient_apart.abs().max()))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_random_trees_in_single_precision(attention):
    for seed in range(3):
        model, texts = small_llama(attn_implementation=attention), trees(seed)
        rewards, apart = scored(model, texts, SP.share_prefixes(texts, np.inf, least=1))[0], scored(model, texts, None)[0]
        np.testing.assert_allclose(rewards, apart, rtol=0, atol=1e-5)


def test_rows_are_disjoint_and_their_prefix_is_common():
    for seed in range(30):
        texts = trees(seed, 150)
        for limit, dense in ((4096, False), (200, False), (4096, True)):
            rows = SP.share_prefixes(texts, 300.0, limit, dense=dense)
            assert sorted(i for r in rows for i in r.texts) == list(range(len(texts)))
            for r in rows:
                own = [texts[i] for i in r.texts]
                assert r.width == r.prefix + sum(len(t) - r.prefix for t in own)
                assert r.lengths == tuple(map(len, own)) and (len(own) == 1 or r.gain(300.0, dense) < 1)
                assert len(own) == 1 or r.prefix >= SP.MIN_PREFIX and all((t[: r.prefix] == own[0][: r.prefix]).all() for t in own)
                assert len(own) == 1 or r.width <= limit


def bench_texts(prompts=4, answers=4, prompt=90, seed=0):
    g = np.random.default_rng(seed)
    return [np.concatenate([p, g.integers(2, 60, 4 + j)]) for p in (g.integers(2, 60, prompt) for _ in range(prompts)) for j in range(answers)]


@pytest.fixture
def shared_passes(monkeypatch):
    """Counts the passes whose rows hold several texts."""
    seen, plain = [], SP.score_rows
    monkeypatch.setattr(M, "score_rows", lambda model, rows, *a: seen.append(max(len(r.texts) for r in rows)) or plain(model, rows, *a))
    return seen


def test_scoring_shares_within_its_tokens(shared_passes):
    model, texts = small_llama(intermediate_size=400).double(), [t.tolist() for t in bench_texts()]
    texts = [*texts, texts[3], [5, 6, 7]]
    never = M.score_tokens(model, texts, 0, 500, share_prompts="never")
    assert not shared_passes
    np.testing.assert_allclose(M.score_tokens(model, texts, 0, 500), never, atol=1e-7)  # a Llama's norms are in single precision
    assert shared_passes and max(shared_passes) > 2


AUTO = dict(share_prompts="auto")  # preset tiny has "never"
WAYS = dict(micro=dict(batch_size=8, gradient_accumulation_steps=5), step=dict(batch_size=8, gradient_accumulation_steps=5, loss_scope="step"),
            checkpointing=dict(batch_size=40, gradient_accumulation_steps=1, gradient_checkpointing=True))


@pytest.mark.parametrize("way", WAYS)
def test_training_shares(way, shared_passes):
    rows = P.rows_of(40, 4, prompt=P.PROMPT)
    auto = P.step(rows, WAYS[way] | AUTO)
    assert max(shared_passes) == 2
    shared_passes.clear()
    never = P.step(rows, WAYS[way])
    assert not shared_passes
    np.testing.assert_allclose(auto["gradient"], never["gradient"], atol=1e-8 * np.abs(never["gradient"]).max())
    assert auto["loss"] == pytest.approx(never["loss"], rel=1e-6)


def test_training_in_bf16(shared_passes):
    """bf16 agrees to its own rounding: not worse than bf16 without sharing does with single precision."""
    rows, how = P.rows_of(40, 4, prompt=P.PROMPT), dict(batch_size=40, gradient_accumulation_steps=1)
    gradient = [P.step(rows, how | more, torch.float32)["gradient"] for more in (dict(bf16=True) | AUTO, dict(bf16=True), {})]
    off = [np.linalg.norm(g - gradient[2]) / np.linalg.norm(gradient[2]) for g in gradient[:2]]
    assert shared_passes and 0 < off[0] < 2 * off[1] < 0.1


def test_lora_shares(tmp_path, shared_passes):
    settings = resolve_settings("bt", "small", overrides=dict(model=str(llama.save_llama(tmp_path / "m")), peft="lora", lora_dropout=0))
    tokenizer = M.load_tokenizer(settings)
    model, texts = M.load_model(settings, tokenizer, 0), [t.astype(np.int64) for t in bench_texts()]
    rewards = M.score_tokens(model, texts, tokenizer.pad_token_id)
    assert max(shared_passes) > 1
    np.testing.assert_allclose(rewards, M.score_tokens(model, texts, tokenizer.pad_token_id, share_prompts="never"), atol=1e-5)
    passes = SP.plan_passes(model, texts, lambda widths: [np.arange(len(widths))], tokenizer.pad_token_id)
    gradients = []
    for p in (*passes, SP.Pass(np.arange(len(texts)))):
        model.zero_grad()
        (M.score_pass(model, texts, p, tokenizer.pad_token_id) * torch.from_numpy(1.0 + p.texts)).sum().backward()
        gradients.append({k: w.grad for k, w in model.named_parameters() if w.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and any("lora" in k for k in gradients[0])
    for k, g in gradients[0].items(): np.testing.assert_allclose(g, gradients[1][k], atol=1e-4 * max(1, g.abs().max()), err_msg=k)


def forgetful(argument):
    model = small_llama()
    forward = model.model.forward
    model.model.forward = lambda *args, **kwargs: forward(*args, **kwargs | {argument: None})
    return model


def bert():
    return AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1))


def flash():
    model = small_llama()
    model.config._attn_implementation = "flash_attention_2"
    return model


REFUSED = {  # name: model, words of the line
    "encoder": (bert, "no head"),
    "positions ignored": (lambda: forgetful("position_ids"), "ignores positions or masks"),
    "mask ignored": (lambda: forgetful("attention_mask"), "ignores positions or masks"),
    "window": (lambda: small_llama(MistralConfig, sliding_window=64), "window of 64 tokens"),
    "flash attention": (flash, "flash_attention_2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_share_is_said_once(name):
    model, words = REFUSED[name][0](), REFUSED[name][1]
    plan = lambda **more: SP.plan_passes(model, bench_texts(), lambda widths: [np.arange(len(widths))], 0, **more)
    with pytest.warns(UserWarning, match=words) as said:
        assert all(p.rows is None for p in plan())
    assert len(said) == 1 and "\n" not in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan()
        SP.plan_passes(REFUSED[name][0](), bench_texts(prompt=30), lambda widths: [np.arange(len(widths))], 0)  # nothing to share, nothing to say
        SP.plan_passes(REFUSED[name][0](), bench_texts(), lambda widths: [np.arange(len(widths))], 0, "never")


def test_a_check_leaves_the_model_and_the_random_numbers_alone():
    model = small_llama(attention_dropout=0.5).train()
    state = torch.get_rng_state()
    assert SP.may_share(model, 0) and model.training and torch.equal(state, torch.get_rng_state())
    assert not model.score._forward_hooks and not model.score._forward_pre_hooks


def kept_bytes(model, texts, one):
    """Bytes that the graph keeps for the backward pass, each memory once, weights left out."""
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}
    def keep(t):
        if t.untyped_storage().data_ptr() not in weights: kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        rewards = M.score_pass(model, texts, one, 0)
    assert rewards.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("attention", ["blocks", "dense"])
@pytest.mark.parametrize("prompts, answers, prompt", [(8, 2, 120), (3, 4, 300), (2, 6, 90)])
def test_memory_of_a_pass_is_what_was_predicted(prompts, answers, prompt, attention, monkeypatch):
    if attention == "dense": monkeypatch.setattr(SP, "takes_blocks", lambda model: False)
    model = small_llama(hidden_size=64, intermediate_size=256, num_key_value_heads=4)
    texts = bench_texts(prompts, answers, prompt)
    rows = SP.share_prefixes(texts, np.inf)
    assert len(rows) == prompts
    a_token = kept_bytes(model, [np.full(256, 5)] * 4, SP.Pass(np.arange(4))) / (4 * 256)
    found = kept_bytes(model, texts, SP.Pass(np.arange(len(texts)), rows))
    assert 0.8 < found / SP.pass_memory(rows, a_token, 2 * 64 * 4, attention == "blocks") < 1.1
    assert found < kept_bytes(model, texts, SP.Pass(np.arange(len(texts))))


def test_preset_tiny_does_not_share_and_no_run_has_another_name_for_it():
    """The published numbers of preset tiny were computed text by text."""
    assert [resolve_settings("bt", preset).share_prompts for preset in ("tiny", "small", "paper")] == ["never", "auto", "auto"]
    assert resolve_settings("bt").identity() == resolve_settings("bt", overrides="share_prompts=auto").identity()
    with pytest.raises(UserError, match="share_prompts='sometimes' should be"):
        resolve_settings("bt", overrides="share_prompts=sometimes")
