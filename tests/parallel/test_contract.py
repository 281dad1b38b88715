"""The contract suite on several processes: the very tests of tests/contract, in step on every rank.

Launcher, number of ranks and transport, in every combination with --whole. Otherwise every launcher, every transport
and every implementation once.
"""

import socket
from itertools import product
from pathlib import Path

import launch
import psutil
import pytest

SUITE = Path(__file__).parents[1] / "contract"
LAUNCHERS, SIZES, TRANSPORTS = ("horovodrun", "mpirun", "torchrun"), (2, 4, 8), ("shm", "ucx", "collectives")
ALL = ""  # implementations that the transport allows
# One rank reads nobody else.
WHOLE = [(*case, ALL) for case in (*product(LAUNCHERS, (1,), ("auto",)), *product(LAUNCHERS, SIZES, TRANSPORTS))]
CHOSEN = [
    ("horovodrun", 2, "collectives", "python"),
    ("mpirun", 2, "ucx", "standard"),
    ("torchrun", 4, "shm", "flyweight"),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    whole = metafunc.config.getoption("--whole")
    metafunc.parametrize(("launcher", "num_ranks", "transport", "implementation"), WHOLE if whole else CHOSEN)


@pytest.mark.timeout(2500)
def test_the_contract_holds_on_several_ranks(launcher, num_ranks, transport, implementation):
    if launcher not in launch.available():
        pytest.skip(f"{launcher} is not installed")
    environment = {"REPRISE_TIMEOUT": "120", "OMP_NUM_THREADS": "1", "CONTRACT_TRANSPORT": transport}
    if implementation:
        environment["CONTRACT_IMPLEMENTATION"] = implementation
    if transport == "ucx" and launcher != "torchrun":
        environment["UCX_NET_DEVICES"] = interface()
    finished = launch.run(
        launcher,
        num_ranks,
        ["-m", "pytest", SUITE, "-x", "-q", "-p", "no:cacheprovider", "--timeout", "200"],
        env=environment,
        timeout=2400 if num_ranks > 4 else 900,
    )
    assert finished.returncode == 0, finished.output[-6000:]
    assert finished.stdout.count(" passed") == num_ranks


def interface():
    """One that is not the loopback interface, for the UCX that comes with Open MPI may be one that cannot use it."""
    for name, status in psutil.net_if_stats().items():
        addresses = [one.address for one in psutil.net_if_addrs()[name] if one.family == socket.AF_INET]
        if status.isup and addresses and not addresses[0].startswith("127."):
            return name
    return "lo"
