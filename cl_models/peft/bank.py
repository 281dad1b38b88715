"""A bank of small trainable modules on a frozen ViT of timm: parameters per task, active by batch or by sample.

    bank = attach(vit, LoRA(rank=5), blocks=range(5))
    bank.add(0)
    bank.activate(0)                                # vit(x) now answers with task 0's module
    bank.add(1, like=0)
    bank.activate(torch.tensor([0, 1, -1]))         # a task per sample; -1: the frozen base alone

Which weights a task has in a block and what they do there is a technique's business: lora.py, prefix.py, prompt.py,
adapter.py. Every task has a parameter of its own, never a slice of one over all tasks: an optimiser or an all-reduce of
the task that learns cannot touch the others. All weights of a task are in that one, as a tensor costs a kilobyte beside
what is in it. What is trained, and when, is up to the strategies.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reprise.runtime.errors import UserError

Shape = tuple[int, ...]
Weights = dict[str, Tensor]


class Technique(Protocol):
    """A frozen dataclass that says which parameters a task has in a block, and adds them to the block's forward."""

    def shapes(self, block: nn.Module) -> dict[str, Shape]:
        """Name -> shape of a task's parameters in this block. UserError where the block has no place for them."""

    def fill(self, weights: Weights, block: nn.Module, generator: torch.Generator | None) -> None:
        """Set new float32 weights on the CPU, of those names and shapes, to the values that training starts from."""

    def install(self, vit: Any, bank: "Bank") -> None:
        """Hook into the blocks of `bank`. The hooks ask bank.active() at every forward, and keep no weights."""


@dataclass(frozen=True)
class _PerSample:
    """A task for each sample of a batch: index (b,) int64 into `tasks`, len(tasks) for a sample without one."""

    tasks: tuple[int, ...]
    index: Tensor
    absent: Tensor | None


def attach(vit: nn.Module, technique: Technique, blocks: Iterable[int] = (0, 1, 2, 3, 4)) -> "Bank":
    """An empty bank whose tasks act in these blocks of a timm VisionTransformer.

    The ViT keeps its weights, their names and its state_dict(); until a task is activated its outputs are bitwise those
    of before. Its weights are not frozen here. Copies and files of the whole module take the bank along. A ViT may
    carry several banks; of those of Prefix, and of Prompt, one may be active at a time. With gradient checkpointing,
    what is active must stay so until backward(). UserError: a block that the ViT has not, or one that this technique
    cannot work in.
    """
    chosen, depth = list(blocks), len(getattr(vit, "blocks", ()))
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(depth)):
        raise UserError(
            f"blocks {chosen} of {type(vit).__name__}, which has {depth}; choose different ones from 0 to {depth - 1}"
            if depth
            else f"{type(vit).__name__} has no transformer blocks; choose a ViT of timm, like vit_small_patch16_224"
        )
    layers: Any = vit.blocks
    bank = Bank(technique, {number: layers[number] for number in sorted(chosen)})
    technique.install(vit, bank)
    return bank


def attention(block: nn.Module) -> Any:
    """The timm Attention of a block, whose q, k and v come from one Linear. UserError where it is another."""
    from timm.models.vision_transformer import Attention

    attn = getattr(block, "attn", None)
    if isinstance(attn, Attention) and isinstance(attn.qkv, nn.Linear):
        return attn
    raise UserError(
        f"{type(block).__name__} has no attn.qkv as timm's Attention has it (it has {type(attn).__name__}); "
        "choose a plain ViT, like vit_small_patch16_224"
    )


class Bank(nn.Module):
    """Owns the parameters of every task. Made by attach(). All of it is per rank; nothing here communicates.

    The parameters have dtype and device of the first block's weights when they are made, and state_dict() names them
    "per_task.<task>". What is active is not part of the state.
    """

    def __init__(self, technique: Technique, blocks: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.technique = technique
        # In a dict, torch does not take them for modules of the bank.
        self.base = dict(blocks)
        self._shapes = {number: technique.shapes(block) for number, block in blocks.items()}
        self._active: int | _PerSample | None = None
        self.per_task = nn.ParameterDict()
        # Where a task's parameter has the weights of a block.
        ends = [0, *accumulate(sum(map(math.prod, shapes.values())) for shapes in self._shapes.values())]
        self._within = {number: slice(*pair) for number, pair in zip(self._shapes, pairwise(ends), strict=True)}

    @property
    def tasks(self) -> tuple[int, ...]:
        """In the order they were added."""
        return tuple(map(int, self.per_task))

    @property
    def blocks(self) -> tuple[int, ...]:
        """The numbers of the blocks in which the tasks act, ascending; `base` has the blocks themselves."""
        return tuple(self.base)

    def add(self, task: int, like: int | None = None, generator: torch.Generator | None = None) -> None:
        """Make a task's parameters: as training starts, or a copy of those of the task `like`.

        Drawn on the CPU, so that a seed means the same on every device, from `generator` or else torch's global one.
        UserError: a negative task, one that is there, or a `like` that is not.
        """
        self._check_new(task)
        if like is not None:
            self._make(task, self._by_block(self.state_of(like)))
            return
        weights = {
            number: {name: torch.empty(shape, dtype=torch.float32, device="cpu") for name, shape in shapes.items()}
            for number, shapes in self._shapes.items()
        }
        for number, block in self.base.items():
            self.technique.fill(weights[number], block, generator)
        self._make(task, weights)

    def activate(self, ids: int | Tensor | None) -> None:
        """What the next forwards add: None: nothing; a task's module; of int64 ids (b,), each sample's, none for -1.

        Ids may come in any order and repeat; they are copied. Where they are on a GPU, this waits for them. Gradients
        reach the tasks among them, all others keep None. UserError: a task that is not there.
        """
        if not isinstance(ids, Tensor):
            self._active = None if ids is None else self._known(ids)
            return
        if ids.ndim != 1 or ids.dtype != torch.int64:
            raise UserError(f"ids must be int64 of shape (b,), not {ids.dtype} of shape {tuple(ids.shape)}")
        listed = ids.tolist()
        tasks = tuple(self._known(task) for task in sorted(set(listed) - {-1}))
        if not tasks:
            self._active = None
            return
        places = {task: place for place, task in enumerate((*tasks, -1))}
        index = torch.tensor([places[task] for task in listed], device=self.parameters_of(tasks[0])[0].device)
        self._active = _PerSample(tasks, index, index == len(tasks) if -1 in listed else None)

    @property
    def is_active(self) -> bool:
        """Whether the next forward adds anything for any sample."""
        return self._active is not None

    def active(self, block: int, rows: int) -> Weights | None:
        """The active weights in a block, for techniques: None: nothing is active; a task's, as they are shaped; or of
        ids, those of each sample with a first dimension of `rows`, and zeros for a sample without a module.

        UserError: there are more or fewer ids than rows.
        """
        active = self._active
        if active is None:
            return None
        if isinstance(active, int):
            return self.weights(active, block)
        if len(active.index) != rows:
            raise UserError(f"{len(active.index)} task ids are active for a batch of {rows}; activate one per sample")
        stack = [self._flat(task)[self._within[block]] for task in active.tasks]
        if active.absent is not None:
            stack.append(torch.zeros_like(stack[0]))
        return self._named(torch.stack(stack).index_select(0, active.index), block)

    def visible(self, start: int, length: int, keys: int) -> Tensor | None:
        """Which keys a sample attends to when those of its module are the `length` from `start`: (b, 1, 1, keys) bool,
        where a sample without a module sees the others only. None: all of them, in every sample.
        """
        if not isinstance(self._active, _PerSample) or self._active.absent is None:
            return None
        places = torch.arange(keys, device=self._active.absent.device)
        of_module = (places >= start) & (places < start + length)
        return ~(self._active.absent.view(-1, 1, 1, 1) & of_module)

    def weights(self, task: int, block: int) -> Weights:
        """A task's weights in a block, by name: views of its parameter."""
        return self._named(self._flat(task)[self._within[block]], block)

    def parameters_of(self, task: int) -> list[nn.Parameter]:
        """The flat one that has all its weights, by block and name."""
        return [self._flat(task)]

    @torch.no_grad()
    def average(self, task: int, momentum: float) -> None:
        """e_t <- (1 - m) e_t + m mean_{i<t} e_i over all tasks added before it; without any, e_t stays as it is.

        The ensemble of HiDe-PET (Wang et al. 2024, arXiv 2407.05229), element-wise on the raw parameters: of LoRA, A
        and B are averaged apart and their product is not.
        """
        if not 0 <= momentum <= 1:
            raise UserError(f"momentum {momentum}: it weighs the earlier tasks, from 0 to 1")
        earlier = [self.parameters_of(other) for other in self.tasks[: self.tasks.index(self._known(task))]]
        for mine, *theirs in zip(self.parameters_of(task), *earlier, strict=True):
            if theirs:
                mine.lerp_(torch.stack(theirs).mean(dim=0), momentum)

    def state_of(self, task: int) -> Weights:
        """Copies of a task's weights, by "<block>.<name>"."""
        return {
            f"{block}.{name}": value.detach().clone()
            for block in self.blocks
            for name, value in self.weights(task, block).items()
        }

    @torch.no_grad()
    def load_state_of(self, task: int, state: Mapping[str, Tensor]) -> None:
        """Set a task's parameters to those of state_of(), and make the task where it is missing.

        UserError names the key and the shapes that differ; nothing is changed then.
        """
        weights = self._by_block(state)
        if task not in self.tasks:
            self._check_new(task)
            self._make(task, weights)
            return
        for block, of_block in weights.items():
            for name, value in self.weights(task, block).items():
                value.copy_(of_block[name])

    def num_parameters(self, task: int) -> int:
        return sum(parameter.numel() for parameter in self.parameters_of(task))

    def bytes(self, task: int) -> int:
        return sum(parameter.nbytes for parameter in self.parameters_of(task))

    def _make(self, task: int, weights: Mapping[int, Weights]) -> None:
        base = next(next(iter(self.base.values())).parameters())
        values = [value.detach().flatten() for of_block in weights.values() for value in of_block.values()]
        self.per_task[str(task)] = nn.Parameter(torch.cat(values).to(base.device, base.dtype))

    def _by_block(self, state: Mapping[str, Tensor]) -> dict[int, Weights]:
        """A state that is complete and of the right shapes, by block."""
        wanted = {
            f"{number}.{name}": shape for number, shapes in self._shapes.items() for name, shape in shapes.items()
        }
        for name in [*wanted, *state]:
            got = tuple(state[name].shape) if name in state else "nothing"
            if got != wanted.get(name, "nothing"):
                raise UserError(
                    f"state of a task: '{name}' is {got} where {self.technique} in blocks {self.blocks} has "
                    f"{wanted.get(name, 'nothing')}; load it into a bank like the one it was saved from"
                )
        return {number: {name: state[f"{number}.{name}"] for name in shapes} for number, shapes in self._shapes.items()}

    def _check_new(self, task: int) -> None:
        if task < 0 or task in self.tasks:
            raise UserError(f"cannot add task {task}: numbers are from 0, and {list(self.tasks)} are there already")

    def _known(self, task: int) -> int:
        if task not in self.tasks:
            raise UserError(f"no task {task} in the bank, which has {list(self.tasks)}; add it first")
        return task

    def _flat(self, task: int) -> nn.Parameter:
        flat: nn.Parameter = self.per_task[str(self._known(task))]
        return flat

    def _named(self, flat: Tensor, block: int) -> Weights:
        """Views of the weights in flat tensors (..., n) of a block, each (..., *shape)."""
        shapes = self._shapes[block]
        pieces = flat.split([math.prod(shape) for shape in shapes.values()], dim=-1)
        return {
            name: piece.view(*flat.shape[:-1], *shape)
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }
