"""What every test file may ask for, and an environment without network, trackers or stray threads."""
import json
import os
import signal
from pathlib import Path

# Before any test file imports a library that reads these.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1",
                  HF_HUB_DISABLE_PROGRESS_BARS="1", WANDB_MODE="offline", WANDB_SILENT="true", TOKENIZERS_PARALLELISM="false",
                  MPLBACKEND="agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models: threads cost more than they gain, above all on a busy machine
os.environ.pop("IN_TEST", None)  # set by a notebook runner; nbdev_export would do nothing

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started with `&` by a script: children would inherit deafness to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference numbers beside the repository; a test that needs them is skipped without them."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir(): pytest.skip("no ../shared with reference numbers beside the repository")
    return folder


@pytest.fixture
def pairs(tmp_path) -> Path:
    """A file of a hundred ranked pairs, for runs that only have to run."""
    rng = np.random.default_rng(0)
    rows = [dict(prompt=f"question {i}", chosen="yes " * int(rng.integers(3, 12)), rejected="no " * int(rng.integers(1, 12)),
                 strength=float(rng.random())) for i in range(100)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="module")
def sixty_pairs(tmp_path_factory) -> Path:
    """A file of sixty pairs, for sweeps of runs that train in seconds."""
    rows = [dict(chosen=f"a good answer to {i}", rejected=f"a bad one to {i}", strength=i) for i in range(60)]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
