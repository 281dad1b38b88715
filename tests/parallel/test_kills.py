"""Contract 8, over and over: ranks are killed at random moments, and every other one reports each of them once.

The others go on drawing whole samples from whoever is left, down to the last. Nobody waits for a dead rank for long.
"""

import json
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import launch
import pytest

from reprise import cpp_loader

WORKER = Path(__file__).with_name("kill_worker.py")
RANKS = 5
NOTICED_S = 10.0


def wait_for(condition, limit_s, what, processes):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, what
        for process in processes:
            assert process.poll() is None, f"{what}: a rank has ended with code {process.returncode}"
        time.sleep(0.02)


def lost(folder, rank):
    path = folder / f"rank-{rank}.lost"
    return (
        [int(re.search(r"rank (\d+) \(", line)[1]) for line in path.read_text().splitlines()] if path.exists() else []
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("transport", "deterministic"), [("shm", False), ("shm", True), ("ucx", False), ("ucx", True)])
def test_killed_ranks_are_reported_once_by_all_others_who_go_on(tmp_path, transport, deterministic, repeats):
    if transport == "ucx" and cpp_loader.why_no_network():
        pytest.skip(cpp_loader.why_no_network())
    for repeat in range(repeats(6)):
        folder = tmp_path / str(repeat)
        folder.mkdir()
        kill_all_but_one(folder, transport, deterministic, random.Random(repeat))


def kill_all_but_one(folder, transport, deterministic, moments):
    command = [sys.executable, str(WORKER), str(folder), transport, str(deterministic)]
    environment = launch.worker_environment({"REPRISE_TIMEOUT": "60", "OMP_NUM_THREADS": "1"})
    with tempfile.TemporaryFile("w+") as output:
        processes = launch.by_hand(RANKS, command, environment, output, output)
        try:
            alive = dict(enumerate(processes))
            wait_for(lambda: len(list(folder.glob("*.ready"))) == RANKS, 60, "not all ranks draw", alive.values())
            dead = []
            while len(alive) > 1:
                time.sleep(moments.uniform(0, 0.3))
                victim = moments.choice(list(alive))
                alive.pop(victim).send_signal(signal.SIGKILL)
                dead.append(victim)
                wait_for(
                    lambda: all(set(lost(folder, rank)) >= set(dead) for rank in alive),
                    NOTICED_S,
                    f"not all of {sorted(alive)} have noticed that {dead} were killed",
                    alive.values(),
                )
            (survivor,) = alive
            (folder / "stop").touch()
            assert alive[survivor].wait(30) == 0
        except BaseException:
            output.seek(0)
            print(output.read()[-4000:])
            raise
        finally:
            for process in processes:
                process.kill()
                process.wait()
    for rank in range(RANKS):
        reported = lost(folder, rank)
        assert len(reported) == len(set(reported)), f"rank {rank} has reported {reported}"
    assert sorted(lost(folder, survivor)) == sorted(dead)
    result = json.loads((folder / f"rank-{survivor}.json").read_text())
    assert result["torn"] == 0
    assert result["steps"] > 20
    assert result["ranks"] == [survivor]
