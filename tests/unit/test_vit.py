"""Vision transformers: names and keys, weights from caches and files, what they expect; a network's fingerprint."""

import hashlib
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save_file
from torch import Tensor, nn

from reprise import backbone
from reprise.backbone.base import ExpectedInput
from reprise.main import main
from reprise.runtime.errors import UserError

HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SHAPE = (3, 32, 32)
TINY = {"patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Empty ones, and no way to download."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"nobody asked to download {args}")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def build(name: str, shape: tuple[int, ...] = SHAPE, **config: Any) -> nn.Module:
    torch.manual_seed(7)
    return backbone.build(name, num_classes=5, sample_shape=shape, config=config)


def trunk(network: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in network.state_dict().items() if not k.startswith("head.")}


def random_weights(network: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {k: torch.randn(v.shape, generator=generator) for k, v in trunk(network).items()}


def in_hub_cache(root: Path, repository: str, name: str = "model.safetensors") -> Path:
    """Where huggingface_hub has a file after a download; its folder exists then."""
    folder = root / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    (folder / "snapshots" / "abc123").mkdir(parents=True)
    return folder / "snapshots" / "abc123" / name


def in_torch_cache(root: Path, name: str) -> Path:
    folder = root / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / name


def refused(name: str, shape: tuple[int, ...] = SHAPE, **config: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(name, shape, **config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- `vit`, from sizes


def test_vit_has_the_sizes_it_is_given() -> None:
    network = build("vit", (2, 16, 24), **TINY)
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    assert shapes["patch_embed.proj.weight"] == (16, 2, 8, 8)
    assert shapes["pos_embed"] == (1, 1 + 2 * 3, 16)
    assert shapes["head.weight"] == (5, 16)
    assert len(network.blocks) == 2
    assert network.blocks[0].attn.num_heads == 2
    assert network(torch.zeros(3, 2, 16, 24)).shape == (3, 5)


def test_vit_by_default_is_small_and_trained_by_timms_recipe() -> None:
    assert sum(p.numel() for p in build("vit").parameters()) == pytest.approx(2.69e6, rel=0.01)
    assert backbone.default_lr("vit") == backbone.default_lr("vit_base_patch16_224") == 6.25e-5
    regimes = [backbone.default_regime(name, 3, {}) for name in ("vit", "vit_base_patch16_224", "test_convnext")]
    assert regimes[0] == regimes[1] == regimes[2]


def test_vit_may_be_told_the_size_of_its_images() -> None:
    assert trunk(build("vit", img_size=32, **TINY)).keys() == trunk(build("vit", **TINY)).keys()
    assert "img_size 64, and the images are 32x32" in refused("vit", img_size=64)


@pytest.mark.parametrize(
    ("shape", "config", "words"),
    [
        ((64,), {}, ["'vit' needs images"]),
        (SHAPE, {"patch_size": 5}, ["patch_size 5 does not divide", "32x32"]),
        (SHAPE, {"patch_size": 0}, ["patch_size 0 is not a whole number from 1"]),
        (SHAPE, {"depth": 2.0}, ["depth 2.0 is not"]),
        (SHAPE, {"embed_dim": True}, ["embed_dim True is not"]),
        (SHAPE, {"num_heads": 5}, ["embed_dim 192 is no multiple of num_heads 5"]),
        (SHAPE, {"deep": 5}, ["no key 'deep', did you mean 'depth'"]),
    ],
)
def test_sizes_that_cannot_be_are_refused(shape: tuple[int, ...], config: dict, words: list[str]) -> None:
    message = refused("vit", shape, **config)
    assert all(word in message for word in words), message


# ---- weights from files


@pytest.mark.parametrize("name", ["vit", "test_vit"])
def test_weights_of_a_file_are_loaded_and_the_head_stays_random(name: str, caches: Path) -> None:
    sizes = TINY if name == "vit" else {}
    plain = build(name, **sizes)
    weights = random_weights(plain)
    save_file(weights, caches / "own.safetensors")
    network = build(name, pretrained=str(caches / "own.safetensors"), **sizes)
    assert all(torch.equal(trunk(network)[k], v) for k, v in weights.items())
    assert torch.equal(network.head.weight, plain.head.weight)
    assert network.training


def test_a_path_may_begin_with_the_home_folder(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(caches))
    weights = random_weights(build("vit", **TINY))
    save_file(weights, caches / "own.safetensors")
    assert torch.equal(build("vit", pretrained="~/own.safetensors", **TINY).norm.bias, weights["norm.bias"])


def test_format_and_positions_reach_the_loader(caches: Path) -> None:
    weights = random_weights(build("vit", (3, 64, 64), **TINY))
    path = str(caches / "w.pth")
    torch.save({"teacher": {f"backbone.{k}": v for k, v in weights.items()}}, path)
    assert "is not laid out as moco_v3 but as ibot" in refused(
        "vit", pretrained=path, checkpoint_format="moco_v3", **TINY
    )
    assert "resize_positions: true" in refused("vit", pretrained=path, checkpoint_format="ibot", **TINY)
    network = build("vit", pretrained=path, checkpoint_format="ibot", resize_positions=True, **TINY)
    assert network.pos_embed.shape == (1, 17, 16)
    assert torch.equal(network.norm.bias, weights["norm.bias"])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"pretrained": "no/such/file.pth"}, ["'no/such/file.pth' is no file, nor a tag", "there are: r160_in1k"]),
        ({"pretrained": "r160_in2k"}, ["is no file, nor a tag of timm's, did you mean 'r160_in1k'"]),
        ({"pretrained": "."}, ["'.' is no file"]),
        ({"pretrained": ""}, ["'' is no file"]),
        ({"pretrained": True}, ["'True' is no file"]),
        ({"pretrained": "r160_in1k", "checkpoint_format": "dino"}, ["checkpoint_format", "timm's 'r160_in1k'"]),
        ({"checkpoint_format": "dino"}, ["checkpoint_format has no meaning without pretrained"]),
        ({"checkpoint_format": "dyno"}, ["unknown checkpoint_format 'dyno', did you mean 'dino'", "auto, dino, ibot"]),
        ({"checkpoint_format": 3}, ["unknown checkpoint_format 3"]),
        ({"resize_positions": True}, ["resize_positions has no meaning without pretrained"]),
        ({"resize_positions": "yes"}, ["resize_positions 'yes' is neither true nor false"]),
        ({"pretraind": "x"}, ["no key 'pretraind', did you mean 'pretrained'"]),
    ],
)
def test_requests_that_cannot_be_met_are_refused_before_there_is_data(config: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        backbone.check("test_vit", config)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_command_line_ends_with_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--backbone", "vit", "--backbone-config", "{'pretrained': 'absent.pth'}"]) == 2
    assert capsys.readouterr().err == (
        "reprise: error: backbone_config: pretrained 'absent.pth' is no file; correct the path\n"
    )


# ---- weights by timm's tags


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("full_name", [True, False])
def test_a_tag_is_found_in_the_cache_of_hugging_face(name: str, full_name: bool, caches: Path) -> None:
    weights = random_weights(build("test_vit"))
    save = save_file if name.endswith("safetensors") else torch.save
    save(weights, in_hub_cache(caches, "timm/test_vit.r160_in1k", name))
    network = build("test_vit.r160_in1k") if full_name else build("test_vit", pretrained="r160_in1k")
    assert all(torch.equal(trunk(network)[k], v) for k, v in weights.items())
    assert torch.equal(network.head.weight, build("test_vit").head.weight)


def test_a_tag_is_found_in_the_cache_of_torch(caches: Path) -> None:
    weights = random_weights(build("deit_tiny_patch16_224"))
    path = in_torch_cache(caches, "deit_tiny_patch16_224-a1311bcf.pth")
    torch.save({"model": {**weights, "head.weight": torch.ones(1000, 192), "head.bias": torch.ones(1000)}}, path)
    network = build("deit_tiny_patch16_224.fb_in1k")
    assert torch.equal(network.blocks[11].mlp.fc2.bias, weights["blocks.11.mlp.fc2.bias"])
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"'{path}' is damaged" in refused("deit_tiny_patch16_224.fb_in1k")


def test_weights_of_another_size_are_refused_or_their_positions_resampled(caches: Path) -> None:
    weights = random_weights(build("test_vit", (3, 160, 160)))
    save_file(weights, in_hub_cache(caches, "timm/test_vit.r160_in1k"))
    assert "pos_embed (1, 101, 64), not (1, 5, 64); resize_positions: true" in refused("test_vit.r160_in1k")
    network = build("test_vit.r160_in1k", resize_positions=True)
    assert torch.equal(network.pos_embed[:, 0], weights["pos_embed"][:, 0])
    assert build("test_vit.r160_in1k", (3, 160, 160)).pos_embed.equal(weights["pos_embed"])


def test_weights_for_colours_do_not_fit_grey_images(caches: Path) -> None:
    save_file(random_weights(build("test_vit")), in_hub_cache(caches, "timm/test_vit.r160_in1k"))
    assert "patch_embed.proj.weight (64, 3, 16, 16), not (64, 1, 16, 16)" in refused("test_vit.r160_in1k", (1, 32, 32))


def test_absent_weights_are_one_line_with_places_and_remedy(caches: Path) -> None:
    assert refused("vit_tiny_patch16_224", pretrained="augreg_in21k") == (
        f"backbone 'vit_tiny_patch16_224': its weights 'augreg_in21k' are not in '{caches}/hub' as "
        f"timm/vit_tiny_patch16_224.augreg_in21k or '{caches}/torch/hub/checkpoints/"
        "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0.npz'; run once with --download, or give pretrained "
        "the path of a file"
    )
    assert not (caches / "torch").exists()
    backbone.check("vit_tiny_patch16_224", {"pretrained": "augreg_in21k"})


def test_fetch_downloads_what_is_absent_and_only_then(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(build("test_vit"))
    save_file(weights, caches / "theirs.safetensors")
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return shutil.copy(caches / "theirs.safetensors", in_hub_cache(caches, repository, name))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for _ in range(2):
        backbone.fetch("test_vit", {"pretrained": "r160_in1k"})
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors")]
    assert torch.equal(build("test_vit.r160_in1k").norm.bias, weights["norm.bias"])


def test_fetch_downloads_from_the_authors_what_the_hub_does_not_have(
    caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm import get_pretrained_cfg
    from timm.models import list_pretrained

    name = "eva_large_patch14_196.in22k_ft_in22k_in1k"
    assert name in list_pretrained("eva_large*")
    known = get_pretrained_cfg(name)
    known.hf_hub_id, known.url = None, "https://example.org/weights/eva-1234.pt?x=1"
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda _: known)
    asked = []

    def download(url: str, file: str, progress: bool) -> None:
        asked.append(url)
        Path(file).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        backbone.fetch(name, {})
    assert asked == [known.url]
    assert (caches / "torch/hub/checkpoints/eva-1234.pt").read_bytes() == b"weights"


def test_a_download_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: str) -> None:
        raise errors.LocalEntryNotFoundError("no\nconnection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match=r"'test_vit': download of its weights 'r160_in1k' failed \(no connection\)"):
        backbone.fetch("test_vit.r160_in1k", {})


@pytest.mark.parametrize("name", ["vit", "test_vit", "mlp", "resnet10t"])
def test_fetch_without_a_request_does_nothing(name: str) -> None:
    backbone.fetch(name, {})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_base_patch16_224.orig_in22k", ["no weights 'orig_in22k', did you mean 'orig_in21k'", "mae"]),
        ("vit_base_patch16_224.", ["no weights ''", "timm knows: "]),
        ("vit_base_patch16_225.mae", ["unknown backbone 'vit_base_patch16_225.mae'", "'vit_base_patch16_224'?"]),
        ("vit_large_patch14_224.untrained", ["no weights 'untrained'; timm knows: none"]),
    ],
)
def test_unknown_tags_are_refused_with_those_that_there_are(name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        backbone.check(name, {})
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("key", ["pretrained", "checkpoint_format"])
def test_a_name_with_a_tag_takes_no_other_weights(key: str) -> None:
    with pytest.raises(UserError, match=f"no key '{key}'"):
        backbone.check("vit_base_patch16_224.orig_in21k", {key: "mae"})


@pytest.mark.parametrize("tag", ["orig_in21k", "augreg_in21k", "augreg_in21k_ft_in1k", "dino", "mae"])
def test_the_backbones_of_the_literature_are_known(tag: str) -> None:
    """peft.md 3.3; their statistics as their authors state them."""
    statistics = IMAGENET if tag in ("dino", "mae") else HALVES
    expected = ExpectedInput((224, 224), *statistics)
    assert backbone.expected_input("vit_base_patch16_224", {"pretrained": tag}) == expected
    assert backbone.expected_input(f"vit_base_patch16_224.{tag}", {}) == expected


@pytest.mark.parametrize("name", ["deit_small_patch16_224", "deit_base_patch16_224"])
def test_deit_is_known(name: str) -> None:
    expected = ExpectedInput((224, 224), *IMAGENET)
    assert backbone.expected_input(name, {"pretrained": "fb_in1k"}) == expected


@pytest.mark.parametrize("name", ["vit", "vit_base_patch16_224", "mlp", "resnet10t"])
def test_random_weights_expect_nothing(name: str) -> None:
    assert backbone.expected_input(name, {}) is None


def test_expected_mean_and_std_are_timms_for_every_transformer() -> None:
    """Taken over whole, so that none of them needs a file to say what it expects."""
    from timm import get_pretrained_cfg

    known = get_pretrained_cfg("vit_base_patch16_clip_224.openai")
    found = backbone.expected_input("vit_base_patch16_clip_224.openai", {})
    assert found == (known.input_size[1:], known.mean, known.std)
    assert found is not None
    assert found.mean not in (HALVES[0], IMAGENET[0])


# ---- the fingerprint


class Mixed(nn.Module):
    """Parameters and buffers of every kind, in the order of `names`."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        made = {
            "short": nn.Parameter(torch.arange(3.0).bfloat16()),
            "empty": nn.Parameter(torch.zeros(0, 2)),
            "image": nn.Parameter(torch.arange(24.0).reshape(1, 2, 3, 4)),
        }
        kept = {"count": torch.tensor(3), "mask": torch.tensor([True, False])}
        for name in names:
            if name in made:
                self.register_parameter(name, made[name])
            else:
                self.register_buffer(name, kept[name], persistent=name != "mask")


NAMES = ["short", "empty", "image", "count", "mask"]


def test_the_fingerprint_is_over_names_shapes_types_and_bytes_in_the_order_of_names() -> None:
    expected = hashlib.sha256()
    for header, data in (
        ("count () torch.int64", struct.pack("<q", 3)),
        ("empty (0, 2) torch.float32", b""),
        ("image (1, 2, 3, 4) torch.float32", np.arange(24, dtype="<f4").tobytes()),
        ("mask (2,) torch.bool", b"\x01\x00"),
        ("short (3,) torch.bfloat16", b"".join(struct.pack("<f", x)[2:] for x in (0.0, 1.0, 2.0))),
    ):
        expected.update(f"{header}\n".encode() + data)
    assert backbone.fingerprint(Mixed(NAMES)) == expected.hexdigest()
    assert backbone.fingerprint(Mixed(NAMES[::-1])) == expected.hexdigest()


def test_the_fingerprint_ignores_layout_gradients_and_mode() -> None:
    network = build("vit", **TINY)
    before = backbone.fingerprint(network)
    network = network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    network.patch_embed.proj.weight.data = network.patch_embed.proj.weight.data.transpose(0, 1).clone().transpose(0, 1)
    assert not network.patch_embed.proj.weight.is_contiguous()
    assert backbone.fingerprint(network) == before


def test_any_bit_changes_the_fingerprint_and_the_head_does_not() -> None:
    network, rng = build("vit", **TINY), np.random.default_rng(0)
    seen = {backbone.fingerprint(network)}
    with torch.no_grad():
        network.head.weight.add_(1)
        assert backbone.fingerprint(network) in seen
        for count, parameter in enumerate(trunk(network).values(), start=2):
            integers = parameter.view(-1).view(torch.int32)
            integers[rng.integers(len(integers))] ^= int(rng.choice([1, 1 << 12, 1 << 30]))
            seen.add(backbone.fingerprint(network))
            assert len(seen) == count


def test_the_fingerprint_can_leave_out_other_names_or_nothing() -> None:
    network = build("vit", **TINY)
    whole, parts = backbone.fingerprint(network, without=()), ("head.", "blocks.1.")
    without = backbone.fingerprint(network, without=parts)
    with torch.no_grad():
        network.blocks[1].mlp.fc1.bias.add_(1)
    assert backbone.fingerprint(network, without=parts) == without
    with torch.no_grad():
        network.blocks[1].mlp.fc1.bias.zero_()
        network.head.bias.add_(1)
    assert backbone.fingerprint(network, without=()) != whole


def test_names_and_shapes_count_though_the_bytes_are_the_same() -> None:
    def of(**parameters: Tensor) -> str:
        network = nn.ParameterDict({k: nn.Parameter(v) for k, v in parameters.items()})
        return backbone.fingerprint(network)

    ones = torch.ones(4)
    prints = [of(a=ones), of(b=ones), of(a=ones.view(2, 2)), of(a=ones.double()), of(a=ones[:2], b=ones[2:])]
    assert len(set(prints)) == 5


def test_equal_weights_of_two_runs_have_one_fingerprint(caches: Path) -> None:
    """Loaded or trained, whatever the head: what ranks compare."""
    network = build("vit", **TINY)
    save_file(trunk(network), caches / "w.safetensors")
    torch.manual_seed(8)
    config = {"pretrained": os.fspath(caches / "w.safetensors"), **TINY}
    other = backbone.build("vit", num_classes=9, sample_shape=SHAPE, config=config)
    assert backbone.fingerprint(other) == backbone.fingerprint(network)
    assert backbone.fingerprint(build("vit", **{**TINY, "depth": 1})) != backbone.fingerprint(network)
