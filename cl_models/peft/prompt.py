"""Prompt: learnt tokens in the sequence itself (Jia et al. 2022, arXiv 2203.12119; in continual learning L2P)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reprise.cl_models.peft.bank import Bank, Shape, Weights, attention
from reprise.runtime.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """`length` tokens behind the class token, from the first of the blocks up to the end of the last block of the ViT.

    Deep: each further block of the bank replaces them by its own. All other tokens keep their places and positions, and
    what comes after the blocks sees no prompt. Initialised uniformly in (-1, 1), as in L2P.
    """

    length: int = 20

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UserError(f"Prompt length {self.length}: choose 1 or more")

    def shapes(self, block: nn.Module) -> dict[str, Shape]:
        return {"tokens": (self.length, attention(block).qkv.in_features)}

    def fill(self, weights: Weights, block: nn.Module, generator: torch.Generator | None) -> None:
        nn.init.uniform_(weights["tokens"], -1, 1, generator=generator)

    def install(self, vit: Any, bank: Bank) -> None:
        first, start = bank.blocks[0], vit.num_prefix_tokens
        for number, block in enumerate(vit.blocks):
            if number in bank.blocks:
                replaced = self.length if number > first else 0
                block.register_forward_pre_hook(_Insertion(bank, number, start, start + replaced))
            if number >= first:
                block.register_forward_pre_hook(_Mask(bank, start, self.length), with_kwargs=True)
        vit.blocks[-1].register_forward_hook(_Removal(bank, start, start + self.length))


class _Insertion:
    """Pre-hook of a block of the bank: its tokens come in the place of tokens `start` up to `stop`."""

    def __init__(self, bank: Bank, block: int, start: int, stop: int) -> None:
        self.bank, self.block, self.start, self.stop = bank, block, start, stop

    def __call__(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
        (x,) = inputs
        weights = self.bank.active(self.block, len(x))
        if weights is None:
            return None
        tokens = weights["tokens"].to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([x[:, : self.start], tokens, x[:, self.stop :]], dim=1)


class _Mask:
    """Pre-hook of every block with prompts: samples without a module do not attend to those of the others."""

    def __init__(self, bank: Bank, start: int, length: int) -> None:
        self.bank, self.start, self.length = bank, start, length

    def __call__(self, block: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> Any:
        if not self.bank.is_active:
            return None
        if options.get("attn_mask") is not None or options.get("is_causal"):
            raise UserError("attn_mask and is_causal know nothing of the prompts in the sequence; use Prefix with them")
        visible = self.bank.visible(self.start, self.length, inputs[0].shape[1])
        return None if visible is None else (inputs, {**options, "attn_mask": visible})


class _Removal:
    """Hook of the last block: what follows gets the sequence as it would be without prompts."""

    def __init__(self, bank: Bank, start: int, stop: int) -> None:
        self.bank, self.start, self.stop = bank, start, stop

    def __call__(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self.bank.is_active:
            return None
        return torch.cat([output[:, : self.start], output[:, self.stop :]], dim=1)
