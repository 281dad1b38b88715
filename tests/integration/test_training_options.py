"""Options that change how a step is computed and not what is learnt, on the handwritten digits, in this process."""

import pytest
import torch
from runs import FIVE_TASKS, run, summary, weights

from reprise.train import parts

ONE_TASK = ["--epochs", "1", "--batch-size", "100"]
RESNET = ["--backbone", "test_resnet", *ONE_TASK, "--training-only"]
MEMORY = ["--buffer-config", "deterministic=true", "num_candidates=32", "num_representatives=32"]


def agree(folder, other, tolerance):
    first, second = weights(folder), weights(other)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=tolerance, msg=name)


@pytest.fixture
def networks(monkeypatch):
    """The networks that the runs of a test have built."""
    build, built = parts.make_network, []

    def watched(*arguments):
        built.append(build(*arguments))
        return built[-1]

    monkeypatch.setattr(parts, "make_network", watched)
    return built


def test_channels_last_lays_images_out_otherwise_and_learns_the_same(tmp_path, networks):
    plain = run(tmp_path, "plain", *RESNET)
    other = run(tmp_path, "other", *RESNET, "--channels-last")
    layouts = [
        [p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.ndim == 4]
        for network in networks
    ]
    assert not all(layouts[0])
    assert all(layouts[1])
    agree(plain, other, 1e-4)


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of its own parts
def test_a_compiled_network_learns_the_same(tmp_path, networks):
    """With batches of two sizes, and evaluated."""
    er = [*ONE_TASK, "--model", "Er", *MEMORY]
    plain = run(tmp_path, "plain", *er)
    torch._dynamo.utils.counters.clear()
    try:
        other = run(tmp_path, "other", *er, "--compile")
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1, "one is that of the trial"
    finally:
        torch._dynamo.reset()
    agree(plain, other, 1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_learns_and_saves_its_loss_scale(tmp_path, dtype):
    arguments = ["--epochs", "2", "--model", "Er", *MEMORY, "--use-amp", "--amp-dtype", dtype]
    folder = run(tmp_path, "run", *arguments)
    assert summary(folder)["average_accuracy"] > 0.7
    saved = torch.load(folder / "checkpoints" / "task_00" / "model.pt", weights_only=True)
    assert bool(saved["stepper"]["scaler"]) == (dtype == "float16")


def test_two_batches_per_allreduce_train_what_one_batch_of_both_trains(tmp_path):
    """rehearsal.md 6.1-17: the reference takes a step per sub-batch. The rate is scaled by the batches of a step.

    Every strategy, on two ranks: parallel/test_strategies.py.
    """
    job = [*FIVE_TASKS, "--epochs", "1", "--model", "Derpp", *MEMORY]
    two = run(tmp_path, "two", *job, "--batch-size", "16", "--batches-per-allreduce", "2", "--lr", "0.02")
    one = run(tmp_path, "one", *job, "--batch-size", "32", "--lr", "0.04")
    agree(two, one, 1e-5)
    assert not torch.equal(weights(two)["1.weight"], weights(two, 4)["1.weight"])


def test_outputs_stored_in_16_bits_are_learnt_from_and_take_less(tmp_path):
    two_tasks = ["--tasksets-config", "increment=5", "--epochs", "3"]
    job = [*two_tasks, "--model", "Derpp", *MEMORY, "--buffer-config"]
    ways = {"float32": [], "float16": [], "bfloat16": ["--use-amp"]}
    results = {dtype: summary(run(tmp_path, dtype, *job, f"logits_dtype={dtype}", *ways[dtype])) for dtype in ways}
    assert min(result["average_accuracy"] for result in results.values()) > 0.6
    wide, *narrow = (result["buffer_bytes_per_rank"] for result in results.values())
    assert max(narrow) < wide
