"""Contract 4 between ranks: nobody ever draws a sample that is half overwritten, while all write at full speed.

With --whole 2,000,000 samples of 12 KiB and 200,000 of 588 KiB are drawn from other ranks, over each transport. That
torn samples would be seen is shown where the versions can be frozen: cpp_loader/src/network_test.cc, shard_test.cc.
"""

import json
from pathlib import Path

import launch
import pytest

from reprise import cpp_loader

WORKER = Path(__file__).with_name("torn_worker.py")
RANKS = 3


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("transport", ["shm", "ucx"])
@pytest.mark.parametrize(("kilobytes", "reads"), [(12, 2_000_000), (588, 200_000)])
def test_samples_of_other_ranks_are_whole_while_these_overwrite_them(tmp_path, transport, kilobytes, reads, repeats):
    if transport == "ucx" and cpp_loader.why_no_network():
        pytest.skip(cpp_loader.why_no_network())
    wanted = reads // 100 * repeats(100)
    finished = launch.run(
        "torchrun",
        RANKS,
        [WORKER, tmp_path, transport, kilobytes * 128, wanted],
        env={"REPRISE_TIMEOUT": "120", "OMP_NUM_THREADS": "1"},
        timeout=1700,
    )
    assert finished.returncode == 0, finished.output[-4000:]
    total = json.loads((tmp_path / "total.json").read_text())
    assert total["remote"] >= wanted
    assert total["torn"] == 0
