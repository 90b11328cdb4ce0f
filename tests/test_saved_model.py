"""A saved model read by other programs: the same rewards from each, for decoders and encoders."""
import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from encoders import save_encoder
from llama import save_llama, tokenizer as llama_tokenizer

from responserank.cli import main
from responserank.llm.methods import resolve_settings
from responserank.llm.models import load_classifier, load_model, load_tokenizer, save_classifier, score, train_tokenizer
from responserank.llm import model_card as M
from responserank.llm.tokenizers import carry_convention, own_padding, text_marks
from responserank.settings import UserError

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


def test_positions_of_an_encoder_limit_a_text(saved):
    from transformers import AutoTokenizer
    name, folder, _ = saved
    limit = dict(tiny=256, bert=40, roberta=40).get(name, 131072)
    assert AutoTokenizer.from_pretrained(folder).model_max_length == limit
    if limit > 300: return
    with pytest.raises(UserError, match=f"text 2: .* and the model has positions for {limit}"): score(folder, ["a", "good " * 300])


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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory): return save_reward_model("tiny", tmp_path_factory.mktemp("tiny"))


def change(folder, edit):
    """Rewrite the weights of a folder."""
    from safetensors.torch import load_file, save_file
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata=dict(format="pt"))


def set_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def point_to(file):
    def broken(folder):
        index = dict(metadata={}, weight_map={"score.weight": file})
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "model.safetensors").unlink()
    return broken


BROKEN = {
    "no head": (lambda f: change(f, lambda w: w.pop("score.weight")), "lack score.weight; the rewards would be random"),
    "a layer less": (lambda f: change(f, lambda w: [w.pop(k) for k in list(w) if "layers.0" in k]), "lack model.layers.0."),
    "a layer more in config": (lambda f: set_config(f, num_hidden_layers=2), "lack model.layers.1."),
    "no layer in config": (lambda f: set_config(f, num_hidden_layers=0), "layers that its config.json leaves out: model.layers.0."),
    "NaN": (lambda f: change(f, lambda w: w["score.weight"].fill_(float("nan"))), "not finite numbers: score.weight"),
    "inf": (lambda f: change(f, lambda w: w["model.norm.weight"][:1].fill_(float("inf"))), "not finite numbers: model.norm.weight"),
    "outside": (point_to("../other/model.safetensors"), "score.weight is said to be in '../other/model.safetensors'"),
    "absolute": (point_to("/etc/model.safetensors"), "only .safetensors files of the same folder"),
    "pickle": (point_to("pytorch_model.bin"), "is said to be in 'pytorch_model.bin'"),
    "number": (point_to(7), "is said to be in 7"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_incomplete_models_are_refused(case, tiny, tmp_path, monkeypatch):
    spoil, says = BROKEN[case]
    folder = shutil.copytree(tiny, tmp_path / "model")
    spoil(folder)
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a pickle was opened"))
    with pytest.raises(UserError) as e: load_classifier(folder)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_folder_of_corrections_is_scored_on_its_base(tmp_path):
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification
    base, tok = save_llama(tmp_path / "base"), llama_tokenizer()
    def corrections(folder, **more):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        made = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["q_proj", "v_proj"], **more))
        for n, p in made.named_parameters():
            if "lora_B" in n or "modules_to_save" in n: p.data.normal_()
        made.save_pretrained(folder)
        return made.eval()
    made = corrections(tmp_path / "lora")
    tok.save_pretrained(tmp_path / "lora")
    ids = tok.apply_chat_template(CHATS, tokenize=True, return_dict=False)
    made.config.get_text_config().pad_token_id = 4
    with torch.no_grad(): expected = [float(made(input_ids=torch.tensor([i])).logits[0, 0]) for i in ids]
    np.testing.assert_allclose(score(tmp_path / "lora", CHATS), expected, atol=1e-5)
    said = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    for odd, says in ((dict(peft_type="XLORA"), "only plain LoRA"), (dict(megatron_config={}, megatron_core="antigravity"), ""),
                      (dict(megatron_config=dict(a=1), megatron_core="antigravity"), "only plain LoRA"),
                      (dict(base_model_name_or_path=None), "names no base model"), (dict(base_model_name_or_path="no/where"), "model no/where")):
        (tmp_path / "lora/adapter_config.json").write_text(json.dumps(said | odd))
        if says:
            with pytest.raises(UserError, match=says): load_classifier(tmp_path / "lora")
        else: load_classifier(tmp_path / "lora")
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(said))
    (tmp_path / "lora/adapter_model.safetensors").rename(tmp_path / "lora/adapter_model.bin")
    with pytest.raises(UserError, match="adapter_model.safetensors"): load_classifier(tmp_path / "lora")
    from safetensors.torch import load_file, save_file
    weights = load_file(tmp_path / "lora/adapter_model.bin")
    save_file({k: v for k, v in weights.items() if "score" not in k}, tmp_path / "lora/adapter_model.safetensors")
    with pytest.raises(UserError, match="lack score.weight"): load_classifier(tmp_path / "lora")


def test_models_from_elsewhere_say_how_texts_are_written(tiny):
    loaded = load_classifier(tiny)
    joined = score(loaded, [("question", "good")], template="join", separator=" | ")
    assert joined[0] == pytest.approx(score(loaded, ["question | good"])[0], abs=1e-6)
    assert joined[0] != pytest.approx(score(loaded, [("question", "good")])[0], abs=1e-6)
    with pytest.raises(UserError, match="template 'chatt'|no template|chat"): score(loaded, ["a"], template="chatt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from responserank import train
    rows = pd.DataFrame([dict(prompt=f"question {i}", chosen=f"good {i}", rejected=f"bad {i % 7}", margin=1 + i % 3) for i in range(60)])
    return train("rr", data=rows, out=tmp_path_factory.mktemp("runs"), save_model=True,
                 overrides="epochs=1 batch_size=16 vocab_size=300 hidden_size=16 num_layers=1 num_heads=2 intermediate_size=32")


def test_the_card_says_what_the_run_says(trained):
    card, metrics = (trained.folder / "model/README.md").read_text(), json.loads((trained.folder / "metrics.json").read_text())
    assert card == M.model_card(metrics, M._saved_facts(trained.folder / "model"))
    front = card.split("---")[1]
    assert "pipeline_tag: text-classification" in front and "base_model" not in front
    assert f"| accuracy | {metrics['eval']['accuracy']:.4f} |" in card and "columns: prompt, chosen, rejected, margin as strength" in card
    assert "--data DATA --overrides 'epochs=1 batch_size=16 vocab_size=300 " in card and "vllm serve" in card and "last token" in card
    assert not any(f"good {i}" in card for i in range(60)) and str(trained.folder) not in card


def test_the_examples_of_the_card_run(trained, monkeypatch):
    blocks = [b.split("```")[0] for b in (trained.folder / "model/README.md").read_text().split("```python\n")[1:]]
    monkeypatch.chdir(trained.folder)
    (trained.folder / "MODEL").symlink_to("model")
    for block in blocks: exec(block.replace('"text-classification", "MODEL")', '"text-classification", "MODEL", device=-1)'), {})
    assert len(blocks) == 2


def test_push_is_refused_offline_before_training(tmp_path, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = run("train", "bt", "--push", "me/model", "--out", tmp_path)
    assert done.exit_code == 2 and done.stderr == "error: push=me/model: HF_HUB_OFFLINE is set, so nothing can be uploaded\n"
    assert not list(tmp_path.iterdir())
    assert "--push is for one method" in run("train", "bt", "rr", "--push", "me/model").stderr


def test_push_uploads_model_and_card(trained, monkeypatch):
    import huggingface_hub as hub
    seen = {}

    class Hub:
        def create_repo(self, repo, **how):
            seen.update(how)
            return type("Url", (str,), dict(repo_id=repo))(f"https://hub/{repo}")
        def upload_folder(self, **how): seen.update(how)

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="log in first"): M.push_model(trained.folder / "model", "me/model")
    monkeypatch.setattr(hub, "get_token", lambda: "made up")
    for repo, says in (("a/b/c", "push=a/b/c: "), ("me/-", "push=me/-: ")):
        with pytest.raises(UserError, match=says): M.push_model(trained.folder / "model", repo)
    with pytest.raises(UserError, match="no saved model"): M.push_model(trained.folder, "me/model")
    assert M.push_model(trained.folder / "model", "me/model") == "https://hub/me/model"
    assert seen["private"] and seen["exist_ok"] and seen["repo_id"] == "me/model" and "*.md" in seen["allow_patterns"]
    monkeypatch.setattr(Hub, "upload_folder", lambda self, **how: (_ for _ in ()).throw(ConnectionError("no route")))
    with pytest.raises(UserError, match="push=me/model: cannot be fetched|push=me/model"): M.push_model(trained.folder / "model", "me/model")


def run(*words): return CliRunner().invoke(main, [str(w) for w in words])


def lines(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


BEST = {
    "lists": ([dict(id="p", prompt="question", responses=["good", "bad"]), dict(id="q", prompt="two", responses=["a good answer"])], [1, 2, 1]),
    "repeated ids": ([dict(id="p", prompt="question", completion="good"), dict(id="p", prompt="question", completion="bad"),
                      dict(id="q", prompt="two", completion="a good answer")], [1, 2, 1]),
    "messages": ([dict(id="p", messages=[*CHATS[0][:1], dict(role="assistant", content=t)]) for t in ("good", "bad")] +
                 [dict(id="q", messages=CHATS[1])], [1, 2, 1]),
}


@pytest.mark.parametrize("case", BEST)
def test_best_of_n(case, tiny, tmp_path):
    rows, numbers = BEST[case]
    done = run("score", tiny, lines(tmp_path / "n.jsonl", rows), "--out", tmp_path / "r.csv")
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "r.csv")
    assert list(table) == ["id", "response", "reward", "best"] and table.id.tolist() == ["p", "p", "q"] and table.response.tolist() == numbers
    first = table[table.id == "p"]
    assert table.best.sum() == 2 and first.reward[first.best].item() == first.reward.max()


def test_a_bad_row_is_one_bad_row_and_a_long_one_too(tiny, tmp_path):
    rows = [dict(prompt="question", responses=["good", "bad"]), dict(prompt="question", responses=["good", 3]),
            dict(prompt="question", responses=["good", "word " * 300]), dict(prompt="question", responses=[])]
    file = lines(tmp_path / "n.jsonl", rows)
    done = run("score", tiny, file)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and done.stdout == ""
    for said in ("row 2, column 'responses': response 2: a text is expected, found int", "and the model has positions for 256",
                 "3 bad rows in all; --bad-rows drop leaves them out"): assert said in done.stderr
    done = run("score", tiny, file, "--bad-rows", "drop")
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 3 and "left out 3 bad rows" in done.stderr


SAID = {
    "mapped": (dict(Q="question", Left="good", Right="bad", Choice="right"),
               ["--columns", "prompt=Q a=Left b=Right preference=Choice", "--values", "left=A right=B"], "on the preferred side"),
    "texts": (dict(Question="question", Reply="good", note=1), ["--columns", "prompt=Question completion=Reply"], "not used: note"),
    "ignored": (dict(prompt="question", completion="good", promtp="x"), ["--ignore", "promtp"], "not used: promtp"),
    "shape": (dict(prompt="question one", chosen=CHATS[0], rejected=[*CHATS[0][:1], *CHATS[1][1:]], score_chosen=2.0, score_rejected=1.0), [], "on the chosen side"),
}


@pytest.mark.parametrize("case", SAID)
def test_columns_are_read_as_in_training(case, tiny, tmp_path):
    row, words, says = SAID[case]
    done = run("score", tiny, lines(tmp_path / "x.jsonl", [row]), *words)
    assert done.exit_code == 0 and says in done.stderr, done.output


def test_no_good_row_is_one_line(tiny, tmp_path):
    done = run("score", tiny, lines(tmp_path / "x.jsonl", [dict(prompt="other", chosen=CHATS[0], rejected=CHATS[1])]), "--bad-rows", "drop")
    assert done.exit_code == 2 and "every row is bad; the first: " in done.stderr


def test_what_the_template_leaves_out_is_a_bad_row(tiny, tmp_path):
    said = [dict(role="user", content="question"), dict(role="assistant", content="good", tool_calls=[dict(name="look", arguments="{}")])]
    done = run("score", tiny, lines(tmp_path / "x.jsonl", [dict(messages=CHATS[0]), dict(messages=said)]))
    assert done.exit_code == 2 and "row 2, column 'messages': the model's chat template leaves out the messages' 'tool_calls'" in done.stderr


def test_ids_of_a_published_shape_come_back(tiny, tmp_path):
    row = dict(id=77, model_a="m", model_b="n", prompt='["question"]', response_a='["good"]', response_b='["bad"]', winner_model_a=0, winner_model_b=1, winner_tie=0)
    done = run("score", tiny, lines(tmp_path / "x.jsonl", [row]))
    assert done.exit_code == 0 and done.stdout.splitlines()[1].startswith("77,") and "on the preferred side" in done.stderr


def test_a_split_is_scored_by_its_name(tiny, tmp_path):
    (tmp_path / "set").mkdir()
    for split in ("train", "test"): lines(tmp_path / f"set/{split}.jsonl", [dict(prompt="question", completion=split)])
    done = run("score", tiny, f"{tmp_path / 'set'}:test")
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 2, done.output
    done = run("score", tiny, f"{tmp_path / 'set/test.jsonl'}:test")
    assert done.exit_code == 2 and "is one file and has no splits" in done.stderr


def test_a_column_that_looks_like_another_is_refused(tiny, tmp_path):
    done = run("score", tiny, lines(tmp_path / "x.jsonl", [dict(promtp="question", completion="good")]))
    assert done.exit_code == 2 and "looks like prompt" in done.stderr
