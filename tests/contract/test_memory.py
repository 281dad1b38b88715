"""Contract 9: the payload is allocated once and lazily, little is added to it, and too much is refused with numbers."""

import logging
from types import SimpleNamespace

import psutil
import pytest
import torch
from fresh_process import Programs

from reprise.buffer import Field, RehearsalBuffer

MIB = 2**20

MEASURE = """
import sys
import psutil, torch
from reprise.buffer import Field, RehearsalBuffer

implementation, (capacity, record, steps) = sys.argv[1], map(int, sys.argv[2:])
resident = lambda: psutil.Process().memory_info().rss
warm = RehearsalBuffer(fields={"x": Field((8,), torch.uint8)}, capacity=8, implementation=implementation)
warm.submit(x=torch.zeros(9, 8, dtype=torch.uint8), y=torch.zeros(9, dtype=torch.int64))
warm.wait(), warm.close()
x = torch.ones(max(1, capacity // max(steps, 1)), record, dtype=torch.uint8)
y = torch.arange(len(x)) % 50
before = resident()
buffer = RehearsalBuffer(
    fields={"x": Field((record,), torch.uint8)}, capacity=capacity, draws=(32,), implementation=implementation
)
for _ in range(steps):
    buffer.submit(x=x, y=y)
    buffer.wait()
assert len(buffer) == len(x) * steps
print(buffer.bytes_per_rank, resident() - before)
"""


@pytest.fixture(scope="session")
def programs(comm):
    if comm.size > 1:
        pytest.skip("measured in a process of its own: once, and not under every launcher")
    with Programs() as running:
        yield running


@pytest.fixture
def grown(programs, implementation):
    """(payload bytes, bytes of resident memory that building and filling a buffer adds), in a fresh process alone."""

    def measure(capacity, record, steps):
        done = programs.run(MEASURE, implementation, capacity, record, steps)
        assert done.returncode == 0, done.stderr
        payload, resident = map(int, done.stdout.split())
        return payload, resident

    return measure


def test_a_gibibyte_that_is_not_touched_adds_little(grown):
    payload, resident = grown(capacity=2**20, record=1008, steps=0)
    assert payload == 2**30
    assert resident < 16 * MIB


@pytest.mark.parametrize(("capacity", "record"), [(48_000, 3072), (200_000, 240)])
def test_a_full_buffer_needs_little_more_than_its_payload(grown, capacity, record):
    payload, resident = grown(capacity, record, steps=50)
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
