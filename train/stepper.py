"""One optimisation step: forward, backward, gradient averaging over ranks, update. Used by every strategy.

Knows about mixed precision, accumulation and the data-parallel engine, so that a strategy only states its loss.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reprise.runtime.dist import Communicator
from reprise.train.grouped_gradients import GroupedGradients
from reprise.train.regime import Regime

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]


class Stepper:
    """Steps `model` (as the data-parallel engine wrapped it) with `optimizer`.

    passes: backward passes per step (batches_per_allreduce); the rows of a step are cut into so many parts. half: the
    type of mixed precision, None for none; float16 comes with loss scaling. channels_last: images are laid out pixel by
    pixel, as the convolutions of newer GPUs want them. max_norm: gradients are scaled down to this norm, over all
    parameters; None: never. span: times a part of the step by name.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        comm: Communicator | GroupedGradients,
        *,
        device: torch.device,
        span: Callable[[str], AbstractContextManager[Any]],
        passes: int = 1,
        half: torch.dtype | None = None,
        channels_last: bool = False,
        max_norm: float | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._comm = comm
        self._span = span
        self._passes = passes
        self._autocast = torch.autocast(device.type, dtype=half, enabled=half is not None)
        self._scaler = torch.amp.GradScaler(device.type, enabled=half == torch.float16)
        self._channels_last = channels_last
        self._max_norm = max_norm

    def forward(self, x: Any) -> Any:
        """Network outputs in float32, also under mixed precision."""
        if self._channels_last and isinstance(x, Tensor) and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with self._autocast:
            outputs = self.model(x)
        return outputs.float() if isinstance(outputs, Tensor) else outputs

    def minimise(self, loss: Loss, *columns: Tensor) -> dict[str, Tensor]:
        """One step on `loss(*columns)`; see `averaged`. Returns its metrics."""
        with self.averaged(loss, *columns) as metrics:
            self.update()
        return metrics

    @contextmanager
    def averaged(self, loss: Loss, *columns: Tensor) -> Iterator[dict[str, Tensor]]:
        """Inside, .grad of every parameter is the mean over ranks of the gradient of `loss(*columns)`, still scaled.

        The columns need not be equally long. Each is cut into as many parts as there are passes, and what the loss
        returns for each set of parts, value and metrics, is added up: sums over rows, divided by the rows of the step.
        Collective: every rank comes here equally often. Raises PeerLost when a rank is gone.
        """
        with self._span("zero_grad"):
            self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        parts = [columns]
        if self._passes > 1:
            parts = list(zip(*(column.tensor_split(self._passes) for column in columns), strict=True))
        for index, part in enumerate(parts):
            # Fewer rows than passes: the engine still counts passes, so this one goes with weight 0.
            counts = bool(len(part[0]))
            if not counts:
                part = tuple(column[:1] for column in columns)
            last = index == len(parts) - 1
            with self._comm.guard("backward") if last else self._comm.accumulate(self.model):
                with self._span("forward"):
                    value, metrics = loss(*part)
                with self._span("backward"):
                    self._scaler.scale(value if counts else value * 0).backward()
                    del value  # and its graph, which takes time too
            if counts:
                for name, metric in metrics.items():
                    totals[name] = totals[name] + metric if name in totals else metric
        # Horovod averages in hooks that averaged_gradients waits for: unscaling must come after that.
        with ExitStack() as averaged:
            with self._span("allreduce"):
                averaged.enter_context(self._comm.averaged_gradients(self.optimizer))
            with self._span("optimiser"):
                yield totals

    def update(self) -> None:
        """Inside `averaged`: unscale the gradients and step with them, unless one of them overflowed."""
        if self._max_norm is not None:
            self._scaler.unscale_(self.optimizer)
            trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self._max_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def train_only(self, groups: Sequence[dict[str, Any]]) -> None:
        """Step these parameter groups from now on, with running averages that begin anew.

        groups: "params" and "lr_scale", a factor of the learning rate. Not for parameters that a data-parallel engine
        has hooked into.
        """
        self.reset()
        self.optimizer.zero_grad(set_to_none=True)  # nobody would free those of the groups before
        self.optimizer.param_groups.clear()
        for group in groups:
            self.optimizer.add_param_group(dict(group))

    def reset(self) -> None:
        """Forget momentum and other running averages of the optimiser."""
        Regime.reset(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
