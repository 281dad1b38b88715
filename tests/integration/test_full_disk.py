"""A disk that is full, in earnest: file systems of a few MiB. Training goes on; what was saved before stays whole."""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from runs import DIGITS

OPTIONS = ["--tasksets-config", "{'increment': 2}", "--model", "Er", "--buffer-config", "{'capacity': 300}"]
OPTIONS += ["--momentum", "0.9", "--checkpoint-every", "30"]  # a checkpoint comes to 1.6 MB

# Mounts $2 of tmpfs on $1 for itself and what it starts.
MOUNTED = 'mount -t tmpfs -o "size=$2" tmpfs "$1" && shift 2 && exec "$@"'

AFTERWARDS = """
import json, sys
from pathlib import Path
from reprise.main import main
from reprise.runtime import dist
from reprise.train import checkpoint
folder, *arguments = sys.argv[1:]
code = main(arguments)
found = checkpoint.find(folder)
whole = []
for path in found:
    made_with = checkpoint.read_manifest(path).progress.fingerprint
    whole.append(checkpoint.choose(path, made_with, dist.init(), falls_back=False) is not None)
left = [path.name for path in (Path(folder) / "checkpoints").glob(".*")]
print(json.dumps({"code": code, "found": [path.name for path in found], "whole": whole, "left": left}))
"""


@cache
def why_not() -> str:
    if not shutil.which("unshare"):
        return "no unshare on the PATH"
    probe = ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNTED, "sh", "/mnt", "1m", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=30, check=False)
    return f"mounting is refused: {done.stderr.strip()}" if done.returncode else ""


def train(mounted: Path, size: str, folder: Path, *arguments: str):
    if why_not():
        pytest.skip(why_not())
    mounted.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", AFTERWARDS, str(folder), *DIGITS, *OPTIONS, *arguments]
    command += ["--results-dir", str(folder.parent), "--save-dir", folder.name]
    apart = ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNTED, "sh", str(mounted), size]
    done = subprocess.run([*apart, *command], capture_output=True, text=True, timeout=200, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr.splitlines()


def test_without_room_for_a_checkpoint_training_goes_on_and_says_so(tmp_path):
    report, said = train(tmp_path / "run" / "checkpoints", "1m", tmp_path / "run")
    assert report == {"code": 0, "found": [], "whole": [], "left": []}
    refusals = [line for line in said if "no checkpoint" in line]
    assert len(refusals) >= 5
    assert all("No space left on device" in line for line in refusals)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["tasks"] == 5


def test_a_checkpoint_that_no_longer_fits_leaves_those_before_it_untouched(tmp_path):
    report, said = train(tmp_path / "run" / "checkpoints", "4m", tmp_path / "run", "--keep-checkpoints", "0")
    assert report["code"] == 0
    assert len(report["found"]) == 2
    assert report["whole"] == [True, True]
    assert report["left"] == []
    assert any("no checkpoint task_04: rank 0: cannot write" in line for line in said)


def test_where_only_the_last_one_is_kept_there_has_to_be_room_for_two(tmp_path):
    report, said = train(tmp_path / "run" / "checkpoints", "4m", tmp_path / "run", "--keep-checkpoints", "1")
    assert report == {"code": 0, "found": ["task_04"], "whole": [True], "left": []}
    assert not any("no checkpoint" in line for line in said)


def test_results_that_do_not_fit_are_an_error_at_the_end_and_never_half_written(tmp_path):
    """Everything is on the full disk: the run trains to its end, and the last line says what is lost."""
    report, said = train(tmp_path / "out", "44k", tmp_path / "out" / "run")
    assert report["code"] == 2
    assert any("after task 4" in line for line in said)
    assert "No space left on device" in said[-1]
    assert said[-1].startswith("reprise: error: cannot write")
