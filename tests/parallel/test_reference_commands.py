"""The example commands of the reference's README under two Horovod workers, on files in the real format.

tests/integration/test_run.py runs them alone.
"""

import json

import launch
import pytest
import reference_commands

import reprise.main

BY_DEFAULT = ("er-cifar100-instance",)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", reference_commands.NAMES)
def test_the_example_commands_of_the_reference_run_on_two_workers(request, tmp_path, name):
    """rehearsal.md 1.6 and 9: none of them completes there."""
    if "horovodrun" not in launch.available():
        pytest.skip("Horovod is not installed")
    if name not in BY_DEFAULT and not request.config.getoption("--whole"):
        pytest.skip("only with --whole")
    command = reference_commands.prepare(name, tmp_path, ranks=2)
    job = [reprise.main.__file__, *command, "--results-dir", tmp_path, "--save-dir", "run"]
    finished = launch.run("horovodrun", 2, job, timeout=500)
    assert finished.returncode == 0, finished.output
    result = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (result["launcher"], result["world_size"]) == ("horovodrun", 2)
    assert result["tasks"] == reference_commands.num_tasks(name)
    if "--model" in command:
        assert result["samples_stored"] > 0
        assert result["buffer_transport"] == "shm"
