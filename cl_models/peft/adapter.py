"""Adapter: a bottleneck on the output of a block's attention (Houlsby et al. 2019, arXiv 1902.00751)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu

from reprise.cl_models.peft.bank import Bank, Shape, Weights, attention
from reprise.runtime.errors import UserError


@dataclass(frozen=True)
class Adapter:
    """y + scale * (ReLU(y Wd + bd) Wu + bu) for the attention's output y, before the residual sum and LayerScale.

    layer_norm: y is normalised, with weight and bias of the task, before Wd. Wd is Kaiming-normal, all of Wu, bd and bu
    0. The weights are kept as torch's Linear keeps them, (out, in).
    """

    bottleneck: int = 5
    scale: float = 1.0
    layer_norm: bool = False

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise UserError(f"Adapter bottleneck {self.bottleneck}: choose 1 or more")

    def shapes(self, block: nn.Module) -> dict[str, Shape]:
        d, r = attention(block).proj.out_features, self.bottleneck
        norm = {"norm_weight": (d,), "norm_bias": (d,)} if self.layer_norm else {}
        return {**norm, "down_weight": (r, d), "down_bias": (r,), "up_weight": (d, r), "up_bias": (d,)}

    def fill(self, weights: Weights, block: nn.Module, generator: torch.Generator | None) -> None:
        for value in weights.values():
            value.zero_()
        nn.init.kaiming_normal_(weights["down_weight"], generator=generator)
        if self.layer_norm:
            weights["norm_weight"].fill_(1)

    def install(self, vit: Any, bank: Bank) -> None:
        for number in bank.blocks:
            attention(vit.blocks[number]).register_forward_hook(_Bottleneck(bank, number, self))


class _Bottleneck:
    """Forward hook of an attention."""

    def __init__(self, bank: Bank, block: int, adapter: Adapter) -> None:
        self.bank, self.block, self.adapter = bank, block, adapter

    def __call__(self, attn: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        weights = self.bank.active(self.block, len(y))
        if weights is None:
            return None
        h = y
        if self.adapter.layer_norm:
            h = layer_norm(y, y.shape[-1:]) * weights["norm_weight"].unsqueeze(-2) + weights["norm_bias"].unsqueeze(-2)
        h = relu(_linear(h, weights["down_weight"], weights["down_bias"]))
        return y + self.adapter.scale * _linear(h, weights["up_weight"], weights["up_bias"])


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (b, n, in) by weight (out, in) and bias (out,), or by those of each sample, (b, out, in) and (b, out)."""
    return x @ weight.mT + bias.unsqueeze(-2)
