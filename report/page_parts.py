"""What the report page is made of, as page.html lays it out, and what its sections have in common.

Filled by page.py, page_learning.py and page_training.py. Texts that come from a run are plain strings here: the
template escapes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from numpy.typing import NDArray

from reprise.report import svg
from reprise.report.run_contents import RunContents

NOTHING = "-"


@dataclass(frozen=True)
class Cell:
    """One value of a table. colour: its classes in the style sheet."""

    text: str
    best: bool = False
    colour: str = ""


@dataclass(frozen=True)
class Table:
    """head: of the column of row heads, then of the others. rows: their heads, a remark to each, and the cells."""

    caption: str
    head: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Cell]]]


@dataclass(frozen=True)
class Figure:
    """A chart with its legend, and its numbers for whoever wants or needs those."""

    caption: str
    chart: Markup
    legend: Sequence[tuple[Markup, str]]
    numbers: Table | None = None


@dataclass(frozen=True)
class Bar:
    """Parts one after the other: colour, name, amount, per cent. width: per cent of the longest bar."""

    caption: str
    parts: Sequence[tuple[str, str, str, float]]
    width: float


@dataclass(frozen=True)
class Section:
    """A part of the page. What is empty is left out. missing: what could not be shown, and why.

    heats, bars and commands go by run, whose name comes first; folded tables are opened with a click.
    """

    id: str
    title: str
    intro: str = ""
    missing: Sequence[str] = ()
    tables: Sequence[Table] = ()
    heats: Sequence[tuple[str, Sequence[Table]]] = ()
    figures: Sequence[Figure] = ()
    bars: Sequence[tuple[str, Sequence[Bar], Table]] = ()
    folded: Sequence[Table] = ()
    commands: Sequence[tuple[str, str]] = ()


def names(runs: Iterable[RunContents]) -> list[str]:
    """What the runs are called, in their order."""
    return [run.name for run in runs]


def colour(k: int) -> str:
    """Of run number k, everywhere. After the colours come other dashes; with its mark, a line is like none before."""
    return f"c{k % svg.COLOURS} d{k // svg.COLOURS % 3}"


def line_key(k: int) -> Markup:
    """Run number k in the legend of lines."""
    return svg.key(colour(k), k)


def area_key(k: int) -> Markup:
    """Run number k in the legend of columns."""
    return svg.key(colour(k), line=False)


def by_task(head: str, columns: Mapping[str, NDArray], written: str) -> Table:
    """The numbers of a chart over tasks: a row per task, a column for each name."""
    rows = [
        (str(task), "", [Cell(written.format(of[task]) if task < len(of) else NOTHING) for of in columns.values()])
        for task in range(max(len(of) for of in columns.values()))
    ]
    return Table("", [head, *columns], rows)


def told(missing: Iterable[tuple[RunContents, str]]) -> list[str]:
    """What is missing and why, with all runs that share the reason in one line."""
    sharing: dict[str, list[str]] = {}
    for run, reason in missing:
        sharing.setdefault(reason, []).append(run.name)
    return [f"{', '.join(of)}: {reason}" for reason, of in sharing.items()]


def not_there(run: RunContents, what: str) -> str:
    """Why a run's folder lacks something that a finished run of this version has."""
    return f"{what} yet" if run.summary is None else f"{what}: made by an older version"
