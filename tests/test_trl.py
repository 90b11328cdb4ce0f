"""The drop-in for TRL's RewardTrainer, where TRL is installed (the extra `bench`)."""
import json

import numpy as np
import pytest
import torch

pytest.importorskip("trl")
from datasets import Dataset, disable_progress_bars
from transformers import PrinterCallback
from trl import RewardConfig, RewardTrainer

from small import SHAPE
from responserank.llm.methods import resolve_settings
from responserank.llm.models import load_model, train_tokenizer
from responserank.llm.trl_trainer import StrengthRewardTrainer
from responserank.rankings import bradley_terry_loss, ranking_loss
from responserank.settings import UserError

disable_progress_bars()
ROWS = [dict(chosen=f"a good answer {'so ' * (i % 5)}{i}", rejected=f"a bad one {i}", strength=float(i * 7 % 8), margin=.25 * (i % 3), ranking=i // 8) for i in range(32)]


@pytest.fixture(scope="module")
def make_model():
    tokenizer = train_tokenizer([r[k] for r in ROWS for k in ("chosen", "rejected")], 300)
    return lambda: (load_model(resolve_settings("bt", overrides=SHAPE), tokenizer, 0), tokenizer)


@pytest.fixture
def losses(make_model, tmp_path):
    def run(trainer, *columns, **kwargs):
        model, tokenizer = make_model()
        args = RewardConfig(output_dir=str(tmp_path), per_device_train_batch_size=16, num_train_epochs=2, use_cpu=True, report_to=[], save_strategy="no", bf16=False,
                            logging_steps=1, disable_tqdm=True, log_level="error", learning_rate=1e-3, **({"center_rewards_coefficient": .1} if "center" in columns else {}))
        data = Dataset.from_list([{k: r[k] for k in ("chosen", "rejected", *columns) if k != "center"} for r in ROWS])
        made = trainer(model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer, **kwargs)
        made.remove_callback(PrinterCallback)
        made.train()
        assert np.isfinite(made.evaluate()["eval_loss"])
        return made, [e["loss"] for e in made.state.log_history if "loss" in e]
    return run


def test_the_losses_that_trl_has_are_the_same(losses):
    for columns, loss in ((("margin",), "bt_margin"), ((), "bt"), (("center",), "bt")):
        assert losses(RewardTrainer, *columns)[1] == pytest.approx(losses(StrengthRewardTrainer, *columns, loss=loss)[1], rel=1e-5)


def test_rankings_meet_and_the_loss_is_theirs(losses):
    trainer, found = losses(StrengthRewardTrainer, "strength", "ranking", loss="rr")
    batches = list(trainer.get_train_dataloader())
    assert all(set(np.unique(b["ranking"], return_counts=True)[1]) == {8} for b in batches)
    inputs = dict(batches[0])
    rewards = trainer.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0].detach()
    d = rewards[:16] - rewards[16:]
    trainer.model.train()
    ranked, direct = ranking_loss(d, -inputs["strength"], inputs["ranking"].long()), bradley_terry_loss(d)
    assert trainer.compute_loss(trainer.model, dict(inputs)).item() == pytest.approx(ranked.item(), rel=1e-5)
    trainer.loss, trainer.rank_weight = "rr_light", .25
    assert trainer.compute_loss(trainer.model, dict(inputs)).item() == pytest.approx((.25 * ranked + .75 * direct).item(), rel=1e-5)
    assert len(found) == 4


def test_a_loss_with_parameters_of_its_own_is_refused(losses):
    with pytest.raises(UserError, match="ordinal"): losses(StrengthRewardTrainer, "strength", loss="ordinal")


def test_the_example_of_the_chapter_runs(root, make_model, tmp_path):
    cells = ["".join(c["source"]) for c in json.loads((root / "nbs/29b_trl.ipynb").read_text())["cells"]]
    export, = (c for c in cells if "class StrengthRewardTrainer" in c)
    assert len(export[export.index("class StrengthRewardTrainer"):].splitlines()) <= 40
    example, = (c for c in cells if c.startswith("def example("))
    exec(example, names := dict(StrengthRewardTrainer=StrengthRewardTrainer))
    trainer = names["example"](*make_model(), str(tmp_path))
    assert trainer.state.global_step == 2 and isinstance(trainer.state.log_history[0]["loss"], float)
    assert torch.isfinite(next(trainer.model.parameters())).all()
