"""Two sweeps over one grid, and runs that somebody else is at."""

from sweeping import SMALL, linux, start, states, words

from responserank.llm.sweep import _Sweep, sweep_grid
from responserank.runs import claim_run


@linux
def test_two_sweeps_share_a_grid(root, sixty_pairs, tmp_path):
    both = [start(root, *words(sixty_pairs, tmp_path, 10, "--workers", "1")) for _ in range(2)]
    said = [p.communicate(timeout=500) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    finished = [line.split()[1] for _, stderr in said for line in stderr.splitlines() if line.startswith("finished ")]
    assert len(finished) == len(set(finished)) == 4 and states(tmp_path) == ["finished"] * 4


def test_what_another_worker_is_at_is_left_to_it(sixty_pairs, tmp_path):
    runs = sweep_grid("bt", "1", "0-1", data=str(sixty_pairs), overrides=SMALL)
    state = _Sweep(runs, tmp_path, 1, print)
    with claim_run(tmp_path / runs.run[0]) as claim:
        assert state.next()["run"] == runs.run[1] and state.elsewhere == [runs.run[0]]
        state.ended(runs.run[0], 0, {}, 1.0)
        assert runs.run[0] not in state.ends
        claim.finish({})


# ---- without a checkout, and without forks --------------------------------------------------------------------------
