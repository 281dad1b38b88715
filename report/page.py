"""The report page: runs compared in one HTML file that needs nothing else, no network and no script.

Here are its order, the summary, and what was run; what was learnt is page_learning.py's, how training went
page_training.py's. Reading runs is run_contents.py's, drawing svg.py's, the look page.html's. What a run's folder does
not hold is said in the place where it would be. Called by __main__.py.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reprise.report import page_learning, page_training, svg
from reprise.report.page_parts import NOTHING, Cell, Section, Table, line_key, names, told
from reprise.report.run_contents import RunContents
from reprise.runtime.files import atomic_write


def write(runs: Sequence[RunContents], path: Path) -> None:
    """Write the page, whole or not at all. UserError where the disk refuses."""
    text = html(runs)
    with atomic_write(path) as stream:
        stream.write(text)


def html(runs: Sequence[RunContents]) -> str:
    """The page of at least one run. Everything that comes from a run is escaped."""
    environment = Environment(
        loader=PackageLoader("reprise", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    sections = [
        _summary(runs),
        page_learning.matrices(runs),
        page_learning.over_tasks(runs),
        page_training.epochs(runs),
        page_training.times(runs),
        page_training.buffers(runs),
        _compared("configuration", "Configuration", "config.yaml", [(run, run.config) for run in runs], "not set"),
        _compared("environment", "Environment", "environment.json", [(run, run.environment) for run in runs], NOTHING),
        _commands(runs),
    ]
    listed = [
        (line_key(k), run.name, "" if run.name == str(run.folder) else str(run.folder), _state(run))
        for k, run in enumerate(runs)
    ]
    return environment.get_template("page.html").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        runs=listed,
        sections=sections,
        heat=page_learning.heat_colours(),
        colours=svg.COLOURS,
        ramp=svg.RAMP,
    )


def _state(run: RunContents) -> str:
    """Empty of a finished run."""
    if run.summary is not None:
        return ""
    evaluated = "no task" if run.matrix is None else f"{len(run.matrix)} of {run.matrix.shape[1]} tasks"
    return f"not finished: {evaluated} evaluated"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}\N{NO-BREAK SPACE}%"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _error(error: float) -> str:
    return f"{error:.4g}"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


# Key of summary.json, its name, its formula or unit, how it is written, and which end is best.
_MEASURES: tuple[tuple[str, str, str, Callable[[float], str], Callable[[Iterable[float]], float]], ...] = (
    ("average_accuracy", "Accuracy", "ACC: mean over tasks at the end", _percent, max),
    ("average_incremental_accuracy", "Incremental accuracy", "AIA: mean of the average so far", _percent, max),
    ("forgetting", "Forgetting", "best before, less at the end", _percent, min),
    ("backward_transfer", "Backward transfer", "BWT: at the end, less when learned", _percent, max),
    ("forward_transfer", "Forward transfer", "FWT: just before, less untrained", _percent, max),
    ("average_accuracy_task_il", "Accuracy, task known", "task-IL: mean over tasks at the end", _percent, max),
    ("average_error", "Error", "mean over tasks at the end", _error, min),
    ("error_increase", "Error increase", "at the end, less least before", _error, min),
    ("images_per_second", "Throughput", "new images/s, all ranks", _count, max),
    ("wait_share", "Buffer wait", "share of a step", _percent, min),
    ("train_seconds", "Training time", "h:mm:ss", _time, min),
)
_FACTS = (
    ("strategy", "Strategy", ""),
    ("buffer_implementation", "Buffer", ""),
    ("buffer_transport", "Transport", "how other ranks' samples are read"),
    ("samples_stored", "Samples stored", "all ranks, at the end"),
    ("tasks", "Tasks", ""),
    ("world_size", "Ranks", ""),
    ("launcher", "Launcher", ""),
    ("seed", "Seed", ""),
)


def _summary(runs: Sequence[RunContents]) -> Section:
    rows = []
    for key, name, remark, written, best in _MEASURES:
        values = [_measure(run, key) for run in runs]
        if known := [value for value in values if value is not None]:
            texts = [NOTHING if value is None else written(value) for value in values]
            # By what can be read: of two runs at "100.0 %" neither is better.
            differ = len({written(value) for value in known}) > 1
            rows.append((name, remark, [Cell(text, differ and text == written(best(known))) for text in texts]))
    marked = any(cell.best for _, _, cells in rows for cell in cells)
    rows += [(name, remark, [Cell(_fact(run, key)) for run in runs]) for key, name, remark in _FACTS]
    intro = "★ marks the best run in a row, among those that have finished." if marked else ""
    return Section("summary", "Summary", intro, tables=[Table("", ["", *names(runs)], rows)])


def _measure(run: RunContents, key: str) -> float | None:
    if run.summary is None or (key == "wait_share" and run.summary["buffer_implementation"] == "none"):
        return None
    value: float | None = run.summary[key]
    return value


def _fact(run: RunContents, key: str) -> str:
    """From the summary; before there is one, from the files that a run begins with."""
    if run.summary is not None:
        value = run.summary[key]
        return _count(value) if key == "samples_stored" else str(value)
    early = {"strategy": run.config.get("model"), "seed": run.config.get("seed"), "tasks": _state(run)}
    return early.get(key) or run.environment.get(key) or NOTHING


def _compared(
    id_: str, title: str, file: str, runs: Sequence[tuple[RunContents, Mapping[str, str]]], absent: str
) -> Section:
    """What differs in a table, what all runs share folded away. Runs without the file are left out and named."""
    known = [(run, values) for run, values in runs if values]
    missing = told((run, f"no {file} in its folder") for run, values in runs if not values)
    keys = dict.fromkeys(key for _, values in known for key in values)
    differ = [key for key in keys if len({values.get(key) for _, values in known}) > 1]
    common = [key for key in keys if key not in differ]
    several = len(known) > 1
    different = Table(
        "",
        ["", *names(run for run, _ in known)],
        [(_breakable(key), "", [Cell(values.get(key, absent)) for _, values in known]) for key in differ],
    )
    shared = Table(
        f"The same in all runs ({len(common)})" if several else "All values",
        ["", "value"],
        [(_breakable(key), "", [Cell(known[0][1][key])]) for key in common],
    )
    return Section(
        id_,
        title,
        ("Only what differs." if differ else "No difference.") if several else "",
        missing,
        tables=[different] if differ else [],
        folded=[shared] if common else [],
    )


def _breakable(key: str) -> Markup:
    return Markup("<wbr>").join(re.split(r"(?<=[._])", key))


def _commands(runs: Sequence[RunContents]) -> Section:
    missing = told((run, "no command.txt in its folder") for run in runs if not run.command)
    commands = [(run.name, run.command) for run in runs if run.command]
    return Section("commands", "Commands", missing=missing, commands=commands)
