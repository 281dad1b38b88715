"""torchvision imports with and without its compiled operators (reference/stack.md, row torchvision)."""

import subprocess
import sys

import pytest

from reprise.runtime import vision


def test_torchvision_timm_and_continuum_import_after_ensuring_twice() -> None:
    code = (
        "from reprise.runtime.vision import ensure_torchvision as ensure\n"
        "ensure(); ensure()\n"
        "import torch, torchvision, timm, continuum\n"
        "image = torch.zeros(1, 4, 4, dtype=torch.uint8)\n"
        "print(tuple(torchvision.transforms.functional.pad(image, 1).shape), hasattr(torch.ops.torchvision, 'nms'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "(1, 6, 6) True"


def test_nothing_is_defined_where_the_real_operators_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "_library", None)
    monkeypatch.setattr(vision, "_has_operators", lambda: True)
    monkeypatch.setattr(vision, "_load_real_library", lambda: pytest.fail("looked for a library that is loaded"))
    vision.ensure_torchvision()
    assert vision._library is None


def test_a_proper_build_is_loaded_rather_than_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[bool] = []
    monkeypatch.setattr(vision, "_library", None)
    monkeypatch.setattr(vision, "_has_operators", lambda: bool(loaded))
    monkeypatch.setattr(vision, "_load_real_library", lambda: loaded.append(True))
    vision.ensure_torchvision()
    assert loaded == [True]
    assert vision._library is None


def test_a_library_that_cannot_load_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def refuse(path: str) -> None:
        tried.append(path)
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(vision.torch.ops, "load_library", refuse)
    vision._load_real_library()
    assert len(tried) <= 1  # none where torchvision was built without a library
