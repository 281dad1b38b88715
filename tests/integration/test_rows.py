"""The real training loop collates its batches where the buffer wants them: nothing is copied on the way."""

from pathlib import Path

import pytest
import torch

from reprise import cpp_loader
from reprise.buffer import RehearsalBuffer
from reprise.main import main
from reprise.runtime import dist

DIGITS = ["--dataset", "digits", "--backbone", "mlp", "--epochs", "2", "--batch-size", "32", "--warmup-epochs", "0"]
TASKS = ["--tasksets-config", "{'scenario': 'class', 'increment': 5}"]
ER = ["--model", "Er", "--buffer-config", "{'rehearsal_ratio': 30, 'deterministic': True}"]


@pytest.fixture(autouse=True)
def own_communicator() -> None:
    """The run makes its own, as in a process of its own; tests of other folders leave theirs."""
    if dist.is_initialized():
        dist.current().shutdown()


@pytest.mark.parametrize("implementation", ["standard", "flyweight", "python"])
@pytest.mark.parametrize("store", ["raw", "augmented"])
def test_loaded_batches_lie_where_the_buffer_wants_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, implementation: str, store: str
) -> None:
    """Those that are stored augmented are made from the loaded ones, so they lie elsewhere."""
    if implementation != "python" and not cpp_loader.available():
        pytest.skip("no engine; contract/test_same.py says whether it should be")
    augment, sizes, in_place = RehearsalBuffer.augment, [], []

    def watched(self: RehearsalBuffer, **batch: torch.Tensor):
        assert self.implementation == implementation
        pointers = {name: batch[name].data_ptr() for name in ("x", "y")}
        result = augment(self, **batch)
        sizes.append(result.sizes)
        in_place.append(all(result[name].data_ptr() == pointer for name, pointer in pointers.items()))
        return result

    monkeypatch.setattr(RehearsalBuffer, "augment", watched)
    options = ["--buffer-config", f"implementation={implementation}", f"store={store}"]
    assert main([*DIGITS, *TASKS, *ER, *options, "--results-dir", str(tmp_path), "--save-dir", "run"]) == 0
    assert len(sizes) > 60
    assert len({rows for rows, _ in sizes}) > 1, "batches of several sizes"
    assert in_place == [store == "raw"] * len(sizes)
