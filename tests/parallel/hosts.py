"""Two hosts on one machine: namespaces joined by a virtual cable, for tests of jobs that span nodes.

Each host has a name, an interface, process numbers, /dev/shm and an SSH server of its own; the file system is common,
as on a cluster. Needs root. Nothing is left behind: a host lives as long as the process that made it, however that
ends, and takes its processes, its mounts and its end of the cable along. The machine's own are not touched.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import launch
import psutil

ROOT = Path(__file__).parents[2]
INTERFACE = "reprise0"  # on both: Horovod wants an interface of the same name on every host
NAMES = ("reprise-a", "reprise-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")

_TOOLS = ("unshare", "nsenter", "mount", "ip", "ssh", "ssh-keygen")
_APART = ("--mount", "--uts", "--ipc", "--net", "--pid")
_UNSHARE = ("unshare", *_APART, "--propagation", "private", "--fork", "--kill-child")
_SECONDS = 30  # for any single step of making the hosts; seen: all of them in 1 s
_LISTENS = "0A"  # TCP_LISTEN in /proc/net/tcp

# The first process of a host. It ends, and the host with it, when nobody holds the other side of its standard input.
# /sys: UCX looks there for the interfaces, and what is mounted shows those of whoever mounted it.
_FIRST = """
set -e
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir /run/sshd
for file in hosts passwd shadow; do mount --bind "$HOME/$file" "/etc/$file"; done
echo "$1" > /proc/sys/kernel/hostname
ip link set lo up
echo up
read -r plugged
LD_LIBRARY_PATH="$3" "$2" -D -e -f "$HOME/sshd_config" 2> "$HOME/$1.log" &
cat > /dev/null
"""

_SSHD_CONFIG = """\
AddressFamily inet
HostKey {home}/host_key
AuthorizedKeysFile {home}/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
UseDNS no
PidFile none
"""

_SSH_CONFIG = """\
IdentityFile {home}/key
IdentitiesOnly yes
BatchMode yes
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
GlobalKnownHostsFile /dev/null
LogLevel ERROR
ConnectionAttempts 10
"""


class RefusedError(Exception):
    """This machine cannot have the hosts; the text says why."""


@dataclass(frozen=True)
class Host:
    """One of the two. pid: of its first process, as numbered outside."""

    name: str
    address: str
    pid: int

    def enter(self, command: Sequence[str | Path]) -> list[str]:
        """The command line that runs `command` on this host, in the checkout's folder."""
        there = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(ROOT)]
        return ["nsenter", "--target", str(self.pid), *_APART, *there, *map(str, command)]

    def ranks(self) -> list[psutil.Process]:
        """The workers that Horovod has started here."""
        here = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError, IndexError):
                if os.readlink(f"/proc/{process.pid}/ns/pid") != here:
                    continue
                if process.cmdline()[1].endswith(".py") and "HOROVOD_RANK" in process.environ():
                    found.append(process)
        return found

    def listening(self) -> set[tuple[str, int]]:
        """Addresses and ports at which workers here may be reached; IPv6 as /proc writes it."""
        opened = set()
        for rank in self.ranks():
            with suppress(OSError):
                for descriptor in Path(f"/proc/{rank.pid}/fd").iterdir():
                    with suppress(OSError):
                        opened.add(os.readlink(descriptor))
        found = set()
        for table in ("tcp", "tcp6"):
            for row in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]:
                columns = row.split()
                if columns[3] == _LISTENS and f"socket:[{columns[9]}]" in opened:
                    address, port = columns[1].split(":")
                    dotted = ".".join(str(byte) for byte in reversed(bytes.fromhex(address)))
                    found.add((dotted if table == "tcp" else address, int(port, 16)))
        return found

    def cable(self, state: str) -> None:
        """ "down": from now on nothing arrives, and nobody is told. "up": again."""
        _network(self.pid, "link", "set", INTERFACE, state)


@dataclass(frozen=True)
class Hosts:
    """The two. home: root's home folder on both."""

    first: Host
    second: Host
    home: Path

    @property
    def both(self) -> tuple[Host, Host]:
        return self.first, self.second

    def run(
        self,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        timeout: float = 120.0,
        meanwhile: Callable[[], None] | None = None,
    ) -> launch.Finished:
        """Run `command` on the first host; calls `meanwhile` about twice a second until it ends.

        Raises JobTimeoutError with the stacks of all workers after `timeout` seconds.
        """
        environment = launch.worker_environment({"HOME": str(self.home), **(env or {})})
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(
                self.first.enter(command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )
            deadline = time.monotonic() + timeout
            try:
                while process.poll() is None and time.monotonic() < deadline:
                    if meanwhile:
                        meanwhile()
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(0.5)
                late = process.poll() is None
            finally:
                self._end_job(process)
            out.seek(0), err.seek(0)
            finished = launch.Finished(process.returncode, out.read(), err.read())
        if late:
            words = " ".join(map(str, command))
            raise launch.JobTimeoutError(f"'{words}' did not end in {timeout:g} s\n{finished.output}")
        return finished

    def _end_job(self, process: "subprocess.Popen[str]") -> None:
        if process.poll() is None:
            self._signal_ranks(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5.0)  # to print the stacks
        self._signal_ranks(signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _signal_ranks(self, sign: signal.Signals) -> None:
        for host in self.both:
            for rank in host.ranks():
                with suppress(psutil.NoSuchProcess):
                    rank.send_signal(sign)


def why_not() -> str:
    """Why this machine cannot have the hosts, as far as can be told without making them; empty when it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "namespaces and an SSH server take root"
    for tool in _TOOLS:
        if not shutil.which(tool):
            return f"no {tool} on the PATH"
    done = subprocess.run(
        [*_UNSHARE, "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        start_new_session=True,
        check=False,
    )
    return f"namespaces are refused: {done.stderr.strip()}" if done.returncode else ""


@contextmanager
def made(home: Path, sshd: Path, libraries: Path | None) -> Iterator[Hosts]:
    """The two hosts. home: an empty folder. sshd, libraries: as from setup_sshd.

    Raises RefusedError where the machine forbids what it takes.
    """
    _write(home)
    environment = launch.worker_environment({"HOME": str(home)})
    firsts: list[subprocess.Popen[str]] = []
    try:
        for name in NAMES:
            firsts.append(_start([name, str(sshd), str(libraries or "")], environment))
        pids = [psutil.Process(process.pid).children()[0].pid for process in firsts]
        hosts = Hosts(*(Host(*host) for host in zip(NAMES, ADDRESSES, pids, strict=True)), home)
        _plug(hosts)
        for process in firsts:
            assert process.stdin
            process.stdin.write("plugged\n")
            process.stdin.flush()
        _check_ssh(hosts.first, hosts.second, home, environment)
        _check_ssh(hosts.second, hosts.first, home, environment)
        yield hosts
    finally:
        for process in firsts:
            _end(process)


def _write(home: Path) -> None:
    (home / ".ssh").mkdir(mode=0o700)
    for key in ("key", "host_key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", home / key]
        subprocess.run(words, check=True, timeout=_SECONDS)
    (home / "sshd_config").write_text(_SSHD_CONFIG.format(home=home))
    (home / ".ssh" / "config").write_text(_SSH_CONFIG.format(home=home))
    known = "".join(f"{address} {name}\n" for address, name in zip(ADDRESSES, NAMES, strict=True))
    (home / "hosts").write_text("127.0.0.1 localhost\n" + known)
    # ssh takes the home folder from here, whatever HOME says.
    nobody = "sshd:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"
    (home / "passwd").write_text(f"root:x:0:0::{home}:/bin/sh\n" + nobody)
    (home / "shadow").write_text("root:*:::::::\nsshd:*:::::::\n")


def _start(arguments: list[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [*_UNSHARE, "sh", "-c", _FIRST, "sh", *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    said = process.stdout.readline().strip()
    if said != "up":
        _end(process)
        raise RefusedError(f"a namespace cannot be furnished: {said}")
    return process


def _plug(hosts: Hosts) -> None:
    """Both ends are made where they belong, so that the machine's own network never has one."""
    try:
        _network(
            hosts.first.pid,
            *("link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", str(hosts.second.pid)),
        )
        for host in hosts.both:
            _network(host.pid, "address", "add", f"{host.address}/30", "dev", INTERFACE)
            host.cable("up")
    except subprocess.CalledProcessError as error:
        raise RefusedError(f"no virtual cable: {error.stderr.strip()}") from error


def _network(pid: int, *words: str) -> None:
    command = ["nsenter", "--target", str(pid), "--net", "ip", *words]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)


def _check_ssh(host: Host, other: Host, home: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        host.enter(["ssh", other.name, "cat /proc/sys/kernel/hostname"]),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    log = (home / f"{other.name}.log").read_text()
    assert done.stdout.strip() == other.name, f"no ssh from {host.name}: {done.stdout}{done.stderr}\nsshd: {log}"


def _end(process: "subprocess.Popen[str]") -> None:
    assert process.stdin
    assert process.stdout
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
