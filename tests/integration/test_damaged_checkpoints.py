"""Checkpoints that something happened to: found, named, never loaded, and the one before them is taken."""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from runs import DIGITS, run, summary

from reprise.main import main
from reprise.runtime import dist
from reprise.runtime.errors import UserError
from reprise.runtime.stop import REQUEUE
from reprise.train import checkpoint
from reprise.train.checkpointer import Checkpointer
from reprise.train.stepper import Stepper

OPTIONS = ["--tasksets-config", "{'increment': 5}", "--model", "Derpp", "--checkpoint-every", "15"]
OPTIONS += [
    "--backbone-config",
    "{'hidden': [8]}",
    "--buffer-config",
    "{'capacity': 100, 'num_candidates': 1, 'deterministic': True}",
]
CASES = 600


@pytest.fixture(scope="module", autouse=True)
def _every_checkpoint():
    """Each is finished before training goes on: steps of these runs are too short for a disk to follow."""

    def begin_and_settle(self, progress, means, begin=Checkpointer._begin):
        begin(self, progress, means)
        self.settle()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "_begin", begin_and_settle)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, _every_checkpoint):
    """A run with a chain of incremental saves in its last checkpoint."""
    folder = run(tmp_path_factory.mktemp("finished"), "run", *OPTIONS)
    shutil.rmtree(folder / "checkpoints" / "task_01")
    newest = checkpoint.find(folder)[0]
    assert newest.name.startswith("step_")
    assert len(list((newest / "buffer").glob("shard-*"))) > 1
    return folder


def choose(folder, made_with, *, falls_back=True):
    return checkpoint.choose(folder, made_with, dist.init(deterministic=True), falls_back=falls_back)


def damages(folder: Path):
    """(file, what to do with it), over all files of a checkpoint: bytes changed at random places, files cut off."""
    chance = random.Random(3)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for case in range(CASES):
        path = files[case % len(files)]
        content = path.read_bytes()
        at = chance.randrange(len(content))
        if case % 3 == 2:
            yield path, content[:at]
        else:
            yield path, content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]


def test_every_changed_byte_and_every_cut_is_found_and_named(finished, tmp_path):
    """The files of one checkpoint hold some 100,000 bytes: sampled."""
    copy = tmp_path / "checkpoints"
    shutil.copytree(finished / "checkpoints", copy)  # not linked to each other: what is damaged is damaged alone
    newest, before = checkpoint.find(copy)[:2]
    made_with = checkpoint.read_manifest(newest).progress.fingerprint
    for path, damaged in damages(newest):
        content = path.read_bytes()
        path.write_bytes(damaged)
        with pytest.raises(UserError) as refused:
            choose(newest, made_with, falls_back=False)
        assert path.name in str(refused.value)
        assert "\n" not in str(refused.value)
        chosen = choose(copy, made_with)
        assert chosen is not None
        assert chosen.folder == before
        path.write_bytes(content)
    chosen = choose(copy, made_with)
    assert chosen is not None
    assert chosen.folder == newest


def test_a_damaged_file_that_checkpoints_share_leaves_one_that_has_its_own(tmp_path, monkeypatch):
    """A bad block of the disk: hard links show the same bytes everywhere."""
    minimise, steps = Stepper.minimise, iter(range(1000))

    def stopping(self, loss, *columns):
        if next(steps) == 82:
            os.kill(os.getpid(), signal.SIGTERM)
        return minimise(self, loss, *columns)

    monkeypatch.setattr(Stepper, "minimise", stopping)
    arguments = [*DIGITS, *OPTIONS, "--checkpoint-every", "10", "--keep-checkpoints", "2"]
    assert main([*arguments, "--results-dir", str(tmp_path), "--save-dir", "run"]) == REQUEUE
    found = checkpoint.find(tmp_path / "run")
    assert [path.name for path in found] == ["step_00000083", "step_00000080", "step_00000040"]
    made_with = checkpoint.read_manifest(found[0]).progress.fingerprint
    shared = found[0] / "buffer" / "shard-00000-of-00001.1.pt"
    assert shared.samefile(found[1] / "buffer" / shared.name)
    content = shared.read_bytes()
    with open(shared, "r+b") as stream:  # in place, in all of them
        stream.seek(len(content) // 2)
        stream.write(bytes([content[len(content) // 2] ^ 1]))
    chosen = choose(tmp_path / "run", made_with)
    assert chosen is not None
    assert chosen.folder == found[2]


def test_resume_names_a_damaged_checkpoint_and_goes_on_from_the_one_before(finished, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    newest, before = checkpoint.find(folder)[:2]
    (newest / "rank_00000.pt").write_bytes(b"")
    again = run(tmp_path, "run", *OPTIONS, "--resume")
    assert any(f"{newest}" in line and "rank_00000.pt" in line for line in caplog.messages)
    assert any(f"resumed from {before}" in line for line in caplog.messages)
    assert summary(again)["average_accuracy"] == summary(finished)["average_accuracy"]
    assert (folder / "checkpoints" / "old-1" / newest.name).is_dir(), "nothing is thrown away"


def test_when_no_checkpoint_is_whole_nothing_is_begun_or_lost(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    for manifest in folder.glob("checkpoints/*/checkpoint.json"):
        manifest.write_text("{}")
    before = sorted(path for path in folder.rglob("*"))
    arguments = [*DIGITS, *OPTIONS, "--results-dir", str(tmp_path), "--save-dir", "run", "--resume"]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "no checkpoint in" in line
    assert "or begin anew without it" in line
    assert sorted(path for path in folder.rglob("*")) == before


def test_resume_begins_where_there_is_nothing_and_says_so(tmp_path, caplog):
    run(tmp_path, "new", *OPTIONS, "--resume")
    assert any("nothing to resume" in line for line in caplog.messages)


def test_a_finished_run_is_left_alone(finished, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    run(tmp_path, "run", *OPTIONS, "--resume")
    assert any("has finished" in line for line in caplog.messages)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_only_the_last_checkpoints_are_kept(tmp_path):
    folder = run(tmp_path, "few", *OPTIONS, "--checkpoint-every", "10", "--keep-checkpoints", "2")
    kept = checkpoint.find(folder)
    assert len(kept) == len(list((folder / "checkpoints").iterdir())) == 2
    assert [path.name for path in kept] == ["task_01", "step_00000080"]


@pytest.mark.parametrize(("value", "fragment"), [("often", "10min"), ("-3", "10min"), ("5 parsecs", "10min")])
def test_a_wrong_interval_is_refused(capsys, value, fragment):
    assert main([*DIGITS, f"--checkpoint-every={value}"]) == 2
    assert fragment in capsys.readouterr().err


def test_resume_and_load_checkpoint_do_not_go_together(capsys, tmp_path):
    assert main([*DIGITS, "--resume", "--load-checkpoint", str(tmp_path)]) == 2
    assert "leave one of them out" in capsys.readouterr().err
