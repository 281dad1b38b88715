"""One contract suite for every implementation of the buffer and any number of processes.

Solo: `pytest tests/contract`. On several: the same under a launcher (tests/parallel/test_contract.py does that). Every
test is written against `dist.current()` and runs on all ranks in step, so a rank that fails ends the whole job at once:
the others would wait for it in the next collective.

An implementation that cannot draw from other ranks is tested with scope "local" there: `reach` says whose samples a
draw may hold, and tests of what only draws from all ranks can show say so with `global_draws`.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from reprise.buffer import Field, RehearsalBuffer
from reprise.buffer.rehearsal import IMPLEMENTATIONS
from reprise.runtime import dist
from reprise.runtime.dist import Communicator

ID_ONLY = {"id": Field((), torch.int64)}


def _scopes() -> dict[str, str]:
    """Implementations that really run here, with the widest scope they do; the others would only repeat "python"."""
    running: dict[str, str] = {}
    for name in IMPLEMENTATIONS:
        for scope in ("global", "local"):
            arguments = {"fields": ID_ONLY, "capacity": dist.current().size, "scope": scope}
            with RehearsalBuffer(**arguments, implementation=name) as buffer:
                if buffer.implementation == name:
                    running.setdefault(name, scope)
    return running


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "implementation" in metafunc.fixturenames:
        metafunc.parametrize("implementation", _scopes(), scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.failed and dist.current().size > 1:
        sys.__stderr__.write(f"rank {dist.current().rank}: {item.nodeid} failed\n{report.longreprtext}\n")
        dist.current().abort(1)
    return report


@pytest.fixture(scope="session")
def comm() -> Communicator:
    return dist.init()


@pytest.fixture(scope="session")
def scopes() -> dict[str, str]:
    return _scopes()


@pytest.fixture
def scope(implementation: str, scopes: dict[str, str]) -> str:
    return scopes[implementation]


@pytest.fixture
def reach(scope: str, comm: Communicator) -> list[int]:
    """Ranks whose samples a draw of this implementation may hold here."""
    return list(range(comm.size)) if scope == "global" else [comm.rank]


@pytest.fixture
def global_draws(reach: list[int], comm: Communicator) -> None:
    if len(reach) < comm.size:
        pytest.skip("this implementation draws from its own rank only")


@pytest.fixture
def make(implementation: str, scope: str) -> Iterator[Callable[..., RehearsalBuffer]]:
    """Builds buffers of one int64 field "id", capacity 64 per rank, one draw of 8; closes them after the test."""
    built: list[RehearsalBuffer] = []

    def build(**changes) -> RehearsalBuffer:
        size = changes["dist"].size if "dist" in changes else dist.current().size
        standard = {"fields": ID_ONLY, "capacity": 64 * size, "draws": (8,), "deterministic": True, "scope": scope}
        buffer = RehearsalBuffer(implementation=implementation, **{**standard, **changes})
        built.append(buffer)
        if buffer.implementation != implementation:
            pytest.skip(f"runs as '{buffer.implementation}' with {changes}")
        return buffer

    yield build
    for buffer in built:
        buffer.close()


@pytest.fixture
def restore(implementation: str, scope: str) -> Callable[..., RehearsalBuffer]:
    def read(folder: Path, **arguments) -> RehearsalBuffer:
        return RehearsalBuffer.restore(folder, **{"implementation": implementation, "scope": scope, **arguments})

    return read


@pytest.fixture
def folder(comm: Communicator) -> Iterator[Path]:
    """An empty folder that all ranks share, removed when all have finished."""
    path = Path(comm.broadcast_object(tempfile.mkdtemp(prefix="contract-") if comm.rank == 0 else ""))
    yield path
    comm.barrier()
    if comm.rank == 0:
        shutil.rmtree(path)
