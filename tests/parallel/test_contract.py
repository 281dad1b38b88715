"""The contract suite on several processes: the very tests of tests/contract, in step on every rank."""

from pathlib import Path

import launch
import pytest

SUITE = Path(__file__).parents[1] / "contract"
# The engine draws from its own rank's share, so it behaves alike under all launchers: two of them will do.
EVERY_IMPLEMENTATION = (("horovodrun", 2), ("torchrun", 4))


@pytest.mark.timeout(330)
@pytest.mark.parametrize(
    ("launcher", "num_ranks"), [("horovodrun", 2), ("horovodrun", 4), ("mpirun", 2), ("torchrun", 2), ("torchrun", 4)]
)
def test_the_contract_holds_on_several_ranks(launcher, num_ranks):
    if launcher not in launch.available():
        pytest.skip(f"{launcher} is not installed")
    chosen = [] if (launcher, num_ranks) in EVERY_IMPLEMENTATION else ["-k", "not standard and not flyweight"]
    finished = launch.run(
        launcher,
        num_ranks,
        ["-m", "pytest", SUITE, *chosen, "-x", "-q", "-p", "no:cacheprovider", "--timeout", "120"],
        env={"REPRISE_TIMEOUT": "60", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert finished.returncode == 0, finished.output[-6000:]
    assert finished.stdout.count(" passed") == num_ranks
