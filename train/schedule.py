"""Learning-rate curves: what lies between a phase's highest rate and its lowest. Numbers in, a number out.

train/regime.py says which curve holds when. A curve goes by epochs of a task (cosine) or by steps of the whole run
(the cyclical ones: a task may be shorter than a cycle).
"""

import math
from dataclasses import dataclass

# Schedule -> the keys of a phase that shape it; all but lr_min must be given.
SCHEDULES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "cosine": ("lr_min",),
    "triangular": ("lr_min", "step_cycle_size"),
    "triangular2": ("lr_min", "step_cycle_size"),
    "exp_range": ("lr_min", "step_cycle_size", "gamma"),
}


@dataclass(frozen=True)
class Schedule:
    """One curve. lr_min: its lowest rate, absolute.

    start, end: epochs of a task between which the cosine falls. half_cycle: steps in which a cyclical rate rises, and
    again in which it falls. gamma: exp_range's peaks shrink by this factor per step.
    """

    name: str = "constant"
    lr_min: float = 0.0
    start: float = 0.0
    end: float = 0.0
    half_cycle: float = 1.0
    gamma: float = 1.0

    def rate(self, peak: float, epoch: float, step: int) -> float:
        """The rate at a fractional epoch of the task and at `step`, counted from 0 over all tasks."""
        if self.name == "constant":
            return peak
        if self.name == "cosine":
            return self._cosine(peak, epoch)
        # Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3: lr_min at steps 0, 2h, 4h, ...
        cycle = math.floor(step / (2 * self.half_cycle))
        height = 1 - abs(step / self.half_cycle - 2 * cycle - 1)
        if self.name == "triangular2":
            height /= 2.0**cycle
        elif self.name == "exp_range":
            height *= self.gamma**step
        return self.lr_min + (peak - self.lr_min) * height

    def _cosine(self, peak: float, epoch: float) -> float:
        """Loshchilov & Hutter 2017, equation 5, without restarts; before `start` there is nothing to fall from."""
        if epoch <= self.start:
            return peak
        done = min((epoch - self.start) / (self.end - self.start), 1.0) if self.end > self.start else 1.0
        return self.lr_min + (peak - self.lr_min) * (1 + math.cos(math.pi * done)) / 2
