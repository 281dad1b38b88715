"""Pre-trained weights out of a file into a network: all of them, or one line that says which do not fit.

The usual way, to load the keys that happen to match, keeps random weights when a prefix differs, and says nothing.
What lies where in the published files is in FORMATS; vit.py chooses the file, google_npz.py renames Google's arrays.
"""

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reprise.backbone.base import ExpectedInput
from reprise.backbone.google_npz import read_npz
from reprise.runtime.errors import UserError
from reprise.runtime.registry import nearest

AUTO, NPZ = "auto", "npz"
SHOWN = 6  # names of a kind in a message
CHUNK = 1 << 20  # bytes
ZIP = b"PK\3\4"

# A continual learner has a head of its own, for its own classes: it keeps its random weights.
CLASSIFIER = ("head.", "head_dist.")
# Parts of files that a network may do without: heads and projectors, and what only the pre-training needed.
LEFTOVERS = (
    *CLASSIFIER,
    "fc_norm.",
    "pre_logits.",
    "mask_token",
    "masked_embed",
    "decoder_",
    "momentum_encoder.",
    "predictor.",
)

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Format:
    """How a pre-training stores a vision transformer.

    layouts: (the key under which the weights lie, "" at the top; what their names begin with) in order of preference.
    statistics: mean and std that its images were normalised with; None: the architecture's usual ones.
    """

    layouts: tuple[tuple[str, str], ...]
    statistics: Statistics | None


FORMATS = {
    NPZ: Format((("", ""),), HALF),
    "moco_v3": Format((("state_dict", "base_encoder."), ("model", "")), IMAGENET),
    "ibot": Format((("teacher", "backbone."), ("state_dict", "")), IMAGENET),
    "in611": Format((("model", ""),), IMAGENET),
    "mae": Format((("model", ""),), IMAGENET),
    "timm": Format((("", ""), ("state_dict", ""), ("model", "")), None),
    "dino": Format((("", ""), ("teacher", "backbone.")), IMAGENET),
}


@dataclass(frozen=True)
class Contents:
    """What a file holds. weights: named as timm names them; others: names of tensors beside them, as in the file."""

    format: str
    weights: dict[str, Tensor]
    others: list[str]


@dataclass(frozen=True)
class LocalFile:
    """Weights in a file of the user's, see base.Weights. usual: what the architecture's weights usually expect."""

    path: Path
    format: str
    usual: ExpectedInput | None

    def find(self) -> Path:
        return self.path

    def fetch(self) -> None:
        """Nothing: it is there."""

    def expects(self) -> ExpectedInput | None:
        if self.usual is None:
            return None
        statistics = FORMATS[read(self.path, self.format).format].statistics
        return self.usual if statistics is None else ExpectedInput(self.usual.size, *statistics)


def check_format(name: Any) -> None:
    """Raise UserError unless `name` is a format or "auto"."""
    if name not in (AUTO, *FORMATS):
        known = ", ".join([AUTO, *sorted(FORMATS)])
        hint = nearest(str(name), [AUTO, *FORMATS])
        raise UserError(f"backbone_config: unknown checkpoint_format {name!r}{hint}; choose one of: {known}")


def load(network: nn.Module, path: Path, format: str = AUTO, *, resize_positions: bool = False) -> None:
    """Fill a VisionTransformer of timm, its classifier excepted, from a file.

    Every weight of the network must be in the file with the same shape, and every tensor of the file must be used or
    begin with one of LEFTOVERS; else UserError, and the network is as it was. resize_positions: resample learnt
    positions of another grid, as timm does (bicubic). See `read` for the files.
    """
    contents = read(path, format)
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(CLASSIFIER)}
    weights = contents.weights
    if resize_positions and _positions_alone_differ(own, weights):
        weights = {**weights, "pos_embed": _resampled(network, weights["pos_embed"], path)}
    missing = [name for name in own if name not in weights]
    spare = [*(name for name in weights if name not in own), *contents.others]
    unexpected = [name for name in spare if not name.startswith(LEFTOVERS)]
    differing = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    if missing or unexpected or differing:
        shapes = [f"{name} {tuple(weights[name].shape)}, not {tuple(own[name].shape)}" for name in differing]
        found = [("lacks", missing), ("has unknown", unexpected), ("has of another shape", shapes)]
        problem = "; ".join(f"{verb} {_listed(names)}" for verb, names in found if names)
        remedy = "choose the backbone that it was made with"
        if [*missing, *unexpected, *differing] == ["pos_embed"] and _positions_alone_differ(own, weights):
            remedy = "resize_positions: true resamples the positions for these images"
        raise UserError(
            f"backbone_config: pretrained '{path}', read as {contents.format}, does not fit the network: it {problem}; "
            f"{remedy}"
        )
    network.load_state_dict({name: weights[name] for name in own}, strict=False)


def read(path: Path, format: str = AUTO) -> Contents:
    """The weights in a file of torch.save, safetensors (*.safetensors) or Google's arrays (*.npz), on the CPU.

    format: a key of FORMATS, or "auto" for the first whose layout is there. UserError for a file that is damaged, that
    would need code to be run, or that is laid out in another way.
    """
    content = _content(path)
    formats = [NPZ] if path.suffix == ".npz" else [name for name in FORMATS if name != NPZ]
    found = _laid_out(content, [name for name in formats if format in (AUTO, name)])
    if found is None:
        other = _laid_out(content, formats)
        if other is not None:
            problem = f"is not laid out as {format} but as {other.format}"
            remedy = f"leave checkpoint_format out, or use {other.format}"
        else:
            problem = f"holds no blocks of a vision transformer where {' or '.join(formats)} has them, but "
            problem += _listed(list(content))
            remedy = "extract the weights into a file of their own, named as timm names them"
        raise UserError(f"backbone_config: pretrained '{path}' {problem}; {remedy}")
    return found


def _laid_out(content: Mapping[str, Any], formats: Iterable[str]) -> Contents | None:
    for format in formats:
        for key, prefix in FORMATS[format].layouts:
            nested = content.get(key) if key else content
            if not isinstance(nested, Mapping):
                continue
            # Training data-parallel puts "module." before every name.
            tensors = {str(k).removeprefix("module."): v for k, v in nested.items() if isinstance(v, Tensor)}
            if any(name.startswith(f"{prefix}blocks.") for name in tensors):
                weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                return Contents(format, weights, [name for name in tensors if not name.startswith(prefix)])
    return None


def _content(path: Path) -> Mapping[str, Any]:
    """The dictionary in a file, as it is."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(len(ZIP))
    except OSError as error:
        raise UserError(f"backbone_config: cannot read pretrained '{path}': {error.strerror or error}") from error
    is_zip = zipfile.is_zipfile(path)
    if start == ZIP and not is_zip:
        raise _damaged(path, "its end is missing")
    try:
        if path.suffix == ".npz":
            return read_npz(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = _torch_file(path, is_zip)
    except Exception as error:  # whatever the readers of four formats stumble over in arbitrary bytes
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code or "Object arrays" in str(error):
            needs = f"code ({code[1]})" if code else "code"
            remedy = "where it comes from a source that you trust, save its weights alone, as a dictionary of tensors"
            raise UserError(
                f"backbone_config: pretrained '{path}' is refused: reading it would run {needs}; {remedy}"
            ) from error
        # Torch's own words are a page on how to read it unsafely.
        foreign = isinstance(error, pickle.UnpicklingError) or not str(error)
        raise _damaged(path, "not a file of torch.save" if foreign else " ".join(str(error).split())[:100]) from error
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"backbone_config: pretrained '{path}' holds a {kind}, not weights by name; save a state_dict")
    return content


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"backbone_config: pretrained '{path}' is damaged, or holds no weights ({reason}); fetch it again")


def _torch_file(path: Path, is_zip: bool) -> Any:
    # Training scripts store their options beside the weights; a namespace runs no code of theirs.
    torch.serialization.add_safe_globals([argparse.Namespace])
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            # Torch does not look at the checksums that it writes.
            for member in archive.infolist():
                if member.CRC:  # 0: written without
                    with archive.open(member) as stream:
                        while stream.read(CHUNK):
                            pass
    # Mapped: a checkpoint of a pre-training is mostly the optimiser's, and other ranks read it too.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _positions_alone_differ(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether the positions (1, n, d) are of another number, and that is all that is different about them."""
    ours, theirs = own.get("pos_embed"), weights.get("pos_embed")
    if ours is None or theirs is None:
        return False
    return ours.ndim == theirs.ndim and ours.shape != theirs.shape and ours.shape[::2] == theirs.shape[::2]


def _resampled(network: Any, positions: Tensor, path: Path) -> Tensor:
    """Positions (1, prefix tokens + n, d) of a square grid for the network's own grid."""
    from timm.layers import resample_abs_pos_embed

    tokens = 0 if network.no_embed_class else network.num_prefix_tokens
    cells = positions.shape[1] - tokens
    side = round(max(cells, 0) ** 0.5)
    if side < 1 or side * side != cells:
        raise UserError(
            f"backbone_config: pretrained '{path}' has {positions.shape[1]} positions, which are no square grid and "
            f"{tokens} more; resize_positions cannot resample them, leave it out"
        )
    resampled: Tensor = resample_abs_pos_embed(
        positions, new_size=network.patch_embed.grid_size, old_size=[side, side], num_prefix_tokens=tokens
    )
    return resampled


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "nothing"
