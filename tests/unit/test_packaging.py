"""What `pip install .` puts into site-packages: `reprise` and its metadata, importable from any folder.

Builds one wheel with the packages of the running environment; no network.
Design, section 2: one import name, and nothing else.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IN_WHEEL = ("backbone", "buffer", "cl_models", "cpp_loader", "report", "runtime", "scenarios", "sweeps", "train")
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
IMPORTS = "import reprise, reprise.buffer, reprise.main, reprise.cpp_loader; print(reprise.cpp_loader.available())"
ASK = """
import logging, torch
logging.basicConfig()
buffer = reprise.buffer.RehearsalBuffer({"x": reprise.buffer.Field((3,), torch.uint8)}, 9, implementation="flyweight")
for _ in range(3):
    buffer.augment(x=torch.zeros(2, 3, dtype=torch.uint8), y=torch.zeros(2, dtype=torch.int64))
print(buffer.implementation)
"""


def build(folder: Path, **environ: str) -> Path:
    """A wheel of a copy of the checkout: a build leaves files behind, and the copy has litter on purpose."""
    copy = folder / "copy of checkout"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", ".wheels", "build", "results", "__pycache__")
    )
    (copy / "litter.py").write_text("")
    (copy / "runtime" / "__pycache__").mkdir()
    (copy / "runtime" / "__pycache__" / "litter.pyc").write_bytes(b"")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(copy)]
    env = {**os.environ, "PATH": PATH, **environ}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("reprise-*.whl"))


def run_installed(wheel: Path, folder: Path, code: str) -> tuple[str, str]:
    """Install into a folder of its own, run the code from yet another one: standard output and error."""
    target, elsewhere = folder / "site", folder / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    assert {path.name.split("-")[0] for path in target.iterdir()} <= {"reprise", "bin"}
    # The editable install of the running environment must not answer in its place.
    before = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]\n"
    after = f"\nassert reprise.main.__file__.startswith({str(target)!r}), reprise.main.__file__"
    env = {**os.environ, "PYTHONPATH": str(target)}
    command = [sys.executable, "-c", before + code + after]
    done = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A quarter quicker than an optimised build, and the same files; make setup builds an optimised one.
    return build(tmp_path_factory.mktemp("wheel"), SKBUILD_CMAKE_BUILD_TYPE="None")


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert all(name.startswith("reprise/") for name in names)
    top = {name.split("/")[1] for name in names}
    assert {"__init__.py", "main.py", "sweep.py", "config.yaml", "sweep.yaml", *IN_WHEEL} == top
    assert {Path(name).suffix for name in names} <= {".py", ".pyi", ".so", ".yaml", ".html"}


def test_wheel_holds_every_module_of_the_checkout(wheel: Path) -> None:
    here = {f"reprise/{path.relative_to(ROOT)}" for folder in IN_WHEEL for path in (ROOT / folder).rglob("*.py")}
    assert here <= set(zipfile.ZipFile(wheel).namelist())


def test_wheel_holds_the_files_that_modules_read(wheel: Path) -> None:
    assert {"reprise/report/page.html", "reprise/config.yaml"} <= set(zipfile.ZipFile(wheel).namelist())


def test_wheel_imports_with_its_engine_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    assert run_installed(wheel, tmp_path, IMPORTS)[0] == "True"


@pytest.mark.parametrize("compiler", ["absent", "broken"])
def test_without_a_compiler_it_installs_without_the_engine_and_says_so_when_asked(
    tmp_path: Path, compiler: str
) -> None:
    tools, folder = tmp_path / "tools", tmp_path / "build"
    tools.mkdir()
    folder.mkdir()
    for tool in ("cmake", "ninja"):
        (tools / tool).symlink_to(str(shutil.which(tool, path=PATH)))
    wheel = build(folder, PATH=str(tools)) if compiler == "absent" else build(folder, CXX="/bin/false")
    out, err = run_installed(wheel, tmp_path, IMPORTS + ASK)
    assert out.split() == ["False", "python"]
    (line,) = [line for line in err.splitlines() if "buffer implementation" in line]
    assert "'flyweight'" in line
    assert "_core" in line
