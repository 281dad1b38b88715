"""Sweeps: `python sweep.py --local sweep.yaml` searches here; without --local it is one trial of a W&B agent.

With --local, the trials of a sweep file run here, --jobs at a time; the same command again goes on where an earlier
one stopped, and several at once share the work. Under an agent (`command:` in sweep.yaml), the agent's --option=value
become main.py's options. Every other option is main.py's, and goes to every trial. A dot stands before the key of a
dictionary option: --buffer_config.rehearsal_ratio=20.

Exit codes: 0 all trials done; 1 some failed; 2 a mistake in the options or files, one line says which; 85 stopped by
SIGTERM: start again to go on; 130 stopped by Ctrl-C.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

try:
    from reprise import main as program
    from reprise.runtime.config import COMMAND_LINE
    from reprise.runtime.dist.launcher import LAUNCHERS
    from reprise.runtime.errors import UserError
    from reprise.runtime.stop import REQUEUE
    from reprise.sweeps import launch
except ModuleNotFoundError as error:  # the wrong Python: the first mistake everybody makes
    remedy = "run 'make setup' and use .venv/bin/python, or 'pip install -e .' into this Python"
    sys.stderr.write(f"reprise: error: {error} in {sys.executable}; {remedy}\n")
    raise SystemExit(2) from None

if TYPE_CHECKING:
    from reprise.sweeps.local import Attempt, LocalSweep

FAILED, USER_MISTAKE, INTERRUPTED = 1, 2, 130
_OWN = ("results_dir", "save_dir", "resume")  # sweep.py's to say, for every trial


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see sweep.py --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Under an agent the launcher takes this process's place."""
    parser = _Parser("python sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.allow_abbrev = False
    parser.add_argument(
        "--local", type=Path, metavar="FILE", help="search here, over the parameters of this sweep file"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="trials at a time, with --local (default 1)")
    parser.add_argument("--trial", type=int, metavar="I", help="with --local: only this one, from 0; for job arrays")
    parser.add_argument("--np", type=int, metavar="N", help="ranks of each trial (default: the hosts' slots, else 1)")
    parser.add_argument(
        "--hosts",
        default=os.environ.get(launch.HOSTS_VARIABLE, ""),
        metavar="HOST:SLOTS,...",
        help=f"where the ranks run (default: the variable {launch.HOSTS_VARIABLE}, else here)",
    )
    parser.add_argument("--launcher", choices=LAUNCHERS, help="default: horovodrun; python where there is one rank")
    parser.add_argument("--results-dir", metavar="DIR", help="folder of the sweep's folder (default ./results)")
    try:
        chosen, others = parser.parse_known_args(argv)
        launcher = launch.choose(chosen.launcher, chosen.np, chosen.hosts)
        if chosen.local:
            return _search(chosen, launcher, others)
        for name in ("jobs", "trial"):
            if getattr(chosen, name) is not None:
                raise UserError(f"--{name} goes with --local SWEEP_FILE")
        _become_trial(chosen.results_dir, launcher, others)
    except UserError as error:
        sys.stderr.write(f"reprise: error: {' '.join(str(error).split())}\n")
        return USER_MISTAKE


def _become_trial(results_dir: str | None, launcher: launch.Launcher, given: Sequence[str]) -> NoReturn:
    """Replace this process by the launcher of one run, so that the agent's signals and exit codes are the run's own."""
    arguments = [word for argument in given for word in _spelled(argument)]
    sweep, run = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    resolved = program.resolve(arguments)
    if sweep and run and resolved.options.save_dir is None:
        arguments += ["--save-dir", f"sweep-{sweep}/{run}", "--resume", "true"]
    if sweep and resolved.options.wandb_project is None:
        arguments += ["--wandb-project", os.environ.get("WANDB_PROJECT", "reprise")]
    if results_dir is not None:
        arguments += ["--results-dir", results_dir]
    program.resolve(arguments)
    command = launcher.command([str(Path(program.__file__)), *arguments])
    sys.stdout.flush()
    os.execvpe(command[0], command, launcher.environment())


def _spelled(argument: str) -> list[str]:
    """An agent's argument as main.py reads it: dotted names as keys of their dictionaries, Python's None as nothing."""
    flag, equals, value = argument.partition("=")
    if not (flag.startswith("--") and equals):
        return [argument]
    key, dot, inner = flag[2:].partition(".")
    flag = f"--{key.replace('_', '-')}"
    return [flag, f"{inner}={value}"] if dot else [f"{flag}={'' if value == 'None' else value}"]


def _search(chosen: argparse.Namespace, launcher: launch.Launcher, options: Sequence[str]) -> int:
    from reprise.sweeps import results
    from reprise.sweeps.local import LocalSweep
    from reprise.sweeps.progress import SweepProgress
    from reprise.sweeps.space import Sweep

    jobs = 1 if chosen.jobs is None else chosen.jobs
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: expected a whole number from 1")
    sweep = Sweep(chosen.local)
    if chosen.trial is not None and not 0 <= chosen.trial < len(sweep):
        raise UserError(f"--trial {chosen.trial}: '{chosen.local}' has trials 0 to {len(sweep) - 1}")
    options = [word for option in options for word in _spelled(option)]
    local = LocalSweep(sweep, Path(chosen.results_dir or "results") / sweep.name, launcher, options)
    trials = range(len(sweep)) if chosen.trial is None else [chosen.trial]
    _check(local, trials)

    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        local.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    failed: list[Attempt] = []
    try:
        with SweepProgress(len(trials), sum(map(local.done, trials))) as progress:
            if sweep.early_terminate:
                progress.console.print("early_terminate is the service's: here every trial goes to its end")

            def report(attempt: "Attempt") -> None:
                if attempt.reason:
                    failed.append(attempt)
                progress.trial_ended(attempt.trial, attempt.seconds, attempt.reason, local.log(attempt.trial))

            local.run(trials, jobs, report)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    found = results.read(local)
    results.check_metric(found, sweep.metric.key)
    results.show(local, found, results.write(local, found), progress.console)
    if stopped:
        return REQUEUE if stopped[0] == signal.SIGTERM else INTERRUPTED
    return FAILED if failed else 0


def _check(local: "LocalSweep", trials: Sequence[int]) -> None:
    """Refuse, before the first trial, values that main.py would refuse in any of them, or that would have no effect."""
    for trial in trials:
        given = [option.replace("-", "_") for option in local.sweep[trial]]
        if own := set(given) & {*_OWN, "load_checkpoint"}:
            raise UserError(f"parameters.{min(own)}: sweep.py chooses it for every trial; leave it out")
        resolved = program.resolve(local.arguments(trial))
        for dotted in (*given, *_OWN):
            origin = resolved.origin.get(dotted, COMMAND_LINE)
            if origin != COMMAND_LINE:
                raise UserError(f"{origin} sets {dotted}, which overrides the sweep's; leave it out there")


if __name__ == "__main__":
    sys.exit(main())
