"""A buffer saved by some number of processes and restored by another: nothing is lost, and the stream goes on."""

import json
from itertools import chain
from pathlib import Path

import launch
import pytest

WORKER = Path(__file__).with_name("reshard_worker.py")
POLICIES = ("class_balanced", "reservoir", "fifo")


def launcher():
    return next(name for name in ("torchrun", "horovodrun", "mpirun") if name in launch.available())


def stage(folder, num_ranks, first, last, implementation):
    """Continue (or begin) the stream with samples first .. last - 1 on `num_ranks` ranks; their report, by policy."""
    name = launcher() if num_ranks > 1 else "python"
    finished = launch.run(
        name,
        num_ranks,
        [WORKER, folder, first, last, implementation],
        env={"REPRISE_TIMEOUT": "60", "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert finished.returncode == 0, finished.output[-4000:]
    return json.loads((folder / "report.json").read_text())


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("sizes", "implementations"),
    [
        ((2, 4, 1), ("standard", "standard", "standard")),
        ((4, 2, 1), ("python", "standard", "python")),
        ((3, 2), ("standard", "python")),
    ],
)
def test_contents_survive_other_numbers_of_ranks_and_the_stream_goes_on(tmp_path, sizes, implementations):
    """anchors.md C.4b. What one implementation saved another reads.

    The worker checks each sample's fields; here the whole is put together.
    """
    per_stage, capacity = 120, 48
    previous = None
    for index, (num_ranks, implementation) in enumerate(zip(sizes, implementations, strict=True)):
        first = index * per_stage
        report = stage(tmp_path, num_ranks, first, first + per_stage, implementation)
        for policy in POLICIES:
            got = report[policy]
            if previous is not None:
                before = sorted(chain(*previous[policy]["stored"]))
                assert sorted(chain(*got["restored"])) == before
                sizes_per_rank = [len(ids) for ids in got["restored"]]
                assert max(sizes_per_rank) - min(sizes_per_rank) <= 1
                assert sum(got["seen_at_start"]) == first
            stored = list(chain(*got["stored"]))
            assert len(set(stored)) == len(stored) == capacity
            assert sum(got["seen"]) == first + per_stage
            assert got["drawn_everything"] == [sorted(stored)] * num_ranks
        newest = range(first + per_stage - capacity, first + per_stage)
        assert sorted(chain(*report["fifo"]["stored"])) == list(newest)
        for counts in report["class_balanced"]["class_counts"]:
            # The odd slots of several ranks may meet on one of the new ranks, and a class that had to give up samples
            # cannot grow again without favouring the new ones.
            assert max(counts) - min(counts) <= (1 if previous is None else 2)
            assert len(counts) == 3
        previous = report
