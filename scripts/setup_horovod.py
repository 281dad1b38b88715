"""Horovod with PyTorch, Gloo and MPI: build the wheel once, keep it, install it from the cache ever after.

Horovod 0.28.1 is the last release and does not build with a current torch unaided; cmake/horovod_*.cmake is the remedy.
Called by setup_steps. MPI has to be there already.
"""

import os
import shutil
import zipfile
from pathlib import Path

from setup_support import Runner, digest

VERSION = "0.28.1"
FLAGS = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITH_MPI": "1",
}
BYTES_PER_COMPILER = 2 * 2**30
"""Memory that one compiler process over torch's headers takes at most."""

ABI = """
import sysconfig, torch
print(sysconfig.get_config_var("SOABI"), torch.__version__, torch.version.cuda, torch._C._GLIBCXX_USE_CXX11_ABI)
"""


def user_flags(environ: dict[str, str]) -> dict[str, str]:
    """Horovod's own build switches as the user has set them, for instance HOROVOD_GPU_OPERATIONS=NCCL."""
    return {name: value for name, value in environ.items() if name.startswith("HOROVOD_")}


def wheel_key(runner: Runner, python: Path, compiler: str, cmake_folder: Path, mpi: str) -> str:
    """Everything that a built wheel depends on: Python, torch, MPI, compiler, switches, our CMake files."""
    return digest(
        VERSION,
        mpi,  # the same version from elsewhere is another libmpi
        runner.run([python, "-c", ABI], "asking for the version of torch"),
        runner.run(["mpirun", "--version"], "asking for the version of MPI"),
        runner.run([compiler, "--version"], "asking for the version of the compiler"),
        repr(sorted({**FLAGS, **user_flags(runner.environ)}.items())),
        *(path.read_bytes() for path in sorted(cmake_folder.glob("horovod_*.cmake"))),
    )[:16]


def find_wheel(folder: Path) -> Path | None:
    """The wheel in a folder of the cache, if there is a whole one."""
    for wheel in folder.glob("horovod-*.whl"):
        if zipfile.is_zipfile(wheel):
            return wheel
        wheel.unlink()
    return None


def compiler_processes() -> int:
    """How many compilers fit on this machine: by cores, and by memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // BYTES_PER_COMPILER))


def build_wheel(runner: Runner, python: Path, folder: Path, toolchain: Path, compiler: str) -> Path:
    """Build inside the environment, then move into the cache by a rename: the cache never holds half a wheel."""
    build = runner.log.parent / "horovod-build"
    shutil.rmtree(build, ignore_errors=True)
    # --no-cache-dir and --no-binary: pip would take a wheel that it built against another torch.
    command = [python, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-cache-dir"]
    command += ["--no-binary", "horovod", "--wheel-dir", build, "-v", f"horovod=={VERSION}"]
    environ = {
        **FLAGS,
        **user_flags(runner.environ),
        "CMAKE_TOOLCHAIN_FILE": str(toolchain),
        "CMAKE_GENERATOR": "Unix Makefiles",  # Horovod passes VERBOSE=1 to the build tool, which ninja refuses
        "MAKEFLAGS": f"-j{compiler_processes()}",
        "CXX": compiler,
    }
    runner.run(command, "building Horovod", **environ)
    built = next(build.glob("horovod-*.whl"))
    partial = folder / f"{os.getpid()}.partial"
    shutil.copyfile(built, partial)
    partial.replace(folder / built.name)
    shutil.rmtree(build)
    return folder / built.name


def install(runner: Runner, python: Path, cache: Path, cmake_folder: Path, compiler: str, mpi: str) -> None:
    """Install Horovod into the environment, from the cache where it has a wheel for exactly this machine."""
    folder = cache / f"horovod-{VERSION}-{wheel_key(runner, python, compiler, cmake_folder, mpi)}"
    folder.mkdir(exist_ok=True)
    wheel = find_wheel(folder)
    if wheel is None:
        wheel = build_wheel(runner, python, folder, cmake_folder / "horovod_toolchain.cmake", compiler)
    runner.run([python, "-m", "pip", "install", "--no-deps", "--force-reinstall", wheel], "installing Horovod")
