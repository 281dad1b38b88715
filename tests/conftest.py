"""For all tests: which folder a test lies in is its marker (`pytest -m parallel`), and the usual environment."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDERS = ("unit", "contract", "parallel", "integration")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="every combination and all repetitions; takes hours")


def pytest_configure(config: pytest.Config) -> None:
    for name in FOLDERS:
        config.addinivalue_line("markers", f"{name}: a test of tests/{name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = Path(item.path).relative_to(Path(__file__).parent).parts[0]
        if folder in FOLDERS:
            item.add_marker(folder)


@pytest.fixture
def repeats(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How often to do what --whole does so many times."""
    return lambda times: times if request.config.getoption("--whole") else 1


@pytest.fixture(autouse=True, scope="module")
def _communicates_anew(request: pytest.FixtureRequest) -> None:
    """The first init() of a process decides for all; no module is to find what another one left open.

    The contract's modules share one, because their ranks start together.
    """
    dist = sys.modules.get("reprise.runtime.dist")
    if dist is not None and request.path.parent.name != "contract" and dist.is_initialized():
        dist.current().shutdown()
