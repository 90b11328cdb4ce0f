"""The control study: bad input is one line, a small chain runs, stops and continues to the same numbers."""
import subprocess
import sys

import pandas as pd
import pytest
from click.testing import CliRunner

from responserank.cli import main
from responserank.settings import UserError

pytest.importorskip("stable_baselines3")
pytest.importorskip("gymnasium")
from responserank.rl.study import own_models, own_runs, read_control_study, run_control  # noqa: E402

TINY = "agent_steps=2048 outside_steps=2048 per_policy=8 comparisons=60 test=20 epochs=2 members=1"


@pytest.mark.parametrize("words, says", [
    (["Swimer-v5"], "Swimmer-v5"), (["Pendulum-v1", "--methods", "rank"], "unknown method of control 'rank'"), (["Pendulum-v1", "--noise", "x"], "noise"),
    (["Pendulum-v1", "--overrides", "hiden=3"], "hidden"), (["Pendulum-v1", "--methods", "true", "--stage", "rewards"], "no reward model"),
    (["Pendulum-v1", "--methods", "bt", "--overrides", "ranking_size=4"], "no ranking loss"), (["Pendulum-v1", "--seeds", "9-0"], "seeds")])
def test_bad_input_is_one_line(words, says, tmp_path):
    done = CliRunner().invoke(main, ["control", *words, "--out", str(tmp_path)])
    assert done.exit_code == 2 and says in done.output and done.output.strip().count("\n") == 0, done.output


def test_without_the_extra_the_line_says_how_to_install_it():
    code = "import sys; sys.modules['gymnasium'] = None; from responserank.cli import main; main(['control', 'Pendulum-v1'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'responserank[rl]'" in done.stderr.strip().splitlines()[-1], done.stderr


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    out = tmp_path_factory.mktemp("control")
    run_control("Pendulum-v1", "bt,rr", 0, 0, 10_000, out, overrides=TINY)
    return out


def test_the_whole_chain(chain):
    models, runs = own_models(chain), own_runs(chain)
    assert sorted(models["method"]) == sorted(runs["method"]) == ["bt", "rr"]
    assert models["true_accuracy"].between(0, 1).all() and (chain / "reward_models.csv").is_file()
    assert not list(chain.rglob("*.pkl")) and not list(chain.rglob("*.zip")) and list(chain.rglob("*.safetensors"))


def test_the_same_seed_gives_the_same_numbers_whatever_runs_beside_it(chain, tmp_path):
    run_control("Pendulum-v1", "rr", 0, 0, 10_000, tmp_path, stage="rewards", overrides=TINY)
    columns = ["val_accuracy", "true_accuracy", "pdc", "correlation"]
    pd.testing.assert_frame_equal(own_models(tmp_path)[columns], own_models(chain).query("method == 'rr'")[columns].reset_index(drop=True))


def test_what_is_finished_is_not_done_again(chain, monkeypatch):
    import responserank.rl.reward as reward
    monkeypatch.setattr(reward, "fit_reward", lambda *a, **k: pytest.fail("a finished reward model was fitted again"))
    run_control("Pendulum-v1", "bt,rr", 0, 0, 10_000, chain, overrides=TINY)


def test_a_study_is_read_from_text():
    study = read_control_study("Swimmer-v5", "bt,rr,rr_light", "0,0.5", "0-2")
    assert (study.methods, study.noise, study.seeds) == (("bt", "rr", "rr_light"), (0.0, 0.5), (0, 1, 2))
    with pytest.raises(UserError): read_control_study("Swimmer-v5", "", 0, 0)
