"""Numbers that no run can use are refused before data are prepared, each in one line that says what would be right."""
import pytest

from responserank.llm import trainer as T
from responserank.llm.sweep import read_fractions, read_seeds
from responserank.settings import UserError
from small import small

DIGITS, HUGE = "9" * 5000, 10 ** 400
RANGE = "is out of range, it should be in "
REFUSED = [  # name, value, what the line says
    *[(name, value, said) for name in ("seed", "model_seed") for value, said in (
        (-1, f"{name}=-1 {RANGE}[0, 2^32)"), (2 ** 32, "[0, 2^32)"), (2 ** 40, "1099511627776"), (HUGE, "[0, 2^32)"), (DIGITS, "should be"), (1.5, "a whole number"),
        (True, "a whole number"), (float("nan"), "a whole number"))],
    ("fraction", 0, f"fraction=0.0 {RANGE}(0, 1]"), ("fraction", -.5, RANGE), ("fraction", 1.0001, RANGE), ("fraction", float("nan"), "a finite number"),
    ("fraction", float("inf"), "a finite number"), ("fraction", 1e-300, "leaves 0 of about 80 training comparisons"), ("fraction", .03, "leaves 2 of about 80"),
    *[(name, value, said) for name in ("batch_size", "ranking_size", "cap", "epochs", "max_length", "test_size", "gradient_accumulation_steps", "eval_tokens") for value, said in (
        (0, f"{name}=0 {RANGE}[1, 2147483647]"), (2 ** 63, "[1, 2147483647]"))],
    ("batch_size", 81, "batch_size=81 is beyond the data, which have about 80 training comparisons"), ("ranking_size", 2000, "is beyond the data"), ("cap", 10 ** 9, "is beyond the data"),
    ("epochs", HUGE, "[1, 2147483647]"), ("epochs", DIGITS, "a whole number"), ("epochs", 1e308, "[1, 2147483647]"), ("epochs", "1e400", "a whole number"),
    ("test_size", 100, "too few for a test set"),
    ("learning_rate", HUGE, "not quite as large"), ("learning_rate", 0, RANGE), ("learning_rate", "nan", "a finite number"), ("adam_beta2", 1, RANGE), ("warmup_ratio", 1, RANGE),
    ("weight_decay", -1e-9, RANGE), ("dropout", 1, RANGE), ("label_smoothing", .6, RANGE), ("length_buckets", 10 ** 6, "[1, 1000]"),
    ("vocab_size", 257, "[258, 1048576]"), ("vocab_size", 10 ** 12, "[258, 1048576]"), ("num_layers", 100_000, "num_layers=100000 is out of range, it should be in [1, 1000]"),
    ("hidden_size", 2 ** 20, "[1, 65536]"), ("hidden_size", 65536, "weights is too large to make here"), ("num_heads", 10 ** 9, "[1, 65536]"), ("lora_r", 10 ** 9, "[1, 65536]"),
    ("intermediate_size", 10 ** 12, "[1, 1048576]"), ("checkpoint_steps", -1, "[0, 2147483647]"), ("max_length", 1, "longer than max_length=1"),
]
OF_A_RUN = ("seed", "model_seed", "fraction")


@pytest.mark.parametrize("name, value, said", REFUSED, ids=[f"{n}={str(v)[:9]}" for n, v, _ in REFUSED])
def test_refused_in_one_line(pairs, tmp_path, name, value, said):
    given = {name: value} if name in OF_A_RUN else {}
    overrides = dict(word.split("=") for word in small().split()) | ({} if given else {name: value})
    with pytest.raises(UserError) as error: T.train_once("rr", data=str(pairs), out=tmp_path / "o", wandb_mode="disabled", dry_run=True, overrides=overrides, **given)
    line = str(error.value)
    assert any(s in line for s in said.split("|")) and "\n" not in line and len(line) < 250, line


@pytest.mark.parametrize("name, value, said", [
    ("learning_rate", 1e308, "training diverged at step|not finite"), ("weight_decay", 1e308, "training diverged at step|not finite"), ("adam_epsilon", 1e308, ""), ("max_grad_norm", 1e-320, "")])
def test_extremes_that_train(pairs, tmp_path, name, value, said):
    """A step with them ends as a run, or in a line that says that training diverged."""
    overrides = small(epochs=1, max_length=48, **{name: value})
    try: result = T.train_once("rr", data=str(pairs), out=tmp_path / "o", wandb_mode="disabled", overrides=overrides)
    except UserError as e: assert said and any(s in str(e) for s in said.split("|")), e
    else: assert result.metrics["status"] == "finished" and 0 <= result.metrics["eval"]["accuracy"] <= 1


@pytest.mark.parametrize("seeds, said", [("4294967296", "[0, 2^32)"), ("0-4000000000", "more than 100,000"), (DIGITS, "neither a number below"), ("-1", "neither"), ("5-1", "is empty")])
def test_seeds_of_a_sweep(seeds, said):
    with pytest.raises(UserError, match=said.replace("[", r"\[").replace("^", r"\^").replace(")", r"\)")): read_seeds(seeds)


@pytest.mark.parametrize("fractions", ["1e400", "nan", "-1", "0", "1.5", DIGITS])
def test_fractions_of_a_sweep(fractions):
    with pytest.raises(UserError): read_fractions(fractions)


def test_strata_of_one_comparison_each(tmp_path):
    """Many annotators, each with one comparison: the report says that nothing can be ranked."""
    import json
    path = tmp_path / "people.jsonl"
    path.write_text("".join(json.dumps(dict(chosen=f"yes {i}", rejected=f"no {i}", strength=i, annotator=f"p{i}")) + "\n" for i in range(60)))
    overrides = dict(word.split("=") for word in small().split()) | dict(strata="annotator")
    result = T.train_once("rr", data=str(path), out=tmp_path / "o", wandb_mode="disabled", dry_run=True, overrides=overrides)
    assert any("nothing can be ranked" in step.get("note", "") for step in result.metrics["data_report"]["steps"])
