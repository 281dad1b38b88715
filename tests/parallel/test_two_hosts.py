"""One job on two hosts, started by horovodrun over ssh: it draws samples through UCX, and learns what it does on one.

The hosts are namespaces of this machine (hosts.py); where it cannot have them, all of this is skipped with the reason.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hosts
import launch
import psutil
import pytest
import setup_sshd
import torch
import yaml
from setup_support import SetupError

from reprise import cpp_loader

HERE = Path(__file__).parent
MAIN = hosts.ROOT / "main.py"
# As many as the processes that share this machine's cores, on one host as on two: the order of sums depends on it.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def sshd() -> tuple[Path, Path | None]:
    if why_not := hosts.why_not():
        pytest.skip(f"no two hosts here: {why_not}")
    try:
        return setup_sshd.find(hosts.ROOT, dict(os.environ))
    except SetupError as error:
        pytest.skip(f"no two hosts here: {error}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Hosts]:
    if "horovodrun" not in launch.available():
        pytest.skip("Horovod is not installed")
    server, libraries = sshd()
    try:
        with hosts.made(tmp_path_factory.mktemp("home"), server, libraries) as made:
            yield made
    except hosts.RefusedError as error:
        pytest.skip(f"no two hosts here: {error}")


@pytest.fixture
def network() -> None:
    """For tests that need the engine's way to other hosts."""
    if why_not := cpp_loader.why_no_network():
        pytest.skip(why_not)


def demo(folder: Path, name: str, epochs: int, *arguments: str) -> list[str | Path]:
    """The demo's command line, for fewer or more epochs than it takes."""
    sections = yaml.safe_load((hosts.ROOT / "config.yaml").read_text())
    section = {**sections["demo-er"], "epochs": epochs, "results_dir": str(folder), "save_dir": name}
    options = folder / f"{name}.yaml"
    options.write_text(yaml.safe_dump({"demo-er": section}))
    return [MAIN, "--config", "demo-er", "--yaml-config", options, *arguments]


def horovodrun(slots: int, *arguments: str) -> list[str | Path]:
    """On both hosts, `slots` ranks on each. The time-out covers ssh to and imports on a machine that is busy."""
    where = ",".join(f"{name}:{slots}" for name in hosts.NAMES)
    return ["horovodrun", "--gloo", "-np", str(2 * slots), "-H", where, "--start-timeout", "120", *arguments]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def assert_same_result(folder: Path, other: Path) -> None:
    for name in ("accuracy_matrix.csv", "accuracy_matrix_task_il.csv"):
        assert (folder / name).read_text() == (other / name).read_text()
    states = [
        torch.load(run / "checkpoints" / "task_04" / "model.pt", weights_only=True)["network"]
        for run in (folder, other)
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.fixture(scope="module")
def one_host() -> dict[int, Path]:
    """By number of ranks: the folder of the job that all of them run on this machine."""
    return {}


@pytest.mark.parametrize(
    ("slots", "arguments", "transport"),
    [
        (1, [], "ucx"),
        (1, ["--buffer-config", "transport=collectives"], "collectives"),
        (2, [], "shm+ucx"),
    ],
)
def test_the_demo_learns_on_two_hosts_what_it_learns_on_one(
    request, pair, one_host, network, tmp_path_factory, slots, arguments, transport
):
    if transport == "ucx" and not request.config.getoption("--whole"):
        pytest.skip("only with --whole")
    ranks = 2 * slots
    folder = tmp_path_factory.mktemp("runs")
    if ranks not in one_host:
        alone = launch.run("horovodrun", ranks, demo(folder, "one", 1), env=ENVIRONMENT, timeout=120)
        assert alone.returncode == 0, alone.output
        assert summary(folder / "one")["buffer_transport"] == "shm"
        one_host[ranks] = folder / "one"
    finished = pair.run([*horovodrun(slots), sys.executable, *demo(folder, "two", 1, *arguments)], env=ENVIRONMENT)
    assert finished.returncode == 0, finished.output
    assert "is lost" not in finished.output
    result = summary(folder / "two")
    assert (result["world_size"], result["launcher"]) == (ranks, "horovodrun")
    assert re.match(rf"{re.escape(transport)}\b", result["buffer_transport"])
    assert result["buffer_implementation"].startswith("python" if transport == "collectives" else "standard")
    assert result["samples_stored"] == 404
    assert result["average_accuracy"] > 0.5, "without memory it is 0.2"
    assert_same_result(folder / "two", one_host[ranks])


def test_samples_cross_the_chosen_interface_alone(pair, network, tmp_path):
    """Pixels say their label: what arrives is what was stored there. Nothing of a rank listens anywhere else."""
    seen: dict[str, set[tuple[str, int]]] = {host.name: set() for host in pair.both}

    def look() -> None:
        for host in pair.both:
            seen[host.name] |= host.listening()

    job = [HERE / "train_worker.py", "labels", "--dataset", "digits", "--backbone", "mlp", "--model", "Er"]
    job += ["--tasksets-config", "{'increment': 2}", "--batch-size", "16", "--epochs", "2", "--warmup-epochs", "0"]
    job += ["--buffer-config", f"rehearsal_ratio=30 interface={hosts.INTERFACE}", "--results-dir", tmp_path]
    chosen = horovodrun(1, "--network-interface", hosts.INTERFACE)
    finished = pair.run([*chosen, sys.executable, *job], env=ENVIRONMENT, meanwhile=look)
    assert finished.returncode == 0, finished.output
    remote = [int(number) for number in re.findall(r"rows, (\d+) from other ranks", finished.output)]
    assert sum(remote) > 100
    for host in pair.both:
        assert {address for address, _ in seen[host.name]} == {host.address}
        assert len(seen[host.name]) >= 2, "Horovod's port, and the buffer's"


@pytest.mark.parametrize("interface", ["lo", "nosuch0"])
def test_an_interface_that_does_not_lead_to_the_other_host_is_a_mistake(pair, network, tmp_path, interface):
    """Nobody would notice otherwise: each host would go on with its own samples."""
    job = demo(tmp_path, "run", 1, "--buffer-config", f"interface={interface}")
    finished = pair.run([*horovodrun(1), sys.executable, *job], env=ENVIRONMENT)
    assert finished.returncode != 0
    assert finished.output.count(f"reprise: error: interface '{interface}' does not connect all ranks") == 1
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_job_whose_cable_is_pulled_ends_with_an_error_on_both_hosts(pair, network, tmp_path):
    log = tmp_path / "run" / "log.txt"
    pulled_at: list[float] = []

    def pull_once_it_trains() -> None:
        if not pulled_at and log.is_file() and "epoch 1/" in log.read_text():
            pair.first.cable("down")
            pulled_at.append(time.monotonic())

    job = demo(tmp_path, "run", 1000, "--timeout", "10")
    try:
        finished = pair.run([*horovodrun(1), sys.executable, *job], env=ENVIRONMENT, meanwhile=pull_once_it_trains)
        assert pulled_at, finished.output
        assert finished.returncode != 0
        assert re.search(r"rank 0 of 2 on reprise-a: .* has waited 10 s .* a rank is stuck or gone", finished.output)
        # No news reach the other host, so its rank has to find out by itself.
        deadline = pulled_at[0] + 60
        while pair.second.ranks() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not pair.second.ranks()
    finally:
        pair.first.cable("up")


def test_hosts_go_with_the_process_that_made_them(tmp_path):
    server, libraries = sshd()
    code = "import sys, hosts\nfrom pathlib import Path\nhome, sshd, *libraries = map(Path, sys.argv[1:])\n"
    code += "with hosts.made(home, sshd, *(libraries or [None])) as made:\n"
    code += "    print(made.first.pid, made.second.pid, flush=True)\n    input()\n"
    maker = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path, server, *([libraries] if libraries else [])],
        env=launch.worker_environment({"PYTHONPATH": str(HERE)}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert maker.stdin
    assert maker.stdout
    firsts = [psutil.Process(int(pid)) for pid in maker.stdout.readline().split()]
    assert len(firsts) == 2
    there = [process for first in firsts for process in (first, *first.children(recursive=True))]
    assert any(process.name() == "sshd" for process in there)
    maker.send_signal(signal.SIGKILL)
    assert maker.wait(30) == -signal.SIGKILL
    maker.stdin.close()
    maker.stdout.close()
    assert not psutil.wait_procs(there, timeout=30)[1]
    assert hosts.INTERFACE not in psutil.net_if_addrs()
