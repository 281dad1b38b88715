"""Prefix: learnt keys and values in front of a block's own (Li and Liang 2021, arXiv 2101.00190)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from reprise.cl_models.peft.bank import Bank, Shape, Weights, attention
from reprise.runtime.errors import UserError


@dataclass(frozen=True)
class Prefix:
    """`length` keys and as many values per head in each block, which all queries attend to; no queries of their own.

    They join the block's keys after the normalisation of these, where there is one. Initialised uniformly in (-1, 1).
    """

    length: int = 20

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UserError(f"Prefix length {self.length}: choose 1 or more")

    def shapes(self, block: nn.Module) -> dict[str, Shape]:
        attn = attention(block)
        return {"kv": (2, attn.num_heads, self.length, attn.head_dim)}

    def fill(self, weights: Weights, block: nn.Module, generator: torch.Generator | None) -> None:
        nn.init.uniform_(weights["kv"], -1, 1, generator=generator)

    def install(self, vit: Any, bank: Bank) -> None:
        for number in bank.blocks:
            attn = attention(vit.blocks[number])
            attn.forward = _Attention(attn, bank, number, self.length)


class _Attention:
    """Stands for the forward of a timm Attention: a hook would come too late, between its projections and its sum."""

    def __init__(self, attn: Any, bank: Bank, block: int, length: int) -> None:
        self.attn, self.bank, self.block, self.length = attn, bank, block, length
        self.before: _Attention | None = vars(attn).get("forward")

    def __call__(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        from timm.layers import resolve_self_attn_mask

        attn = self.attn
        weights = self.bank.active(self.block, len(x))
        if weights is None:
            # Not a bound method kept from before: a copy or a file of the network would call the original's, or itself.
            before = self.before or partial(type(attn).forward, attn)
            unchanged: Tensor = before(x, attn_mask, is_causal)
            return unchanged
        if self.before is not None and self.before.is_active:
            raise UserError(f"two banks of Prefix are active in block {self.block}; deactivate one: activate(None)")
        b, n, _ = x.shape
        q, k, v = attn.qkv(x).reshape(b, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(q), attn.k_norm(k)
        prefix = weights["kv"].to(k.dtype).expand(b, -1, -1, -1, -1)
        k = torch.cat([prefix[:, 0], k], dim=2)
        v = torch.cat([prefix[:, 1], v], dim=2)

        # The block's own mask does not cover the prefix, which all queries see.
        mask = resolve_self_attn_mask(n, q, attn_mask, is_causal)
        mask = None if mask is None else pad(mask, (self.length, 0))
        visible = self.bank.visible(0, self.length, n + self.length)
        if visible is not None:
            hidden = torch.zeros_like(visible, dtype=q.dtype).masked_fill(~visible, float("-inf"))
            mask = hidden if mask is None else mask + hidden
        y = scaled_dot_product_attention(q, k, v, mask, attn.attn_drop.p if attn.training else 0.0)
        y = attn.norm(y.transpose(1, 2).reshape(b, n, attn.attn_dim))
        if attn.gate is not None:
            y = y * attn.gate(x).sigmoid()
        projected: Tensor = attn.proj_drop(attn.proj(y))
        return projected

    @property
    def is_active(self) -> bool:
        return self.bank.is_active or (self.before is not None and self.before.is_active)
