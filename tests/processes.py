"""One optimiser step on however many processes there are; `torchrun` starts this file, test_steps.py imports it."""
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from small import SHAPE
from responserank.llm.methods import resolve_settings
from responserank.llm.models import load_model, train_tokenizer
from responserank.llm.optimizer_step import RankingTrainer, distributed_rank, training_arguments
from transformers import TrainerCallback

SMALL = SHAPE | dict(epochs=1, max_grad_norm=0)
PROMPT = 70  # tokens: more than are needed for sharing
CASES = {  # name: comparisons, rankings, divisor wrong by, settings
    "micro": (64, 16, 1, dict(batch_size=16, gradient_accumulation_steps=4)),
    "step": (64, 16, 1, dict(batch_size=16, gradient_accumulation_steps=4, loss_scope="step")),
    "step, a ranking over all": (64, 1, 1, dict(batch_size=16, gradient_accumulation_steps=4, loss_scope="step")),
    "micro, uneven": (40, 20, 1, dict(batch_size=16, gradient_accumulation_steps=3)),
    "step, uneven": (40, 1, 1, dict(batch_size=5, gradient_accumulation_steps=9, loss_scope="step")),
    "micro, shared prompts": (40, 20, 1, dict(batch_size=8, gradient_accumulation_steps=5, share_prompts="auto")),
    "step, shared prompts": (40, 1, 1, dict(batch_size=8, gradient_accumulation_steps=5, loss_scope="step", share_prompts="auto")),
    "off by 4": (64, 16, 4, dict(batch_size=16, gradient_accumulation_steps=4)),
    "off by the devices": (64, 16, 2, dict(batch_size=16, gradient_accumulation_steps=4, loss_scope="step")),
}
OWN_PARAMETERS = { # the same of a loss with parameters of its own; in the last one a process has nothing to do
    "ordinal, micro": (40, 20, 1, dict(loss="ordinal", epochs=3, batch_size=16, gradient_accumulation_steps=3)),
    "ordinal, step": (40, 20, 1, dict(loss="ordinal", epochs=3, batch_size=5, gradient_accumulation_steps=8, loss_scope="step")),
    "ordinal, one batch": (10, 5, 1, dict(loss="ordinal", epochs=3, batch_size=16, gradient_accumulation_steps=2)),
}


def rows_of(n, rankings, seed=1, prompt=0):
    g = np.random.default_rng(seed)
    rows = [dict(chosen_ids=g.integers(2, 250, 4 + i % 7), rejected_ids=g.integers(2, 250, 4 + i % 40), rank=float(i // rankings),
                 ranking=i % rankings, target=1.0, index=i, loss_category=float(3 + i % 3)) for i in range(n)]
    for row in rows if prompt else []:
        start = g.integers(2, 250, prompt + row["index"] % 9)
        row |= {side: np.concatenate([start, row[side]]) for side in ("chosen_ids", "rejected_ids")}
    return rows


class Catch(TrainerCallback):
    gradient = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).clone()


def step(rows, settings, dtype=torch.float64, wrong=1, prepare=lambda trainer: None):
    """The gradient before clipping, the loss, and the rewards of some test texts after the step."""
    g = np.random.default_rng(2)
    texts = [g.integers(2, 250, 3 + i).tolist() for i in range(7)]
    test = pd.DataFrame(dict(label=1, tokens_a=texts, tokens_b=[*texts[1:], texts[0]]))
    settings, tokenizer, catch = resolve_settings("rr_agree", overrides=SMALL | settings), train_tokenizer(["a b c d"] * 9, 300), Catch()
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(settings, folder, 0)
        own = torch.zeros(2) if settings.loss == "ordinal" else None
        trainer = RankingTrainer(load_model(settings, tokenizer, 0).to(dtype), arguments, settings, rows, test, 0, loss_start=own, callbacks=[catch])
        prepare(trainer)
        if wrong != 1:
            count = trainer._get_num_items_in_batch
            trainer._get_num_items_in_batch = lambda *a: count(*a) / wrong
        trainer.train()
    return dict(gradient=catch.gradient.float().numpy() if dtype == torch.bfloat16 else catch.gradient.numpy(),
                loss=next(h["loss"] for h in trainer.state.log_history if "loss" in h), rewards=np.concatenate(trainer.rewards),
                own=np.array([]) if own is None else trainer.loss_parameters.detach().numpy())


def case(name):
    n, rankings, wrong, settings = (CASES | OWN_PARAMETERS)[name]
    return step(rows_of(n, rankings, prompt=PROMPT * ("shared" in name)), settings | dict(eval_tokens=12), wrong=wrong)


def save_cases(folder, names=CASES):
    """What this process found, in a file of its own."""
    results = {f"{name}/{k}": v for name in names for k, v in case(name).items()}
    np.savez(Path(folder) / f"{distributed_rank()[0]}.npz", **results)


if __name__ == "__main__":
    save_cases(sys.argv[1], [*CASES, *OWN_PARAMETERS])
