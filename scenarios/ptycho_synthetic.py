"""Synthetic ptychography, made in memory: for tests and measurements without files. ptycho.py reads measured scans.

The forward model is that of ptychography (Rodenburg and Faulkner 2004): a probe P of fixed shape illuminates a patch O
of a complex object at each position of a scan, and the detector far away counts photons,

    I = Poisson(c |F(P O)|^2),    O = exp(i phi - BETA (phi + pi)),

F the centred, unitary discrete Fourier transform. Every scan has an object of its own, of one material: its phase phi
is a smooth random field, and what retards the wave absorbs it too. The level of the field (how thick the object is) and
the direction of its grain differ from scan to scan, as they do among samples; what is learnt of one scan is therefore
wrong for the next. Neighbouring positions overlap. A pattern holds sqrt(I / c'), c' the mean count without an object.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from reprise.runtime.seeds import torch_generator
from reprise.scenarios.ptycho import held_out_of
from reprise.scenarios.raw import DATASETS, RawData
from reprise.scenarios.task import ArrayDataset
from reprise.scenarios.transforms import Unchanged

NUM_SCANS = 8
POSITIONS = 12  # per side of a scan's square grid
SIZE = 32  # pixels of a pattern and of a patch
STEP = 5  # pixels between neighbouring positions
PROBE_WIDTH = 9.0  # standard deviation of the Gaussian probe, pixels
PROBE_CURVATURE = 0.08  # its quadratic phase, rad per square pixel: out of focus it spreads over the detector
LEVELS = (-1.5, 1.5)  # mean phase of the scans' objects, from the least to the greatest, rad
PHASE = 0.5  # standard deviation of the phase in one object, rad
BETA = 0.25  # absorption for each radian of phase
COUNTS = 100.0  # photons per detector pixel without an object, on average
GRAIN = (3.0, 6.0)  # correlation lengths across and along the object's grain, pixels


@DATASETS.register("ptycho_synthetic")
def ptycho_synthetic(folder: Path, download: bool) -> RawData:
    """8 scans of 144 patterns (1, 32, 32), targets (2, 32, 32): amplitude and phase. The same for every --seed."""
    x, y, scans, held_out = [], [], [], []
    for scan in range(NUM_SCANS):
        generator = torch_generator(0, "ptychography", scan)
        patches = patches_of(random_object(scan, generator))
        x.append(diffraction(patches, generator))
        y.append(torch.stack([patches.abs(), patches.angle()], dim=1))
        scans.append(torch.full((len(patches),), scan))
        held_out.append(held_out_of(len(patches), scan))
    test = torch.cat(held_out)
    whole, scan_of = ArrayDataset(torch.cat(x), torch.cat(y)), torch.cat(scans)
    train_rows, test_rows = (~test).nonzero().squeeze(1), test.nonzero().squeeze(1)
    train, held = (whole.take(rows, whole.labels[rows]) for rows in (train_rows, test_rows))
    return RawData(train, held, 1, Unchanged(), scans=(scan_of[train_rows], scan_of[test_rows]))


def random_object(scan: int, generator: torch.Generator) -> Tensor:
    """A complex object, large enough for all positions. Its grain lies in a direction of the scan's own."""
    side = SIZE + STEP * (POSITIONS - 1)
    down, right = torch.meshgrid(*[torch.fft.fftfreq(side)] * 2, indexing="ij")
    angle = math.pi * scan / NUM_SCANS
    across, along = (
        math.cos(angle) * right + math.sin(angle) * down,
        math.cos(angle) * down - math.sin(angle) * right,
    )
    # White noise through a Gaussian filter, longer along the grain than across it.
    envelope = torch.exp(-2 * math.pi**2 * ((GRAIN[0] * across) ** 2 + (GRAIN[1] * along) ** 2))
    field = torch.fft.ifft2(torch.fft.fft2(torch.randn((side, side), generator=generator)) * envelope).real
    # Neighbouring scans are far from each other: 3 and NUM_SCANS have no common divisor.
    level = LEVELS[0] + (LEVELS[1] - LEVELS[0]) * (3 * scan % NUM_SCANS) / (NUM_SCANS - 1)
    phase = (level + PHASE * (field - field.mean()) / field.std()).clamp(-3.1, 3.1)  # no jumps from pi to -pi
    return torch.polar(torch.exp(-BETA * (phase + math.pi)), phase)


def patches_of(whole: Tensor) -> Tensor:
    """The object where the probe stands, row by row: complex (POSITIONS^2, SIZE, SIZE)."""
    windows = whole.unfold(0, SIZE, STEP).unfold(1, SIZE, STEP)
    return windows.reshape(-1, SIZE, SIZE)


def probe() -> Tensor:
    """The illumination, complex (SIZE, SIZE): a Gaussian spot with a curved wave front."""
    offsets = torch.arange(SIZE) - (SIZE - 1) / 2
    squared = offsets[:, None] ** 2 + offsets[None, :] ** 2
    return torch.polar(torch.exp(-squared / (2 * PROBE_WIDTH**2)), PROBE_CURVATURE * squared)


def diffraction(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Patterns (n, 1, SIZE, SIZE), float32: the square root of the photons counted, over that of COUNTS."""
    illumination = probe()
    wave = torch.fft.fftshift(torch.fft.fft2(illumination * patches, norm="ortho"), dim=(-2, -1))
    expected = COUNTS * wave.abs().square() / illumination.abs().square().mean()
    return (torch.poisson(expected, generator=generator) / COUNTS).sqrt().unsqueeze(1)
