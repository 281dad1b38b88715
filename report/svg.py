"""Charts as inline SVG, small enough to be read on a phone and coloured by the page's style sheet (page.html).

Drawn without a library: those that exist bring scripts or fix the colours, and the page has neither. A chart is
WIDTH x HEIGHT units, about CSS pixels on a phone; names of runs stay outside, in HTML, where they can wrap.
Colours are classes that set --c: c0 to c5 tell things apart, r0 to r11 put them in order.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

WIDTH, HEIGHT = 360, 220
COLOURS, RAMP = 6, 12
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 24, 38
_LABELS = 22  # width of the numbers that lines end in
_LINE_HEIGHT = 11
LABELS_UP_TO = (HEIGHT - _TOP - _BOTTOM) // _LINE_HEIGHT  # lines with a label in a chart
_MARKS_UP_TO = 20  # points of a line; of more, about a dozen are marked
# Circle, square, triangle, diamond, cross: as paths from where the pen is.
_MARKS = (
    "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0",
    "m-2.7-2.7h5.4v5.4h-5.4z",
    "m0-3.8l3.6 6.4h-7.2z",
    "m0-4l4 4l-4 4l-4-4z",
    "m-3.5-1.2h2.3v-2.3h2.4v2.3h2.3v2.4h-2.3v2.3h-2.4v-2.3h-2.3z",
)


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with the `ticks` that have a text. lines: where to draw grid lines, if not at the ticks."""

    title: str
    low: float
    high: float
    ticks: dict[float, str]
    lines: Sequence[float] | None = None

    @classmethod
    def numbers(cls, title: str, values: Iterable[float]) -> "Axis":
        """An axis that holds the values and zero, its ends at round numbers."""
        held = [0.0, *values]
        low, high = min(held), max(held)
        span = high - low or 1.0
        step = 10.0 ** math.floor(math.log10(span / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
        first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), 1)
        ticks = {k * step: _short(k * step) for k in range(first, last + 1)}
        return cls(title, first * step, last * step, ticks)

    @classmethod
    def percent(cls, title: str) -> "Axis":
        """From 0 to 100."""
        return cls(title, 0, 100, {tick: str(tick) for tick in (0, 25, 50, 75, 100)})

    @classmethod
    def tasks(cls, count: int) -> "Axis":
        """Tasks side by side, task k between k and k + 1, numbered from 0."""
        shown = range(0, count, math.ceil(count / 12))
        return cls("task", 0, count, {k + 0.5: str(k) for k in shown}, range(count + 1) if count <= 30 else ())


@dataclass(frozen=True)
class Line:
    """Points (x, y) from left to right. colour: classes of the style sheet. mark: shape of its points, none for None.

    label: a short text to end in.
    """

    points: Sequence[tuple[float, float]]
    colour: str
    mark: int | None = None
    label: str = ""


@dataclass(frozen=True)
class Layer:
    """One value per task, of the tasks from 0 on; None where there is none."""

    values: Sequence[float | None]
    colour: str


def lines(series: Sequence[Line], x: Axis, y: Axis, alternative: str) -> Markup:
    """Lines over a grid. alternative: what a reader who does not see it is told, as for every chart here."""
    right = _RIGHT + (_LABELS if any(line.label for line in series) else 0)
    plane = _Plane(x, y, right)
    drawn, ends = [], []
    for line in series:
        points = _thinned([plane.at(*point) for point in line.points])
        if not points:
            continue
        drawn.append(_tag("path", class_=f"line {line.colour}", d="M" + "L".join(_pair(*point) for point in points)))
        if line.mark is not None:
            marked = points[:: 1 if len(points) <= _MARKS_UP_TO else len(points) // 12]
            shape = _MARKS[line.mark % len(_MARKS)]
            drawn.append(_tag("path", class_=f"fill {line.colour}", d="".join(f"M{_pair(*p)}{shape}" for p in marked)))
        if line.label:
            ends.append((points[-1], line))
    return _chart(plane.frame(), *drawn, *_end_labels(ends, HEIGHT - _BOTTOM), alternative=alternative)


def columns(layers: Sequence[Layer], x: Axis, y: Axis, alternative: str, *, stacked: bool) -> Markup:
    """Columns over tasks: of each layer side by side, or stacked from the first one up."""
    plane = _Plane(x, y, _RIGHT)
    slot, lifted = 0.8 / (1 if stacked else max(len(layers), 1)), [0.0] * round(x.high)
    drawn = []
    for k, layer in enumerate(layers):
        path = ""
        for task, value in enumerate(layer.values):
            if not value:
                continue
            low, left = (lifted[task], task + 0.1) if stacked else (0.0, task + 0.1 + k * slot)
            (x0, y0), (x1, y1) = plane.at(left, low), plane.at(left + slot, low + value)
            path += f"M{_pair(x0, y0)}H{_number(x1)}V{_number(y1)}H{_number(x0)}z"
            lifted[task] += value if stacked else 0
        drawn.append(_tag("path", class_=f"fill column {layer.colour}", d=path))
    zero = _tag("path", class_="axis", d=f"M{_LEFT} {_number(plane.at(0, 0)[1])}H{WIDTH - _RIGHT}")
    return _chart(plane.frame(), *drawn, zero, alternative=alternative)


def key(colour: str, mark: int | None = None, *, line: bool = True) -> Markup:
    """The sign of a line or an area for a legend."""
    inside = [_tag("path", class_=f"line {colour}", d="M1 7H27")] if line else []
    if mark is not None:
        inside.append(_tag("path", class_=f"fill {colour}", d=f"M14 7{_MARKS[mark % len(_MARKS)]}"))
    if not line:
        inside = [_tag("path", class_=f"fill {colour}", d="M7 1h14v12h-14z")]
    return _tag("svg", *inside, class_="key", viewBox="0 0 28 14", aria_hidden="true")


def ramp(place: int, count: int) -> str:
    """The class of number `place` of `count` things in order."""
    return f"r{round(place * (RAMP - 1) / max(count - 1, 1))}"


class _Plane:
    """From values to units of the drawing."""

    def __init__(self, x: Axis, y: Axis, right: int) -> None:
        self.x, self.y, self.right = x, y, WIDTH - right

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return _LEFT + across * (self.right - _LEFT), HEIGHT - _BOTTOM - up * (HEIGHT - _BOTTOM - _TOP)

    def frame(self) -> Markup:
        bottom = HEIGHT - _BOTTOM
        rows = {value: self.at(self.x.low, value)[1] for value in self.y.ticks}
        uprights = [self.at(value, self.y.low)[0] for value in (self.x.lines or ())]
        grid = "".join(f"M{_LEFT} {_number(y)}H{self.right}" for y in rows.values())
        grid += "".join(f"M{_number(x)} {_TOP}V{bottom}" for x in uprights)
        return Markup("").join(
            [
                _tag("path", class_="grid", d=grid),
                *(_text(text, _LEFT - 6, rows[v] + 4, "end") for v, text in self.y.ticks.items()),
                *(_text(text, self.at(v, self.y.low)[0], bottom + 15, "middle") for v, text in self.x.ticks.items()),
                _text(self.y.title, 2, 11, "start"),
                _text(self.x.title, (_LEFT + self.right) / 2, HEIGHT - 6, "middle"),
            ]
        )


def _end_labels(ends: Sequence[tuple[tuple[float, float], Line]], bottom: float) -> list[Markup]:
    """Texts where lines end, moved apart where they would touch, each with a thread to its line."""
    ends = sorted(ends, key=lambda end: end[0][1])
    heights = [y for (_, y), _ in ends]
    for k in range(1, len(heights)):
        heights[k] = max(heights[k], heights[k - 1] + _LINE_HEIGHT)
    for k in range(len(heights) - 1, -1, -1):
        limit = heights[k + 1] - _LINE_HEIGHT if k + 1 < len(heights) else bottom
        heights[k] = min(heights[k], limit)
    drawn = []
    for ((x, y), line), height in zip(ends, heights, strict=True):
        thread = f"M{_pair(x + 3, y)}L{_pair(x + 10, height)}"
        drawn.append(_tag("path", class_=f"thread {line.colour}", d=thread))
        drawn.append(_text(line.label, x + 12, height + 3.5, "start"))
    return drawn


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of the points in one column of pixels the first, the lowest, the highest and the last: it looks the same."""
    kept: list[tuple[float, float]] = []
    for _, column in groupby(points, key=lambda point: int(point[0])):
        group = list(column)
        low, high = (pick(range(len(group)), key=lambda k: group[k][1]) for pick in (min, max))
        kept += [group[k] for k in sorted({0, low, high, len(group) - 1})]
    return kept


def _chart(*inside: Markup, alternative: str) -> Markup:
    return _tag("svg", *inside, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=alternative)


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return _tag("text", text, x=_number(x), y=_number(y), text_anchor=anchor)


def _tag(name: str, *inside: str, **attributes: str) -> Markup:
    """An element; everything that is not Markup already is escaped."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, Markup("").join(inside))


def _pair(x: float, y: float) -> str:
    return f"{_number(x)} {_number(y)}"


def _number(value: float) -> str:
    return f"{round(value, 1):g}"


def _short(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:,g}" if abs(value) >= 1000 else f"{value:g}"
