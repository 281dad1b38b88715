"""The SSH server of the tests on two hosts: the machine's, else unpacked from the distribution's packages, once."""

from pathlib import Path

import pytest
import setup_sshd
from setup_support import SetupError

STUBS = {
    "apt-get": """#!/bin/sh
echo "$*" >> "$STUBS/calls"
case "$*" in *download*) for package in openssh-server libwrap0; do touch "${package}_1_all.deb"; done ;; esac
""",
    "dpkg": """#!/bin/sh
mkdir -p "$3/usr/sbin" "$3/usr/lib/here"
case "$2" in
  *openssh*) touch "$3/usr/sbin/sshd" ;;
  *) touch "$3/usr/lib/here/libwrap.so.0.7"; ln -s libwrap.so.0.7 "$3/usr/lib/here/libwrap.so.0" ;;
esac
""",
    "ldd": """#!/bin/sh
if [ -f "$STUBS/new" ]; then echo "libnew.so.3 => not found"; fi
if ! [ -e "$LD_LIBRARY_PATH/libwrap.so.0" ]; then echo "libwrap.so.0 => not found"; fi
""",
}


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution without an SSH server."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name, text in STUBS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    which = setup_sshd.shutil.which
    # Where the machine that runs this test has one is not looked for.
    monkeypatch.setattr(setup_sshd.shutil, "which", lambda name, path: which(name, path=path.split(":")[0]))
    return folder


def find(stubs: Path, path: str | None = None) -> tuple[Path, Path | None]:
    return setup_sshd.find(
        stubs.parent, {"PATH": f"{stubs if path is None else path}:/usr/bin:/bin", "STUBS": str(stubs)}
    )


def test_the_server_is_unpacked_once_with_its_library(stubs: Path) -> None:
    server, libraries = find(stubs)
    assert server.is_file()
    assert libraries is not None
    assert (libraries / "libwrap.so.0").is_file()
    assert find(stubs) == (server, libraries)
    assert len((stubs / "calls").read_text().splitlines()) == 1
    assert sorted(path.name for path in (stubs.parent / ".wheels").iterdir()) == ["sshd", "sshd.lock", "sshd.log"]


def test_a_server_that_would_not_load_is_one_line_and_not_kept(stubs: Path) -> None:
    (stubs / "new").touch()
    with pytest.raises(SetupError, match=r"^no SSH server, and it needs libnew.so.3: install an SSH server .*$"):
        find(stubs)
    (stubs / "new").unlink()
    assert find(stubs)[0].is_file()


def test_the_machines_own_server_comes_first(stubs: Path) -> None:
    own = stubs / "sshd"
    own.touch(0o755)
    assert find(stubs) == (own, None)
    assert not (stubs.parent / ".wheels").exists()


def test_another_distribution_is_one_line(stubs: Path) -> None:
    with pytest.raises(SetupError, match=r"^no SSH server, and no apt-get on the PATH to get it with: install an"):
        find(stubs, path="/nowhere")
