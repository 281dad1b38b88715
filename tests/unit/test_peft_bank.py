"""The bank of modules per task: techniques against a computation by hand, tasks apart from each other, mixed batches.

peft.md 6.11: modules at zero are the base, a mixed batch is its samples one by one, other tasks' parameters never move.
All in float64, on a ViT small enough for it.
"""

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reprise.benchmarks import peft_step
from reprise.cl_models.peft.adapter import Adapter
from reprise.cl_models.peft.bank import Bank, Technique, attach
from reprise.cl_models.peft.lora import LoRA
from reprise.cl_models.peft.prefix import Prefix
from reprise.cl_models.peft.prompt import Prompt
from reprise.runtime.errors import UserError
from reprise.runtime.vision import ensure_torchvision

BLOCKS = (0, 2)
EVERYWHERE = ("q", "k", "v", "fc1", "fc2")
TECHNIQUES: dict[str, Technique] = {
    "lora": LoRA(rank=3, alpha=2.0),
    "lora everywhere": LoRA(rank=2, targets=EVERYWHERE),
    "prefix": Prefix(length=4),
    "prompt": Prompt(length=3),
    "adapter": Adapter(bottleneck=4, scale=0.5),
    "adapter with norm": Adapter(bottleneck=4, layer_norm=True),
}
each_technique = pytest.mark.parametrize("technique", TECHNIQUES.values(), ids=list(TECHNIQUES))


def tiny_vit(**settings: Any) -> Any:
    """A ViT of 4 blocks and 16 patches in float64, in evaluation mode, no weight of which is 0."""
    ensure_torchvision()
    from timm.models.vision_transformer import VisionTransformer

    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 10}
    vit = VisionTransformer(**{**shape, **settings}).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return vit


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def with_tasks(vit: Any, technique: Technique, tasks: int = 3) -> Bank:
    """A bank in BLOCKS whose tasks are as if they had been trained."""
    bank = attach(vit.requires_grad_(False), technique, BLOCKS)
    generator = torch.Generator().manual_seed(3)
    for task in range(tasks):
        bank.add(task, generator=generator)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return bank


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# ---- the base is left alone


@each_technique
@pytest.mark.parametrize("training", [False, True])
def test_with_nothing_active_the_outputs_are_bitwise_the_base(technique: Technique, training: bool) -> None:
    vit, x = tiny_vit(proj_drop_rate=0.1, attn_drop_rate=0.1), images()
    vit.train(training)
    torch.manual_seed(4)
    before = vit(x)
    bank = with_tasks(vit, technique)
    for nothing in (None, torch.full((6,), -1)):
        bank.activate(0)
        bank.activate(nothing)
        torch.manual_seed(4)
        assert torch.equal(vit(x), before)


@each_technique
def test_the_base_keeps_its_weights_and_their_names(technique: Technique) -> None:
    vit = tiny_vit()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    names = [name for name, _ in vit.named_parameters()]
    bank = with_tasks(vit, technique)
    bank.activate(1)
    vit(images())
    assert list(vit.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert [name for name, _ in vit.named_parameters()] == names
    assert {name.split(".")[1] for name in bank.state_dict()} == {"0", "1", "2"}
    assert len(list(bank.parameters())) == sum(len(bank.parameters_of(task)) for task in bank.tasks)


@pytest.mark.parametrize(
    "technique",
    [LoRA(targets=EVERYWHERE), LoRA(targets=EVERYWHERE, init="svd"), Adapter(), Adapter(layer_norm=True)],
)
def test_a_new_lora_or_adapter_is_the_base(technique: Technique) -> None:
    vit, x = tiny_vit(), images()
    before = vit(x)
    bank = attach(vit, technique, BLOCKS)
    bank.add(0)
    bank.activate(0)
    assert_close(vit(x), before)


@each_technique
def test_every_task_gives_other_outputs(technique: Technique) -> None:
    vit, x = tiny_vit(), images()
    bank = with_tasks(vit, technique)
    outputs = []
    for ids in (None, 0, 1, 2):
        bank.activate(ids)
        outputs.append(vit(x))
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(outputs) for b in outputs[:i])


@each_technique
def test_copies_and_files_of_the_whole_network_work_and_are_independent(technique: Technique) -> None:
    vit, x = tiny_vit(), images()
    bank = with_tasks(vit, technique)
    bank.activate(1)
    expected = vit(x)
    stream = io.BytesIO()
    torch.save(vit, stream)
    stream.seek(0)
    both = copy.deepcopy((vit, bank))
    copies = [copy.deepcopy(vit), both[0], torch.load(stream, weights_only=False)]
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.zero_()
    bank.activate(None)
    for other in copies:
        assert torch.equal(other(x), expected)
    both[1].activate(None)
    assert torch.equal(both[0](x), vit(x))


@each_technique
def test_banks_on_one_network_take_turns(technique: Technique) -> None:
    vit, x = tiny_vit(), images()
    alone = copy.deepcopy(vit)
    first, second = with_tasks(vit, technique), attach(vit, technique, (1, 2))
    other = attach(alone, technique, (1, 2))
    for bank in (second, other):
        bank.add(0, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            for parameter in bank.parameters():
                parameter += 0.1
        bank.activate(0)
    expected = alone(x)
    vit, first, second = copy.deepcopy((vit, first, second))
    assert torch.equal(vit(x), expected)
    second.activate(None)
    first.activate(1)
    with_first = vit(x)
    first.activate(None)
    other.activate(None)
    assert torch.equal(vit(x), alone(x))
    assert (with_first - expected).abs().max() > 1e-3


# ---- each technique against a computation by hand


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("targets", [("k", "v"), ("v", "q"), EVERYWHERE])
def test_lora_is_the_base_with_dense_weights(targets: tuple[str, ...], qkv_bias: bool) -> None:
    vit, x = tiny_vit(qkv_bias=qkv_bias), images()
    dense = copy.deepcopy(vit)
    bank = with_tasks(vit, LoRA(rank=3, alpha=2.0, targets=targets))
    state = bank.state_of(1)
    with torch.no_grad():
        for number in BLOCKS:
            block = dense.blocks[number]
            for target in targets:
                update = 2.0 / 3 * state[f"{number}.{target}_B"] @ state[f"{number}.{target}_A"]
                if target in "qkv":
                    third = "qkv".index(target)
                    block.attn.qkv.weight[48 * third : 48 * (third + 1)] += update
                else:
                    getattr(block.mlp, target).weight.add_(update)
    bank.activate(1)
    assert_close(vit(x), dense(x))


def attention_by_hand(attn: Any, x: Tensor, kv: Tensor, visible: Callable[[int, int], bool]) -> Tensor:
    """Each sample, head and query on its own; kv (2, heads, L, d/heads)."""
    rows = []
    for sample in x:
        q, k, v = (sample @ attn.qkv.weight.T + attn.qkv.bias).split(48, dim=1)
        heads = []
        for head in range(3):
            columns = slice(16 * head, 16 * (head + 1))
            queries, own = attn.q_norm(q[:, columns]), attn.k_norm(k[:, columns])
            keys, values = torch.cat([kv[0, head], own]), torch.cat([kv[1, head], v[:, columns]])
            answers = []
            for i, query in enumerate(queries):
                seen = [j for j in range(len(keys)) if j < kv.shape[2] or visible(i, j - kv.shape[2])]
                weights = (keys[seen] @ query / math.sqrt(16)).exp()
                answers.append(weights / weights.sum() @ values[seen])
            heads.append(torch.stack(answers))
        rows.append(torch.cat(heads, dim=1) @ attn.proj.weight.T + attn.proj.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("mask", [None, "bool", "float", "causal"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_prefix_is_attention_over_more_keys(qk_norm: bool, mask: str | None) -> None:
    vit = tiny_vit(qk_norm=qk_norm)
    bank = with_tasks(vit, Prefix(length=4))
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    allowed = torch.rand(5, 5, generator=torch.Generator().manual_seed(6)) < 0.5
    options: dict[str, Any] = {
        None: {},
        "bool": {"attn_mask": allowed},
        "float": {"attn_mask": torch.zeros(5, 5, dtype=torch.float64).masked_fill(~allowed, -math.inf)},
        "causal": {"is_causal": True},
    }[mask]

    def visible(query: int, key: int) -> bool:
        return mask is None or (key <= query if mask == "causal" else bool(allowed[query, key]))

    bank.activate(1)
    attn = vit.blocks[2].attn
    assert_close(attn(x, **options), attention_by_hand(attn, x, bank.weights(1, 2)["kv"], visible))
    bank.activate(torch.tensor([-1, 2]))
    mixed = attn(x, **options)
    assert_close(mixed[1:], attention_by_hand(attn, x[1:], bank.weights(2, 2)["kv"], visible))
    if mask is None:
        bank.activate(None)
        assert_close(mixed[:1], attn(x[:1]))


@pytest.mark.parametrize("settings", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_prompts_are_tokens_from_the_first_block_to_the_end(settings: dict[str, Any]) -> None:
    vit, x = tiny_vit(**settings), images()
    base = copy.deepcopy(vit)
    bank = attach(vit, Prompt(length=3), (1, 2))
    bank.add(0)
    bank.activate(0)
    shown, deeper = (bank.weights(0, number)["tokens"].expand(6, -1, -1) for number in (1, 2))
    kept = base.num_prefix_tokens
    z = base.blocks[0](base.norm_pre(base.patch_drop(base._pos_embed(base.patch_embed(x)))))
    z = base.blocks[1](torch.cat([z[:, :kept], shown, z[:, kept:]], dim=1))
    z = base.blocks[2](torch.cat([z[:, :kept], deeper, z[:, kept + 3 :]], dim=1))
    z = base.blocks[3](z)
    z = base.norm(torch.cat([z[:, :kept], z[:, kept + 3 :]], dim=1))
    assert_close(vit.forward_features(x), z)
    assert_close(vit(x), base.forward_head(z))


@pytest.mark.parametrize("norm", [False, True])
def test_adapter_is_a_bottleneck_on_the_attention_branch(norm: bool) -> None:
    vit = tiny_vit()
    base = copy.deepcopy(vit)
    bank = with_tasks(vit, Adapter(bottleneck=4, scale=0.5, layer_norm=norm))
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    w, block = bank.weights(1, 2), base.blocks[2]
    y = block.attn(block.norm1(x))
    h = y
    if norm:
        centred = y - y.mean(-1, keepdim=True)
        h = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w["norm_weight"] + w["norm_bias"]
    h = (h @ w["down_weight"].T + w["down_bias"]).clamp(min=0)
    z = x + y + 0.5 * (h @ w["up_weight"].T + w["up_bias"])
    bank.activate(1)
    assert_close(vit.blocks[2](x), z + block.mlp(block.norm2(z)))


# ---- mixed batches


IDS = torch.tensor([2, -1, 0, 2, 0, -1])


@each_technique
@pytest.mark.parametrize("ids", [IDS, IDS.clamp(min=0), torch.tensor([1, 1, 1, 1, 1, 1])])
def test_a_mixed_batch_is_its_samples_one_by_one_with_their_gradients(technique: Technique, ids: Tensor) -> None:
    vit, x = tiny_vit(), images()
    bank = with_tasks(vit, technique)
    weights = torch.randn(6, 10, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    one_by_one = []
    for row, task in enumerate(ids.tolist()):
        bank.activate(None if task < 0 else task)
        one_by_one.append(vit(x[row : row + 1]))
    alone = torch.cat(one_by_one)
    (alone * weights).sum().backward()
    expected = {name: parameter.grad for name, parameter in bank.named_parameters()}
    bank.zero_grad()

    bank.activate(ids)
    mixed = vit(x)
    (mixed * weights).sum().backward()
    assert_close(mixed, alone)
    absent = [task for task in bank.tasks if task not in ids]
    for name, parameter in bank.named_parameters():
        if int(name.split(".")[1]) in absent:
            assert parameter.grad is None, name
        else:
            assert parameter.grad.abs().sum() > 0, name
            assert_close(parameter.grad, expected[name])
    assert all(parameter.grad is None for parameter in vit.parameters())


@each_technique
def test_ids_are_copied_and_one_per_sample(technique: Technique) -> None:
    vit, x = tiny_vit(), images()
    bank = with_tasks(vit, technique)
    ids = IDS.clone()
    bank.activate(ids)
    expected = vit(x)
    ids.zero_()
    assert torch.equal(vit(x), expected)
    with pytest.raises(UserError, match=r"6 task ids .* batch of 5"):
        vit(x[:5])


@each_technique
@pytest.mark.parametrize("ids", [1, IDS])
def test_gradients_are_the_same_with_checkpointing(technique: Technique, ids: int | Tensor) -> None:
    vit, x = tiny_vit(), images()
    bank = with_tasks(vit, technique)
    bank.activate(ids)
    found = []
    for checkpointing in (False, True):
        vit.set_grad_checkpointing(checkpointing)
        bank.zero_grad()
        vit(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in bank.parameters_of(0 if ids is IDS else 1)])
    for plain, checkpointed in zip(*found, strict=True):
        assert_close(plain, checkpointed)


@each_technique
@pytest.mark.parametrize("ids", [1, IDS])
def test_mixed_precision_is_close_to_double(technique: Technique, ids: int | Tensor) -> None:
    vit, x = tiny_vit(), images()
    bank = with_tasks(vit, technique)
    bank.activate(ids)
    expected = vit(x)
    vit.float()
    bank.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = vit(x.float())
    outputs.float().sum().backward()
    assert outputs.dtype == torch.bfloat16
    assert (outputs.double() - expected).abs().max() < 0.05 * expected.abs().max()


# ---- tasks


@each_technique
def test_training_a_task_leaves_every_other_bitwise_as_it_was(technique: Technique) -> None:
    vit, x = tiny_vit(), images()
    bank = with_tasks(vit, technique)
    before = {task: bank.state_of(task) for task in bank.tasks}
    bank.activate(1)
    adam = torch.optim.Adam(bank.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        adam.zero_grad()
        vit(x).square().mean().backward()
        adam.step()
    after = {task: bank.state_of(task) for task in bank.tasks}
    for task in (0, 2):
        assert all(torch.equal(before[task][name], after[task][name]) for name in before[task])
    assert all((before[1][name] - after[1][name]).abs().max() > 0.01 for name in before[1])


@each_technique
def test_a_task_may_start_as_a_copy(technique: Technique) -> None:
    vit, x = tiny_vit(), images()
    bank = with_tasks(vit, technique)
    bank.add(7, like=1)
    assert bank.tasks == (0, 1, 2, 7)
    bank.activate(1)
    expected = vit(x)
    bank.activate(7)
    assert torch.equal(vit(x), expected)
    with torch.no_grad():
        for parameter in bank.parameters_of(7):
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in bank.parameters_of(1))


@each_technique
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_average_mixes_in_the_mean_of_the_tasks_before(technique: Technique, momentum: float) -> None:
    bank = with_tasks(tiny_vit(), technique, tasks=4)
    states = [bank.state_of(task) for task in bank.tasks]
    bank.average(2, momentum)
    bank.average(0, momentum)
    mixed = bank.state_of(2)
    for name, value in mixed.items():
        mean = (states[0][name] + states[1][name]) / 2
        assert_close(value, (1 - momentum) * states[2][name] + momentum * mean)
        assert momentum > 0 or torch.equal(value, states[2][name])
    for task in (0, 1, 3):
        assert all(torch.equal(value, states[task][name]) for name, value in bank.state_of(task).items())


@each_technique
def test_a_state_makes_the_task_in_another_bank(technique: Technique) -> None:
    vit, x = tiny_vit(), images()
    fresh = copy.deepcopy(vit)
    bank = with_tasks(vit, technique)
    bank.activate(2)
    other = attach(fresh, technique, BLOCKS)
    random_state = torch.get_rng_state()
    other.load_state_of(5, bank.state_of(0))
    other.load_state_of(5, bank.state_of(2))
    assert torch.equal(torch.get_rng_state(), random_state)
    other.activate(5)
    assert torch.equal(fresh(x), vit(x))
    assert [p.shape for p in other.parameters_of(5)] == [p.shape for p in bank.parameters_of(0)]
    assert other.bytes(5) == 8 * other.num_parameters(5) == sum(8 * p.numel() for p in bank.parameters_of(2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {**state, "2.k_A": torch.zeros(3, 47)}, ["'2.k_A'", "(3, 47)", "(3, 48)"]),
        (lambda state: {name: value for name, value in state.items() if name != "0.v_B"}, ["'0.v_B'", "nothing"]),
        (lambda state: {**state, "1.k_A": torch.zeros(3, 48)}, ["'1.k_A'", "(3, 48)", "nothing"]),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: list[str]
) -> None:
    bank = with_tasks(tiny_vit(), LoRA(rank=3))
    before = bank.state_of(1)
    for task in (1, 9):
        with pytest.raises(UserError) as caught:
            bank.load_state_of(task, change(bank.state_of(0)))
        assert all(word in str(caught.value) for word in words), str(caught.value)
    assert bank.tasks == (0, 1, 2)
    assert all(torch.equal(value, before[name]) for name, value in bank.state_of(1).items())


# ---- sizes and where training starts from


@pytest.mark.parametrize(
    ("technique", "parameters"),
    [(Prefix(20), 153_600), (LoRA(5), 76_800), (Adapter(5), 42_265), (Prompt(20), 76_800)],
)
def test_a_task_has_the_published_number_of_parameters(technique: Technique, parameters: int) -> None:
    with torch.device("meta"):
        vit = tiny_vit(img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12).float()
    bank = attach(vit, technique)
    bank.add(0)
    assert bank.num_parameters(0) == parameters
    assert bank.bytes(0) == 4 * parameters


@each_technique
def test_a_seed_gives_the_same_parameters(technique: Technique) -> None:
    bank = attach(tiny_vit(), technique, BLOCKS)
    bank.add(0, generator=torch.Generator().manual_seed(1))
    bank.add(1, generator=torch.Generator().manual_seed(1))
    bank.add(2, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(1)
    bank.add(3)
    same, other, usual = (bank.state_of(task) for task in (1, 2, 3))
    differ = 0
    for name, value in bank.state_of(0).items():
        assert torch.equal(value, same[name])
        assert torch.equal(value, usual[name])
        differ += not torch.equal(value, other[name])
    assert differ >= len(BLOCKS)


@pytest.mark.parametrize(
    ("technique", "names", "low", "high", "deviation"),
    [
        (LoRA(64), ("k_A", "v_A"), -1 / math.sqrt(48), 1 / math.sqrt(48), 1 / math.sqrt(3 * 48)),
        (Prefix(64), ("kv",), -1, 1, 1 / math.sqrt(3)),
        (Prompt(64), ("tokens",), -1, 1, 1 / math.sqrt(3)),
        (Adapter(64), ("down_weight",), -math.inf, math.inf, math.sqrt(2 / 48)),
    ],
)
def test_training_starts_from_the_published_distribution(
    technique: Technique, names: tuple[str, ...], low: float, high: float, deviation: float
) -> None:
    bank = attach(tiny_vit(), technique, BLOCKS)
    bank.add(0, generator=torch.Generator().manual_seed(8))
    weights = bank.weights(0, 2)
    for name in names:
        values = weights.pop(name).detach()
        assert low <= values.min() <= values.max() <= high
        if math.isfinite(high):
            assert values.max() > 0.98 * high
        # Four standard errors; that of a standard deviation is at most sigma / sqrt(2 n), of a normal distribution.
        assert abs(values.mean()) < 4 * deviation / math.sqrt(values.numel())
        assert abs(values.std() - deviation) < 4 * deviation / math.sqrt(2 * values.numel())
    assert all(value.abs().sum() == 0 for value in weights.values())


def test_svd_starts_from_the_directions_that_the_weight_stretches_most() -> None:
    vit = tiny_vit()
    bank = attach(vit, LoRA(rank=4, targets=("k", "fc1", "fc2"), init="svd"), BLOCKS)
    bank.add(0)
    block = vit.blocks[2]
    frozen = {"k": block.attn.qkv.weight[48:96], "fc1": block.mlp.fc1.weight, "fc2": block.mlp.fc2.weight}
    for target, weight in frozen.items():
        a = bank.weights(0, 2)[f"{target}_A"]
        torch.testing.assert_close(a @ a.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-5)
        # Eigenvectors of W^T W, found in another way than by an SVD of W.
        largest = torch.linalg.eigvalsh(weight.T @ weight).flip(0)[:4]
        torch.testing.assert_close((weight @ a.T).square().sum(0), largest, rtol=1e-5, atol=0)


# ---- mistakes


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: LoRA(rank=0), ["rank 0"]),
        (lambda: LoRA(targets=("k", "o")), ["'o'", "fc1"]),
        (lambda: LoRA(targets=("k", "k")), ["each once"]),
        (lambda: LoRA(targets=()), ["targets []"]),
        (lambda: LoRA(init="zero"), ["'zero'", "svd"]),  # type: ignore[arg-type]
        (lambda: Prefix(0), ["length 0"]),
        (lambda: Prompt(-1), ["length -1"]),
        (lambda: Adapter(0), ["bottleneck 0"]),
        (lambda: attach(tiny_vit(), LoRA()), ["[0, 1, 2, 3, 4]", "0 to 3"]),
        (lambda: attach(tiny_vit(), LoRA(), ()), ["blocks []", "0 to 3"]),
        (lambda: attach(tiny_vit(), LoRA(), (1, 1)), ["[1, 1]", "different"]),
        (lambda: attach(tiny_vit(), LoRA(rank=49, init="svd"), BLOCKS), ["rank 49", "48", "kaiming"]),
        (lambda: attach(nn.Linear(2, 2), LoRA()), ["Linear", "no transformer blocks"]),
        (lambda: attach(tiny_vit(attn_layer="diff"), LoRA(), BLOCKS), ["attn.qkv", "DiffAttention"]),
        (lambda: two_active(Prefix()), ["two banks of Prefix", "block 0"]),
        (lambda: with_tasks(tiny_vit(), LoRA()).add(1), ["task 1", "[0, 1, 2]"]),
        (lambda: with_tasks(tiny_vit(), LoRA()).add(-1), ["task -1"]),
        (lambda: with_tasks(tiny_vit(), LoRA()).add(4, like=3), ["no task 3", "[0, 1, 2]"]),
        (lambda: with_tasks(tiny_vit(), LoRA()).activate(3), ["no task 3"]),
        (lambda: with_tasks(tiny_vit(), LoRA()).activate(torch.tensor([0, 3])), ["no task 3"]),
        (lambda: with_tasks(tiny_vit(), LoRA()).activate(torch.tensor([[0]])), ["int64", "(1, 1)"]),
        (lambda: with_tasks(tiny_vit(), LoRA()).activate(torch.tensor([0.0])), ["int64", "float32"]),
        (lambda: with_tasks(tiny_vit(), LoRA()).average(1, 1.5), ["momentum 1.5"]),
        (lambda: with_tasks(tiny_vit(), LoRA()).average(3, 0.1), ["no task 3"]),
        (lambda: masked(Prompt()), ["attn_mask", "Prefix"]),
    ],
)
def test_mistakes_are_refused_in_one_line(mistake: Callable[[], Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        mistake()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def two_active(technique: Technique) -> Tensor:
    vit = tiny_vit()
    for _ in range(2):
        with_tasks(vit, technique).activate(0)
    outputs: Tensor = vit(images())
    return outputs


def masked(technique: Technique) -> Tensor:
    vit = tiny_vit()
    with_tasks(vit, technique).activate(0)
    outputs: Tensor = vit(images(), attn_mask=torch.ones(17, 17, dtype=torch.bool))
    return outputs


# ---- the benchmark


@pytest.mark.parametrize(("limit", "code"), [(1e9, 0), (0.0, 1)])
def test_the_benchmark_judges_every_technique_and_a_training_step(
    limit: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes that mean nothing; no time is asserted."""
    monkeypatch.setattr(peft_step, "QUICK", peft_step.Size(batch=2, pixels=32, width=48, turns=1, tasks=1))
    monkeypatch.setattr(peft_step, "MIXED", limit)
    monkeypatch.setattr(peft_step, "TRAINING", limit)
    monkeypatch.setattr(peft_step, "RESIDENT", limit or -1e9)  # so little grows by nothing, or shrinks
    assert peft_step.main(["--quick", "--check"]) == code
    said = capsys.readouterr().out
    assert all(f"inference, {name}: 10 tasks / one" in said for name in ("LoRA", "Prefix", "Prompt", "Adapter"))
    assert "training step: Hide / " in said
    assert "A task adds" in said
    assert said.count("FAIL") == 6 * code
