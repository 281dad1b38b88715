"""The timeline of a run: names of its parts, and the published table of overheads made from them.

A timeline is {part: statistics of Spans.stats()}: STEP is the whole step, others its parts; those that ENGINE begins
are the buffer's and lie beside the step, or for the plain Python buffer within it.
"""

from collections.abc import Mapping

Timeline = Mapping[str, Mapping[str, float]]

STEP = "step"
ENGINE = "engine/"
ENGINE_PARTS = ("queue", "insert", "plan", "fetch")
"""In the order in which a step goes through them. All but the first are work."""


def within(timeline: Timeline) -> dict[str, Mapping[str, float]]:
    """The parts of the step itself."""
    return {name: stats for name, stats in timeline.items() if name != STEP and not name.startswith(ENGINE)}


def beside(timeline: Timeline) -> dict[str, Mapping[str, float]]:
    """The buffer's parts."""
    return {name: stats for name, stats in timeline.items() if name.startswith(ENGINE)}


def overheads(timeline: Timeline) -> dict[str, float]:
    """Milliseconds of a mean step, in the parts that Bouvier et al. 2024 (arXiv 2406.03285) publish; {} without steps.

    "load": waiting for new samples; "wait": for the draw, with what joins it to them; "train": all else that has a
    span; beside these "populate", the insertion, and "augment", planning and fetching the draw.
    """
    steps = timeline.get(STEP, {}).get("count", 0)
    if not steps:
        return {}

    def mean(*names: str) -> float:
        return sum(timeline[name]["total_ms"] for name in names if name in timeline) / steps

    parts = {"load": mean("load"), "wait": mean("rehearsal")}
    parts["train"] = mean(*within(timeline).keys() - {"load", "rehearsal"})
    if beside(timeline):
        parts["populate"] = mean(f"{ENGINE}insert")
        parts["augment"] = mean(f"{ENGINE}plan", f"{ENGINE}fetch")
    return parts
