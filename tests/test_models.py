"""Models, tokenizers and the hub as users get them wrong, and the command that scores a file."""
import json
import os
import subprocess
import sys
import textwrap

import pandas as pd
import pytest
from click.testing import CliRunner
from small import small
from llama import save_llama
from test_rewardbench import jsonl, second

from responserank.cli import main
from responserank.llm.methods import resolve_settings
from responserank.llm.models import load_classifier, load_model, load_tokenizer, save_classifier, score_texts, train_tokenizer
from responserank.settings import UserError
from responserank.files import content_hash


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import transformers as t
    root = tmp_path_factory.mktemp("models")
    one, three = (save_llama(root / f"head{n}", model=t.LlamaForSequenceClassification, num_labels=n, pad_token_id=4) for n in (1, 3))
    save_llama(root / "base"), save_llama(root / "tokens", model=t.LlamaForTokenClassification, num_labels=2)
    bare = train_tokenizer(["a good answer"] * 9, 300)
    save_llama(root / "no template", tokenizer=bare)
    bare = train_tokenizer(["a good answer"] * 9, 300)
    bare._special_tokens_map.update(pad_token=None, eos_token=None)
    save_llama(root / "no end", tokenizer=bare)
    (save_llama(root / "cut off") / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (save_llama(root / "pickled") / "model.safetensors").rename(root / "pickled/pytorch_model.bin")
    (root / "empty").mkdir()
    return root


def start(path, **more):
    settings = resolve_settings("bt", "paper", dict(model=str(path)) | more)
    return load_model(settings, load_tokenizer(settings), 0)


BAD = {
    "another head": ("head3", start, "SequenceClassification with 3 outputs; a reward model has 1 output: give its base model"),
    "token head": ("tokens", start, "TokenClassification"),
    "no end token": ("no end", start, "neither a padding nor an end token; add one"),
    "cut off": ("cut off", start, "can't be loaded"),
    "pickle": ("pickled", start, "can't be loaded"),
    "empty folder": ("empty", start, "can't be loaded"),
    "scored without a head": ("base", load_classifier, "has no reward head (LlamaForCausalLM)"),
    "scored with another": ("head3", load_classifier, "give a reward model"),
    "not on the hub": ("../nobody", lambda p: load_classifier("nobody/nothing"), "model nobody/nothing: "),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_one_line(case, folder):
    name, use, says = BAD[case]
    with pytest.raises(UserError) as e: use(folder / name)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_without_a_template_blank_lines_join_and_the_run_says_so(folder):
    settings = resolve_settings("bt", "paper", dict(model=str(folder / "no template")))
    with pytest.warns(UserWarning, match="no chat template, so prompts and answers are joined by blank lines"): tok = load_tokenizer(settings)
    assert tok.pad_token == "<pad>" and start(folder / "head1").config.num_labels == 1  # a reward model may be trained further


HUB = """
    import os, threading, time, http.server
    class Gate(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo"); self.send_header("X-Error-Message", "Access is restricted"); self.end_headers()
        do_GET = do_HEAD = answer
        def log_message(self, *a): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    from responserank.llm.methods import resolve_settings
    from responserank.llm.models import load_tokenizer
    from responserank.llm.rewardbench import read_bench
    from responserank.settings import UserError
    for what in (lambda: load_tokenizer(resolve_settings("bt", "paper")), lambda: read_bench("2")):
        try: what()
        except UserError as e: print(e, flush=True)
    server.shutdown(); server.server_close()
    time.sleep = lambda seconds: None # the library tries several times
    try: load_tokenizer(resolve_settings("bt", "small"))
    except UserError as e: print(e, flush=True)
"""


def test_a_gated_model_without_a_token_and_a_hub_that_is_not_there(tmp_path):
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN")}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(HUB)], capture_output=True, text=True, timeout=120,
                          env=env | {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr[-3000:]
    assert "is gated: accept its terms" in lines[0] and "hf auth login" in lines[0] and "Llama-3.1-8B" in lines[0]
    assert "allenai/reward-bench-2: is gated" in lines[1] or "allenai/reward-bench-2" in lines[1]
    assert "SmolLM2" in lines[2] and "give a local file or folder" in lines[2]
    assert "Retrying" not in done.stderr  # the line stands alone


def test_content_of_anything_has_a_hash(tmp_path):
    assert content_hash("x" * 5000) != content_hash("x" * 5001) and content_hash("a\0b") and content_hash("simulated")
    (tmp_path / "f").write_text("x")
    assert content_hash(tmp_path / "f") == content_hash(str(tmp_path / "f"))


def run(*words): return CliRunner().invoke(main, [str(w) for w in words])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    tok = train_tokenizer(["good answer bad answer question"] * 50, 300)
    model = load_model(resolve_settings("bt", overrides=small()), tok, 0)
    return save_classifier(model, tok, tmp_path_factory.mktemp("run") / "model")


FILES = {
    "texts": ([dict(id="x", text="good answer"), dict(id="y", text="bad")], ["id", "reward"], ["good answer", "bad"]),
    "completions": ([dict(prompt="question", completion="good")], ["id", "reward"], [("question", "good")]),
    "pairs": ([dict(prompt="question", chosen="good", rejected="bad")], ["id", "reward_chosen", "reward_rejected", "difference"],
              [("question", "good"), ("question", "bad")]),
    "comparisons": ([dict(comparison_id="c", text="question", completion_a="good", completion_b="bad")],
                    ["id", "reward_a", "reward_b", "difference"], [("question", "good"), ("question", "bad")]),
    "messages": ([dict(chosen=[dict(role="user", content="q"), dict(role="assistant", content="good")],
                       rejected=[dict(role="user", content="q"), dict(role="assistant", content="bad")])],
                 ["id", "reward_chosen", "reward_rejected", "difference"], [("q", "good"), ("q", "bad")]),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("out", [None, "r.csv", "r.jsonl"])
def test_score_a_file(case, out, saved, tmp_path):
    rows, columns, texts = FILES[case]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = ["score", saved.parent, tmp_path / "in.jsonl"] + (["--out", tmp_path / out] if out else [])  # a run's folder will do
    done = run(*words)
    assert done.exit_code == 0, done.output
    if out is None: (tmp_path / "r.csv").write_text(done.stdout)
    table = pd.read_json(tmp_path / out, lines=True) if out == "r.jsonl" else pd.read_csv(tmp_path / "r.csv")
    assert list(table) == columns
    rewards = score_texts(*load_classifier(saved), texts)
    found = table[[c for c in table if c.startswith("reward")]].to_numpy().T.ravel()
    assert found == pytest.approx(rewards, abs=1e-6)
    if "difference" in table: assert table.difference[0] == pytest.approx(rewards[0] - rewards[1], abs=1e-6) and "pairs have" in done.stderr
    if out: assert run(*words).exit_code == 2  # nothing is overwritten


def test_score_rewardbench(saved, tmp_path):
    done = run("score", saved, "--rewardbench", jsonl(second(1), tmp_path / "two.jsonl"))
    assert done.exit_code == 0 and "RewardBench 2, 7 rows" in done.stdout and "Precise IF" in done.stdout and "overall" in done.stdout


def test_bad_scoring_is_one_line(saved, folder, tmp_path):
    (tmp_path / "odd.jsonl").write_text('{"remark": "x"}\n')
    (tmp_path / "gap.jsonl").write_text('{"text": "x"}\n{"text": ""}\n')
    for words, says in [((saved,), "give a FILE"), ((saved, tmp_path / "no.csv"), "no such file"), ((saved, tmp_path / "odd.jsonl"), "no texts to score"),
                        ((saved, tmp_path / "gap.jsonl"), "row 2, column 'text'"), ((folder / "base", tmp_path / "gap.jsonl"), "has no reward head"),
                        ((saved, "--rewardbench", "3"), "use 1, 2, both"), ((saved, tmp_path / "gap.jsonl", "--out", "x.txt"), ".csv or .jsonl"),
                        (("no/model", tmp_path / "gap.jsonl"), "model no/model: ")]:
        done = run("score", *words)
        assert done.exit_code == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and says in done.stderr, (words, done.output)
