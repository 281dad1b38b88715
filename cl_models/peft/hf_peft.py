"""LoRA modules as adapter folders of Hugging Face's peft: adapter_config.json and adapter_model.safetensors.

Exact both ways, and without peft. timm's q, k and v are one Linear, for which peft has one pair A, B. Written: the
targets' own pairs as one block-diagonal pair, of rank times as many as there are targets. Read: that form, or a pair as
peft trains it, whose A then serves every target alike. Keys and settings are those of peft 0.21.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from reprise.cl_models.peft.bank import Bank, Weights
from reprise.cl_models.peft.lora import LoRA, Place, joined
from reprise.runtime.errors import UserError
from reprise.runtime.files import atomic_write

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

_KEY = re.compile(r"(?:.*\.)?(blocks\.(\d+)\.(attn\.qkv|mlp\.fc1|mlp\.fc2))\.lora_([AB])\.weight")
_TARGETS = {"attn.qkv": ("q", "k", "v"), "mlp.fc1": ("fc1",), "mlp.fc2": ("fc2",)}
_MORE_THAN_LORA = ("use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "trainable_token_indices")
"""Settings that peft leaves at false or null where an adapter is W + scale B A and nothing else."""


@dataclass(frozen=True)
class _Pair:
    """What an adapter has for one Linear: A (rank, in), B (out, rank), and the factor of their product."""

    a: Tensor
    b: Tensor
    scale: float


def export_lora(bank: Bank, task: int, folder: str | Path) -> None:
    """Write a task's LoRA, in the dtype it has, as PeftModel.from_pretrained(vit, folder) reads it.

    UserError: another technique than LoRA, a task that is not there, or a disk that refuses.
    """
    from safetensors.torch import save

    lora = _lora(bank)
    tensors, ranks = {}, {}
    for number, block in bank.base.items():
        weights = {name: value.detach() for name, value in bank.weights(task, number).items()}
        for linear, places in lora.by_linear(block).items():
            base: Any = block.get_submodule(linear)
            a, b = joined(weights, places, base.out_features)
            module = f"blocks.{number}.{linear}"
            tensors[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
            tensors[f"base_model.model.{module}.lora_B.weight"] = b.contiguous()
            ranks[module] = len(a)
    rank = max(ranks.values())
    others = {module: mine for module, mine in ranks.items() if mine != rank}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": lora.alpha * (rank // lora.rank),
        "rank_pattern": others,
        "alpha_pattern": {module: lora.alpha * (mine // lora.rank) for module, mine in others.items()},
        "target_modules": list(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }
    with atomic_write(Path(folder) / WEIGHTS_FILE, "wb") as stream:
        stream.write(save(tensors, metadata={"format": "pt"}))
    with atomic_write(Path(folder) / CONFIG_FILE) as text:
        text.write(json.dumps(config, indent=2) + "\n")


def technique_of(folder: str | Path) -> tuple[LoRA, tuple[int, ...]]:
    """A technique and blocks, for attach(), whose bank can hold what an adapter folder has.

    UserError: as import_lora(), or Linears that differ in rank or scale.
    """
    pairs = _read(Path(folder))
    blocks = sorted({number for number, _ in pairs})
    linears = [linear for linear in _TARGETS if any(linear == mine for _, mine in pairs)]
    kinds = {(len(pair.a), pair.scale) for pair in pairs.values()}
    if len(kinds) > 1 or len(pairs) < len(blocks) * len(linears):
        raise UserError(
            f"the adapter in '{folder}' has other ranks, scales or Linears in some blocks than in others; "
            "attach the technique that it was exported from"
        )
    ((rank, scale),) = kinds
    targets = tuple(target for linear in linears for target in _TARGETS[linear])
    return LoRA(rank=rank, alpha=scale * rank, targets=targets), tuple(blocks)


def import_lora(bank: Bank, task: int, folder: str | Path) -> None:
    """Set a task's LoRA, made where it is missing, to that of an adapter folder.

    UserError: a folder that cannot be read, an adapter that is not plain LoRA on these Linears of the bank's blocks, or
    one that the bank cannot hold exactly (technique_of() names a bank that can). The task is as it was then.
    """
    lora, pairs = _lora(bank), _read(Path(folder))
    state: Weights = {}
    for number, block in bank.base.items():
        for linear, places in lora.by_linear(block).items():
            module = f"blocks.{number}.{linear}"
            pair = pairs.pop((number, linear), None)
            if pair is None:
                raise UserError(f"the adapter in '{folder}' has nothing for {module}; attach a bank by technique_of()")
            weights = _separated(pair, lora.rank, places)
            if weights is None or not math.isclose(pair.scale, lora.scale):
                raise UserError(
                    f"the adapter in '{folder}' has for {module} rank {len(pair.a)} and scale {pair.scale:g}, "
                    f"which {lora} does not hold exactly; attach a bank by technique_of()"
                )
            state |= {f"{number}.{name}": value for name, value in weights.items()}
    if pairs:
        (number, linear), *_ = pairs
        raise UserError(
            f"the adapter in '{folder}' changes blocks.{number}.{linear} too, and the bank does not; "
            "attach a bank by technique_of()"
        )
    bank.load_state_of(task, state)


def _separated(pair: _Pair, rank: int, places: dict[str, Place]) -> Weights | None:
    """The pair of each target, from a block-diagonal pair or from one A for all; None where that is not exact."""
    own = len(pair.a) == rank * len(places)
    if not own and len(pair.a) != rank:
        return None
    weights, rest = {}, pair.b.clone()
    for index, (target, place) in enumerate(places.items()):
        columns = slice(index * rank, (index + 1) * rank) if own else slice(None)
        weights[f"{target}_A"] = pair.a[columns]
        weights[f"{target}_B"] = pair.b[place.start : place.stop, columns]
        rest[place.start : place.stop, columns] = 0
    return None if rest.any() else weights


def _read(folder: Path) -> dict[tuple[int, str], _Pair]:
    """An adapter's pairs, by number of the block and name of the Linear there."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load((folder / WEIGHTS_FILE).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"cannot read the adapter in '{folder}' ({error}); name a folder that peft has written"
        ) from error
    more = [name for name in _MORE_THAN_LORA if config.get(name)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or more:
        what = more or [f"peft_type {config.get('peft_type')}, bias {config.get('bias')}"]
        raise UserError(f"the adapter in '{folder}' is more than LoRA ({', '.join(what)}); train one without")
    sides: dict[tuple[int, str], Weights] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise UserError(f"the adapter in '{folder}' changes {key}; only LoRA of attn.qkv, mlp.fc1, mlp.fc2 is read")
        sides.setdefault((int(match[2]), match[3]), {})[match[4]] = tensor
    pairs = {}
    for (number, linear), pair in sides.items():
        if len(pair) < 2:
            raise UserError(
                f"the adapter in '{folder}' has half of a pair for blocks.{number}.{linear}; export it anew"
            )
        pairs[number, linear] = _Pair(pair["A"], pair["B"], _scale(config, f"blocks.{number}.{linear}", len(pair["A"])))
    return pairs


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """As peft finds it: alpha_pattern holds regular expressions of the ends of names."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next(
        (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)),
        config["lora_alpha"],
    )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _lora(bank: Bank) -> LoRA:
    if not isinstance(bank.technique, LoRA):
        raise UserError(f"peft's adapter folders hold LoRA, and this bank is of {bank.technique}; attach a LoRA bank")
    return bank.technique
