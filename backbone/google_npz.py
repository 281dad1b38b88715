"""The weights of Google's vision transformers (Dosovitskiy et al. 2021, Steiner et al. 2022) under timm's names.

They are published as arrays of JAX in .npz files: with kernels transposed, and attention split into query, key and
value, and into heads. pretrained.py reads them through here.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAMES = {"cls": "cls_token", "Transformer/posembed_input/pos_embedding": "pos_embed"}
MODULES = {"embedding": "patch_embed.proj", "Transformer/encoder_norm": "norm"}
ATTENTION = "MultiHeadDotProductAttention_1"
IN_BLOCK = {
    "LayerNorm_0": "norm1",
    f"{ATTENTION}/out": "attn.proj",
    "LayerNorm_2": "norm2",
    "MlpBlock_3/Dense_0": "mlp.fc1",
    "MlpBlock_3/Dense_1": "mlp.fc2",
}
KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
QKV = ("query", "key", "value")


def read_npz(path: Path) -> dict[str, Tensor]:
    """`from_google` of a file. ValueError, or zipfile's and numpy's own errors, for one that cannot be read."""
    if not zipfile.is_zipfile(path):  # numpy takes anything else for a pickle
        raise ValueError("not a .npz file")
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return from_google(arrays)


def from_google(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    """Google's names -> arrays as timm's names -> tensors; a name that timm has none for stays, with "." for "/"."""
    weights: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name in arrays:
        value = torch.from_numpy(arrays[name])
        module, _, kind = name.rpartition("/")
        in_block = re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)", module)
        block, inner = in_block.groups() if in_block else ("", "")
        kind = KINDS.get(kind, kind)
        if inner.startswith(f"{ATTENTION}/") and inner.rpartition("/")[2] in QKV:
            # (d, heads, d / heads) and (heads, d / heads)
            third = value.flatten(1).T if kind == "weight" else value.flatten()
            thirds.setdefault(f"blocks.{block}.attn.qkv.{kind}", {})[inner.rpartition("/")[2]] = third
        elif name in NAMES:
            weights[NAMES[name]] = value
        else:
            own = f"blocks.{block}.{IN_BLOCK[inner]}" if inner in IN_BLOCK else MODULES.get(module, module)
            weights[".".join(filter(None, (own.replace("/", "."), kind)))] = _transposed(value)
    for name, parts in thirds.items():
        if len(parts) == len(QKV):
            weights[name] = torch.cat([parts[part] for part in QKV])
    return weights


def _transposed(value: Tensor) -> Tensor:
    """Inputs before outputs, as JAX has them, to outputs before inputs."""
    if value.ndim == 4:  # (height, width, inputs, outputs)
        return value.permute(3, 2, 0, 1)
    if value.ndim == 3:  # (heads, inputs / heads, outputs)
        return value.flatten(0, 1).T
    return value.T if value.ndim == 2 else value
