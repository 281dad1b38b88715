"""Contract 8: a process killed in mid-loop is reported once, and the others go on with what is left, without a hang."""

import json
from pathlib import Path

import launch
import pytest

WORKER = Path(__file__).with_name("dead_peer_worker.py")
RANKS = 3
VICTIM = 1


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("launcher", "how"),
    [
        ("python", ("python", "collectives", False)),
        ("torchrun", ("python", "collectives", False)),
        ("horovodrun", ("python", "collectives", False)),
        ("mpirun", ("standard", "shm", False)),
        ("python", ("standard", "shm", False)),
        ("python", ("standard", "shm", True)),
    ],
)
def test_the_others_report_a_killed_rank_once_and_go_on_or_end_cleanly(tmp_path, launcher, how):
    """ "python" has no launcher above the ranks that would end them, so there they must go on by themselves."""
    if launcher not in launch.available():
        pytest.skip(f"{launcher} is not installed")
    finished = launch.run(
        launcher,
        RANKS,
        [WORKER, tmp_path, VICTIM, *how],
        env={"REPRISE_TIMEOUT": "30", "OMP_NUM_THREADS": "1"},
        timeout=150,
    )
    survivors = [rank for rank in range(RANKS) if rank != VICTIM]
    reports = {rank: tmp_path / f"rank-{rank}.json" for rank in survivors}
    assert not (tmp_path / f"rank-{VICTIM}.json").exists()
    assert finished.returncode != 0
    if launcher == "python":
        assert all(path.is_file() for path in reports.values()), finished.output[-4000:]
    for rank, path in reports.items():
        if not path.is_file():
            continue  # the launcher has ended it
        report = json.loads(path.read_text())
        assert len(report["errors"]) == 1, report
        assert f"rank {VICTIM} (" in report["errors"][0]
        assert report["ranks_before"] == list(range(RANKS))
        # Collectives do not survive the loss of a rank; memory that is read directly does.
        alone = how[1] == "collectives"
        assert ("drawing from this rank's own" in report["errors"][0]) == alone
        assert report["ranks_after"] == ([rank] if alone else survivors)
        assert report["draw_sizes_after"] == [4]
