"""Reading options: spelling, precedence, origins, round trip, and a table of mistakes that each give one clear line.

The mistakes that need more than options (missing data, lost workers) are tested where they happen.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reprise.runtime.errors import UserError
from reprise.train.options import Resolved, parse

CHOICES = {
    "backbone": ["mlp", "mnistnet", "resnet18"],
    "model": ["Er", "Vanilla"],
    "dataset": ["cifar10", "digits", "mnist"],
}


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """read(argv, yaml): parse `argv` with section `run` of a file options.yaml, in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def read(argv: list[str], yaml: str = "") -> Resolved:
        if not yaml:
            return parse(argv, CHOICES)
        Path("options.yaml").write_text(yaml, "utf-8")
        return parse([*argv, "--yaml-config", "options.yaml", "--config", "run"], CHOICES)

    return read


# ---- spelling ----


@pytest.mark.parametrize("argv", [["--batch-size", "3"], ["--batch-size=3"]])
def test_value_may_follow_a_space_or_an_equals_sign(read: Any, argv: list[str]) -> None:
    assert read(argv).options.batch_size == 3


@pytest.mark.parametrize(
    "words",
    [
        ["{'rehearsal_ratio': 20, 'policy': 'reservoir', 'deterministic': True, 'dtype': None}"],
        ["{'rehearsal_ratio': 20, 'policy': 'reservoir', 'deterministic': True, 'dtype': None, }"],
        ['{"rehearsal_ratio": 20, "policy": "reservoir", "deterministic": true, "dtype": null}'],
        ["rehearsal_ratio=20 policy=reservoir deterministic=true dtype=null"],
        ["rehearsal_ratio=20,policy='reservoir',deterministic=True,dtype=None,"],
        ["rehearsal_ratio = 20, policy = reservoir, deterministic = true, dtype = null"],
        ["rehearsal_ratio=20", "policy=reservoir", "deterministic=true", "dtype=null"],
        ["rehearsal-ratio=20", "policy=reservoir", "deterministic=true", "dtype=null"],
        [
            "rehearsal_ratio=5",
            *["--buffer-config", "{'rehearsal_ratio': 20, 'dtype': None}"],
            *["--buffer-config", "policy=reservoir deterministic=true"],
        ],
    ],
)
def test_spellings_of_a_dictionary_mean_the_same(read: Any, words: list[str]) -> None:
    """rehearsal.md 6.1-18: dictionary literals are read as literals; pairs spare the quotes."""
    assert read(["--buffer-config", *words]).options.buffer_config.given == {
        "rehearsal_ratio": 20.0,
        "policy": "reservoir",
        "deterministic": True,
        "dtype": None,
    }


def test_lists_tuples_and_signs_are_read_in_dictionaries(read: Any) -> None:
    options = read(
        [
            "--tasksets-config",
            "epochs=(3, 2),increment=2",
            "--backbone-config",
            "{'lr': 1e-3, 'shift': -1, 'path': 'a=b'}",
        ]
    ).options
    assert options.tasksets_config.epochs == [3, 2]
    assert options.backbone_config.given == {"lr": 0.001, "shift": -1, "path": "a=b"}


@pytest.mark.parametrize("words", ["", "{}", "{ }"])
def test_an_empty_dictionary_sets_nothing(read: Any, words: str) -> None:
    resolved = read(["--tasksets-config", words])
    assert resolved.options.tasksets_config.given == {}
    assert resolved.origin["tasksets_config.increment"] == "default"


@pytest.mark.parametrize(
    ("words", "value"),
    [(["--use-amp"], True), (["--use-amp=true"], True), (["--use-amp", "false"], False), ([], False)],
)
def test_a_switch_takes_an_optional_value(read: Any, words: list[str], value: bool) -> None:
    assert read(words).options.use_amp is value


@pytest.mark.parametrize("key", ["load_checkpoint", "save_dir", "wandb_project"])
def test_empty_text_means_none(read: Any, key: str) -> None:
    assert getattr(read([f"--{key.replace('_', '-')}", ""]).options, key) is None
    assert getattr(read([], f"run: {{{key}: ''}}").options, key) is None


def test_optimizer_regime_is_a_literal_list_that_yaml_replaces(read: Any) -> None:
    """rehearsal.md 1.2: giving a regime both on the command line and in YAML was a TypeError in the reference."""
    argv = ["--optimizer-regime", "[{'epoch': 0, 'optimizer': 'SGD', 'lr': 1e-2}]"]
    assert read(argv).options.optimizer_regime == [{"epoch": 0, "optimizer": "SGD", "lr": 0.01}]
    assert read(argv, "run: {optimizer_regime: [{epoch: 1, lr: 1e-3}]}").options.optimizer_regime == [
        {"epoch": 1, "lr": 0.001}
    ]


# ---- precedence ----


@pytest.mark.parametrize(
    ("argv", "yaml", "key", "value"),
    [
        (["--epochs", "9", "--warmup-epochs", "0"], "epochs: 0", "epochs", 0),
        (["--use-amp"], "use_amp: false", "use_amp", False),
        (["--weight-decay", "1"], "weight-decay: 0", "weight_decay", 0.0),
        (["--save-dir", "a"], "save_dir: ''", "save_dir", None),
        (["--lr", "1"], "lr: null", "lr", None),
        (["--lr", "1"], "lr: 1e-3", "lr", 0.001),
        (["--training-only=false"], "training-only: true", "training_only", True),
        ([], "no_cuda: true", "no_cuda", True),
    ],
)
def test_yaml_wins_also_when_its_value_is_zero_false_or_empty(
    read: Any, argv: list[str], yaml: str, key: str, value: Any
) -> None:
    """anchors.md A.3-1, rehearsal.md 1.2: 0, false, empty were dropped in YAML, no_cuda and training_only ignored."""
    resolved = read(argv, f"run: {{{yaml}}}")
    assert getattr(resolved.options, key) == value
    assert resolved.origin[key] == "options.yaml [run]"


def test_dictionaries_are_merged_key_by_key_and_yaml_wins(read: Any) -> None:
    """rehearsal.md 1.2: model_config was replaced by YAML, not merged; here all dictionaries are merged."""
    resolved = read(
        ["--buffer-config", "rehearsal_ratio=20 threads=2", "--model-config", "alpha=0.5 beta=0", "--seed", "1"],
        "run:\n  buffer-config: {threads: 3, num-candidates: 4}\n  model_config: {alpha: 0}\n",
    )
    assert resolved.options.buffer_config.given == {"rehearsal_ratio": 20.0, "threads": 3, "num_candidates": 4}
    assert resolved.options.strategy_config.given == {"alpha": 0.0, "beta": 0.0}
    assert resolved.origin["buffer_config.rehearsal_ratio"] == "command line"
    assert resolved.origin["buffer_config.threads"] == "options.yaml [run]"
    assert resolved.origin["buffer_config.policy"] == "default"
    assert resolved.origin["model_config.beta"] == "command line"
    assert resolved.origin["seed"] == "command line"


def test_user_is_told_which_flags_yaml_overrides(read: Any) -> None:
    resolved = read(
        ["--seed", "1", "--epochs", "7", "--buffer-config", "threads=2 policy=fifo"],
        "run: {seed: 2, epochs: 7, lr: 0.1, buffer_config: {threads: 3, policy: fifo}}",
    )
    assert resolved.warnings == ["options.yaml [run] overrides --seed, --buffer-config threads"]


def test_yaml_is_not_read_without_a_section(read: Any) -> None:
    Path("broken.yaml").write_text("[", "utf-8")
    resolved = read(["--yaml-config", "broken.yaml", "--config", ""])
    assert resolved.options == read([]).options
    assert resolved.warnings == ["--yaml-config broken.yaml is not read: --config names no section of it"]


def test_anchors_and_merge_keys_work(read: Any) -> None:
    yaml = "base: &base {seed: 1, epochs: 7}\nmiddle: &middle {<<: *base, epochs: 8}\nrun: {<<: *middle, seed: 2}\n"
    options = read([], yaml).options
    assert (options.seed, options.epochs) == (2, 8)


def test_an_empty_section_sets_nothing(read: Any) -> None:
    assert read([], "run:\n").options == read([]).options
    assert read([], "run:\n  buffer_config:\n").options.buffer_config.given == {}


# ---- defaults that depend on something ----


def test_buffer_has_the_default_ratio_unless_a_size_is_given(read: Any) -> None:
    """rehearsal.md 1.2: a ratio given alone was lost and a silent 16 samples per class took its place."""
    sizes = {
        "": (30.0, None),
        "rehearsal_ratio=20": (20.0, None),
        "capacity=100": (None, 100),
        "policy=fifo": (30.0, None),
    }
    for words, size in sizes.items():
        config = read(["--buffer-config", words]).options.buffer_config
        assert (config.rehearsal_ratio, config.capacity) == size


def test_tasksets_know_whether_anything_was_given(read: Any) -> None:
    """rehearsal.md 2.4: without tasksets the reference made one-class tasks; here it is one task, so it must show."""
    assert not read([]).options.tasksets_config.given
    assert read(["--tasksets-config", "scenario=class"]).options.tasksets_config.given == {"scenario": "class"}
    assert read([], "run: {tasksets_config: {increment: 1}}").options.tasksets_config.given == {"increment": 1}


def test_epochs_per_task_are_padded_with_the_last_value(read: Any) -> None:
    options = read(["--epochs", "9", "--tasksets-config", "epochs=[30, 0, 10]"]).options
    assert [options.epochs_of(task) for task in range(5)] == [30, 0, 10, 10, 10]
    assert [options.warmup_epochs_of(task) for task in range(4)] == [5, 0, 2, 2]
    assert read(["--epochs", "9", "--warmup-epochs", "3"]).options.warmup_epochs_of(1) == 3
    assert read(["--epochs", "0"]).options.epochs_of(0) == 0


def test_run_name_is_made_of_what_tells_runs_apart(read: Any) -> None:
    assert read(["--save-dir", "a/b"]).options.run_name == "a/b"
    assert read(["--seed", "7"]).options.run_name == "mnist-Vanilla-one-task-7"
    argv = ["--model", "Er", "--dataset", "digits", "--tasksets-config", "scenario=instance"]
    assert read(argv).options.run_name == "digits-Er-instance-42"


def test_published_defaults_are_named_as_such(read: Any) -> None:
    """rehearsal.md 9: where an example leaves out alpha and beta, the published defaults apply and are named."""
    resolved = read(["--model-config", "alpha=0.5"])
    assert (resolved.options.strategy_config.alpha, resolved.options.strategy_config.beta) == (0.5, 0.8)
    assert resolved.origin["model_config.alpha"] == "command line"
    assert resolved.origin["model_config.beta"] == "default, published with DER++"


# ---- names without meaning here ----


def test_reference_names_without_meaning_give_one_warning(read: Any) -> None:
    argv = ["--use-dali", "--fp16-dali", "--buffer-config", "provider=na+sm activation_shape=[1, 256, 256] threads=2"]
    resolved = read(argv, "run: {nsys-run: true, buffer_config: {cuda_rdma: true}}")
    assert resolved.warnings == [
        "accepted but without meaning here: --use-dali, --fp16-dali, --buffer-config provider, "
        "--buffer-config activation_shape, options.yaml [run]: nsys_run, options.yaml [run]: buffer_config.cuda_rdma"
    ]
    assert resolved.options.buffer_config.given == {"threads": 2}


def test_no_warning_without_a_reason(read: Any) -> None:
    assert read([]).warnings == []


# ---- what comes out ----


def test_options_cannot_be_changed(read: Any) -> None:
    options = read([]).options
    with pytest.raises(ValidationError, match="frozen"):
        options.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        options.buffer_config.threads = 2


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--save-dir", "yes", "--lr", "1e-7", "--wandb-project", "1e-6", "--dataset-dir", "a: b # 'c' \n d"],
        ["--tasksets-config", "scenario=instance num_tasks=5 epochs=[3,2]", "--buffer-config", "capacity=100"],
        ["--backbone-config", "{'lr': 1e-3, 'deep': {'a': [1, None, True, 'off']}}", "--model-config", "beta=0"],
        ["--optimizer-regime", "[{'epoch': 0, 'optimizer': 'SGD'}]", "--use-amp", "--epochs", "0"],
    ],
)
def test_resolved_yaml_gives_the_same_options_again(read: Any, argv: list[str]) -> None:
    first = read(argv)
    Path("resolved.yaml").write_text(first.to_yaml(), "utf-8")
    second = parse(["--yaml-config", "resolved.yaml", "--config", "run"], CHOICES)
    assert second.options == first.options
    for name in ("tasksets_config", "buffer_config", "backbone_config", "strategy_config"):
        assert getattr(second.options, name).given == getattr(first.options, name).given
    assert second.warnings == []


def test_describe_shows_every_value_and_its_origin(read: Any) -> None:
    lines = read(["--lr", "0.5", "--print-config"], "run: {seed: 7}").describe().splitlines()
    rows = [re.split(r"  +", line.rstrip(), maxsplit=2) for line in lines]
    assert rows[0] == ["option", "value", "from"]
    assert ["lr", "0.5", "command line"] in rows
    assert ["seed", "7", "options.yaml [run]"] in rows
    assert ["buffer_config.rehearsal_ratio", "30.0", "default"] in rows
    assert ["model_config.alpha", "0.2", "default, published with DER++"] in rows


def test_print_config_is_asked_for_by_the_user_alone(read: Any) -> None:
    assert read(["--print-config"]).print_config is True
    assert read([]).print_config is False


# ---- help ----


@pytest.mark.parametrize("columns", ["80", "100"])
def test_help_explains_every_option_and_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as ended:
        parse(["--help"], CHOICES)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= int(columns)
    flat = " ".join(text.split())
    assert "new samples per rank and step [a whole number from 1; default 64]" in flat
    assert "data set [one of cifar10, digits, mnist; default mnist]" in flat
    for dotted in parse([]).origin:
        key, _, inner = dotted.partition(".")
        assert f"--{key.replace('_', '-')}" in flat
        assert f"{inner}: " in flat
    for title in ("Run:", "Data:", "Model:", "Training:", "Distribution:", "Buffer:", "Output:"):
        assert title in text.splitlines()


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("reprise ")


def test_options_are_read_without_loading_torch() -> None:
    """--help, --print-config and mistakes answer at once: nothing heavy may be imported on the way to them."""
    heavy = "{'torch', 'numpy', 'torchvision', 'timm', 'continuum', 'matplotlib', 'rich'}"
    code = f"import sys, reprise.train.options; print(*{heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")


# ---- mistakes: (flags, YAML, what the line must contain) ----

MISTAKES: list[tuple[list[str], str, list[str]]] = [
    # flags
    (["--bach-size", "3"], "", ["unknown option '--bach-size'", "did you mean '--batch-size'?", "--help"]),
    (["--batch", "3"], "", ["unknown option '--batch'", "--batch-size"]),
    (["--zzzzzz=3"], "", ["unknown option '--zzzzzz'", "--help"]),
    (["train"], "", ["unexpected argument 'train'", "--"]),
    (["--batch-size"], "", ["--batch-size", "expected one argument", "--batch-size VALUE"]),
    (["--lr", "-1e-3"], "", ["--lr", "--lr=VALUE where VALUE begins with '-'"]),
    (["--buffer-config"], "", ["--buffer-config", "expected at least one argument"]),
    (["--batch-size", "abc"], "", ["--batch-size 'abc'", "a whole number from 1"]),
    (["--batch-size", "1.5"], "", ["--batch-size '1.5'", "a whole number from 1"]),
    (["--batch-size", ""], "", ["--batch-size ''", "a whole number from 1"]),
    (["--batch-size", "0"], "", ["--batch-size 0", "a whole number from 1"]),
    (["--eval-batch-size", "-1"], "", ["--eval-batch-size -1", "a whole number from 1"]),
    (["--epochs", "-1"], "", ["--epochs -1", "a whole number from 0"]),
    (["--warmup-epochs", "30"], "", ["warmup_epochs 30", "25 epochs", "lower it"]),
    (["--lr", "0"], "", ["--lr 0.0", "a number above 0"]),
    (["--lr", "fast"], "", ["--lr 'fast'", "a number above 0"]),
    (["--lr", "nan"], "", ["--lr nan", "a number above 0"]),
    (["--lr", "inf"], "", ["--lr inf", "a number above 0"]),
    (["--momentum", "1"], "", ["--momentum 1.0", "from 0", "below 1"]),
    (["--weight-decay", "-0.1"], "", ["--weight-decay -0.1", "a number from 0"]),
    (["--use-amp", "maybe"], "", ["--use-amp 'maybe'", "true or false"]),
    (["--use-adasum", "--gradient-predivide-factor", "2"], "", ["gradient_predivide_factor 2", "use_adasum", "leave"]),
    (["--gradient-predivide-factor", "0"], "", ["--gradient-predivide-factor 0.0", "above 0"]),
    (["--batches-per-allreduce", "0"], "", ["--batches-per-allreduce 0", "from 1"]),
    (["--dataloader-workers", "-1"], "", ["--dataloader-workers -1", "from 0"]),
    (["--seed", "-1"], "", ["--seed -1", "from 0", "below 4294967296"]),
    (["--seed", "4294967296"], "", ["--seed 4294967296", "below 4294967296"]),
    (["--timeout", "0"], "", ["--timeout 0.0", "above 0"]),
    (["--log-interval", "0"], "", ["--log-interval 0", "from 1"]),
    (["--log-level", "inf"], "", ["--log-level 'inf'", "one of debug, info", "did you mean 'info'?"]),
    (["--save-dir", "../elsewhere"], "", ["--save-dir '../elsewhere'", "not inside --results-dir", "plain name"]),
    (["--save-dir", "/elsewhere"], "", ["--save-dir '/elsewhere'", "not inside --results-dir"]),
    (["--save-dir", "."], "", ["--save-dir '.'", "not inside --results-dir"]),
    (["--results-dir", ""], "", ["--results-dir ''", "text"]),
    (["--load-checkpoint", "none.pt"], "", ["--load-checkpoint 'none.pt'", "no such folder", "leave it out"]),
    (["--model", "er"], "", ["--model 'er'", "one of Er, Vanilla", "did you mean 'Er'?"]),
    (["--backbone", "resnet19"], "", ["--backbone 'resnet19'", "did you mean 'resnet18'?"]),
    (["--dataset", "imagenet"], "", ["--dataset 'imagenet'", "one of cifar10, digits, mnist"]),
    (["--optimizer-regime", "{'lr': 1}"], "", ["--optimizer-regime {'lr': 1}", "a non-empty list"]),
    (["--optimizer-regime", "[]"], "", ["--optimizer-regime []", "a non-empty list"]),
    (["--optimizer-regime", "[{'lr': 1"], "", ["--optimizer-regime", "[{'lr': 1", "column 2", "write it like"]),
    # dictionaries on the command line
    (
        ["--buffer-config", "{'threads': 1"],
        "",
        ["--buffer-config", "{'threads': 1", "column 1", "never closed", "like"],
    ),
    (["--buffer-config", "{'policy': fifo}"], "", ["--buffer-config", "column 12", "fifo", "quotes", "like"]),
    (
        ["--buffer-config", "{'a': __import__('os')}"],
        "",
        ["--buffer-config", "column 7", "__import__", "not a literal"],
    ),
    (["--buffer-config", "{1: 2}"], "", ["--buffer-config", "{1: 2}", "column 2", "text in quotes"]),
    (["--buffer-config", "{**{}}"], "", ["--buffer-config", "text in quotes"]),
    (["--buffer-config", "{'threads': 1, 'threads': 2}"], "", ["key 'threads' is given twice", "column 16"]),
    (["--buffer-config", "{}, {}"], "", ["--buffer-config", "not one dictionary", "like"]),
    (["--buffer-config", "{" * 500], "", ["--buffer-config", "cannot read"]),
    (["--buffer-config", "{'a': '\x00'}"], "", ["--buffer-config", "cannot read"]),
    (["--buffer-config", "20"], "", ["--buffer-config", '"20"', "expected key=value", "like"]),
    (["--buffer-config", "threads="], "", ["--buffer-config", "key 'threads' has no value"]),
    (["--buffer-config", "threads=1,threads=2"], "", ["key 'threads' is given twice"]),
    (["--buffer-config", "policy=fifo oldest"], "", ["value of 'policy'", "fifo oldest", "column 8", "one word"]),
    (["--buffer-config", "threads=1 thread-s=2 thread_s=3"], "", ["'thread_s' is given twice", "keep one"]),
    (
        ["--buffer-config", "polcy=fifo"],
        "",
        ["--buffer-config", "unknown key 'polcy'", "did you mean 'policy'?", "keys:"],
    ),
    (
        ["--buffer-config", "policy=lifo"],
        "",
        ["--buffer-config policy 'lifo'", "class_balanced", "did you mean 'fifo'?"],
    ),
    (["--buffer-config", "policy=5"], "", ["--buffer-config policy 5", "one of class_balanced, reservoir, fifo"]),
    (["--buffer-config", "threads=true"], "", ["--buffer-config threads True", "a whole number from 1"]),
    (["--buffer-config", "deterministic=1"], "", ["--buffer-config deterministic 1", "true or false"]),
    (["--buffer-config", "rehearsal_ratio=0"], "", ["rehearsal_ratio 0", "above 0 up to 100"]),
    (["--buffer-config", "rehearsal_ratio=101"], "", ["rehearsal_ratio 101", "above 0 up to 100"]),
    (["--buffer-config", "capacity=0"], "", ["--buffer-config capacity 0", "a whole number from 1"]),
    (["--buffer-config", "capacity=9 rehearsal_ratio=5"], "", ["rehearsal_ratio 5 and capacity 9", "keep one"]),
    (["--buffer-config", "num_representatives=-1"], "", ["num_representatives -1", "a whole number from 0"]),
    (["--buffer-config", "num_candidates=0"], "", ["num_candidates 0", "a whole number from 1"]),
    (["--buffer-config", "dtype=int4"], "", ["dtype 'int4'", "uint8, float16", "did you mean 'uint8'?"]),
    (
        ["--buffer-config", "insertion=task num_candidates=4"],
        "",
        ["num_candidates 4", "insertion 'task'", "leave it out"],
    ),
    (["--tasksets-config", "scenario=clas"], "", ["--tasksets-config scenario 'clas'", "did you mean 'class'?"]),
    (["--tasksets-config", "increment=0"], "", ["--tasksets-config increment 0", "a whole number from 1"]),
    (["--tasksets-config", "initial_increment=-1"], "", ["initial_increment -1", "a whole number from 0"]),
    (["--tasksets-config", "num_tasks=0"], "", ["num_tasks 0", "a whole number from 1"]),
    (["--tasksets-config", "num_tasks=5"], "", ["num_tasks 5", "scenario 'class'", "set increment"]),
    (["--tasksets-config", "scenario=instance increment=2"], "", ["increment 2", "'instance'", "set num_tasks"]),
    (["--tasksets-config", "scenario=task num_tasks=2"], "", ["num_tasks 2", "scenario 'task'", "set increment"]),
    (["--tasksets-config", "scenario=domain increment=2"], "", ["increment 2", "'domain'", "num_tasks, or datasets"]),
    (["--tasksets-config", "scenario=instance domain=rotated"], "", ["domain rotated", "'instance'"]),
    (
        ["--tasksets-config", "scenario=domain domain=split num_tasks=2"],
        "",
        ["num_tasks 2", "'split'", "set increment"],
    ),
    (["--tasksets-config", "scenario=domain domain=rotate"], "", ["'rotate'", "did you mean 'rotated'?"]),
    (
        ["--tasksets-config", "{'scenario': 'domain', 'datasets': ['a', 'b'], 'num_tasks': 3}"],
        "",
        ["num_tasks 3", "datasets"],
    ),
    (["--tasksets-config", "{'scenario': 'domain', 'datasets': ['a', 'a']}"], "", ["datasets", "names one twice"]),
    (["--tasksets-config", "scenario=reconstruction class_order_seed=1"], "", ["class_order_seed 1", "set num_tasks"]),
    (["--tasksets-config", "task_free=true concatenate_tasksets=true"], "", ["concatenate_tasksets", "task_free"]),
    (["--tasksets-config", "epochs=[]"], "", ["--tasksets-config epochs []", "non-empty list"]),
    (["--tasksets-config", "epochs=[3,-1]"], "", ["--tasksets-config epochs [3, -1]", "each a whole number from 0"]),
    (["--tasksets-config", "epochs=[9,3]", "--warmup-epochs", "4"], "", ["warmup_epochs 4", "3 epochs"]),
    (["--model-config", "alpha=-1"], "", ["--model-config alpha -1", "a number from 0"]),
    (["--model-config", "beta='x'"], "", ["--model-config beta 'x'", "a number from 0"]),
    (["--model-config", "gamma=1"], "", ["--model-config", "unknown key 'gamma'", "alpha, beta"]),
    (["--backbone-config", "lr=0"], "", ["--backbone-config lr 0", "a number above 0"]),
    # a mistake on the command line shows even where YAML overrides it
    (["--seed", "x"], "run: {seed: 1}", ["--seed 'x'", "a whole number"]),
    # YAML
    ([], "run: {bach_size: 3}", ["options.yaml [run]", "unknown key 'bach_size'", "did you mean 'batch_size'?"]),
    ([], "run: {zzzzzz: 3}", ["options.yaml [run]", "unknown key 'zzzzzz'", "--help"]),
    ([], "run: {1: 3}", ["options.yaml [run]", "unknown key '1'"]),
    ([], "run: {use_amp: yes}", ["options.yaml [run]: use_amp 'yes'", "true or false"]),
    ([], "run: {use_amp: 1}", ["options.yaml [run]: use_amp 1", "true or false"]),
    ([], "run: {epochs: true}", ["options.yaml [run]: epochs True", "a whole number from 0"]),
    ([], "run: {epochs: '12'}", ["options.yaml [run]: epochs '12'", "a whole number from 0"]),
    ([], "run: {epochs: 1.0}", ["options.yaml [run]: epochs 1.0", "a whole number from 0"]),
    ([], "run: {epochs: 010}", ["options.yaml [run]: epochs '010'", "a whole number from 0"]),
    ([], "run: {epochs: null}", ["options.yaml [run]: epochs None", "a whole number from 0"]),
    ([], "run: {lr: '0.1'}", ["options.yaml [run]: lr '0.1'", "a number above 0"]),
    ([], "run: {lr: .inf}", ["options.yaml [run]: lr inf", "a number above 0"]),
    ([], "run: {save_dir: 7}", ["options.yaml [run]: save_dir 7", "text"]),
    ([], "run: {model: 7}", ["options.yaml [run]: model 7", "one of Er, Vanilla"]),
    ([], "run: {model: Derr}", ["options.yaml [run]: model 'Derr'", "did you mean 'Er'?"]),
    ([], "run: {buffer_config: 20}", ["options.yaml [run]: buffer_config 20", "a dictionary like"]),
    (
        [],
        "run: {buffer_config: {polcy: 1}}",
        ["options.yaml [run]: buffer_config", "'polcy'", "did you mean 'policy'?"],
    ),
    ([], "run: {buffer_config: {policy: 1}}", ["options.yaml [run]: buffer_config.policy 1", "class_balanced"]),
    ([], "run: {tasksets_config: {num_tasks: 4}}", ["num_tasks 4", "tasksets_config.num_tasks: options.yaml [run]"]),
    (
        ["--buffer-config", "capacity=9"],
        "run: {buffer_config: {rehearsal_ratio: 5}}",
        ["keep one", "rehearsal_ratio: options.yaml [run]", "capacity: command line"],
    ),
    (["--epochs", "2"], "run: {warmup_epochs: 3}", ["warmup_epochs: options.yaml [run], epochs: command line"]),
    ([], "run: {batch-size: 1, batch_size: 2}", ["options.yaml [run]", "'batch_size' is given twice", "keep one"]),
    ([], "run:\n  seed: 1\n  seed: 2\n", ["'options.yaml', line 3, column 3", "'seed' is given twice"]),
    ([], "run: {seed: 1}\nrun: {seed: 2}\n", ["'options.yaml', line 2, column 1", "'run' is given twice"]),
    ([], "run:\n  seed: [1\n", ["'options.yaml', line 3, column 1", "not YAML"]),
    ([], "run:\n\tseed: 1\n", ["'options.yaml', line 2, column 1", "not YAML"]),
    ([], "run: {seed: !!python/object:os.system 1}", ["'options.yaml', line 1", "not YAML", "python/object"]),
    ([], "run: \x07", ["'options.yaml'", "not YAML"]),
    ([], "rum: {seed: 1}", ["--config 'run'", "options.yaml", "did you mean 'rum'?", "sections: rum"]),
    ([], "# nothing\n", ["--config 'run'", "sections: none"]),
    ([], "run: &a {backbone_config: {again: *a}}", ["options.yaml [run]: backbone_config.again", "a number, text"]),
    ([], "run: {? [1] : 2, '': 3}", ["'options.yaml', line 1", "not YAML"]),
    ([], 'run: {"seed\\n": 1}', ["options.yaml [run]", "did you mean 'seed'?"]),
    (["--config", "a\nb"], "", ["--config 'a\\nb'", "no such section"]),
    (["--se\ned"], "", ["unknown option '--se\\ned'"]),
    (["--buffer-config", "{'a':\u2028\r\n"], "", ["--buffer-config", "never closed"]),
    (["--seed", "9" * 5000], "", ["--seed '9999", "from 0 below 4294967296"]),
    ([], "run: {seed: " + "9" * 5000 + "}", ["'options.yaml'", "integer"]),
    ([], "run: " + "[" * 5000, ["'options.yaml'", "not YAML"]),
    ([], "run: [1]", ["'options.yaml' [run] is a list", "expected a mapping"]),
    ([], "run: text", ["'options.yaml' [run] is the single value 'text'", "expected a mapping"]),
    ([], "- run", ["'options.yaml' holds a list", "expected sections"]),
    (
        ["--config", "run", "--yaml-config", "none.yaml"],
        "",
        ["cannot read 'none.yaml'", "No such file", "--yaml-config"],
    ),
    (["--config", "run", "--yaml-config", "."], "", ["cannot read '.'", "Is a directory"]),
    (["--config", "demo-err"], "", ["--config 'demo-err'", "did you mean 'demo-er'?", "demo-vanilla"]),
]


@pytest.mark.parametrize(("argv", "yaml", "fragments"), MISTAKES)
def test_a_mistake_gives_one_line_with_key_value_and_remedy(
    read: Any, argv: list[str], yaml: str, fragments: list[str]
) -> None:
    with pytest.raises(UserError) as raised:
        read(argv, yaml)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 700
    for fragment in fragments:
        assert fragment in message


def test_a_yaml_file_that_is_not_text_is_named(read: Any) -> None:
    Path("bytes.yaml").write_bytes(b"run: \xff\n")
    with pytest.raises(UserError, match=r"cannot read 'bytes.yaml': byte 5 is not UTF-8"):
        read(["--yaml-config", "bytes.yaml", "--config", "run"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_yaml_file_that_may_not_be_read_is_named(read: Any) -> None:
    Path("secret.yaml").write_text("run: {}", "utf-8")
    Path("secret.yaml").chmod(0)
    with pytest.raises(UserError, match=r"cannot read 'secret.yaml': Permission denied"):
        read(["--yaml-config", "secret.yaml", "--config", "run"])
