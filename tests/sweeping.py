"""What the tests of sweeps share: a small file, the command, and what is at work in its folders."""
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import waiting

from small import small
from responserank.runs import run_status

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
SCRIPT = str(Path(sys.executable).with_name("responserank"))
SMALL = small(batch_size=16)


def words(pairs, out, epochs, *more):
    return ["sweep", "--methods", "bt,rr", "--seeds", "0-1", "--data", str(pairs), "--out", str(out), "--overrides", f"{SMALL} epochs={epochs}",
            "--wandb-mode", "disabled", *more]


def start(root, *args, **kwargs):
    return subprocess.Popen([SCRIPT, *args], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **kwargs)


wait_for = partial(waiting.wait_for, seconds=300, every=.05)


def holders(out):
    """Kernels at work: process numbers by run folder, once they train."""
    found = {}
    for path in out.glob("*/*/*/claim-*.json"):
        try: found[path.parent] = json.loads(path.read_text())["pid"]
        except (OSError, ValueError): pass
    return found


def states(out): return sorted(run_status(p.parent)[0] for p in out.glob("*/*/*/metrics.json"))
