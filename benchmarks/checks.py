"""What must hold (speed, hiding, peers, capacity, memory), judged from the results of one run.

Each check carries the measured value, the limit and a verdict; what could not be measured says why and fails nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ENGINES = ("standard", "flyweight")

_UNHIDDEN = {"imagenet": 1.2, "imagenet-u8": 1.2, "cifar": 1.4, "derpp": 1.4}
_STREAMING = 1.2
_MIB = 2**20


@dataclass(frozen=True)
class Check:
    """`passed` is None for what was not measured and for goals that only inform."""

    line: int
    text: str
    measured: str
    limit: str
    passed: bool | None


def judge(results: dict[str, Any]) -> list[Check]:
    """All checks that the results of benchmarks/buffer.py allow, by line."""
    return [*_speed(results), *_hiding(results), *_peers(results), *_capacity(results), *_memory(results)]


def per_byte_speedup(mine: dict[str, Any], other: dict[str, Any]) -> float:
    """How often faster per step or per byte moved, whichever is less: a full buffer of ours stores fewer rows."""
    steps = other["p50_us"] / mine["p50_us"]
    return float(min(steps, steps * mine["bytes_per_step"] / other["bytes_per_step"]))


def at_most(line: int, text: str, measured: float, limit: float, unit: str = "x", digits: int = 2) -> Check:
    """A check that a measured value is no more than its limit."""
    return Check(line, text, f"{measured:.{digits}f} {unit}", f"<= {limit:g} {unit}", measured <= limit)


def at_least(line: int, text: str, measured: float, limit: float) -> Check:
    """A check that a measured ratio is no less than its limit."""
    return Check(line, text, f"{measured:.2f} x", f">= {limit:g} x", measured >= limit)


def _engines(workload: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ENGINES:
        if name in workload:
            runs = workload[name]["runs"]
            yield name if runs == name else f"{name} (runs {runs})", workload[name]


def _speed(results: dict[str, Any]) -> Iterator[Check]:
    for workload, limit in _UNHIDDEN.items():
        for name, mine in _engines(results.get("unhidden", {}).get(workload, {})):
            ratios = mine["ratio_to"]
            if "memcpy" in ratios:
                yield at_most(2, f"{workload}: {name}, of memcpy", ratios["memcpy"]["median"], limit)
            if "streaming" in ratios:
                measured = ratios["streaming"]["median"]
                text = f"{workload}: {name}, of streaming (excellent)"
                yield Check(2, text, f"{measured:.2f} x", f"<= {_STREAMING:g} x", None)


def _hiding(results: dict[str, Any]) -> Iterator[Check]:
    for workload, contestants in results.get("hidden", {}).items():
        for name, mine in _engines(contestants):
            yield at_most(3, f"{workload}: {name}, blocked p50", mine["p50_us"], 30, "µs", 1)
            yield at_most(3, f"{workload}: {name}, blocked p95", mine["p95_us"], 150, "µs", 1)
            yield at_most(3, f"{workload}: {name}, loop of a bare one", mine["loop_ratio"], 1.01, "x", 4)


def _peers(results: dict[str, Any]) -> Iterator[Check]:
    required = (
        ("cifar", "torchrl", 1.8),
        ("imagenet", "torchrl", 1.8),
        ("cifar", "avalanche class-balanced", 50.0),
        ("cifar", "loop", 3.0),
        ("cifar", "python", 3.0),
    )
    for workload, peer, limit in required:
        contestants = results.get("unhidden", {}).get(workload, {})
        for name, mine in _engines(contestants):
            text = f"{workload}: {name}, faster than {peer}"
            if peer in contestants:
                yield at_least(4, text, per_byte_speedup(mine, contestants[peer]), limit)
            else:
                yield Check(4, text, "not measured", f">= {limit:g} x", None)
    for workload, contestants in results.get("hidden", {}).items():
        for name, mine in _engines(contestants):
            text = f"{workload}: {name}, blocked, of torchrl's"
            if "torchrl" in contestants:
                yield at_most(4, text, mine["p50_us"] / contestants["torchrl"]["p50_us"], 0.1, digits=3)
            else:
                yield Check(4, text, "not measured", "<= 0.1 x", None)


def _capacity(results: dict[str, Any]) -> Iterator[Check]:
    """Growth from the smallest to the largest capacity, over that of the limit that grows least."""
    sizes = sorted(results.get("capacity", {}).items(), key=lambda item: int(item[0]))
    if len(sizes) < 2:
        return
    (_, smallest), (_, largest) = sizes[0], sizes[-1]
    for name, last in _engines(largest):
        first = smallest[name.partition(" ")[0]]
        growth = last["p50_us"] / first["p50_us"]
        own = {limit: last["limit_p50_us"][limit] / first["limit_p50_us"][limit] for limit in last["limit_p50_us"]}
        text = ", ".join([f"{name}: growth {growth:.2f} x", *(f"{limit} {own[limit]:.2f} x" for limit in own)])
        yield at_most(5, text, growth / min(own.values()), 1.3)


def _memory(results: dict[str, Any]) -> Iterator[Check]:
    for workload, contestants in results.get("memory", {}).items():
        for name, mine in _engines(contestants):
            full, untouched, idle = mine["resident"], mine["untouched"], mine["idle"]
            allowed = 0.03 * full["payload_bytes"] / _MIB + 16
            yield at_most(
                6, f"{workload}: {name}, overhead", full["overhead_bytes"] / _MIB, round(allowed, 1), "MiB", 1
            )
            if untouched:
                megabytes = untouched["payload_bytes"] / _MIB
                text = f"{name}, {megabytes:.0f} MiB untouched"
                yield at_most(6, text, untouched["grown_bytes"] / _MIB, 16, "MiB", 1)
            if idle:
                yield at_most(6, f"{name}, idle, of a core", 100 * idle["core_share"], 1, "%", 3)
