"""LoRA to and from adapter folders of peft: weights worked out by hand, and peft itself where it is installed."""

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reprise.cl_models.peft.adapter import Adapter
from reprise.cl_models.peft.bank import Bank, attach
from reprise.cl_models.peft.hf_peft import export_lora, import_lora, technique_of
from reprise.cl_models.peft.lora import LoRA
from reprise.runtime.errors import UserError
from reprise.runtime.vision import ensure_torchvision

BLOCKS = (0, 2)
D, OUT, RANK = 48, {"attn.qkv": 144, "mlp.fc1": 192, "mlp.fc2": 48}, 3
TARGETS = [("k", "v"), ("v",), ("q", "k", "v"), ("v", "fc1", "k", "fc2")]


def tiny_vit() -> Any:
    ensure_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(1)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=D, depth=3, num_heads=3, num_classes=10).eval()


def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def trained(vit: Any, lora: LoRA, blocks: tuple[int, ...] = BLOCKS) -> Bank:
    bank = attach(vit.requires_grad_(False), lora, blocks)
    generator = torch.Generator().manual_seed(3)
    bank.add(0, generator=generator)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    bank.activate(0)
    return bank


def adapter(
    folder: Path, rank: int = RANK, linears: tuple[str, ...] = ("attn.qkv",), **settings: Any
) -> dict[str, Tensor]:
    """A folder as peft writes it after training on whole Linears, in BLOCKS."""
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for number in BLOCKS:
        for linear in linears:
            key = f"base_model.model.blocks.{number}.{linear}"
            inputs = 4 * D if linear == "mlp.fc2" else D
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
            tensors[f"{key}.lora_B.weight"] = torch.randn(OUT[linear], rank, generator=generator)
    write(folder, tensors, **settings)
    return tensors


def write(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> None:
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2, "bias": "none", "target_modules": ["qkv"], **settings}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))


def with_dense_weights(vit: Any, tensors: dict[str, Tensor], scale: Any) -> Any:
    """W + scale(name) B A in every Linear that has a pair, in float64."""
    dense = copy.deepcopy(vit).double()
    with torch.no_grad():
        for key, a in tensors.items():
            if key.endswith("lora_A.weight"):
                name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                b = tensors[key.replace("lora_A", "lora_B")]
                dense.get_submodule(name).weight += scale(name) * (b.double() @ a.double())
    return dense


def assert_same_outputs(vit: Any, dense: Any) -> None:
    vit.double()
    torch.testing.assert_close(vit(images().double()), dense(images().double()), rtol=1e-9, atol=1e-9)


# ---- written


@pytest.mark.parametrize("targets", TARGETS)
def test_what_is_written_is_the_same_update_of_the_frozen_weights(targets: tuple[str, ...], tmp_path: Path) -> None:
    vit = tiny_vit()
    base = copy.deepcopy(vit)
    bank = trained(vit, LoRA(rank=RANK, alpha=2.0, targets=targets))
    export_lora(bank, 0, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    in_qkv = sum(target in "qkv" for target in targets)
    linears = ["attn.qkv", *(f"mlp.{target}" for target in targets if target.startswith("fc"))]
    assert config["target_modules"] == [f"blocks.{number}.{linear}" for number in BLOCKS for linear in linears]
    assert tensors["base_model.model.blocks.2.attn.qkv.lora_A.weight"].shape == (in_qkv * RANK, D)
    assert len(tensors) == 2 * len(BLOCKS) * len(linears)

    def scale(name: str) -> float:
        rank = config["rank_pattern"].get(name, config["r"])
        assert tensors[f"base_model.model.{name}.lora_A.weight"].shape[0] == rank
        return float(config["alpha_pattern"].get(name, config["lora_alpha"]) / rank)

    bank.double()
    assert_same_outputs(vit, with_dense_weights(base, tensors, scale))


@pytest.mark.parametrize("targets", TARGETS)
def test_what_was_written_is_read_back_bitwise(targets: tuple[str, ...], tmp_path: Path) -> None:
    lora = LoRA(rank=RANK, alpha=2.0, targets=targets)
    bank = trained(tiny_vit(), lora)
    export_lora(bank, 0, tmp_path)
    other = attach(tiny_vit(), lora, BLOCKS)
    import_lora(other, 6, tmp_path)
    before, after = bank.state_of(0), other.state_of(6)
    assert list(before) == list(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_an_untrained_task_is_read_back_bitwise(tmp_path: Path) -> None:
    bank = attach(tiny_vit(), LoRA(), BLOCKS)
    bank.add(0)
    export_lora(bank, 0, tmp_path)
    bank.add(1)
    import_lora(bank, 1, tmp_path)
    after = bank.state_of(1)
    assert all(torch.equal(value, after[name]) for name, value in bank.state_of(0).items())


# ---- read


@pytest.mark.parametrize("linears", [("attn.qkv",), ("attn.qkv", "mlp.fc1", "mlp.fc2"), ("mlp.fc2",)])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_alpha": 5}])
def test_what_peft_has_trained_on_whole_linears_is_read(
    linears: tuple[str, ...], settings: dict[str, Any], tmp_path: Path
) -> None:
    tensors = adapter(tmp_path, linears=linears, **settings)
    technique, blocks = technique_of(tmp_path)
    assert (technique.rank, blocks) == (RANK, BLOCKS)
    vit = tiny_vit()
    scale = settings.get("lora_alpha", 2) / (math.sqrt(RANK) if settings.get("use_rslora") else RANK)
    dense = with_dense_weights(vit, tensors, lambda _: scale)
    vit.double()
    bank = attach(vit, technique, blocks)
    import_lora(bank, 0, tmp_path)
    bank.activate(0)
    assert_same_outputs(vit, dense)


def test_an_adapter_that_leaves_q_alone_fits_a_bank_of_k_and_v(tmp_path: Path) -> None:
    tensors = adapter(tmp_path)
    for key, value in tensors.items():
        if "lora_B" in key:
            value[:D] = 0
    write(tmp_path, tensors)
    vit = tiny_vit()
    dense = with_dense_weights(vit, tensors, lambda _: 2 / RANK)
    bank = attach(vit.double(), LoRA(rank=RANK, alpha=2.0), BLOCKS)
    import_lora(bank, 0, tmp_path)
    bank.activate(0)
    assert_same_outputs(vit, dense)


def test_scales_of_single_linears_are_heeded(tmp_path: Path) -> None:
    adapter(tmp_path, lora_alpha=7, alpha_pattern={"attn.qkv": 2})
    assert technique_of(tmp_path) == (LoRA(rank=RANK, alpha=2.0, targets=("q", "k", "v")), BLOCKS)
    adapter(tmp_path, alpha_pattern={"2.attn.qkv": 1})
    with pytest.raises(UserError, match="other ranks, scales"):
        technique_of(tmp_path)


@pytest.mark.parametrize(
    ("lora", "blocks", "words"),
    [
        (LoRA(RANK, 2.0), BLOCKS, ["blocks.0.attn.qkv", "rank 3", "technique_of"]),  # it moves q too
        (LoRA(2, 2.0, ("q", "k", "v")), BLOCKS, ["rank 3", "LoRA(rank=2"]),
        (LoRA(RANK, 1.0, ("q", "k", "v")), BLOCKS, ["scale 0.666667", "alpha=1.0"]),
        (LoRA(RANK, 2.0, ("q", "k", "v")), (0, 1, 2), ["nothing for blocks.1.attn.qkv"]),
        (LoRA(RANK, 2.0, ("q", "k", "v")), (0,), ["changes blocks.2.attn.qkv too"]),
        (LoRA(RANK, 2.0, ("fc1",)), BLOCKS, ["nothing for blocks.0.mlp.fc1"]),
    ],
)
def test_what_a_bank_cannot_hold_exactly_is_refused(
    lora: LoRA, blocks: tuple[int, ...], words: list[str], tmp_path: Path
) -> None:
    adapter(tmp_path)
    bank = trained(tiny_vit(), lora, blocks)
    before = bank.state_of(0)
    with pytest.raises(UserError) as caught:
        import_lora(bank, 0, tmp_path)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in bank.state_of(0).items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, ["use_dora"]),
        ({"bias": "lora_only"}, ["bias lora_only"]),
        ({"modules_to_save": ["head"]}, ["modules_to_save"]),
        ({"peft_type": "IA3"}, ["peft_type IA3"]),
    ],
)
def test_what_is_more_than_lora_is_refused(settings: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    adapter(tmp_path, **settings)
    with pytest.raises(UserError) as caught:
        technique_of(tmp_path)
    assert all(word in str(caught.value) for word in ["more than LoRA", *words]), str(caught.value)


def test_other_layers_half_pairs_and_no_folder_are_refused(tmp_path: Path) -> None:
    tensors = adapter(tmp_path)
    write(tmp_path, {**tensors, "base_model.model.blocks.0.attn.proj.lora_A.weight": torch.zeros(RANK, D)})
    with pytest.raises(UserError, match=r"attn\.proj\.lora_A"):
        technique_of(tmp_path)
    write(tmp_path, {key: value for key, value in tensors.items() if "blocks.2.attn.qkv.lora_B" not in key})
    with pytest.raises(UserError, match=r"half of a pair for blocks\.2\.attn\.qkv"):
        technique_of(tmp_path)
    with pytest.raises(UserError, match=r"cannot read the adapter in .*nowhere"):
        technique_of(tmp_path / "nowhere")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot read the adapter"):
        technique_of(tmp_path)


def test_only_lora_is_written(tmp_path: Path) -> None:
    bank = attach(tiny_vit(), Adapter(), BLOCKS)
    bank.add(0)
    with pytest.raises(UserError, match="bank is of Adapter"):
        export_lora(bank, 0, tmp_path)
    assert not list(tmp_path.iterdir())


# ---- peft itself


def peft() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft")


@pytest.mark.parametrize("targets", TARGETS)
def test_peft_reads_what_is_written(targets: tuple[str, ...], tmp_path: Path) -> None:
    model = peft().PeftModel
    vit = tiny_vit()
    base = copy.deepcopy(vit)
    bank = trained(vit, LoRA(rank=RANK, alpha=2.0, targets=targets))
    export_lora(bank, 0, tmp_path)
    theirs = model.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(theirs(images()), vit(images()), rtol=1e-4, atol=1e-5)
    bank.activate(None)
    assert (theirs(images()) - vit(images())).abs().max() > 1e-2


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"fc1": 8, "fc2": 8, "qkv": 8}}])
def test_what_peft_writes_is_read(settings: dict[str, Any], tmp_path: Path) -> None:
    package = peft()
    vit = tiny_vit()
    config = package.LoraConfig(
        r=RANK,
        lora_alpha=2,
        target_modules=["qkv", "fc1", "fc2"],
        layers_to_transform=list(BLOCKS),
        layers_pattern="blocks",
        init_lora_weights=False,
        **settings,
    )
    theirs = package.get_peft_model(copy.deepcopy(vit), config).eval()
    theirs.save_pretrained(str(tmp_path))
    technique, blocks = technique_of(tmp_path)
    assert blocks == BLOCKS
    bank = attach(vit, technique, blocks)
    import_lora(bank, 0, tmp_path)
    before = vit(images())
    bank.activate(0)
    torch.testing.assert_close(vit(images()), theirs(images()), rtol=1e-4, atol=1e-5)
    assert (before - vit(images())).abs().max() > 1e-2
