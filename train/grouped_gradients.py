"""Gradients averaged over ranks in one all-reduce, for whatever parameters the optimiser has at the time.

Data-parallel engines hook into parameters when a run begins. Strategies that train other parameters in each task use
this instead: only what is trained in the present task travels.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from reprise.runtime.dist import Communicator


class GroupedGradients:
    """What a Stepper asks of its communicator. bytes: of the gradients that this rank has sent so far."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.bytes = 0

    def guard(self, what: str) -> AbstractContextManager[None]:
        return self._comm.guard(what)

    def accumulate(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gradients of several passes add up by themselves: nothing travels before the last."""
        return nullcontext()

    @contextmanager
    @torch.no_grad()
    def averaged_gradients(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Inside, .grad of every parameter of the optimiser is the mean over ranks. A collective.

        A parameter without a gradient here counts as 0: other ranks may have one, and all must send equally much.
        """
        if self._comm.size > 1:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in parameters]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self.bytes += flat.nbytes
            mean = self._comm.allreduce(flat, name="gradients")
            parts = mean.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
        yield
