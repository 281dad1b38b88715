"""runtime/dist between real processes, under every launcher there is here. Jobs start once; many tests read each."""

import json
import os
import re
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import launch

WORKER = Path(__file__).with_name("dist_worker.py")
CHECKS = re.findall(r"^def (check_\w+)", WORKER.read_text(), flags=re.MULTILINE)
JOBS = [("python", 1), *((name, np) for name in ("horovodrun", "mpirun", "torchrun") for np in (2, 4))]
ENGINES = {"horovodrun": "horovod", "mpirun": "horovod", "torchrun": "torch", "python": "solo"}

pytestmark = pytest.mark.timeout(400)


@cache
def _results(launcher: str, np: int, mode: str = "checks") -> list[dict[str, str]]:
    """What every rank wrote, by rank."""
    with TemporaryDirectory() as folder:
        finished = launch.run(launcher, np, [WORKER, folder, mode], timeout=150)
        results = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    assert len(results) == np, finished.output
    failed = {name: text for result in results for name, text in result.items() if name in CHECKS and text != "ok"}
    assert finished.returncode == (1 if failed else 0), finished.output
    return results


def _fail(launcher: str, np: int, mode: str, folder: Path, **env: str) -> launch.Finished:
    if launcher not in launch.available():
        pytest.skip(f"no {launcher} here")
    return launch.run(launcher, np, [WORKER, folder, mode], env=env, timeout=90)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("launcher", "np"), JOBS)
def test_check_passes_on_every_rank(launcher: str, np: int, check: str) -> None:
    """rehearsal.md 6.1-13 (running statistics are broadcast), 6.1-17 (passes of one step), and the rest by name."""
    if launcher not in launch.available():
        pytest.skip(f"no {launcher} here")
    for result in _results(launcher, np):
        assert result.get(check, "not reached: an earlier check failed") == "ok", result.get(check)


@pytest.mark.parametrize(("launcher", "np"), JOBS)
def test_engine_follows_from_the_launcher(launcher: str, np: int) -> None:
    if launcher not in launch.available():
        pytest.skip(f"no {launcher} here")
    for result in _results(launcher, np):
        assert (result["launcher"], result["name"]) == (launcher, ENGINES[launcher])


@pytest.mark.parametrize("launcher", ["horovodrun", "mpirun", "torchrun"])
def test_averaged_gradients_have_the_same_bits_in_every_run(launcher: str) -> None:
    if launcher not in launch.available():
        pytest.skip(f"no {launcher} here")
    results = [*_results(launcher, 4), *_results(launcher, 4, "bits")]
    assert len(results) == 8
    assert len({result["bits"] for result in results}) == 1


@pytest.mark.parametrize("mode", ["dead", "dead_backward"])
@pytest.mark.parametrize("launcher", ["horovodrun", "mpirun", "torchrun", "python"])
def test_a_killed_rank_ends_the_others_and_is_named(launcher: str, mode: str, tmp_path: Path) -> None:
    """Launchers end the survivors too, some before these can speak; then the launcher's own words name the rank."""
    finished = _fail(launcher, 3, mode, tmp_path)
    assert finished.returncode != 0
    by_launcher = {
        "horovodrun": r"Process 2 exit with status code 137|Process name: 2\b",
        "mpirun": r"rank 2 with PID",
        "torchrun": r"rank +: 2 ",
        "python": r"(?!)",
    }
    said = [path.read_text() for path in tmp_path.glob("*.txt")]
    assert re.search(by_launcher[launcher], finished.output) or any("rank 2 (" in line for line in said)
    for line in said:
        assert re.match(r"rank [01] of 3 \(.+:\d+\): .+ failed, another process is gone: .*rank 2 \(.+:\d+\)", line)
        assert "\n" not in line
    if launcher == "python":  # nobody else ends these: both must have spoken by themselves
        assert len(said) == 2


@pytest.mark.parametrize("launcher", ["horovodrun", "mpirun", "torchrun", "python"])
def test_a_rank_that_leaves_does_not_leave_the_others_hanging(launcher: str, tmp_path: Path) -> None:
    """The others catch PeerLost and end the ordinary way, through the interpreter's end."""
    finished = _fail(launcher, 3, "exits", tmp_path)
    assert finished.returncode != 0
    for path in tmp_path.glob("*.txt"):
        assert "allreduce 'alone' failed" in path.read_text()


@pytest.mark.parametrize("launcher", ["horovodrun", "mpirun", "torchrun"])
def test_a_rank_that_never_joins_is_reported_by_those_that_wait(launcher: str, tmp_path: Path) -> None:
    finished = _fail(launcher, 2, "stuck", tmp_path, REPRISE_TIMEOUT="2")
    lines = [line for line in finished.output.splitlines() if "allreduce 'never'" in line]
    assert len(lines) == 1
    assert re.search(r"rank 0 of 2 on \S+: allreduce 'never' has waited \d+ s .* limit 2 s .*exit code 75", lines[0])
    assert re.search(r"75", finished.output.replace(lines[0], "")) or finished.returncode == 75


@pytest.mark.parametrize("launcher", ["horovodrun", "mpirun", "torchrun"])
def test_a_rank_that_stands_still_for_a_while_is_waited_for(
    launcher: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Gloo alone would give a rank up after 30 s, whatever the limit that the user set."""
    if not request.config.getoption("--whole"):
        pytest.skip("takes 35 s for each launcher: with --whole")
    finished = _fail(launcher, 2, "frozen", tmp_path, REPRISE_TIMEOUT="90")
    assert finished.returncode == 0, finished.output
    assert [path.read_text() for path in tmp_path.glob("*.txt")] == ["went on"] * 2


def test_a_port_in_use_is_one_line_naming_it(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        finished = launch.run("python", 1, [WORKER, tmp_path, "checks"], env=env, timeout=60)
    assert finished.returncode == 2
    assert re.search(rf"rank 0 of 2 cannot meet the others at .*127\.0\.0\.1:{port}.*free port", finished.stderr)
    assert "Traceback" not in finished.stderr


def test_a_meeting_that_nobody_else_comes_to_ends_in_time(tmp_path: Path) -> None:
    port = str(launch.free_port())
    env = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "REPRISE_TIMEOUT": "3"}
    finished = launch.run("python", 1, [WORKER, tmp_path, "checks"], env=env, timeout=60)
    assert finished.returncode == 2
    assert f"127.0.0.1:{port}" in finished.stderr
    assert "REPRISE_TIMEOUT" in finished.stderr


def test_an_mpi_job_whose_horovod_sees_one_rank_is_refused(tmp_path: Path) -> None:
    """Horovod built without this MPI would train N separate models, each on everything, and say nothing."""
    if "horovodrun" not in launch.available():
        pytest.skip("no Horovod here")
    env = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "HOROVOD_CONTROLLER": "gloo"}
    env["HOROVOD_CPU_OPERATIONS"] = "gloo"
    finished = launch.run("python", 1, [WORKER, tmp_path, "checks"], env=env, timeout=60)
    assert finished.returncode == 2
    assert "mpirun started 2 processes but Horovod sees 1" in finished.stderr


def test_a_hang_fails_with_the_stacks_of_its_processes(tmp_path: Path) -> None:
    script = tmp_path / "hang.py"
    script.write_text("import time\ndef asleep_for_ever():\n    time.sleep(600)\nasleep_for_ever()\n")
    with pytest.raises(launch.JobTimeoutError, match="asleep_for_ever"):
        launch.run("torchrun" if os.name == "posix" else "python", 2, [script], timeout=8)
