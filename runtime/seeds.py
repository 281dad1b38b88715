"""Where randomness comes from: every consumer derives its own seed from (seed, purpose), so that none shares a stream.

The rehearsal buffer does not use this: its counter-based generator is in buffer/policies/random_words.py.
"""

import hashlib
import random
from typing import Any

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """An independent seed in [0, 2**63) for a purpose, the same in every process and on every platform."""
    text = "\x1f".join([str(seed), *(str(part) for part in purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, e.g. `torch_generator(seed, "augment", rank)`."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, differently on every rank.

    Libraries (dropout, continuum) draw from them. With one seed for all ranks they would all drop the same units.
    """
    random.seed(derive(seed, "python", rank))
    np.random.seed(derive(seed, "numpy", rank) % 2**32)
    torch.manual_seed(derive(seed, "torch", rank))


def rng_state() -> dict[str, Any]:
    """State of the global generators of this process, as tensors, numbers and strings."""
    version, python_words, gauss = random.getstate()
    name, numpy_words, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python_version": version,
        "python_words": torch.tensor(python_words, dtype=torch.int64),
        "python_gauss": gauss,
        "numpy_name": str(name),
        "numpy_words": torch.from_numpy(np.asarray(numpy_words).astype(np.int64)),
        "numpy_position": int(position),
        "numpy_has_gauss": int(has_gauss),
        "numpy_cached": float(cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    random.setstate((state["python_version"], tuple(state["python_words"].tolist()), state["python_gauss"]))
    words = state["numpy_words"].numpy().astype(np.uint32)
    np.random.set_state(
        (state["numpy_name"], words, state["numpy_position"], state["numpy_has_gauss"], state["numpy_cached"])
    )
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
