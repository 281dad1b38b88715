"""A sweep file and the trials it stands for: every combination (grid), or independent draws (random).

The file is the one that Weights & Biases reads, so that one file serves both. Trial i depends on the file and on i
alone: nothing has to be remembered to go on with a sweep, and raising run_cap adds trials to those there are.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, MinLen
from pydantic import Field, JsonValue

from reprise.report import summary_schema
from reprise.runtime.config import Section, Source, resolve
from reprise.runtime.config_text import read_yaml
from reprise.runtime.errors import UserError

Values = dict[str, Any]  # option, with a dot before a dictionary option's key -> value
Number = int | float


class Metric(Section):
    """What a trial is judged by."""

    name: str = Field(
        default="average_accuracy", description="a number of summary.json; what stands before a / is ignored"
    )
    goal: Literal["minimize", "maximize"] = Field(default="minimize", description="which of two is better")

    @property
    def key(self) -> str:
        """Its key in summary.json."""
        return self.name.rpartition("/")[2]


class SweepFile(Section):
    """The keys of a sweep file."""

    method: Literal["grid", "random", "bayes"] = Field(default="grid", description="how trials are chosen")
    metric: Metric = Field(default=Metric(), description="what a trial is judged by")
    parameters: dict[str, JsonValue] = Field(default={}, description="option -> its values")
    run_cap: Annotated[int, Ge(1)] | None = Field(default=None, description="number of trials at most")
    name: str | None = Field(default=None, description="of the sweep; none: the file's")
    # What only the service and its agents read.
    program: str | None = None
    command: list[str] | None = None
    description: str | None = None
    project: str | None = None
    entity: str | None = None
    early_terminate: dict[str, JsonValue] | None = None


class Parameter(Section):
    """One entry of `parameters`."""

    value: JsonValue = Field(default=None, description="the only value")
    values: Annotated[list[JsonValue], MinLen(1)] | None = Field(default=None, description="the values to choose from")
    probabilities: list[Annotated[float, Ge(0)]] | None = Field(default=None, description="of each value")
    distribution: str | None = Field(default=None, description="what random values follow")
    min: Number | None = Field(default=None, description="least value")
    max: Number | None = Field(default=None, description="greatest value")
    mu: float = Field(default=0.0, description="mean, normal and log_normal")
    sigma: Annotated[float, Gt(0)] = Field(default=1.0, description="standard deviation, normal and log_normal")
    q: Annotated[float, Gt(0)] = Field(default=1.0, description="step of the q_ distributions")

    @property
    def kind(self) -> str:
        """The distribution, as the service chooses it where the file does not say."""
        if self.distribution:
            return self.distribution
        if "value" in self.model_fields_set:
            return "constant"
        if self.min is None:
            return "normal" if self.model_fields_set & {"mu", "sigma"} else "categorical"
        return "int_uniform" if isinstance(self.min, int) and isinstance(self.max, int) else "uniform"

    @property
    def constant(self) -> bool:
        """Whether there is nothing to choose."""
        return self.kind == "constant" or (self.values is not None and len(self.values) == 1)


Draw = Callable[[np.random.Generator], Any]


class Sweep:
    """A checked sweep file. len() is its number of trials, [i] the values of trial i. UserError for any mistake."""

    def __init__(self, path: Path) -> None:
        self.path = path
        name = path.name
        content = read_yaml(path, "a sweep file is like sweep.yaml")
        if not isinstance(content, dict):
            raise UserError(f"'{path}' is no sweep file: expected the keys method, metric and parameters")
        file = resolve(SweepFile, [Source(name, content)], {}).options
        self.name = file.name or path.stem
        self.metric = file.metric
        if self.metric.key not in summary_schema.MEASURED:
            known = ", ".join(summary_schema.MEASURED)
            raise UserError(f"{name}: metric.name '{self.metric.name}' is not measured; expected one of {known}")
        if not file.parameters:
            raise UserError(f"{name}: no parameters: list main.py's options there, each with value, values, or a range")
        if file.method == "bayes":
            raise UserError(f"{name}: method bayes is the service's own search; write grid or random to search here")
        self.early_terminate = file.early_terminate is not None
        parameters = {key: _parameter(f"{name}: parameters.{key}", spec) for key, spec in file.parameters.items()}
        self.varied = [key for key, parameter in parameters.items() if not parameter.constant]
        self._identity = (file.method, file.parameters)
        self._grid: list[Values] = []
        self._draws: dict[str, Draw] = {}
        if file.method == "grid":
            choices = {key: _choices(f"{name}: parameters.{key}", p) for key, p in parameters.items()}
            combinations = itertools.islice(itertools.product(*choices.values()), file.run_cap)
            self._grid = [dict(zip(choices, combination, strict=True)) for combination in combinations]
            self._count = len(self._grid)
        else:
            if file.run_cap is None:
                raise UserError(f"{name}: a random search has no end of its own; add run_cap, the number of trials")
            self._draws = {key: _draw(f"{name}: parameters.{key}", p) for key, p in parameters.items()}
            self._count = file.run_cap

    def same_trials(self, other: "Sweep") -> bool:
        """Whether trial i means the same in both, as far as both have it."""
        return self._identity == other._identity

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, trial: int) -> Values:
        if not 0 <= trial < self._count:
            raise IndexError(trial)
        if self._grid:
            return self._grid[trial]
        generator = np.random.default_rng([trial, 0x5EED])
        return {key: draw(generator) for key, draw in self._draws.items()}


def _parameter(where: str, spec: Any) -> Parameter:
    if not isinstance(spec, dict):
        raise UserError(f"{where} {spec!r}: expected value, values, or min and max")
    if "parameters" in spec:
        raise UserError(f"{where}: write nested parameters with a dot, like buffer_config.rehearsal_ratio")
    parameter = resolve(Parameter, [Source(where, spec)], {}).options
    if sum(("value" in spec, "values" in spec, "min" in spec or "max" in spec or "mu" in spec or "sigma" in spec)) > 1:
        raise UserError(f"{where}: give one of value, values, a range (min and max), or mu and sigma")
    if parameter.probabilities is not None:
        if parameter.values is None or len(parameter.probabilities) != len(parameter.values):
            raise UserError(f"{where}: probabilities need as many values")
        if not math.isclose(sum(parameter.probabilities), 1, abs_tol=1e-6):
            raise UserError(f"{where}: probabilities add up to {sum(parameter.probabilities):g}; make it 1")
    if (parameter.min is None) != (parameter.max is None):
        raise UserError(f"{where}: give both min and max")
    if parameter.min is not None and parameter.max is not None and parameter.min > parameter.max:
        raise UserError(f"{where}: min {parameter.min} is above max {parameter.max}")
    if parameter.kind not in _KINDS:
        raise UserError(f"{where}: distribution '{parameter.distribution}': expected one of {', '.join(_KINDS)}")
    if parameter.kind in _RANGES and parameter.min is None:
        raise UserError(f"{where}: {parameter.kind} needs min and max")
    if parameter.kind == "constant" and "value" not in spec:
        raise UserError(f"{where}: constant needs a value")
    if parameter.kind == "categorical" and parameter.values is None:
        raise UserError(f"{where}: expected value, values, or min and max")
    if "log_uniform_values" in parameter.kind and parameter.min is not None and parameter.min <= 0:
        raise UserError(f"{where}: {parameter.kind} needs a min above 0, got {parameter.min}")
    return parameter


_RANGES = ("int_uniform", "uniform", "q_uniform", "log_uniform", "log_uniform_values", "q_log_uniform_values")
_KINDS = ("constant", "categorical", *_RANGES, "normal", "q_normal", "log_normal")


def _choices(where: str, parameter: Parameter) -> list[Any]:
    """Every value of a parameter, for a grid."""
    kind = parameter.kind
    if kind == "constant":
        return [parameter.value]
    if kind == "categorical":
        assert parameter.values is not None
        return parameter.values
    if kind in ("int_uniform", "q_uniform"):
        assert parameter.min is not None
        assert parameter.max is not None
        step = 1 if kind == "int_uniform" else parameter.q
        count = math.floor((parameter.max - parameter.min) / step + 1e-9) + 1
        return [parameter.min + i if step == 1 else round(parameter.min + i * step, 12) for i in range(count)]
    raise UserError(f"{where}: a grid cannot try every value of {kind}; list values, or write method: random")


def _draw(where: str, parameter: Parameter) -> Draw:
    """How one value of a parameter is drawn."""
    kind = parameter.kind
    low, high = float(parameter.min or 0), float(parameter.max or 0)
    mu, sigma, q = parameter.mu, parameter.sigma, parameter.q

    def quantised(value: float) -> Number:
        steps = round(value / q)
        return steps * int(q) if q.is_integer() else round(steps * q, 12)  # 0.3 and not 0.30000000000000004

    if kind == "constant":
        return lambda generator: parameter.value
    if kind == "categorical":
        values = parameter.values
        assert values is not None
        return lambda generator: values[int(generator.choice(len(values), p=parameter.probabilities))]
    if kind == "log_uniform" and high > 700:
        raise UserError(f"{where}: log_uniform's min and max are exponents of e; log_uniform_values takes the values")
    draws: dict[str, Draw] = {
        "int_uniform": lambda generator: int(generator.integers(int(low), int(high), endpoint=True)),
        "uniform": lambda generator: float(generator.uniform(low, high)),
        "q_uniform": lambda generator: quantised(generator.uniform(low, high)),
        "log_uniform": lambda generator: math.exp(generator.uniform(low, high)),
        "log_uniform_values": lambda generator: math.exp(generator.uniform(math.log(low), math.log(high))),
        "q_log_uniform_values": lambda generator: quantised(math.exp(generator.uniform(math.log(low), math.log(high)))),
        "normal": lambda generator: float(generator.normal(mu, sigma)),
        "q_normal": lambda generator: quantised(generator.normal(mu, sigma)),
        "log_normal": lambda generator: float(generator.lognormal(mu, sigma)),
    }
    return draws[kind]
