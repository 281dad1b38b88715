"""Ptychography: measured scans in their real format without void patterns; a forward model that is what it says."""

import math
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import write_ptycho

from reprise.runtime.errors import UserError
from reprise.scenarios import DATASETS, build, ptycho_synthetic
from reprise.scenarios.ptycho import VOID, held_out_of


def test_patterns_and_targets_are_those_of_the_files_without_the_void_ones(tmp_path: Path) -> None:
    root = write_ptycho(tmp_path)
    raw = DATASETS.get("ptycho")(tmp_path, False)
    assert raw.train.sample_shape == (1, 32, 32)
    assert raw.train.target_shape == (2, 32, 32)
    assert (raw.num_classes, raw.train.labels.unique().tolist()) == (1, [0])
    expected = {}
    for scan in sorted(root.iterdir()):
        psi, patterns = np.load(scan / "patched_psi.npy"), np.load(scan / "cropped_exp_diffr_data.npy")
        for pattern, patch in zip(patterns, psi, strict=True):
            phase = np.arctan2(patch.imag, patch.real)
            if (phase**2).mean() >= VOID:
                expected[pattern.tobytes()] = torch.from_numpy(np.stack([np.hypot(patch.real, patch.imag), phase]))
    assert len(expected) == len(raw.train) + len(raw.test) == 4 * 21
    for part in (raw.train, raw.test):
        x, y = part.gather(torch.arange(len(part)))
        assert (x.dtype, y.dtype) == (torch.float32, torch.float32)
        for pattern, target in zip(x, y, strict=True):
            torch.testing.assert_close(target, expected.pop(pattern.numpy().tobytes()))
    assert not expected


def test_patterns_and_patches_stay_in_their_files(tmp_path: Path) -> None:
    """However many scans there are: looking for void patterns takes a chunk of one, and nothing of it is kept."""
    total = sum(path.stat().st_size for path in write_ptycho(tmp_path, scans=8).rglob("*.npy"))
    write_ptycho(tmp_path / "small", scans=1)
    DATASETS.get("ptycho")(tmp_path / "small", False)  # imports what is imported on the way
    tracemalloc.start()
    try:
        raw = DATASETS.get("ptycho")(tmp_path, False)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < total / 20
    assert peak < total / 4
    assert len(pickle.dumps(raw.train)) < total / 20  # what a loader process is sent


def test_every_scan_holds_out_the_same_tenth_every_time(tmp_path: Path) -> None:
    write_ptycho(tmp_path, num=43)
    first, again = (DATASETS.get("ptycho")(tmp_path, False) for _ in range(2))
    assert torch.bincount(first.scans[1] - 204).tolist() == [4] * 4
    assert torch.bincount(first.scans[0] - 204).tolist() == [36] * 4
    assert torch.equal(first.test.places, again.test.places)
    assert held_out_of(2, 204).sum() == 1
    assert not torch.equal(held_out_of(40, 204), held_out_of(40, 205))


def test_a_batch_comes_in_the_order_asked_for_and_where_it_is_wanted(tmp_path: Path) -> None:
    write_ptycho(tmp_path)
    samples = DATASETS.get("ptycho")(tmp_path, False).train
    order = [40, 3, 70, 3]  # of three scans
    out = torch.empty(4, 1, 32, 32), torch.empty(4, 2, 32, 32)
    x, y = samples.gather(order, out)
    assert x.data_ptr() == out[0].data_ptr()
    for row, index in enumerate(order):
        assert torch.equal(x[row], samples[index][0])
        assert torch.equal(y[row], samples[index][1])


def test_no_scan_is_in_two_tasks_and_tasks_can_be_concatenated(tmp_path: Path) -> None:
    """rehearsal.md 2.4: concatenating ptychography crashes in the reference."""
    write_ptycho(tmp_path, scans=5)
    options = {"scenario": "reconstruction", "num_tasks": 3, "class_order_seed": None, "given": True}
    scenario = build("ptycho", tmp_path, **options)
    scans = [sorted(set(task.train.places[:, 0].tolist())) for task in scenario.tasks]
    assert scans == [[204, 205], [206, 207], [208]]
    assert [sorted(set(task.test.places[:, 0].tolist())) for task in scenario.tasks] == scans
    assert all(task.classes == (0,) for task in scenario.tasks)
    assert (scenario.target_shape, scenario.num_classes) == ((2, 32, 32), 1)
    grown = build("ptycho", tmp_path, concatenate_tasksets=True, **options)
    assert [len(task.train) for task in grown.tasks] == [38, 76, 95]
    for part in range(3):
        expected = torch.cat([task.train.gather(range(len(task.train)))[1] for task in scenario.tasks[: part + 1]])
        assert torch.equal(grown.tasks[part].train.gather(range(len(expected)))[1], expected)
    (whole,) = build("ptycho", tmp_path, class_order_seed=None, given=False).tasks
    assert len(whole.train) == 95


def fails(folder: Path, *words: str, **options: object) -> None:
    arguments = {"scenario": "reconstruction", "class_order_seed": None, "given": True, **options}
    with pytest.raises(UserError) as caught:
        build("ptycho", folder, **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_scans_that_cannot_be_right_are_named(tmp_path: Path) -> None:
    fails(tmp_path, "ptycho", "lacks train", "--download cannot")
    write_ptycho(tmp_path, scans=2)
    fails(tmp_path, "num_tasks 3", "2 scans", "at most 2", num_tasks=3)
    fails(tmp_path, "scenario 'class'", "ptycho", "use scenario 'reconstruction'", scenario="class")
    with pytest.raises(UserError, match="'reconstruction' does not go with data set 'digits'"):
        build("digits", tmp_path, scenario="reconstruction", class_order_seed=None, given=True)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("patched_psi.npy", None, ["lacks patched_psi.npy"]),
        ("patched_psi.npy", b"\x93NUMPY no", ["damaged"]),
        ("patched_psi.npy", np.ones((24, 32, 32), np.float32), ["float32", "complex numbers"]),
        ("patched_psi.npy", np.ones((24, 32, 31), np.complex64), ["(24, 32, 31)", "(24, 32, 32)"]),
        ("patched_psi.npy", np.full((24, 32, 32), np.nan, np.complex64), ["patch 0", "no number"]),
        ("cropped_exp_diffr_data.npy", np.ones((24, 32, 32), np.complex64), ["complex64", "real numbers"]),
        ("cropped_exp_diffr_data.npy", np.ones((24,), np.float32), ["(24,)"]),
    ],
)
def test_a_wrong_file_of_a_scan_is_named(tmp_path: Path, name: str, content: object, words: list[str]) -> None:
    path = write_ptycho(tmp_path, scans=2) / "205" / name
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    fails(tmp_path, "205", *words)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    path = write_ptycho(tmp_path, scans=1) / "204" / "cropped_exp_diffr_data.npy"
    path.write_bytes(path.read_bytes()[:-100])
    fails(tmp_path, str(path), "damaged")


def test_a_scan_without_an_object_is_left_out_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_ptycho(tmp_path, scans=2)
    np.save(tmp_path / "Ptycho" / "train" / "204" / "patched_psi.npy", np.ones((24, 32, 32), np.complex64))
    raw = DATASETS.get("ptycho")(tmp_path, False)
    assert raw.scans[0].unique().tolist() == [205]
    assert "scan 204 is left out" in caplog.text


# ---- the forward model


def test_synthetic_patterns_are_the_far_field_of_probe_times_object() -> None:
    """The mean of many noisy patterns is the squared magnitude of a Fourier sum, written out here."""
    generator = torch.Generator().manual_seed(0)
    patch = torch.polar(torch.rand((32, 32), generator=generator), 2 * torch.rand((32, 32), generator=generator))
    x = ptycho_synthetic.diffraction(patch.expand(2000, 32, 32), generator)
    assert x.shape == (2000, 1, 32, 32)
    probe = ptycho_synthetic.probe().to(torch.complex128)
    n, k = torch.arange(32), torch.arange(-16, 16)  # frequencies from -16 up: the zeroth is in the middle
    kernel = torch.exp(-2j * math.pi * k[:, None] * n[None, :] / 32).to(torch.complex128) / math.sqrt(32)
    far = kernel @ (probe * patch) @ kernel.T
    expected = far.abs().square() / probe.abs().square().mean()
    counts = x.double().square().mean(dim=0)[0]
    # Photons are counted: five standard errors of a Poisson mean.
    error = 5 * (expected / ptycho_synthetic.COUNTS / 2000).sqrt() + 1e-4
    assert bool(((counts - expected).abs() < error).all())
    photons = x.square() * ptycho_synthetic.COUNTS
    torch.testing.assert_close(photons, photons.round(), atol=2e-3, rtol=1e-5)


def test_synthetic_scans_are_the_same_every_time_differ_in_level_and_overlap() -> None:
    first, again = (DATASETS.get("ptycho_synthetic")(Path("none"), False) for _ in range(2))
    assert torch.equal(first.train.x, again.train.x)
    assert torch.equal(first.train.y, again.train.y)
    assert first.train.sample_shape == (1, 32, 32)
    assert (len(first.train), len(first.test)) == (8 * 130, 8 * 14)
    levels = torch.stack([first.train.y[first.scans[0] == scan, 1].mean() for scan in range(8)])
    assert float(levels.sort().values.diff().min()) > 0.3
    assert float(levels.diff().abs().min()) > 0.7  # from one scan to the next
    amplitude, phase = first.train.y[:, 0], first.train.y[:, 1]
    torch.testing.assert_close(amplitude, torch.exp(-ptycho_synthetic.BETA * (phase + math.pi)))
    assert float(phase.abs().max()) < math.pi
    patches = ptycho_synthetic.patches_of(ptycho_synthetic.random_object(0, torch.Generator().manual_seed(0)))
    assert torch.equal(patches[0][:, ptycho_synthetic.STEP :], patches[1][:, : -ptycho_synthetic.STEP])
