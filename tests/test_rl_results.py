"Control results: what is refused, what is collected, and sums that can be checked."
import json
import types

import numpy as np
import pandas as pd
import pytest

from responserank.rl import results
from responserank.settings import UserError


@pytest.fixture(scope="module")
def control():
    return results.read_control()


def own(tmp_path, **cells):
    rows = [{"env": "Swimmer-v5", "noise": 0.0, "is_rt": r, "seed": s, "global_step_history": "[10000, 20000]", "reward_history": f"[{s}, {2 * s}]"}
            for r in (True, False) for s in (1, 2)]
    runs = pd.DataFrame(rows).astype(object)
    models = pd.DataFrame([{"env": "Swimmer-v5", "noise": 0.0, "is_rt": True, "seed": 1, "val_accuracy": cells.pop("val_accuracy", .9)}])
    for column, value in cells.items():
        runs.loc[1, column] = value
    runs.to_csv(tmp_path / "runs.csv", index=False)
    models.to_csv(tmp_path / "reward_models.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("cells, message", [
    ({"env": "Swimer-v5"}, "runs.csv: unknown environment (known: Swimmer-v5, HalfCheetah-v5, Walker2d-v5, merge-v0): line 3"),
    ({"seed": 1}, "the same environment, noise, method and seed twice: line 2, 3"),
    ({"is_rt": "maybe"}, "is_rt is neither True nor False: line 3"),
    ({"noise": -1}, "noise below 0 or missing: line 3"),
    ({"reward_history": "[1, 2"}, "runs.csv, line 3, reward_history: '[1, 2' is not a list of numbers"),
    ({"reward_history": "[1]"}, "steps and rewards must be as many, at least one, and finite: line 3"),
    ({"reward_history": "[1, NaN]"}, "steps and rewards must be as many"),
    ({"val_accuracy": 97}, "val_accuracy outside [0, 1]"),
])
def test_bad_tables_are_refused_with_their_lines(tmp_path, cells, message):
    with pytest.raises(UserError) as e:
        results.read_control(own(tmp_path, **cells))
    assert message in str(e.value) and "\n" not in str(e.value)


def test_own_tables_are_read_and_short_cells_marked(tmp_path):
    control = results.read_control(own(tmp_path))
    assert control.runs["max"].tolist() == [2, 4, 2, 4] and set(control.runs["method"]) == {"BT", "RR"}
    points = results.outcome_points(control, "final")
    assert points["mean"].tolist() == [3, 3] and len(points.attrs["short"]) == 2 and "Walker2d" in points.attrs["missing"]
    with pytest.raises(UserError, match="no such table"):
        results.read_control(tmp_path / "elsewhere")


def test_the_published_summary(control):
    mean = control.runs.groupby(["env", "noise", "method"])["max"].mean()
    for env, pairs in {"HalfCheetah-v5": "5307 5624 5228 5204 4951 5710 4644 4905", "Swimmer-v5": "44 176 46 95 42 106 69 106",
                       "Walker2d-v5": "2961 3742 2828 3126 3486 2831 2844 1918", "merge-v0": "12.07 12.40 12.19 12.29 11.90 12.45 12.03 12.58"}.items():
        np.testing.assert_allclose(mean[env].to_numpy(), np.array(pairs.split(), dtype=float), atol=.5 if env != "merge-v0" else .006)


def test_artefacts_are_complete(control):
    for a in results.CONTROL_ARTEFACTS:
        points = a.points(control)
        assert len(points) and not points.attrs["missing"] and not points.attrs["short"], a.name


def test_curves_are_interpolated_and_not_extrapolated():
    steps, rewards = results._interpolate_curve(np.array([4000., 24000.]), np.array([0., 20.]))
    assert steps.tolist() == [10000, 20000] and np.allclose(rewards, [6, 16])


def test_the_middle_ignores_one_lucky_run(control):
    runs = control.runs.copy()
    where = (runs["env"] == "merge-v0") & (runs["method"] == "RR") & (runs["seed"] == 12) & (runs["noise"] == 0)
    before = results._interquartile(control, ("max",), 200).set_index("env").loc["merge", "RR"]
    runs.loc[where, "max"] = 1e6
    after = results._interquartile(control._replace(runs=runs), ("max",), 200).set_index("env").loc["merge", "RR"]
    assert abs(after - before) < .1


class Run:
    "A run as wandb's API returns it."

    def __init__(self, name, state="finished", rows=(), summary=None):
        self.id, self.name, self.state, self.rows, self.summary = f"id{abs(hash(name)) % 1000}", name, state, list(rows), summary or {}

    def scan_history(self, keys=None):
        return iter(self.rows)


def api(*runs):
    asked = []
    return types.SimpleNamespace(runs=lambda path: asked.append(path) or list(runs), asked=asked)


POLICY = "RL_ppo_merge-v0_1789_comparative_1789_noise_0.5_nfeedback_5000_rt1.0"


def test_a_project_is_collected_into_the_published_shape(tmp_path):
    rows = [{"global_step": 8192, "reward": 7.5}, {"global_step": 4096, "reward": 6.5}, {"global_step": 4096, "loss": .1}, {"global_step": 12288, "reward": None}]
    project = api(Run(POLICY, rows=rows), Run(POLICY.removeprefix("RL_"), summary={"val_accuracy": .86}),
                  Run(POLICY.replace("_rt1.0", "").removeprefix("RL_"), rows=[{"val_accuracy": .7}, {"val_accuracy": .8}]),
                  Run("RL_ppo_merge-v0_1_comparative_2_nfeedback_5000"), Run("notes"), Run(POLICY.replace("1789", "12"), state="failed"),
                  Run(POLICY.replace("1789", "330"), rows=[{"loss": 1.0}]), Run(POLICY, rows=rows))
    found = results._fetch_control_runs("someone/control", project)
    assert project.asked == ["someone/control"]
    assert list(found.runs) == results._CONTROL_COLUMNS and list(found.reward_models) == results._MODEL_COLUMNS
    run = found.runs.iloc[0]
    assert (run["env"], run["noise"], run["is_rt"], run["seed"]) == ("merge-v0", .5, True, 1789)
    assert json.loads(run["global_step_history"]) == [4096, 8192] and json.loads(run["reward_history"]) == [6.5, 7.5]
    assert found.reward_models["val_accuracy"].tolist() == [.8, .86]
    assert {k: len(v) for k, v in found.skipped.items()} == {"name": 2, "not finished": 1, "nothing logged": 1, "repeated": 1}
    found.runs.to_csv(tmp_path / "runs.csv", index=False)
    found.reward_models.to_csv(tmp_path / "reward_models.csv", index=False)
    assert len(results.read_control(tmp_path).runs) == 1


def test_an_empty_project_gives_empty_tables():
    found = results._fetch_control_runs("someone/control", api())
    assert len(found.runs) == len(found.reward_models) == 0 and found.skipped == {}


def test_collecting_again_replaces_and_keeps(tmp_path):
    first = api(Run(POLICY, rows=[{"global_step": 4096, "reward": 1.0}]))
    assert results.collect_control_runs("me/control", tmp_path, first) == [f"{tmp_path / 'runs.csv'}: 1 new, 0 replaced, 0 kept", f"{tmp_path / 'reward_models.csv'}: 0 new, 0 replaced, 0 kept"]
    more = api(Run(POLICY.replace("1789", "12"), rows=[{"global_step": 4096, "reward": 3.0}]), Run("notes"))
    assert results.collect_control_runs("me/control", tmp_path, more) == [f"{tmp_path / 'runs.csv'}: 1 new, 0 replaced, 1 kept", f"{tmp_path / 'reward_models.csv'}: 0 new, 0 replaced, 0 kept",
                                                                 "skipped, name: 1 (notes)"]
    assert list(pd.read_csv(tmp_path / "runs.csv")) == results._CONTROL_COLUMNS and results.read_control(tmp_path).runs["max"].tolist() == [3, 1]
    with pytest.raises(UserError, match="no finished control run.*skipped, name: 1"):
        results.collect_control_runs("me/control", tmp_path, api(Run("notes")))
    table = pd.read_csv(tmp_path / "runs.csv")
    table.assign(run_name="another").to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(UserError, match="has another run of the same.*collect into another folder"):
        results.collect_control_runs("me/control", tmp_path, first)
    table.drop(columns="seed").to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(UserError, match="column seed is missing"):
        results.collect_control_runs("me/control", tmp_path, first)
