"""The policy that docs/policies.md adds: it stores what the page says, and goes on where a saved one stopped."""

import re
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from thread_comm import run_ranks

from reprise import cpp_loader
from reprise.buffer import Field, RehearsalBuffer
from reprise.buffer.policies import POLICIES

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
FIELDS = {"x": Field((), torch.int64)}
SHARE, TOTAL, BATCH = 8, 48, 6
REPLICATES = 800


@pytest.fixture(autouse=True)
def _fading(monkeypatch):
    source = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[0]
    assert len(source.splitlines()) < 40
    monkeypatch.setitem(POLICIES, "fading", None)  # forgotten after the test
    exec(compile(source, str(PAGE), "exec"), {"__name__": "example"})


def described(**changes):
    return {"fields": FIELDS, "capacity": SHARE, "policy": "fading", "implementation": "python", **changes}


def submit(memory, first, until):
    for start in range(first, until, BATCH):
        x = torch.arange(start, start + BATCH)
        memory.submit(x=x, y=x % 3)
        memory.wait()


def stored(memory):
    return memory.state_dict()["engine"]["shard"]["columns"]["x"].tolist()


def p_of_drawing(policy):
    """p of a draw of one from a fresh buffer per replicate, if every sample fades as the page says."""
    counts = np.zeros(TOTAL, dtype=np.int64)
    for seed in range(REPLICATES):
        with RehearsalBuffer(**described(policy=policy, draws=(1,), seed=seed)) as memory:
            submit(memory, 0, TOTAL)
            counts[int(memory.wait()[0]["x"])] += 1
    later = np.minimum(TOTAL - 1 - np.arange(TOTAL), TOTAL - SHARE)  # candidates that took a slot of another sample
    expected = REPLICATES * (1 - 1 / SHARE) ** later / SHARE
    assert expected.sum() == pytest.approx(REPLICATES)
    groups = np.arange(0, TOTAL, 4)
    return float(stats.chisquare(np.add.reduceat(counts, groups), np.add.reduceat(expected, groups)).pvalue)


def test_samples_fade_as_the_page_says():
    assert p_of_drawing("fading") > 0.01


def test_the_statistic_rejects_a_policy_that_does_not_fade():
    assert p_of_drawing("reservoir") < 1e-6


def test_it_goes_on_where_it_was_saved(tmp_path):
    with RehearsalBuffer(**described()) as straight, RehearsalBuffer(**described()) as first:
        submit(straight, 0, TOTAL)
        submit(first, 0, TOTAL // 2)
        first.save(tmp_path)
        with RehearsalBuffer.restore(tmp_path, **described()) as second:
            submit(second, TOTAL // 2, TOTAL)
            assert second.wait()[0]["x"].tolist() == straight.wait()[0]["x"].tolist()


def test_it_goes_on_with_another_number_of_ranks(tmp_path):
    def before(comm):
        with RehearsalBuffer(**described(capacity=2 * SHARE, dist=comm)) as memory:
            submit(memory, comm.rank * TOTAL, (comm.rank + 1) * TOTAL)
            memory.save(tmp_path)
            return stored(memory)

    def after(comm):
        with RehearsalBuffer.restore(tmp_path, **described(capacity=2 * SHARE, dist=comm)) as memory:
            held = stored(memory)
            submit(memory, 1000 * comm.rank, 1000 * comm.rank + TOTAL)
            return held

    saved, restored = run_ranks(2, before), run_ranks(3, after)
    assert [len(held) for held in restored] == [6, 5, 5]
    assert sorted(chain(*saved)) == sorted(chain(*restored))


def test_the_engine_refuses_it_by_name():
    if not cpp_loader.available():
        pytest.skip("the engine is not built")
    with pytest.raises(ValueError, match="policy 'fading' is unknown"):
        RehearsalBuffer(**described(implementation="standard"))
