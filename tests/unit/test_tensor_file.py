"""What runtime/tensor_file.py writes reads back, has the digest that was returned, and does not fill the page cache."""

import os

import pytest
import torch

from reprise.runtime import tensor_file
from reprise.runtime.files import sha256


@pytest.fixture
def state():
    """Larger than a piece, of a size that is no multiple of it, and with small tensors on either side."""
    values = torch.arange(3 * tensor_file._PIECE // 4 + 1000, dtype=torch.int32)
    return {"before": torch.ones(3), "values": values, "half": values[:5].bfloat16(), "after": {"step": 7}}


def test_it_reads_back_and_its_digest_is_that_of_the_file(tmp_path, state):
    digest = tensor_file.save(tmp_path / "state.pt", state)
    assert digest == sha256(tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(read["values"], state["values"])
    assert torch.equal(read["half"], state["half"])
    assert read["after"] == {"step": 7}


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice about its page cache")
def test_it_tells_the_system_to_forget_every_piece_but_the_last_ones(tmp_path, state, monkeypatch):
    asked = []
    monkeypatch.setattr(tensor_file, "_PIECE", 1 << 20)
    monkeypatch.setattr(tensor_file, "_BEHIND", 2)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, first, length, advice: asked.append((first, length, advice)))
    tensor_file.save(tmp_path / "state.pt", state)
    pieces = (tmp_path / "state.pt").stat().st_size >> 20
    forget = os.POSIX_FADV_DONTNEED
    assert sorted(asked) == sorted((k << 20, 1 << 20, forget) for k in [*range(pieces), *range(pieces - 2)])
