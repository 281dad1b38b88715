"""LoRA: low-rank updates of the frozen projections of a block (Hu et al. 2022, arXiv 2106.09685, equation 3)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from reprise.cl_models.peft.bank import Bank, Shape, Weights, attention
from reprise.runtime.errors import UserError

TARGETS = ("q", "k", "v", "fc1", "fc2")


@dataclass(frozen=True)
class Place:
    """Where a target is: outputs `start` up to `stop` of a Linear, by that one's name in the block."""

    linear: str
    start: int
    stop: int


@dataclass(frozen=True)
class LoRA:
    """W x + (alpha / rank) B A x for each target, with A (rank, in) and B (out, rank) of its own; B starts at 0.

    targets: any of q, k, v of the attention and fc1, fc2 of the MLP. init of A: "kaiming": uniform, as torch's Linear;
    "svd": the top right singular vectors of the target's frozen weight, as in SLCA++ (Zhang et al. 2024,
    arXiv 2408.08295), which needs a rank up to the smaller side of that weight.
    """

    rank: int = 5
    alpha: float = 1.0
    targets: tuple[str, ...] = ("k", "v")
    init: Literal["kaiming", "svd"] = "kaiming"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"LoRA rank {self.rank}: choose 1 or more")
        if not self.targets or not set(self.targets) <= set(TARGETS) or len(set(self.targets)) < len(self.targets):
            raise UserError(f"LoRA targets {list(self.targets)}: choose from {', '.join(TARGETS)}, each once")
        if self.init not in ("kaiming", "svd"):
            raise UserError(f"LoRA init '{self.init}': choose kaiming or svd")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def places(self, block: nn.Module) -> dict[str, Place]:
        """Of each target. UserError where the block has no such Linear."""
        found = {}
        for target in self.targets:
            if target in ("fc1", "fc2"):
                linear = getattr(getattr(block, "mlp", None), target, None)
                if not isinstance(linear, nn.Linear):
                    raise UserError(f"{type(block).__name__} has no Linear mlp.{target}; choose other LoRA targets")
                found[target] = Place(f"mlp.{target}", 0, linear.out_features)
            else:
                width = attention(block).qkv.out_features // 3
                third = "qkv".index(target)
                found[target] = Place("attn.qkv", third * width, (third + 1) * width)
        return found

    def by_linear(self, block: nn.Module) -> dict[str, dict[str, Place]]:
        """The same, grouped by the name of the Linear."""
        grouped: dict[str, dict[str, Place]] = {}
        for target, place in self.places(block).items():
            grouped.setdefault(place.linear, {})[target] = place
        return grouped

    def shapes(self, block: nn.Module) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for target, place in self.places(block).items():
            weight = _weight(block, place)
            if self.init == "svd" and self.rank > min(weight.shape):
                raise UserError(
                    f"LoRA rank {self.rank} with init svd: the weight of {target} has {min(weight.shape)} "
                    "singular vectors; choose a lower rank, or init kaiming"
                )
            shapes[f"{target}_A"] = (self.rank, weight.shape[1])
            shapes[f"{target}_B"] = (weight.shape[0], self.rank)
        return shapes

    def fill(self, weights: Weights, block: nn.Module, generator: torch.Generator | None) -> None:
        for target, place in self.places(block).items():
            weights[f"{target}_B"].zero_()
            if self.init == "svd":
                vectors = torch.linalg.svd(_weight(block, place).detach().float().cpu(), full_matrices=False).Vh
                weights[f"{target}_A"].copy_(vectors[: self.rank])
            else:
                nn.init.kaiming_uniform_(weights[f"{target}_A"], a=math.sqrt(5), generator=generator)

    def install(self, vit: Any, bank: Bank) -> None:
        for number in bank.blocks:
            block = vit.blocks[number]
            for name, places in self.by_linear(block).items():
                block.get_submodule(name).register_forward_hook(_Update(bank, number, self.scale, places))


class _Update:
    """Forward hook of a Linear. Two thin products: the (out, in) update of the weight itself is never formed."""

    def __init__(self, bank: Bank, block: int, scale: float, places: dict[str, Place]) -> None:
        self.bank, self.block, self.scale, self.places = bank, block, scale, places

    def __call__(self, linear: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        weights = self.bank.active(self.block, len(output))
        if weights is None:
            return None
        a, b = joined(weights, self.places, linear.out_features)
        return output + (inputs[0] @ a.mT * self.scale) @ b.mT


def joined(weights: Mapping[str, Tensor], places: Mapping[str, Place], out_features: int) -> tuple[Tensor, Tensor]:
    """One A (..., R, in) and B (..., out_features, R) for all targets in a Linear, R being the sum of their ranks.

    B is block-diagonal: each target's columns are 0 outside its own outputs. The product B A is exactly theirs.
    """
    a = torch.cat([weights[f"{target}_A"] for target in places], dim=-2)
    b = [
        pad(weights[f"{target}_B"], (0, 0, place.start, out_features - place.stop)) for target, place in places.items()
    ]
    return a, torch.cat(b, dim=-1)


def _weight(block: nn.Module, place: Place) -> Tensor:
    weight: Any = block.get_submodule(place.linear).weight
    rows: Tensor = weight[place.start : place.stop]
    return rows
