"""Runs programs in processes of their own that have imported torch already: forked, because importing takes seconds.

For tests of what ends, crashes, hangs or limits a process. A program runs as __main__ and ends as a script does, with
its exit code, its handlers and its output. It is ended by SIGALRM after a time.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

SERVER = """
import faulthandler, json, os, signal, sys
import psutil, torch
import reprise.buffer

torch.set_num_threads(1)
request = None
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    request = None
if request:
    faulthandler.enable()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["-c", *request["arguments"]]
    signal.alarm(request["seconds"])
    code = compile(request["code"], "<program>", "exec")
    del line, child, request, number, path
    exec(code)
"""


class Running:
    """A program that has begun. Output is a file that grows."""

    def __init__(self, server: "subprocess.Popen[str]", out: Path, err: Path) -> None:
        assert server.stdout is not None
        self.pid = int(server.stdout.readline())
        self.out, self.err = out, err
        self._status = server.stdout
        self.ended = False

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> SimpleNamespace:
        """As subprocess.run: returncode, stdout and stderr, once the program has ended."""
        code = int(self._status.readline())
        self.ended = True
        return SimpleNamespace(returncode=code, stdout=self.out.read_text(), stderr=self.err.read_text())


class Programs:
    """A context manager; one program at a time: starting another one ends it."""

    def __enter__(self) -> "Programs":
        environ = {**os.environ, "REPRISE_DIST": "solo", "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._folder = tempfile.TemporaryDirectory()
        self._number = 0
        self._last: Running | None = None
        return self

    def start(self, code: str, *arguments: object, seconds: int = 60) -> Running:
        assert self._server.stdin is not None
        self._end()
        self._number += 1
        out, err = (Path(self._folder.name, f"{self._number}.{name}") for name in ("out", "err"))
        out.touch()
        err.touch()
        request = {"code": code, "arguments": list(map(str, arguments)), "seconds": seconds}
        print(json.dumps({**request, "out": str(out), "err": str(err)}), file=self._server.stdin, flush=True)
        self._last = Running(self._server, out, err)
        return self._last

    def run(self, code: str, *arguments: object, seconds: int = 60) -> SimpleNamespace:
        return self.start(code, *arguments, seconds=seconds).wait()

    def _end(self) -> None:
        if self._last is not None and not self._last.ended:
            self._last.kill()
            self._last.wait()

    def __exit__(self, *_: object) -> None:
        self._end()
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()
        self._folder.cleanup()
