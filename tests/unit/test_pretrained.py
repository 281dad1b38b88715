"""Weight files: every published layout loads exactly; what is missing, left over, cut off or unsafe is one line."""

import argparse
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reprise.backbone import expected_input, pretrained
from reprise.backbone.google_npz import from_google
from reprise.backbone.pretrained import IMAGENET
from reprise.runtime.errors import UserError
from reprise.runtime.vision import ensure_torchvision

DIM, HEADS, PATCH, DEPTH = 16, 2, 8, 2
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def vit(image: int = 16, num_classes: int = 5, **settings: Any) -> Any:
    ensure_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
    return VisionTransformer(img_size=image, num_classes=num_classes, **{**sizes, **settings})


def random_weights(network: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    """One for each of the network's, all of them different from those that networks start with."""
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=generator) for k, v in network.state_dict().items()}


def trunk(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in weights.items() if not k.startswith("head.")}


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{k}": v for k, v in weights.items()}


def projector(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}mlp.0.weight": torch.ones(3, DIM), f"{prefix}last_layer.weight_v": torch.ones(2, 3)}


def google(weights: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """timm's names and layouts -> Google's, written out by hand."""
    w = {k: v.numpy() for k, v in weights.items()}
    arrays = {
        "cls": w["cls_token"],
        "embedding/kernel": np.transpose(w["patch_embed.proj.weight"], (2, 3, 1, 0)),
        "embedding/bias": w["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": w["pos_embed"],
        "Transformer/encoder_norm/scale": w["norm.weight"],
        "Transformer/encoder_norm/bias": w["norm.bias"],
        "pre_logits/kernel": np.ones((DIM, DIM), np.float32),
        "pre_logits/bias": np.ones(DIM, np.float32),
        "head/kernel": np.ones((DIM, 7), np.float32),
        "head/bias": np.ones(7, np.float32),
    }
    for i in range(DEPTH):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(j * DIM, (j + 1) * DIM)
            kernel = w[f"{ours}attn.qkv.weight"][rows].T.reshape(DIM, HEADS, DIM // HEADS)
            arrays[f"{attention}{part}/kernel"] = kernel
            arrays[f"{attention}{part}/bias"] = w[f"{ours}attn.qkv.bias"][rows].reshape(HEADS, DIM // HEADS)
        arrays[f"{attention}out/kernel"] = w[f"{ours}attn.proj.weight"].T.reshape(HEADS, DIM // HEADS, DIM)
        arrays[f"{attention}out/bias"] = w[f"{ours}attn.proj.bias"]
        for norm, layer in ((1, 0), (2, 2)):
            arrays[f"{theirs}LayerNorm_{layer}/scale"] = w[f"{ours}norm{norm}.weight"]
            arrays[f"{theirs}LayerNorm_{layer}/bias"] = w[f"{ours}norm{norm}.bias"]
        for layer in (0, 1):
            arrays[f"{theirs}MlpBlock_3/Dense_{layer}/kernel"] = w[f"{ours}mlp.fc{layer + 1}.weight"].T
            arrays[f"{theirs}MlpBlock_3/Dense_{layer}/bias"] = w[f"{ours}mlp.fc{layer + 1}.bias"]
    return arrays


def training_state(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What training scripts store besides."""
    moments = [torch.zeros_like(v) for v in weights.values()]
    return {"epoch": 99, "optimizer": {"state": moments}, "args": argparse.Namespace(lr=1.0, arch="vit_small")}


def moco_v3(w: dict[str, Tensor]) -> dict[str, Any]:
    state = {
        **prefixed("module.base_encoder.", trunk(w)),
        **projector("module.base_encoder.head."),
        **prefixed("module.momentum_encoder.", {k: v + 1 for k, v in trunk(w).items()}),
        **projector("module.momentum_encoder.head."),
        "module.predictor.0.weight": torch.ones(2, 2),
    }
    return {**training_state(w), "arch": "vit_base", "state_dict": state}


def ibot_21k(w: dict[str, Tensor]) -> dict[str, Any]:
    student = prefixed("module.backbone.", {k: v + 1 for k, v in trunk(w).items()})
    teacher = {**prefixed("backbone.", trunk(w)), **projector("head.")}
    return {**training_state(w), "student": student, "teacher": teacher, "ibot_loss": {"center": torch.zeros(1, 3)}}


def dino_full(w: dict[str, Tensor]) -> dict[str, Any]:
    teacher = {**prefixed("module.backbone.", trunk(w)), **projector("module.head.")}
    return {**training_state(w), "student": prefixed("module.", teacher), "teacher": teacher}


def in611(w: dict[str, Tensor]) -> dict[str, Any]:
    head = {"head.weight": torch.ones(611, DIM), "head.bias": torch.ones(611)}
    return {**training_state(w), "model": {**trunk(w), **head}, "model_ema": {**trunk(w), **head}}


def mae(w: dict[str, Tensor]) -> dict[str, Any]:
    decoder = {"decoder_embed.weight": torch.ones(2, DIM), "decoder_pos_embed": torch.ones(1, 5, 2)}
    return {"model": {**trunk(w), **decoder, "mask_token": torch.ones(1, 1, 2)}}


# Format -> (its file's layout, the format that "auto" takes it for).
LAYOUTS: dict[str, tuple[str, Callable[[dict[str, Tensor]], Any], str]] = {
    "timm, bare": ("timm", lambda w: w, "timm"),
    "timm, its training": ("timm", lambda w: {"epoch": 1, "state_dict": w}, "ibot"),
    "iBOT-21K": ("ibot", ibot_21k, "ibot"),
    "iBOT-1K": ("ibot", lambda w: {"state_dict": {**trunk(w), "masked_embed": torch.ones(1, DIM)}}, "ibot"),
    "MoCo v3": ("moco_v3", moco_v3, "moco_v3"),
    "MoCo v3, converted": ("moco_v3", lambda w: {"model": trunk(w)}, "moco_v3"),
    "DINO, bare": ("dino", trunk, "timm"),
    "DINO, its training": ("dino", dino_full, "ibot"),
    "IN611": ("in611", in611, "moco_v3"),
    "MAE": ("mae", mae, "moco_v3"),
}


def check_loaded(network: nn.Module, path: Path, format: str, weights: dict[str, Tensor]) -> None:
    """Loads, and compares bit by bit; the head keeps what it had."""
    before = {k: v.clone() for k, v in network.state_dict().items()}
    pretrained.load(network, path, format)
    after = network.state_dict()
    assert set(after) == set(before)
    for name, value in after.items():
        assert torch.equal(value, before[name] if name.startswith("head.") else weights[name]), name
    assert not torch.equal(before["norm.weight"], weights["norm.weight"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("new", [True, False])
def test_every_published_layout_loads_exactly_by_its_name_and_by_itself(layout: str, new: bool, tmp_path: Path) -> None:
    format, store, taken_for = LAYOUTS[layout]
    weights = random_weights(vit())
    path = tmp_path / "weights.pth.tar"
    torch.save(store(weights), path, _use_new_zipfile_serialization=new)
    check_loaded(vit(), path, format, weights)
    check_loaded(vit(), path, "auto", weights)
    assert pretrained.read(path).format == taken_for
    assert pretrained.FORMATS[taken_for].statistics in (IMAGENET, None)


def test_safetensors_and_half_precision_load_exactly(tmp_path: Path) -> None:
    weights = {k: v.half() for k, v in random_weights(vit()).items()}
    save_file(weights, tmp_path / "weights.safetensors")
    check_loaded(vit(), tmp_path / "weights.safetensors", "auto", {k: v.float() for k, v in weights.items()})


@pytest.mark.parametrize("format", ["npz", "auto"])
def test_google_arrays_load_exactly_and_as_timm_reads_them(format: str, tmp_path: Path) -> None:
    weights = random_weights(vit())
    np.savez(tmp_path / "ViT.npz", **google(weights))
    check_loaded(vit(), tmp_path / "ViT.npz", format, weights)
    theirs = vit()
    theirs.load_pretrained(str(tmp_path / "ViT.npz"))
    assert all(torch.equal(theirs.state_dict()[k], v) for k, v in trunk(weights).items())


def test_google_arrays_without_all_of_query_key_and_value_lack_attention(tmp_path: Path) -> None:
    arrays = google(random_weights(vit()))
    del arrays["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel"]
    assert "blocks.1.attn.qkv.weight" not in from_google(arrays)
    np.savez(tmp_path / "w.npz", **arrays, more=np.ones(3, np.float32), **{"a/b/c": np.ones(2, np.float32)})
    assert refusal(tmp_path / "w.npz") == (
        f"backbone_config: pretrained '{tmp_path}/w.npz', read as npz, does not fit the network: it lacks "
        "blocks.1.attn.qkv.weight; has unknown more, a.b.c; choose the backbone that it was made with"
    )


def refusal(path: Path, format: str = "auto", network: nn.Module | None = None, **how: bool) -> str:
    """The line with which a file is refused; the network is as before."""
    network = network or vit()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(UserError) as caught:
        pretrained.load(network, path, format, **how)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_what_is_missing_unknown_and_of_another_shape_is_listed(tmp_path: Path) -> None:
    weights = random_weights(vit())
    del weights["blocks.1.mlp.fc1.bias"], weights["norm.weight"]
    weights["norm.bias"] = torch.ones(3)
    weights["blocks.2.norm1.weight"] = torch.ones(DIM)
    torch.save(weights, tmp_path / "w.pth")
    assert refusal(tmp_path / "w.pth") == (
        f"backbone_config: pretrained '{tmp_path}/w.pth', read as timm, does not fit the network: it lacks "
        "blocks.1.mlp.fc1.bias, norm.weight; has unknown blocks.2.norm1.weight; has of another shape norm.bias (3,), "
        f"not ({DIM},); choose the backbone that it was made with"
    )


def test_no_weight_may_be_missing_or_differ(tmp_path: Path) -> None:
    """One by one, so that none is exempt by mistake."""
    weights, network, path = random_weights(vit()), vit(), tmp_path / "w.pth"
    assert len(trunk(weights)) == 6 + 12 * DEPTH
    for name, kept in trunk(weights).items():
        torch.save({k: v for k, v in weights.items() if k != name}, path)
        assert f"it lacks {name};" in refusal(path, network=network)
        torch.save({**weights, name: kept.unsqueeze(0)}, path)
        assert f"of another shape {name} {(1, *kept.shape)}" in refusal(path, network=network)


@pytest.mark.parametrize("blocks", [3, 1])
def test_long_lists_are_cut_and_counted(blocks: int, tmp_path: Path) -> None:
    torch.save(random_weights(vit(depth=blocks)), tmp_path / "w.pth")
    verb, block = ("has unknown", 2) if blocks == 3 else ("lacks", 1)
    names = [f"blocks.{block}.{k}" for k in ("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias")]
    names += [f"blocks.{block}.{k}" for k in ("attn.proj.weight", "attn.proj.bias")]
    assert f"it {verb} {', '.join(names)} and 6 more; choose" in refusal(tmp_path / "w.pth")


def test_a_tensor_beside_the_backbone_must_be_a_known_leftover(tmp_path: Path) -> None:
    """It must not take the place of one of the backbone's either, whatever its name."""
    state = {**prefixed("backbone.", trunk(random_weights(vit()))), "norm.bias": torch.ones(DIM)}
    torch.save({"teacher": state}, tmp_path / "w.pth")
    assert "it has unknown norm.bias;" in refusal(tmp_path / "w.pth", "ibot")
    del state["backbone.norm.bias"]
    torch.save({"teacher": state}, tmp_path / "w.pth")
    assert "it lacks norm.bias; has unknown norm.bias;" in refusal(tmp_path / "w.pth", "ibot")


def test_a_norm_after_pooling_is_needed_where_the_network_has_one_and_else_left_out(tmp_path: Path) -> None:
    averaging = vit(global_pool="avg")
    with_fc_norm = {**random_weights(vit()), "fc_norm.weight": torch.ones(DIM), "fc_norm.bias": torch.ones(DIM)}
    torch.save(with_fc_norm, tmp_path / "w.pth")
    check_loaded(vit(), tmp_path / "w.pth", "timm", with_fc_norm)
    torch.save(random_weights(vit()), tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth", network=averaging)
    assert "it lacks fc_norm.weight, fc_norm.bias; has unknown norm.weight, norm.bias;" in message
    weights = random_weights(averaging)
    torch.save(weights, tmp_path / "w.pth")
    pretrained.load(averaging, tmp_path / "w.pth")
    assert torch.equal(averaging.state_dict()["fc_norm.weight"], weights["fc_norm.weight"])


@pytest.mark.parametrize(
    ("store", "format", "words"),
    [
        (ibot_21k, "moco_v3", ["is not laid out as moco_v3 but as ibot", "or use ibot"]),
        (moco_v3, "ibot", ["is not laid out as ibot but as moco_v3"]),
        (in611, "dino", ["is not laid out as dino but as moco_v3"]),
        (lambda w: {"net": w, "epoch": 3}, "auto", ["no blocks of a vision transformer where", "but net, epoch;"]),
        (lambda w: prefixed("encoder.", w), "auto", ["but encoder.cls_token", "and 26 more"]),
        (lambda w: {"teacher": 3, "state_dict": None}, "ibot", ["but teacher, state_dict;"]),
        (lambda w: {}, "auto", ["but nothing;"]),
        (lambda w: list(w.values()), "auto", ["holds a list, not weights by name"]),
        (lambda w: w["norm.bias"], "timm", ["holds a Tensor, not weights by name"]),
        (trunk, "npz", ["is not laid out as npz but as timm"]),
    ],
)
def test_another_layout_is_refused_by_name(
    store: Callable[[dict[str, Tensor]], Any], format: str, words: list[str], tmp_path: Path
) -> None:
    torch.save(store(random_weights(vit())), tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth", format)
    assert all(word in message for word in words), message


def test_an_npz_file_is_no_other_format_and_may_hold_anything(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **google(random_weights(vit())))
    assert "is not laid out as timm but as npz" in refusal(tmp_path / "w.npz", "timm")
    np.savez(tmp_path / "w.npz", images=np.ones(3, np.float32))
    assert "no blocks of a vision transformer where npz has them, but images;" in refusal(tmp_path / "w.npz")


# ---- damaged and unsafe files


def as_npz(weights: dict[str, Tensor], path: Path) -> None:
    np.savez(path, **google(weights))


KINDS: dict[str, tuple[str, Callable[[dict[str, Tensor], Path], None]]] = {
    "zip": ("w.pth", lambda w, path: torch.save(w, path)),
    "legacy": ("w.pth", lambda w, path: torch.save(w, path, _use_new_zipfile_serialization=False)),
    "safetensors": ("w.safetensors", save_file),
    "npz": ("w.npz", as_npz),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_off_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    name, write = KINDS[kind]
    write(random_weights(vit()), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for length in [0, 1, 7, 8, 30, *(len(data) * i // 8 for i in range(1, 8)), len(data) - 1]:
        (tmp_path / name).write_bytes(data[:length])
        message = refusal(tmp_path / name)
        assert "is damaged, or holds no weights (" in message, (length, message)
        assert len(message) < 300 + len(str(tmp_path)), message


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_a_changed_byte_is_found_or_harmless(kind: str, tmp_path: Path) -> None:
    """Harmless: in the padding of a file with checksums. The other two kinds have none."""
    name, write = KINDS[kind]
    weights = random_weights(vit())
    write(weights, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    rng, found = random.Random(0), 0
    for _ in range(40):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / name).write_bytes(changed)
        network = vit()
        try:
            pretrained.load(network, tmp_path / name)
        except UserError:
            found += 1
        else:
            assert all(torch.equal(network.state_dict()[k], v) for k, v in trunk(weights).items())
    assert found >= 30


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.npz"])
@pytest.mark.parametrize("text", [b"", b"<html><title>404</title></html>", bytes(range(256)) * 9])
def test_something_else_under_the_name_of_a_weight_file_is_refused(name: str, text: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text)
    assert "is damaged, or holds no weights (" in refusal(tmp_path / name)


class Code:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_none(new: bool, tmp_path: Path) -> None:
    state = {**random_weights(vit()), "extra": Code(tmp_path / "ran")}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    assert "is refused: reading it would run code (posix.mkdir)" in refusal(tmp_path / "w.pth")
    torch.save(vit(), tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    assert "would run code (timm.models.vision_transformer.VisionTransformer)" in refusal(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_pickled_objects_in_an_npz_are_refused_and_run_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", cls=np.array([Code(tmp_path / "ran")], dtype=object))
    assert "is refused: reading it would run code;" in refusal(tmp_path / "w.npz")
    (tmp_path / "w.npz").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    assert "is damaged" in refusal(tmp_path / "w.npz")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    for name, _ in KINDS.values():
        (tmp_path / name).mkdir(exist_ok=True)
        assert "cannot read" in refusal(tmp_path / name)
    assert "No such file" in refusal(tmp_path / "absent.pth")


def test_files_of_torch_without_checksums_load(tmp_path: Path) -> None:
    options = getattr(torch.serialization, "set_crc32_options", None)
    if options is None:
        pytest.skip("this torch always writes checksums")
    weights = random_weights(vit())
    options(False)
    try:
        torch.save(weights, tmp_path / "w.pth")
    finally:
        options(True)
    check_loaded(vit(), tmp_path / "w.pth", "auto", weights)


# ---- positions


def test_positions_of_another_grid_need_to_be_asked_for(tmp_path: Path) -> None:
    weights = random_weights(vit(image=32))  # a grid of 4x4
    torch.save(weights, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert message.endswith(
        f"it has of another shape pos_embed (1, 17, {DIM}), not (1, 5, {DIM}); resize_positions: true resamples the "
        "positions for these images"
    )
    network = vit()
    pretrained.load(network, tmp_path / "w.pth", resize_positions=True)
    state = network.state_dict()
    assert all(torch.equal(state[k], v) for k, v in trunk(weights).items() if k != "pos_embed")
    assert torch.equal(state["pos_embed"][:, 0], weights["pos_embed"][:, 0])
    grid = weights["pos_embed"][0, 1:].T.reshape(1, DIM, 4, 4)
    expected = nn.functional.interpolate(grid, size=(2, 2), mode="bicubic", antialias=True)
    torch.testing.assert_close(state["pos_embed"][0, 1:], expected.reshape(DIM, 4).T)


def test_positions_are_resampled_for_the_networks_own_grid(tmp_path: Path) -> None:
    """Positions that rise linearly from row to row still do on a grid of the same rows and more columns."""
    weights = random_weights(vit(image=32))
    weights["pos_embed"][0, 1:] = torch.arange(4.0).repeat_interleave(4)[:, None]
    torch.save(weights, tmp_path / "w.pth")
    network = vit(image=(32, 64))
    pretrained.load(network, tmp_path / "w.pth", resize_positions=True)
    rows = network.state_dict()["pos_embed"][0, 1:].reshape(4, 8, DIM)
    torch.testing.assert_close(rows, torch.arange(4.0)[:, None, None].expand(4, 8, DIM))


def test_positions_of_the_same_grid_stay_when_resampling_is_on(tmp_path: Path) -> None:
    weights = random_weights(vit())
    torch.save(weights, tmp_path / "w.pth")
    network = vit()
    pretrained.load(network, tmp_path / "w.pth", resize_positions=True)
    assert torch.equal(network.state_dict()["pos_embed"], weights["pos_embed"])


def test_networks_whose_class_token_has_no_position_are_resampled_too(tmp_path: Path) -> None:
    weights = random_weights(vit(image=32, no_embed_class=True))
    torch.save(weights, tmp_path / "w.pth")
    network = vit(no_embed_class=True)
    pretrained.load(network, tmp_path / "w.pth", resize_positions=True)
    assert network.state_dict()["pos_embed"].shape == (1, 4, DIM)


@pytest.mark.parametrize("shape", [(1, 12, DIM), (1, 0, DIM), (DIM,), (1, 17, DIM + 2), (2, 17, DIM)])
def test_positions_that_are_no_grid_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.save({**random_weights(vit()), "pos_embed": torch.ones(shape)}, tmp_path / "w.pth")
    assert "pos" in refusal(tmp_path / "w.pth", resize_positions=True)


# ---- what the weights expect


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_format_says_how_images_were_normalised(layout: str, tmp_path: Path) -> None:
    format, store, _ = LAYOUTS[layout]
    torch.save(store(random_weights(vit())), tmp_path / "w.pth")
    config = {"pretrained": str(tmp_path / "w.pth"), "checkpoint_format": format}
    usual = format == "timm"
    assert expected_input("vit_base_patch16_224", config) == ((224, 224), *(HALVES if usual else IMAGENET))
    assert expected_input("deit_base_patch16_384", config) == ((384, 384), *IMAGENET)
    assert expected_input("vit", config) is None


def test_without_a_format_the_file_says_how_images_were_normalised(tmp_path: Path) -> None:
    weights = random_weights(vit())
    for name, content, statistics in (
        ("ibot.pth", ibot_21k(weights), IMAGENET),
        ("in611.pth", in611(weights), IMAGENET),
        ("bare.pth", weights, HALVES),
    ):
        torch.save(content, tmp_path / name)
        found = expected_input("vit_base_patch16_224", {"pretrained": str(tmp_path / name)})
        assert found == ((224, 224), *statistics)
    np.savez(tmp_path / "w.npz", **google(weights))
    config = {"pretrained": str(tmp_path / "w.npz")}
    assert expected_input("deit_base_patch16_224", config) == ((224, 224), *HALVES)
