"""What identifies the weights of a network: ranks compare it instead of sending them, and checkpoints store it.

What a strategy learns on top of frozen weights (heads, prompts, statistics of features) means nothing without them.
"""

import hashlib

import torch
from torch import nn


def fingerprint(network: nn.Module, without: str | tuple[str, ...] = "head.") -> str:
    """SHA-256 over names, shapes, types and bytes of all parameters and buffers whose names do not begin so.

    The same on every device, in whatever order and memory layout the network holds them. It reads every weight: once a
    run is enough.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted([*network.named_parameters(), *network.named_buffers()]):
        if not name.startswith(without):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
