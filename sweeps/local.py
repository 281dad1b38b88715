"""Runs the trials of a sweep here, so many at a time, and goes on where an earlier, interrupted one stopped.

A trial is a run with a folder of its own; it is done when that folder holds a summary. A lock per trial lets several
sweep.py share one sweep, as the tasks of a job array do; a trial that a killed one left running is waited for.
"""

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from reprise.report.run_folder import RunFolder
from reprise.runtime.errors import UserError
from reprise.runtime.files import atomic_write, disk_errors
from reprise.sweeps.launch import Launcher
from reprise.sweeps.space import Sweep

_ATTEMPTS = 2  # a rank lost to a full machine is no reason to lose the trial; a wrong option fails twice, soon
_LOOK_AGAIN_S = 1.0
_TIME_TO_SAVE_S = 60.0


@dataclass(frozen=True)
class Attempt:
    """How an attempt at a trial ended. reason: why it failed, "" where it did not."""

    trial: int
    seconds: float
    reason: str = ""


class LocalSweep:
    """The folder of a sweep, its trials, and the processes under way.

    The folder keeps a copy of the sweep's file. options: main.py's, for every trial. Making it raises UserError where
    the folder holds another sweep.
    """

    def __init__(self, sweep: Sweep, folder: Path, launcher: Launcher, options: Sequence[str]) -> None:
        self.sweep = sweep
        self.folder = folder
        self._launcher = launcher
        self._options = list(options)
        self._stopping = threading.Event()
        self._running: set[subprocess.Popen[bytes]] = set()
        kept = folder / "sweep.yaml"
        if os.path.isfile(kept) and not sweep.same_trials(Sweep(kept)):
            raise UserError(f"'{folder}' holds trials of other parameters; give this sweep a name, or move it away")

    def trial_folder(self, trial: int) -> Path:
        """Where a trial's run writes."""
        return self.folder / f"trial-{trial:04d}"

    def log(self, trial: int) -> Path:
        """What a trial's launcher and ranks print, of all attempts."""
        return self.folder / f"trial-{trial:04d}.log"

    def arguments(self, trial: int) -> list[str]:
        """What main.py is called with."""
        place = self.trial_folder(trial)
        own = ["--results-dir", str(place.parent), "--save-dir", place.name, "--resume", "true"]
        return [*self._options, *flags(self.sweep[trial]), *own]

    def done(self, trial: int) -> bool:
        """Whether a trial came to its end."""
        return RunFolder.finished(self.trial_folder(trial))

    def run(self, trials: Sequence[int], jobs: int, report: Callable[[Attempt], None]) -> None:
        """Run those of `trials` that are not done, `jobs` at a time; returns when all are done or have failed.

        report: called once for each trial that was run here or waited for, from the thread that ran it.
        """
        with disk_errors("read", self.sweep.path):
            text = self.sweep.path.read_text(encoding="utf-8")
        with atomic_write(self.folder / "sweep.yaml") as stream:
            stream.write(text)
        slots: SimpleQueue[dict[str, str]] = SimpleQueue()
        for slot in _slots(jobs, self._launcher.ranks):
            slots.put(slot)

        def work(trial: int) -> None:
            slot = slots.get()
            try:
                if not self._stopping.is_set():
                    report(self._run_one(trial, slot))
            finally:
                slots.put(slot)

        with ThreadPoolExecutor(jobs, thread_name_prefix="sweep") as pool:
            list(pool.map(work, [trial for trial in trials if not self.done(trial)]))

    def stop(self) -> None:
        """Have every trial under way save and end, and begin none. From a signal handler or any thread."""
        self._stopping.set()
        for process in tuple(self._running):
            process.send_signal(signal.SIGTERM)

    def _run_one(self, trial: int, slot: dict[str, str]) -> Attempt:
        started = time.monotonic()
        with self._locked(trial) as lock:
            attempt = Attempt(trial, 0.0)
            for _ in range(_ATTEMPTS):
                if lock is None or self.done(trial):
                    break
                reason = self._start(trial, slot, lock)
                attempt = Attempt(trial, time.monotonic() - started, "" if self.done(trial) else reason)
                if self._stopping.is_set():
                    break
            return attempt

    def _start(self, trial: int, slot: dict[str, str], lock: int) -> str:
        program = str(Path(__file__).parent.parent / "main.py")
        log = self.log(trial)
        with disk_errors("write", log):
            output = open(log, "ab")  # noqa: SIM115, closed below
        with output:
            begins = output.tell()
            process = subprocess.Popen(
                self._launcher.command([program, *self.arguments(trial)]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._launcher.environment() | slot,
                # The launcher holds the lock as long as it lives, also when this process is killed.
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C reaches it once, from stop()
            )
            self._running.add(process)
            if self._stopping.is_set():
                process.send_signal(signal.SIGTERM)
            try:
                while True:
                    try:
                        code = process.wait(_TIME_TO_SAVE_S if self._stopping.is_set() else _LOOK_AGAIN_S)
                        break
                    except subprocess.TimeoutExpired:
                        if self._stopping.is_set() and process.poll() is None:
                            process.kill()
            finally:
                self._running.discard(process)
        return _reason(log, begins, code)

    @contextmanager
    def _locked(self, trial: int) -> Iterator[int | None]:
        """The lock of a trial, waited for where another sweep.py or its launcher has it; None when told to stop."""
        path = self.folder / f".trial-{trial:04d}.lock"
        with disk_errors("write", path):
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self._stopping.wait(_LOOK_AGAIN_S):
                        yield None
                        return
            yield descriptor
        finally:
            os.close(descriptor)


def flags(values: Mapping[str, Any]) -> list[str]:
    """main.py's arguments for the values of a trial: `buffer_config.policy` becomes a key of `--buffer-config`."""
    arguments: list[str] = []
    for option, value in values.items():
        key, dot, inner = option.partition(".")
        flag = f"--{key.replace('_', '-')}"
        if dot:
            arguments += [flag, repr({inner: value})]
        else:
            text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            arguments.append(f"{flag}={text}")
    return arguments


def _reason(log: Path, begins: int, code: int) -> str:
    """Why an attempt failed, as far as its output from byte `begins` on says: its last error, else its last line."""
    with open(log, "rb") as stream:
        stream.seek(begins)
        lines = [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if "reprise: error: " in line]
    last = said[-1].partition("reprise: error: ")[2] if said else lines[-1] if lines else "it printed nothing"
    return f"exit code {code}: {last}"


def _slots(jobs: int, ranks: int) -> list[dict[str, str]]:
    """The environment of each of `jobs` trials at a time: GPUs and cores of its own, where there are enough."""
    if jobs == 1:
        return [{}]
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [gpu for gpu in listed.split(",") if gpu] if listed is not None else _gpus()
    slots: list[dict[str, str]] = [{} for _ in range(jobs)]
    for index, slot in enumerate(slots):
        if len(gpus) >= jobs * ranks:
            slot["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[index * ranks : (index + 1) * ranks])
        if "OMP_NUM_THREADS" not in os.environ:
            slot["OMP_NUM_THREADS"] = str(max(len(os.sched_getaffinity(0)) // (jobs * ranks), 1))
    return slots


def _gpus() -> list[str]:
    return [str(index) for index in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
