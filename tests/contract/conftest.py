"""One contract suite for every implementation of the buffer and any number of processes.

Solo: `pytest tests/contract`. On several: the same under a launcher (tests/parallel/test_contract.py does that). Every
test is written against `dist.current()` and runs on all ranks in step, so a rank that fails ends the whole job at once:
the others would wait for it in the next collective.

CONTRACT_TRANSPORT=shm|ucx|collectives says how ranks are to read each other's samples; only implementations that can
do so are then tested. Without it "auto" is. CONTRACT_IMPLEMENTATION=standard|flyweight|python leaves one of them.
"""

import os
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


TRANSPORT = os.environ.get("CONTRACT_TRANSPORT", "auto")


def transport(implementation: str) -> str:
    """What to ask for with this implementation."""
    return "auto" if implementation == "python" else TRANSPORT


def asked() -> list[str]:
    """Implementations that can read other ranks' samples in the way that is to be tested."""
    able = {"auto": list(IMPLEMENTATIONS), "collectives": ["python"]}.get(TRANSPORT, ["standard", "flyweight"])
    return [name for name in able if name == os.environ.get("CONTRACT_IMPLEMENTATION", name)]


def _implementations() -> list[str]:
    """Those that really run here; the others would only repeat "python"."""
    running = []
    for name in asked():
        arguments = {"fields": ID_ONLY, "capacity": dist.current().size, "transport": transport(name)}
        with RehearsalBuffer(**arguments, implementation=name) as buffer:
            if buffer.implementation == name:
                running.append(name)
    return running


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "implementation" in metafunc.fixturenames:
        metafunc.parametrize("implementation", _implementations(), scope="session")


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
def implementations() -> list[str]:
    return _implementations()


@pytest.fixture(scope="session", name="asked")
def asked_fixture() -> list[str]:
    return asked()


@pytest.fixture(scope="session")
def transport_of() -> Callable[[str], str]:
    return transport


@pytest.fixture
def make(implementation: str) -> Iterator[Callable[..., RehearsalBuffer]]:
    """Builds buffers of one int64 field "id", capacity 64 per rank, one draw of 8; closes them after the test."""
    built: list[RehearsalBuffer] = []

    def build(**changes) -> RehearsalBuffer:
        size = changes["dist"].size if "dist" in changes else dist.current().size
        standard = {"fields": ID_ONLY, "capacity": 64 * size, "draws": (8,), "deterministic": True}
        how = {"implementation": implementation, "transport": transport(implementation)}
        buffer = RehearsalBuffer(**{**standard, **how, **changes})
        built.append(buffer)
        if buffer.implementation != implementation:
            pytest.skip(f"runs as '{buffer.implementation}' with {changes}")
        return buffer

    yield build
    for buffer in built:
        buffer.close()


@pytest.fixture
def restore(implementation: str) -> Callable[..., RehearsalBuffer]:
    def read(folder: Path, **arguments) -> RehearsalBuffer:
        how = {"implementation": implementation, "transport": transport(implementation)}
        return RehearsalBuffer.restore(folder, **{**how, **arguments})

    return read


@pytest.fixture
def folder(comm: Communicator) -> Iterator[Path]:
    """An empty folder that all ranks share, removed when all have finished."""
    path = Path(comm.broadcast_object(tempfile.mkdtemp(prefix="contract-") if comm.rank == 0 else ""))
    yield path
    comm.barrier()
    if comm.rank == 0:
        shutil.rmtree(path)
