"""The argument lists that start a trial, under each launcher, and what sweep.py refuses before it starts anything."""

import os
import stat
import sys
from pathlib import Path

import pytest

from reprise import sweep
from reprise.runtime.errors import UserError
from reprise.sweeps import launch
from reprise.sweeps.local import flags

PROGRAM = ["main.py", "--lr=0.1", "--buffer-config", "{'policy': 'fifo'}"]


@pytest.fixture(autouse=True)
def launchers(tmp_path, monkeypatch):
    """Every launcher is on the PATH; mpirun says whose it is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("horovodrun", "mpirun", "srun", "torchrun"):
        path = folder / name
        path.write_text(f"#!/bin/sh\necho mpirun '(Open MPI) 5.0.11' {name}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "python"))  # beside which no launcher lies
    for name in (launch.HOSTS_VARIABLE, "WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.mark.parametrize(
    ("name", "ranks", "hosts", "before"),
    [
        ("horovodrun", 4, "", ["--gloo", "-np", "4"]),
        ("horovodrun", 8, "a:4,b:4", ["--gloo", "-np", "8", "-H", "a:4,b:4"]),
        ("mpirun", 2, "", ["-np", "2", "--oversubscribe"]),
        ("srun", 4, "", ["--ntasks", "4"]),
        ("srun", 8, "a:4,b:4", ["--ntasks", "8", "--nodelist", "a,b"]),
    ],
)
def test_each_launcher_starts_the_program(launchers, name, ranks, hosts, before):
    assert launch.Launcher(name, ranks, hosts).command(PROGRAM) == [
        str(launchers / name),
        *before,
        sys.executable,
        *PROGRAM,
    ]


def test_torchrun_starts_the_script_itself(launchers):
    command = launch.Launcher("torchrun", 2).command(PROGRAM)
    assert command == [str(launchers / "torchrun"), "--standalone", "--nproc-per-node", "2", *PROGRAM]


def test_one_rank_needs_no_launcher():
    assert launch.choose(None, None, "").command(PROGRAM) == [sys.executable, *PROGRAM]


def test_open_mpi_hands_remote_ranks_what_the_service_reads(launchers, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    monkeypatch.setenv("SECRET", "no")
    command = launch.Launcher("mpirun", 2, "a:1,b:1").command(PROGRAM)
    assert command[:5] == [str(launchers / "mpirun"), "-np", "2", "--host", "a:1,b:1"]
    exported = [command[at + 1] for at, word in enumerate(command) if word == "-x"]
    assert {"WANDB_RUN_ID", "PATH"} <= set(exported)
    assert "SECRET" not in exported


def test_mpich_knows_no_such_options(launchers):
    (launchers / "mpirun").write_text("#!/bin/sh\necho HYDRA build details:\n")
    command = launch.Launcher("mpirun", 2, "a:1,b:1").command(PROGRAM)
    assert command == [str(launchers / "mpirun"), "-np", "2", "-hosts", "a:1,b:1", sys.executable, *PROGRAM]


def test_ranks_are_the_slots_of_the_hosts():
    assert launch.choose(None, None, "node-7.site:4,node-8.site:2,node-9.site").ranks == 7
    assert launch.choose(None, None, "node-7.site:1") == launch.Launcher("horovodrun", 1, "node-7.site:1")


def test_the_environment_finds_the_launchers_of_this_python():
    first = launch.Launcher("python", 1).environment()["PATH"].split(os.pathsep)[0]
    assert first == str(Path(sys.executable).parent)


@pytest.mark.parametrize(
    ("name", "ranks", "hosts", "said"),
    [
        (None, 0, "", "--np 0"),
        (None, None, "a:x", "'a:x' is no host"),
        (None, None, "a:1,,b:1", "'' is no host"),
        (None, None, "a:0", "'a:0' is no host"),
        ("python", 2, "", "one rank"),
        ("torchrun", None, "a:2", "by hand"),
    ],
)
def test_launchers_that_cannot_do_it_are_refused(name, ranks, hosts, said):
    with pytest.raises(UserError, match=said):
        launch.choose(name, ranks, hosts)


def test_a_launcher_that_is_not_installed_is_named(launchers):
    (launchers / "srun").unlink()
    with pytest.raises(UserError, match="'srun' is not on the PATH"):
        launch.Launcher("srun", 2)


def test_values_become_flags():
    values = {
        "lr": 0.1,
        "use_amp": True,
        "momentum": None,
        "buffer_config.policy": "fifo",
        "tasksets_config.epochs": [1, 2],
    }
    assert flags(values) == [
        "--lr=0.1",
        "--use-amp=true",
        "--momentum=",
        "--buffer-config",
        "{'policy': 'fifo'}",
        "--tasksets-config",
        "{'epochs': [1, 2]}",
    ]


class StartedError(Exception):
    """What takes this process's place in the tests."""


@pytest.fixture
def started(monkeypatch):
    """sweep.py's options -> the command that would take its place, and its environment."""

    def execvpe(file, command, environment):
        raise StartedError(command, environment)

    monkeypatch.setattr(os, "execvpe", execvpe)

    def run(*arguments):
        with pytest.raises(StartedError) as caught:
            sweep.main(list(arguments))
        return caught.value.args

    return run


def test_an_agents_arguments_become_a_run(started, launchers, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv(launch.HOSTS_VARIABLE, "node-7.site:2")
    command, environment = started(
        "--lr=0.1",
        "--momentum=None",
        "--use_amp=True",
        "--buffer_config.policy=fifo",
        "--tasksets_config.epochs=[1, 2]",
    )
    program = str(Path(sweep.program.__file__))
    assert command[:7] == [str(launchers / "horovodrun"), "--gloo", "-np", "2", "-H", "node-7.site:2", sys.executable]
    assert command[7:12] == [program, "--lr=0.1", "--momentum=", "--use-amp=True", "--buffer-config"]
    assert command[12:15] == ["policy=fifo", "--tasksets-config", "epochs=[1, 2]"]
    assert command[15:] == ["--save-dir", "sweep-s1/r1", "--resume", "true", "--wandb-project", "mine"]
    assert environment["WANDB_RUN_ID"] == "r1"
    assert sweep.program.resolve(command[8:]).options.buffer_config.policy == "fifo"


def test_without_an_agent_it_is_main_py_under_a_launcher(started):
    command, _ = started("--np", "2", "--lr=0.1", "--results-dir", "elsewhere")
    assert command[-3:] == ["--lr=0.1", "--results-dir", "elsewhere"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lr=high"], "--lr 'high'"),
        (["--lrr=1"], "unknown option '--lrr'"),
        (["--jobs", "2"], "--jobs goes with --local"),
        (["--trial", "0"], "--trial goes with --local"),
        (["--local", "none.yaml"], "none.yaml"),
        (["--launcher", "slurm"], "invalid choice"),
        (["--np", "two"], "--np"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, said):
    assert sweep.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("reprise: error: ")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("parameters", "options", "said"),
    [
        ("{lr: {values: [0.1, high]}}", [], "--lr 'high'"),
        ("{learning_rate: {value: 1}}", [], "--learning-rate"),
        ("{buffer_config.polcy: {value: fifo}}", [], "unknown key 'polcy'"),
        ("{model: {value: Ewc}}", [], "'Ewc'"),
        ("{save_dir: {value: x}}", [], "sweep.py chooses it"),
        ("{epochs: {value: 2}}", ["--config", "demo-er"], "config.yaml [demo-er] sets epochs"),
        ("{lr: {value: 0.1}}", ["--config", "demo-er"], "config.yaml [demo-er] sets "),
        ("{lr: {value: 0.1}}", ["--jobs", "0"], "--jobs 0"),
        ("{lr: {value: 0.1}}", ["--trial", "1"], "trials 0 to 0"),
    ],
)
def test_trials_that_could_not_run_are_refused_before_the_first(tmp_path, capsys, parameters, options, said):
    file = tmp_path / "search.yaml"
    file.write_text(f"parameters: {parameters}")
    assert sweep.main(["--local", str(file), "--results-dir", str(tmp_path / "results"), *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("results/*/trial-*"))


def test_a_folder_keeps_to_its_sweep(tmp_path, capsys):
    file = tmp_path / "search.yaml"
    results = ["--results-dir", str(tmp_path / "results")]
    file.write_text("parameters: {lr: {value: bad}}")
    assert sweep.main(["--local", str(file), *results]) == 2
    file.write_text("parameters: {lr: {value: worse}}")
    assert sweep.main(["--local", str(file), *results]) == 2
    assert "'worse'" in capsys.readouterr().err  # what cannot run leaves nothing that it would have to keep to
