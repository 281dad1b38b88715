"""What users get wrong on the first day: a mistake gets one line that names thing, value, remedy, and exit code 2.

Mistakes that the options alone show are in tests/unit/test_options.py; here a run has to start to find them out. Those
that need several processes are in tests/parallel/test_failures.py.
"""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_mnist

import reprise.main
from reprise.main import main
from reprise.report import __main__ as report

DIGITS = ["--dataset", "digits", "--backbone", "mlp", "--epochs", "1", "--batch-size", "32"]
FIVE_TASKS = ["--tasksets-config", "{'increment': 2}"]
ER = [*DIGITS, "--model", "Er", "--buffer-config"]


def fails(capsys, arguments: list[str], *fragments: str) -> str:
    """Run and check that it ends in exit code 2 and one line on stderr that holds all fragments."""
    try:
        code = main(arguments)
    except SystemExit as exit_:  # argparse
        code = exit_.code
    captured = capsys.readouterr()
    assert code == 2, captured.err
    lines = [line for line in captured.err.splitlines() if "error" in line.lower()]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    for fragment in fragments:
        assert fragment in lines[0], f"'{fragment}' is missing in: {lines[0]}"
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--backbone", "mpl"], ("mpl", "mlp")),
        (["--backbone", "resnet19"], ("resnet19", "resnet18")),
        (["--dataset", "digit"], ("digit", "digits")),
        (["--model", "er"], ("er", "Er")),
        ([*DIGITS, "--batch-size", "5000"], ("5000", "1347", "batch")),
        ([*DIGITS, *FIVE_TASKS, "--batch-size", "300"], ("300", "batch")),
        ([*DIGITS, "--tasksets-config", "{'increment': 3}"], ("3", "10", "increment")),
        ([*DIGITS, "--tasksets-config", "{'increment': 11}"], ("11", "10")),
        ([*DIGITS, "--tasksets-config", "{'initial_increment': 4, 'increment': 4}"], ("4", "6", "increment")),
        ([*DIGITS, "--tasksets-config", "{'scenario': 'instance', 'num_tasks': 5000}"], ("5000", "num_tasks")),
        ([*ER, "capacity=0"], ("capacity", "0")),
        ([*ER, "rehearsal_ratio=0"], ("rehearsal_ratio", "0")),
        ([*ER, "rehearsal_ratio=0.01"], ("capacity", "0")),
        ([*ER, "rehearsal_ratio=130"], ("rehearsal_ratio", "130", "100")),
        ([*ER, "policy=reservior"], ("reservior", "reservoir")),
        ([*ER, "implementation=pyhton"], ("pyhton", "python")),
        ([*ER, "scope=everywhere"], ("everywhere", "global")),
        ([*ER, "capacity=4294967296"], ("capacity", "4294967296")),
        ([*ER, "capacity=4000000000"], ("MiB", "available", "capacity")),
        ([*ER, "dtype=float16"], ("float16", "uint8", "store=augmented")),
        (
            [
                "--dataset",
                "ptycho_synthetic",
                "--backbone",
                "ptychonn",
                "--model",
                "Er",
                "--buffer-config",
                "dtype=uint8",
            ],
            ("uint8", "float32", "store=augmented"),
        ),
        ([*DIGITS, "--model", "Der", "--buffer-config", "store=raw"], ("store=raw", "Der", "store=augmented")),
        ([*DIGITS, "--model", "Agem", "--use-adasum"], ("Agem", "use_adasum")),
        ([*DIGITS, "--backbone-config", "{'widht': 3}"], ("widht",)),
        ([*DIGITS, "--optimizer-regime", "[{'epoch': 0, 'optimizer': 'SDG'}]"], ("SDG", "SGD")),
        ([*DIGITS, "--optimizer-regime", "[{'optimizer': 'SGD', 'learning_rate': 1}]"], ("learning_rate",)),
        (
            [*DIGITS, "--optimizer-regime", "[{'epoch': 0, 'optimizer': 'SGD'}, {'epoch': 1, 'optimizer': 'Adam'}]"],
            ("Adam",),
        ),
        ([*DIGITS, "--lr", "1e30"], ("loss", "--lr")),
        ([*DIGITS, "--fp16-allreduce", "--use-adasum", "--gradient-predivide-factor", "2"], ("predivide",)),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_a_mistake_in_the_options_gets_one_line(capsys, tmp_path, arguments, fragments):
    fails(capsys, [*arguments, "--results-dir", str(tmp_path)], *fragments)


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "cifar100"])
def test_a_data_set_that_is_not_there_is_never_downloaded_unasked(capsys, tmp_path, dataset):
    arguments = ["--dataset", dataset, "--dataset-dir", str(tmp_path / "nowhere"), "--results-dir", str(tmp_path)]
    fails(capsys, arguments, "nowhere", "--download")


def test_a_truncated_data_file_is_named(capsys, tmp_path):
    write_mnist(tmp_path / "data", ".gz")
    path = tmp_path / "data" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-200])
    arguments = ["--dataset", "mnist", "--dataset-dir", str(tmp_path / "data"), "--results-dir", str(tmp_path)]
    fails(capsys, arguments, "train-images-idx3-ubyte")


def test_a_data_file_that_is_missing_among_others_is_named(capsys, tmp_path):
    write_mnist(tmp_path / "data", ".gz")
    (tmp_path / "data" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    arguments = ["--dataset", "mnist", "--dataset-dir", str(tmp_path / "data"), "--results-dir", str(tmp_path)]
    fails(capsys, arguments, "t10k-labels-idx1-ubyte")


def test_a_damaged_cifar_batch_is_named(capsys, tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batch = {"data": np.zeros((4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3]}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    (folder / "data_batch_3").write_bytes(b"not a pickle")
    arguments = ["--dataset", "cifar10", "--dataset-dir", str(tmp_path / "data"), "--results-dir", str(tmp_path)]
    fails(capsys, arguments, "data_batch_3")


def test_a_results_folder_that_is_a_file_is_named(capsys, tmp_path):
    (tmp_path / "results").write_text("")
    fails(capsys, [*DIGITS, "--results-dir", str(tmp_path / "results")], str(tmp_path / "results"))


def test_a_run_folder_that_is_a_file_is_named(capsys, tmp_path):
    (tmp_path / "run").write_text("")
    fails(capsys, [*DIGITS, "--results-dir", str(tmp_path), "--save-dir", "run"], "run")


LONG = "a" * 300  # file systems take 255 bytes


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--load-checkpoint", LONG], "there is no such folder"),
        (["--save-dir", LONG], "cannot create the run's folder"),
        (["--save-dir", LONG, "--resume"], "cannot create the run's folder"),
        (["--results-dir", LONG], "is longer than a name may be"),
        (["--yaml-config", LONG, "--config", "x"], "cannot read"),
        (["--dataset", "mnist", "--dataset-dir", LONG], "is longer than a name may be"),
        (["--model", "Er", "--buffer-config", f"storage=file:{LONG}/memory"], "cannot use"),
    ],
)
def test_a_name_too_long_for_a_file_gets_one_line(capsys, tmp_path, monkeypatch, arguments, fragment):
    monkeypatch.chdir(tmp_path)
    fails(capsys, [*DIGITS, *arguments], fragment)


def test_a_name_too_long_for_a_runs_folder_gets_one_line_of_the_report(capsys):
    assert report.main([LONG, LONG + "b"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_python_without_the_package_says_where_to_find_it():
    command = [sys.executable, "-I", "-S", str(Path(reprise.main.__file__).resolve())]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 2
    assert finished.stderr.startswith("reprise: error: No module named 'reprise'")
    assert "make setup" in finished.stderr
    assert finished.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_results_folder_is_named(capsys, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    fails(capsys, [*DIGITS, "--results-dir", str(locked)], str(locked))


def test_a_results_folder_on_a_read_only_system_is_named(capsys):
    fails(capsys, [*DIGITS, "--results-dir", "/proc/reprise"], "/proc/reprise")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of two tasks with checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = [*ER, "capacity=50", "implementation=python", "--tasksets-config", "{'increment': 5}"]
    assert main([*arguments, "--results-dir", str(folder), "--save-dir", "run"]) == 0
    return folder / "run"


def resume(finished: Path, tmp_path: Path, *extra: str) -> list[str]:
    arguments = [*ER, "capacity=50", "implementation=python", "--tasksets-config", "{'increment': 5}"]
    checkpoint = tmp_path / "copy"
    if not checkpoint.exists():
        shutil.copytree(finished / "checkpoints" / "task_00", checkpoint)
    return [*arguments, "--results-dir", str(tmp_path / "out"), "--load-checkpoint", str(checkpoint), *extra]


def test_a_checkpoint_that_does_not_exist_is_named(capsys, tmp_path):
    fails(capsys, [*DIGITS, "--load-checkpoint", str(tmp_path / "none")], "none")


def test_a_folder_without_a_checkpoint_is_named(capsys, tmp_path):
    arguments = [*DIGITS, "--results-dir", str(tmp_path / "out"), "--load-checkpoint", str(tmp_path)]
    fails(capsys, arguments, "no checkpoint", str(tmp_path))


@pytest.mark.parametrize("file", ["model.pt", "rank_00000.pt", "checkpoint.json", "buffer/buffer.json", "buffer/shard"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_checkpoint_file_is_named_and_nothing_is_lost(capsys, tmp_path, finished, file, damage):
    arguments = resume(finished, tmp_path)
    path = next((tmp_path / "copy").glob(f"{file}*"))
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = 1 if path.suffix == ".json" else len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 0x15]) + content[middle + 1 :])
    name = "copy" if (file, damage) == ("checkpoint.json", "missing") else path.name
    fails(capsys, arguments, name)
    assert (finished / "summary.json").exists()


@pytest.mark.parametrize(
    ("changed", "fragments"),
    [
        (["--seed", "1"], ("seed", "42", "1")),
        (["--model", "Vanilla"], ("model", "Er", "Vanilla")),
        (["--tasksets-config", "increment=2"], ("tasksets_config",)),
        (["--backbone-config", "{'hidden': [20, 20]}"], ("backbone_config", "hidden")),
        (["--model-config", "reset_state_dict=true"], ("model_config", "reset_state_dict")),
        (["--training-only"], ("training_only",)),
        (["--buffer-config", "capacity=60"], ("capacity", "50", "60")),
        (["--buffer-config", "policy=fifo"], ("policy", "class_balanced", "fifo")),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_by_field(capsys, tmp_path, finished, changed, fragments):
    fails(capsys, [*resume(finished, tmp_path), *changed], *fragments)


@pytest.mark.parametrize(
    "mistake",
    [
        ["--batch-size", "5000"],
        ["--backbone-config", "{'widht': 3}"],
        ["--buffer-config", "capacity=4000000000"],
        ["--dataset", "mnist", "--dataset-dir", "nowhere"],
    ],
    ids=lambda mistake: mistake[0],
)
def test_a_run_that_is_refused_leaves_the_results_of_the_last_one(capsys, tmp_path, finished, mistake):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    fails(capsys, [*ER, "capacity=50", *mistake, "--results-dir", str(tmp_path), "--save-dir", "run"])
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_compile_is_refused_at_once_where_there_is_no_compiler(tmp_path):
    """Torch itself raises at the first forward pass. In a process of its own: torch remembers a compiler"""
    (tmp_path / "bin").mkdir()
    command = [sys.executable, "-m", "reprise.main", *DIGITS, "--compile", "--results-dir", str(tmp_path / "results")]
    env = {**os.environ, "PATH": str(tmp_path / "bin"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    env.pop("CXX", None)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "--compile" in line
    assert "install g++" in line
    assert "Traceback" not in done.stderr
