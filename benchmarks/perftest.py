"""UCX's own benchmark, ucx_perftest, as the measure of what a transport can do: two processes on this machine.

Found on the PATH or in the libucx wheel. Both spin unless told to sleep, so nothing else should run meanwhile.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from reprise.tests.parallel.launch import free_port

TESTS = ("am_bw", "am_lat", "am_lat_sleep", "get")
"""A stream of active messages, one and its answer, the same with both sides asleep between them, one-sided reads."""

_ARGUMENTS = {
    "am_bw": "-t ucp_am_bw",
    "am_lat": "-t ucp_am_lat",
    "am_lat_sleep": "-t ucp_am_lat -E sleep",
    "get": "-t ucp_get",
}
# µs per message and bytes per µs, so low that a test ends soon where the transport is slow.
_SLOW = {"am_bw": (5.0, 1000.0), "am_lat": (15.0, 1000.0), "am_lat_sleep": (30.0, 1000.0), "get": (300.0, 400.0)}
_LIMIT_S = 30.0
# Rows of `-v`: iterations, then p50, average and overall time in µs.
_P50, _OVERALL = 1, 3


@dataclass(frozen=True)
class Program:
    """Where ucx_perftest is, and its environment."""

    path: str
    environment: dict[str, str]


def find(ucx: dict[str, str]) -> Program | str:
    """The program, to be run with these UCX_ variables; or why there is none."""
    environment = {**os.environ, **ucx}
    if path := shutil.which("ucx_perftest"):
        return _checked(Program(path, environment))
    spec = find_spec("libucx")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        program, libraries = Path(folder) / "bin" / "ucx_perftest", Path(folder) / "lib"
        if program.exists():
            known = environment.get("LD_LIBRARY_PATH")
            environment["LD_LIBRARY_PATH"] = f"{libraries}:{known}" if known else str(libraries)
            return _checked(Program(str(program), environment))
    return "no ucx_perftest on the PATH, nor in the Python package libucx"


def microseconds(program: Program, tests: Sequence[str], num_bytes: int, seconds: float) -> dict[str, float]:
    """Time per message of `num_bytes` in each test of at most about `seconds`, one after the other.

    "am_lat": one way, the median; others: overall. Raises RuntimeError with what the program says when it fails.
    """
    lines = []
    for test in tests:
        fixed, rate = _SLOW[test]
        count = max(int(seconds * 1e6 / (fixed + num_bytes / rate)), 50)
        lines.append(f"{test} {_ARGUMENTS[test]} -s {num_bytes} -n {count} -w {max(count // 10, 5)}")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as batch:
        batch.write("\n".join(lines) + "\n")
        batch.flush()
        rows = _run(program, batch.name)
    missing = [test for test in tests if test not in rows]
    if missing:
        raise RuntimeError(f"ucx_perftest reports nothing for {', '.join(missing)}")
    return {test: rows[test][_P50 if test.startswith("am_lat") else _OVERALL] for test in tests}


def _run(program: Program, batch: str) -> dict[str, list[float]]:
    # Both ends read the same list of tests.
    command = [program.path, "-p", str(free_port()), "-b", batch]
    server = subprocess.Popen(
        command, env=program.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + _LIMIT_S
    client = [program.path, "127.0.0.1", *command[1:], "-f", "-v"]
    try:
        while True:
            done = subprocess.run(client, env=program.environment, capture_output=True, text=True, timeout=_LIMIT_S)
            cells = [line.split(",") for line in done.stdout.splitlines()]
            rows = {name: list(map(float, values)) for name, *values in cells if values and _is_number(values[0])}
            if done.returncode == 0 and rows:
                return rows
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"ucx_perftest fails: {(done.stderr or done.stdout).strip()[-300:]}")
            time.sleep(0.05)  # the server is not listening yet
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"ucx_perftest does not end within {_LIMIT_S:g} s") from error
    finally:
        server.kill()
        server.wait()


def _is_number(text: str) -> bool:
    return text.strip().isdigit()


def _checked(program: Program) -> Program | str:
    done = subprocess.run([program.path, "-h"], env=program.environment, capture_output=True, text=True, timeout=10)
    # Some versions end with an error after their help.
    return program if "ucp_am_lat" in done.stdout + done.stderr else f"{program.path}: {done.stderr.strip()[:200]}"
