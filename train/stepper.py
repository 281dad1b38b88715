"""One optimisation step: forward, backward, gradient averaging over ranks, update. Used by every strategy.

Knows about mixed precision, accumulation and the data-parallel engine, so that a strategy only states its loss.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from reprise.runtime.dist import Communicator
from reprise.train.regime import Regime

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]


class Stepper:
    """Steps `model` (as the data-parallel engine wrapped it) with `optimizer`.

    passes: backward passes per step (batches_per_allreduce); the rows of a step are cut into so many parts, and their
    gradients add up to that of the mean over all rows. use_amp: float16 with loss scaling on CUDA, bfloat16 elsewhere.
    span: times a part of the step by name.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        comm: Communicator,
        *,
        device: torch.device,
        span: Callable[[str], AbstractContextManager[Any]],
        passes: int = 1,
        use_amp: bool = False,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._comm = comm
        self._span = span
        self._passes = passes
        half = torch.float16 if device.type == "cuda" else torch.bfloat16
        self._autocast = torch.autocast(device.type, dtype=half, enabled=use_amp)
        self._scaler = torch.amp.GradScaler(device.type, enabled=use_amp and device.type == "cuda")

    def forward(self, x: Any) -> Any:
        """Network outputs in float32, also under mixed precision."""
        with self._autocast:
            outputs = self.model(x)
        return outputs.float() if isinstance(outputs, Tensor) else outputs

    def minimise(self, loss: Loss, *columns: Tensor) -> dict[str, Tensor]:
        """One step on `loss(*columns)`, a mean over rows. Returns its metrics, averaged over the passes.

        Collective: every rank takes the same number of steps. Raises PeerLost when a rank is gone.
        """
        self.optimizer.zero_grad(set_to_none=True)
        rows = len(columns[0])
        parts = [list(part) for part in zip(*(c.tensor_split(self._passes) for c in columns), strict=True)]
        totals: dict[str, Tensor] = {}
        for index, part in enumerate(parts):
            share = len(part[0]) / rows
            if not share:
                # Fewer rows than passes: the engine still counts passes, so this one goes with weight 0.
                part = [column[:1] for column in columns]
            last = index == len(parts) - 1
            with self._comm.guard("backward") if last else self._comm.accumulate(self.model):
                with self._span("forward"):
                    value, metrics = loss(*part)
                with self._span("backward"):
                    self._scaler.scale(value * share).backward()
            for name, metric in metrics.items():
                totals[name] = totals.get(name, 0) + metric * share
        with self._span("optimiser"), self._comm.averaged_gradients(self.optimizer):
            # Horovod averages in hooks that averaged_gradients waits for: unscaling must come after that.
            self._scaler.step(self.optimizer)
            self._scaler.update()
        return totals

    def reset(self) -> None:
        """Forget momentum and other running averages of the optimiser."""
        Regime.reset(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
