"""Imports go downward only (design, section 2), and the heavy or optional ones stay where they belong.

anchors.md A.3-5: in the nearest prior art the buffer imports the trainer that drives it.

Reads every source file with ast; nothing is imported.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ALLOWED: dict[str, tuple[str, ...]] = {
    "runtime": ("runtime",),
    "report/matrix.py": (),
    "report": ("report", "runtime"),
    "buffer/policies": ("buffer.policies",),
    "buffer": ("buffer", "runtime", "cpp_loader"),
    "cpp_loader": ("cpp_loader",),
    "backbone": ("backbone", "runtime"),
    "scenarios": ("scenarios", "runtime"),
    "cl_models": ("cl_models", "=buffer", "runtime.dist", "runtime.registry"),
    "cl_models/peft": ("cl_models", "=buffer", "runtime"),
    "sweeps": ("sweeps", "report", "runtime"),
    # Where names become objects: what main.py builds a run from.
    "train/parts.py": ("train", "buffer", "cl_models", "backbone", "scenarios", "runtime"),
    "train": (
        "train",
        "=buffer",
        "cl_models.base",
        "report",
        "runtime",
        *(f"scenarios.{module}" for module in ("loader", "sampler", "scenario", "task", "transforms")),
    ),
}
"""Folder or file -> what of ours it may import; "=name" is the package itself and none of its modules."""

LAUNCHERS = ("horovod", "torch.distributed")


def imported(text: str) -> set[str]:
    """Absolute names of all modules a source file imports, in functions and under TYPE_CHECKING too."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; ours are absolute"
            if node.module in ("reprise", "torch"):  # there the names imported are modules
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
            else:
                names.add(node.module or "")
    return names


def ours(names: set[str]) -> set[str]:
    return {name.removeprefix("reprise.") for name in names if name.startswith("reprise.")}


def may_import(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == rule[1:] if rule[0] == "=" else f"{name}.".startswith(f"{rule}.") for rule in allowed)


def rule_for(file: str) -> str:
    """The most specific entry of ALLOWED that covers a file."""
    return max((entry for entry in ALLOWED if file == entry or file.startswith(f"{entry}/")), key=len)


def sources() -> list[str]:
    folders = sorted({entry.split("/")[0] for entry in ALLOWED})
    return [str(path.relative_to(ROOT)) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("file", sources())
def test_imports_go_downward_only(file: str) -> None:
    allowed = ALLOWED[rule_for(file)]
    wrong = sorted(name for name in ours(imported((ROOT / file).read_text())) if not may_import(name, allowed))
    assert not wrong, f"{file} may import {allowed}, of ours, and imports {wrong}"


@pytest.mark.parametrize("file", [*sources(), "main.py", "sweep.py"])
def test_only_runtime_dist_imports_a_launcher(file: str) -> None:
    used = {name for name in imported((ROOT / file).read_text()) if name.startswith(LAUNCHERS)}
    assert not used or file.startswith("runtime/dist/"), f"{file} imports {sorted(used)}"


def test_one_file_of_the_buffer_imports_the_engine() -> None:
    users = [file for file in sources() if file.startswith("buffer/")]
    users = [
        file for file in users if any(n.startswith("cpp_loader") for n in ours(imported((ROOT / file).read_text())))
    ]
    assert len(users) <= 1, users


def test_the_rules_refuse_what_they_should() -> None:
    assert not may_import("runtime", ALLOWED["report/matrix.py"])
    assert not may_import("buffer.shard", ALLOWED["cl_models"])
    assert may_import("buffer", ALLOWED["cl_models"])
    assert not may_import("cl_models.er", ALLOWED["train"])
    assert not may_import("scenarios.digits", ALLOWED["train"])
    assert not may_import("runtimes", ALLOWED["report"])
    assert rule_for("buffer/policies/fifo.py") == "buffer/policies"
    assert imported("def f():\n    from reprise import buffer\n    import horovod.torch\n") == {
        "reprise.buffer",
        "horovod.torch",
    }
