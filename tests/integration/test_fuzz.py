"""Nonsense in every place where a user may write something: exit code 2 with one line, or a valid run; no traceback.

1,000 cases with --whole, else 250: options, dictionaries, YAML files, manifests of checkpoints, CSV files of reports.
"""

import contextlib
import hashlib
import io
import json
import shutil
import sys

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from runs import DIGITS, run

from reprise.main import main
from reprise.report import __main__ as report
from reprise.runtime import dist
from reprise.runtime.config import Section
from reprise.runtime.errors import UserError
from reprise.train import checkpoint
from reprise.train.options import BufferConfig, Invocation, Options, TasksetsConfig


def fuzz(cases):
    return settings(
        max_examples=cases if "--whole" in sys.argv else cases // 4,
        phases=(Phase.generate,),  # what fails is small enough, and making it smaller takes minutes
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


GROUPS = Options.__bases__
SECTIONS = [
    field.annotation
    for field in Options.model_fields.values()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
]
OPTIONS = [field.alias or name for group in (*GROUPS, Invocation) for name, field in group.model_fields.items()]
KEYS = [name for section in SECTIONS for name in section.model_fields]

text = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=30)
numbers = st.one_of(st.integers(), st.floats(), st.integers(-3, 40))
words = st.sampled_from(
    ["", "true", "no", "null", "{", "}", "[1,", "{'a': {}}", "a=b", "=", "nan", "1e999", "-0", "~", "?"]
)
scalars = st.one_of(numbers, text, words, st.booleans(), st.none())
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3))
)
dictionaries = st.dictionaries(st.one_of(st.sampled_from(KEYS), text), values, max_size=4)
arguments = st.lists(
    st.tuples(st.sampled_from([*OPTIONS, "nonsense"]), st.one_of(values.map(str), dictionaries.map(str))), max_size=4
)


def ends_well(arguments):
    """Run the command line; it must end in code 0, or in 2 with one line. Returns the code."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments)
        except SystemExit as exit_:  # argparse
            code = exit_.code or 0
    complaints = [line for line in said.getvalue().splitlines() if "error:" in line]
    assert code in (0, 2), said.getvalue()
    assert "Traceback" not in said.getvalue()
    assert len(complaints) == (code == 2), said.getvalue()
    return code


def words_of(arguments):
    return [f"--{name.replace('_', '-')}={value}" for name, value in arguments]


@fuzz(450)
@given(arguments)
def test_any_options_are_refused_in_one_line_or_resolved(arguments):
    ends_well([*words_of(arguments), "--print-config"])


@fuzz(50)
@given(st.dictionaries(st.sampled_from([*BufferConfig.model_fields, *TasksetsConfig.model_fields]), values, max_size=3))
def test_any_dictionaries_are_refused_in_one_line_or_train(tmp_path, chosen):
    def option(section):
        return str({key: value for key, value in chosen.items() if key in section.model_fields and key != "storage"})

    arguments = ["--model", "Er", "--buffer-config", option(BufferConfig), "--tasksets-config", option(TasksetsConfig)]
    ends_well([*DIGITS, "--epochs", "0", "--results-dir", str(tmp_path), "--save-dir", "run", *arguments])


@fuzz(200)
@given(st.one_of(dictionaries.map(lambda section: json.dumps({"mine": section})), text, st.binary(max_size=60)))
def test_any_yaml_file_is_refused_in_one_line_or_resolved(tmp_path, content):
    path = tmp_path / "options.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    ends_well(["--yaml-config", str(path), "--config", "mine", "--print-config"])


def test_characters_that_are_none_are_refused_and_those_written_in_two_escapes_are_read(tmp_path):
    path = tmp_path / "options.yaml"
    for content, code in (('{"save_dir": "\\ud83d\\ude80"}', 0), ('{"save_dir": "\\ud83d"}', 2), ('{"\\udc00": 1}', 2)):
        path.write_text('{"mine": ' + content + "}")
        assert ends_well(["--yaml-config", str(path), "--config", "mine", "--print-config"]) == code
    assert ends_well(["--save-dir", "caf\udce9", "--print-config"]) == 2
    assert ends_well(["--buffer-config", "{'policy': '\\ud83d'}", "--print-config"]) == 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("finished"), "run", "--tasksets-config", "{'increment': 5}", "--epochs", "1")


@fuzz(150)
@given(st.data())
def test_any_manifest_is_refused_in_one_line_even_if_its_checksum_is_right(tmp_path, finished, data):
    folder = tmp_path / "task_01"
    shutil.copytree(finished / "checkpoints" / "task_01", folder, dirs_exist_ok=True)
    manifest = json.loads((folder / "checkpoint.json").read_text())
    made_with = manifest["progress"]["fingerprint"]
    manifest.pop("sha256")
    where = data.draw(st.sampled_from([manifest, manifest["progress"], manifest["files"]]))
    key = data.draw(st.sampled_from(sorted(where)))
    if data.draw(st.booleans()):
        del where[key]
    else:
        where[key] = data.draw(values.filter(lambda value: value != where[key]))
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(manifest))
    problem = "task_01"
    try:
        assert checkpoint.choose(folder, made_with, dist.init(), falls_back=False) is not None
    except UserError as error:
        problem = str(error)
    assert "\n" not in problem
    assert "task_01" in problem


@fuzz(150)
@given(
    st.sampled_from(["accuracy_matrix.csv", "metrics.csv", "summary.json"]),
    st.one_of(
        text.map(str.encode), st.binary(max_size=40), st.lists(st.lists(scalars.map(str), max_size=6), max_size=4)
    ),
    st.integers(0, 10_000),
)
def test_any_results_are_refused_in_one_line_or_shown(tmp_path, finished, name, content, at):
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    for kept in ("accuracy_matrix.csv", "metrics.csv", "summary.json"):
        shutil.copy(finished / kept, folder / kept)
    if isinstance(content, list):
        (folder / name).write_text("\n".join(",".join(row) for row in content), encoding="utf-8")
    else:
        before = (finished / name).read_bytes()
        place = at % len(before)
        (folder / name).write_bytes(before[:place] + content + before[place + len(content) :])
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = report.main([str(folder), "--picture", str(tmp_path / "picture.png")])
    assert code in (0, 2)
    assert len(said.getvalue().splitlines()) == (code == 2), said.getvalue()
