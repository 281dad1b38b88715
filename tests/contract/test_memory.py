"""Contract 9: the payload is allocated once and lazily, little is added to it, and too much is refused with numbers."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from reprise.buffer import Field, RehearsalBuffer

MIB = 2**20

FILL = """
import sys
import psutil, torch
from reprise.buffer import Field, RehearsalBuffer

capacity, record, steps = map(int, sys.argv[2:])
resident = lambda: psutil.Process().memory_info().rss
warm = RehearsalBuffer(fields={"x": Field((8,), torch.uint8)}, capacity=8, implementation=sys.argv[1])
warm.submit(x=torch.zeros(9, 8, dtype=torch.uint8), y=torch.zeros(9, dtype=torch.int64))
warm.wait(), warm.close()
x = torch.ones(max(1, capacity // max(steps, 1)), record, dtype=torch.uint8)
y = torch.arange(len(x)) % 50
before = resident()
buffer = RehearsalBuffer(
    fields={"x": Field((record,), torch.uint8)}, capacity=capacity, draws=(32,), implementation=sys.argv[1]
)
for _ in range(steps):
    buffer.submit(x=x, y=y)
    buffer.wait()
assert len(buffer) == len(x) * steps
print(buffer.bytes_per_rank, resident() - before)
"""


def grown(implementation, capacity, record, steps):
    """(payload bytes, bytes of resident memory that building and filling a buffer adds), in a fresh process alone."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, implementation, str(capacity), str(record), str(steps)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=alone(),
    )
    assert done.returncode == 0, done.stderr
    payload, resident = map(int, done.stdout.split())
    return payload, resident


def alone():
    """This environment without what a launcher put in."""
    import os

    return {**os.environ, "REPRISE_DIST": "solo", "OMP_NUM_THREADS": "1"}


def only_rank_0(comm):
    if comm.rank != 0:
        pytest.skip("one process is enough")


def test_a_gibibyte_that_is_not_touched_adds_little(comm, implementation):
    only_rank_0(comm)
    payload, resident = grown(implementation, capacity=2**20, record=1008, steps=0)
    assert payload == 2**30
    assert resident < 16 * MIB


@pytest.mark.parametrize(("capacity", "record"), [(48_000, 3072), (200_000, 240)])
def test_a_full_buffer_needs_little_more_than_its_payload(comm, implementation, capacity, record):
    only_rank_0(comm)
    payload, resident = grown(implementation, capacity, record, steps=50)
    assert payload == capacity * (record + 16)
    assert payload * 0.95 < resident < payload * 1.03 + 16 * MIB


def test_more_than_the_node_has_is_refused_with_the_numbers(comm, implementation, monkeypatch):
    fields = {"x": Field((1008,), torch.uint8)}
    per_rank, available = 1000 * 1024, 999 * 1024 * comm.local_size
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    with pytest.raises(ValueError, match="capacity") as caught:
        RehearsalBuffer(fields=fields, capacity=1000 * comm.size, implementation=implementation)
    message = str(caught.value)
    assert "\n" not in message
    for number in ("1024 bytes", f"{per_rank / MIB:.1f} MiB per rank", f"{available / MIB:.0f} MiB available"):
        assert number in message
    with RehearsalBuffer(fields=fields, capacity=999 * comm.size, implementation=implementation) as buffer:
        assert buffer.bytes_per_rank == 999 * 1024


def test_the_bytes_per_rank_are_logged_before_they_are_allocated(comm, implementation, caplog):
    fields = {"x": Field((1008,), torch.uint8)}
    with (
        caplog.at_level(logging.INFO),
        RehearsalBuffer(fields=fields, capacity=2048 * comm.size, implementation=implementation),
    ):
        assert any("2.0 MiB per rank" in record.getMessage() for record in caplog.records)
