"""The studies of the rehearsal papers at the scale of a laptop: tables, pictures, and what has to come out.

    python benchmarks/paper.py --all --quick                   # under 20 minutes on 2 cores
    python benchmarks/paper.py approaches scaling
    python benchmarks/paper.py --all --write docs              # renews docs/results.md and its pictures

`approaches`: without rehearsal, from scratch, and with rehearsal, accuracy and time; `size`, `representatives` and
`candidates`: of the memory, of each step's draw, and offered to the memory; `scaling`: more ranks with as much work
each, and where a step's time goes; `model`: global sampling on 8 to 4,096 ranks, computed. Every number but the
model's is from runs made here, whose folders stay in --results-dir. --check exits with 1 when something does not come
out.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from reprise.benchmarks import paper_studies
from reprise.benchmarks.paper_studies import Finding, Job, Result
from reprise.benchmarks.show import console
from reprise.report import summary_schema
from reprise.report.run_folder import TIMELINE_FILE, TRACE_FILE
from reprise.report.timeline import STEP
from reprise.runtime.errors import UserError
from reprise.runtime.files import atomic_write
from reprise.tests.parallel import launch

MAIN = Path(__file__).parents[1] / "main.py"
LIMIT_S = 1800.0


@dataclass(frozen=True)
class Chosen:
    """What the command line says. seeds: of every run; of --quick fewer."""

    results: Path
    launcher: str
    seeds: int
    quick: bool


def train(job: Job, study: str, chosen: Chosen) -> Result:
    """One run of main.py under a launcher; SystemExit with the end of what it said where it fails."""
    folder = chosen.results / study
    name = f"{'-'.join(job.cell)}-{job.seed}"
    words = [*job.options, "--seed", str(job.seed), "--results-dir", str(folder), "--save-dir", name, "--trace"]
    launcher = "python" if job.ranks == 1 else chosen.launcher
    # A rank has the cores that there are for it, and never more: what a step takes is to be compared.
    threads = {"OMP_NUM_THREADS": str(max((psutil.cpu_count() or 1) // max(job.ranks, job.at_once), 1))}
    finished = launch.run(launcher, job.ranks, [MAIN, *words, "--log-level", "warning"], threads, timeout=LIMIT_S)
    if finished.returncode:
        raise SystemExit(f"{study}, {name} ended with code {finished.returncode}\n{finished.output[-2000:]}")
    timeline = json.loads((folder / name / TIMELINE_FILE).read_text(encoding="utf-8"))
    events = json.loads((folder / name / TRACE_FILE).read_text(encoding="utf-8"))["traceEvents"]
    steps = [event["dur"] / 1e3 for event in events if event["name"] == STEP and event["pid"] == 0]
    return Result(job, summary_schema.read(folder / name), timeline, median(steps))


def measure(name: str, chosen: Chosen) -> list[Result]:
    """All runs of a study, in its order, several at a time where its runs are not timed."""
    jobs = paper_studies.STUDIES[name].jobs(range(chosen.seeds), chosen.quick)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=len(jobs))

        def one(job: Job) -> Result:
            result = train(job, name, chosen)
            bar.advance(task)
            return result

        with ThreadPoolExecutor(max((job.at_once for job in jobs), default=1)) as pool:
            return list(pool.map(one, jobs))


def show(finding: Finding, out: Console) -> None:
    """The tables of a study in Markdown, as they stand in docs/results.md."""
    tables: list[tuple[tuple[str, ...], Sequence[tuple[str, ...]]]] = [(finding.header, finding.rows)]
    if finding.statements:
        checks = [(s.text, s.measured, "pass" if s.holds else "FAIL") for s in finding.statements]
        tables.append((("must hold", "measured", ""), checks))
    for header, rows in tables:
        table = Table(box=box.MARKDOWN)
        for title in header:
            table.add_column(title)
        for row in rows:
            table.add_row(*row)
        out.print(table)


def page(findings: dict[str, Finding], command: str) -> str:
    """docs/results.md."""
    parts = ["# Results of the papers' studies, at the scale of a laptop\n", paper_studies.INTRODUCTION]
    parts.append(f"Made by `{command}` on {psutil.cpu_count()} cores.\n")
    for name, finding in findings.items():
        text = Console(record=True, width=140, file=io.StringIO())
        show(finding, text)
        parts += [f"## {finding.title}\n", finding.text + "\n", text.export_text().strip() + "\n"]
        if finding.plot:
            parts.append(f"![{finding.title}](results-{name}.png)\n")
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the studies, print, draw and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add(
        "studies",
        nargs="*",
        choices=[[], *paper_studies.STUDIES],
        metavar="STUDY",
        help=", ".join(paper_studies.STUDIES),
    )
    add("--all", action="store_true", help="every study")
    add("--quick", action="store_true", help="fewer seeds and ranks: under 20 minutes on 2 cores")
    add("--launcher", default="horovodrun", choices=("horovodrun", "mpirun", "torchrun"), help="of more ranks than one")
    add("--results-dir", type=Path, default=Path("results/paper"), help="(results/paper)")
    add("--write", type=Path, metavar="DIR", help="write results.md and results-STUDY.png there")
    add("--check", action="store_true", help="exit with 1 when something does not come out")
    given = parser.parse_args(argv)
    names = list(paper_studies.STUDIES) if given.all else given.studies
    if not names:
        parser.error(f"name studies, or --all; there are {', '.join(paper_studies.STUDIES)}")
    if given.launcher not in launch.available():
        parser.error(f"--launcher {given.launcher} is not installed; here are {', '.join(launch.available())}")
    chosen = Chosen(given.results_dir, given.launcher, 4 if given.quick else 8, given.quick)
    out, findings = console(), {}
    try:
        for name in names:
            findings[name] = paper_studies.STUDIES[name].judge(measure(name, chosen))
            out.print(f"[bold]{findings[name].title}[/bold]")
            show(findings[name], out)
            if (plot := findings[name].plot) and given.write:
                plot(given.write / f"results-{name}.png")
        if given.write:
            command = f"python benchmarks/paper.py {'--all' if given.all else ' '.join(names)}"
            with atomic_write(given.write / "results.md") as stream:
                stream.write(page(findings, command + (" --quick" if given.quick else "")))
            out.print(f"Written: {given.write / 'results.md'}", highlight=False, soft_wrap=True)
    except UserError as error:
        parser.error(str(error))
    good = all(statement.holds for finding in findings.values() for statement in finding.statements)
    return 0 if good or not given.check else 1


if __name__ == "__main__":
    sys.exit(main())
