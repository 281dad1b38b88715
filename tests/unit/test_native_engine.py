"""The C++ engine as the buffer drives it: failures, refused memory and disks, its life and end, what it costs idle.

What all implementations have in common is in tests/contract; the engine by itself is tested beside its sources.
Whatever may crash, hang, be killed or run out of memory does so in a process of its own.
"""

import gc
import os
import random
import shutil
import signal
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fresh_process import Programs
from torch.utils._python_dispatch import TorchDispatchMode

from reprise import cpp_loader
from reprise.buffer import Field, RehearsalBuffer
from reprise.runtime.errors import UserError

pytestmark = [
    pytest.mark.skipif(not cpp_loader.available(), reason="no engine; contract/test_same.py says whether it should be"),
    pytest.mark.timeout(100),
]

NATIVE = ["standard", "flyweight"]
MIB = 2**20
ID_ONLY = {"id": Field((), torch.int64)}
PRELUDE = """
import os, resource, sys, threading, time
import torch
from reprise.buffer import Field, RehearsalBuffer

def make(implementation="standard", **changes):
    arguments = {"fields": {"id": Field((), torch.int64)}, "capacity": 64, "draws": (8,), **changes}
    return RehearsalBuffer(implementation=implementation, **arguments)

def feed(buffer, count=4):
    buffer.submit(id=torch.arange(count), y=torch.arange(count) % 3)
"""


def make(implementation="standard", **changes):
    arguments = {"fields": ID_ONLY, "capacity": 64, "draws": (8,), "implementation": implementation, **changes}
    buffer = RehearsalBuffer(**arguments)
    assert buffer.implementation == implementation
    return buffer


def batch(count=4):
    return {"id": torch.arange(count), "y": torch.arange(count) % 3}


@pytest.fixture(scope="module")
def programs():
    with Programs() as running:
        yield running


@pytest.fixture
def program(programs):
    """Runs a program that starts with PRELUDE in a fresh process: exit code, standard output, standard error."""
    return lambda code, *arguments: programs.run(PRELUDE + code, *arguments)


@pytest.fixture
def output_of(program):
    """The lines that such a program printed; it must have ended well, without a word on standard error."""

    def run(code, *arguments):
        done = program(code, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split("\n")[:-1]

    return run


# ---- what goes wrong in the engine's thread


CALLS = {
    "submit": lambda buffer: buffer.submit(**batch()),
    "submit with a copy": lambda buffer: buffer.submit(**batch(), copy=True),
    "augment": lambda buffer: buffer.augment(**batch()),
    "wait": lambda buffer: buffer.wait(),
    "drain": lambda buffer: buffer.drain(),
    "len": len,
    "seen": lambda buffer: buffer.seen,
    "class_counts": lambda buffer: buffer.class_counts(),
    "state_dict": lambda buffer: buffer.state_dict(),
    "rows": lambda buffer: buffer.rows(100),
}


@pytest.mark.parametrize("implementation", NATIVE)
@pytest.mark.parametrize("call", CALLS)
def test_an_error_in_the_engine_is_raised_by_the_next_call_and_by_all_after_it(implementation, call):
    if call == "rows" and implementation == "flyweight":
        pytest.skip("rows of flyweight are not the engine's")
    buffer = make(implementation)
    buffer.wait()
    buffer.submit(**batch())
    buffer.drain()
    buffer._native.fail_next_step("slot 3 burns")
    buffer.submit(**batch())
    if call in ("submit", "submit with a copy", "augment", "wait"):
        # These do not wait for the step that fails, so that the first of them may be early.
        with suppress(RuntimeError):
            CALLS[call](buffer)
        with pytest.raises(RuntimeError, match="slot 3 burns"):
            buffer.drain()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="slot 3 burns"):
            CALLS[call](buffer)
    buffer.close()
    buffer.close()
    with pytest.raises(RuntimeError, match=r"closed|slot 3 burns"):
        CALLS[call](buffer)


def test_a_failed_buffer_neither_saves_nor_loses_what_was_saved_before(tmp_path):
    with make() as buffer:
        buffer.submit(**batch())
        buffer.save(tmp_path)
        buffer._native.fail_next_step("slot 3 burns")
        buffer.submit(**batch())
        with pytest.raises(RuntimeError, match="slot 3 burns"):
            buffer.save(tmp_path)
    with RehearsalBuffer.restore(tmp_path, fields=ID_ONLY, capacity=64, draws=(8,)) as restored:
        assert len(restored) == 4


def test_tensors_of_a_failed_step_are_let_go_by_close():
    buffer = make()
    buffer._native.fail_next_step("slot 3 burns")
    tensors = batch()
    held = weakref.ref(tensors["id"])
    buffer.submit(**tensors)
    del tensors
    assert held() is not None
    buffer.close()
    assert held() is None


def test_tensors_are_let_go_when_their_step_is_done():
    buffer = make()
    tensors = batch()
    held = weakref.ref(tensors["id"])
    buffer.submit(**tensors)
    del tensors
    buffer.drain()
    assert held() is None
    buffer.close()


def test_a_state_with_columns_of_another_length_or_dtype_is_refused_and_changes_nothing():
    """The counters say how many rows there are; the engine must not read beyond what was given."""
    source, target = make(capacity=64), make(capacity=64)
    source.submit(**batch(20))
    target.submit(**batch(3))
    for damage in (
        lambda columns: columns.update(id=columns["id"][:3].clone()),
        lambda columns: columns.update(id=columns["id"].to(torch.int32)),
        lambda columns: columns.update(y=columns["y"][:0].clone()),
        lambda columns: columns.update(task=torch.cat([columns["task"], columns["task"]])),
    ):
        state = source.state_dict()
        damage(state["engine"]["shard"]["columns"])
        with pytest.raises(ValueError, match="saved rehearsal buffer"):
            target.load_state_dict(state)
        assert len(target) == 3
    target.load_state_dict(source.state_dict())
    assert len(target) == 20


def test_a_state_with_impossible_counters_is_refused_and_changes_nothing():
    source, target = make(), make()
    source.submit(**batch(20))
    target.submit(**batch(3))
    state = source.state_dict()
    state["engine"]["shard"]["policy"]["stored"] = 65
    with pytest.raises(ValueError, match="saved rehearsal buffer"):
        target.load_state_dict(state)
    assert len(target) == 3


# ---- memory


REFUSED = """
implementation = sys.argv[1]
mapped = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**29, mapped + 2**29))
try:
    make(implementation, fields={"x": Field((2**20,), torch.uint8)}, capacity=1024)
except ValueError as error:
    print(error)
feed(make(implementation))
"""


@pytest.mark.parametrize("implementation", [*NATIVE, "python"])
def test_memory_that_the_system_refuses_is_an_error_with_the_numbers(output_of, implementation):
    (line,) = output_of(REFUSED, implementation)
    assert "rehearsal buffer" in line
    assert "lower capacity" in line
    (size,) = [int(word) for word in line.replace(".", " ").split() if word.isdigit() and int(word) >= 2**30]
    assert size < 1.01 * 2**30


REFUSED_LATER = """
buffer = make(fields={"x": Field((2**20,), torch.uint8)}, capacity=8)
one = {"x": torch.ones(1, 2**20, dtype=torch.uint8), "y": torch.zeros(1, dtype=torch.int64)}
buffer.augment(**one)
mapped = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**27, mapped + 2**27))
try:
    buffer.rows(500)
except RuntimeError as error:
    print(error)
for _ in range(5):
    rows = buffer.rows(1)
    rows["x"].fill_(1), rows["y"].fill_(0)
    batch = buffer.augment(**rows)
    assert int(batch["x"].min()) == 1 and batch["weight"].tolist() == [1.0] * len(batch)
print(len(batch), len(buffer))
"""


def test_a_batch_that_memory_is_refused_for_leaves_the_buffer_as_it_was(output_of):
    refused, sizes = output_of(REFUSED_LATER)
    assert "bytes refused" in refused
    assert sizes == "6 6"


STAGING = """
import psutil
rows = 32
buffer = make(fields={"x": Field((2**20,), torch.uint8)}, capacity=40, draws=(rows,))
before = psutil.Process().memory_info().rss
for step in range(12):
    batch = buffer.rows(rows)
    batch["x"].fill_(step), batch["y"].fill_(step)
    buffer.augment(**batch)
buffer.drain()
print(psutil.Process().memory_info().rss - before)
"""


def test_two_of_the_three_staging_slots_are_enough_for_a_training_loop(output_of):
    """The third is for loops that submit twice; untouched, it costs nothing."""
    (grown,) = output_of(STAGING)
    samples, slot = 40 * MIB, (32 + 32) * MIB
    assert samples + 2 * slot - 8 * MIB < int(grown) < samples + 2.3 * slot


IDLE = """
buffer = make(threads=3)
for _ in range(5):
    feed(buffer)
buffer.drain()
begin = time.process_time()
time.sleep(1)
print(time.process_time() - begin)
"""


def test_an_idle_engine_uses_next_to_no_processor_time(output_of):
    (seconds,) = output_of(IDLE)
    assert float(seconds) < 0.05


# ---- files


def open_files(folder):
    """Files of this process that lie in the folder, with or without a name."""
    links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists()]
    with open("/proc/self/maps") as maps:
        links += [line.split(maxsplit=5)[5].strip() for line in maps if len(line.split(maxsplit=5)) == 6]
    return {link for link in links if link.startswith(str(folder))}


@pytest.mark.parametrize("implementation", NATIVE)
@pytest.mark.parametrize("name", ["", "samples"])
def test_samples_may_lie_in_a_file_that_never_has_a_name_left(tmp_path, implementation, name):
    """Same contents and draws as in memory; nothing in the folder while it runs nor after it."""
    fields = {"id": Field((), torch.int64), "x": Field((5000,), torch.uint8)}
    arguments = {"fields": fields, "draws": (9,), "capacity": 50}
    path = tmp_path / name if name else tmp_path
    in_file, in_memory = (make(implementation, **arguments, storage=s) for s in (f"file:{path}", "memory"))
    for step in range(20):
        ids = torch.arange(7 * step, 7 * step + 7)
        new = {"id": ids, "x": (ids % 251).to(torch.uint8).view(-1, 1).expand(-1, 5000).contiguous(), "y": ids % 4}
        drawn = [buffer.augment(**new, task=step) for buffer in (in_file, in_memory)]
        assert all(torch.equal(drawn[0][column], drawn[1][column]) for column in drawn[0])
        assert list(tmp_path.iterdir()) == []
    (place,) = open_files(tmp_path)
    assert place.endswith("(deleted)")
    in_file.close()
    assert open_files(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []
    in_memory.close()


def test_samples_in_a_file_are_saved_and_restored_like_others(tmp_path):
    folder, saved = tmp_path / "samples", tmp_path / "saved"
    folder.mkdir()
    with make(storage=f"file:{folder}") as buffer:
        buffer.submit(**batch(30))
        buffer.save(saved)
        ids = buffer.state_dict()["engine"]["shard"]["columns"]["id"]
    arguments = {"fields": ID_ONLY, "capacity": 64, "draws": (8,)}
    with RehearsalBuffer.restore(saved, **arguments, storage=f"file:{folder}") as restored:
        assert torch.equal(restored.state_dict()["engine"]["shard"]["columns"]["id"], ids)
    with RehearsalBuffer.restore(saved, **arguments, implementation="python") as restored:
        assert len(restored) == 30


def test_an_existing_file_is_refused_and_left_alone(tmp_path):
    taken = tmp_path / "samples.0"  # of rank 0
    taken.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"samples\.0.*File exists"):
        make(storage=f"file:{tmp_path / 'samples'}")
    assert taken.read_bytes() == b"mine"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        make(storage=f"file:{tmp_path / 'nowhere' / 'samples'}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=f"{tmp_path.name}.*Permission denied"):
        make(storage=f"file:{tmp_path}")


def test_a_disk_with_too_little_room_is_refused_with_the_numbers_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * MIB))
    with pytest.raises(UserError, match=r"4\.0 MiB per rank.* 3 MiB free in") as caught:
        make(fields={"x": Field((1008,), torch.uint8)}, capacity=4096, storage=f"file:{tmp_path}")
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


FULL = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    make(fields={"x": Field((1024,), torch.uint8)}, capacity=4096, storage=f"file:{sys.argv[1]}")
except ValueError as error:
    print(error)
feed(make(storage=f"file:{sys.argv[1]}"))
"""


@pytest.mark.parametrize("name", ["", "samples"])
def test_a_disk_that_fills_up_meanwhile_is_an_error_with_the_numbers(output_of, tmp_path, name):
    """A limit on the size of files fails where a full disk does: when the space is taken, not when it is written."""
    (line,) = output_of(FULL, tmp_path / name if name else tmp_path)
    assert str(tmp_path) in line
    assert any(word.isdigit() and 4 * MIB <= int(word) < 5 * MIB for word in line.split())
    assert "File too large" in line
    assert list(tmp_path.iterdir()) == []


KILLED = """
buffer = make(fields={"x": Field((1024,), torch.uint8)}, capacity=64, storage=f"file:{sys.argv[1]}")
buffer.submit(x=torch.ones(64, 1024, dtype=torch.uint8), y=torch.arange(64))
buffer.drain()
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("name", ["", "samples"])
def test_nothing_is_left_of_a_killed_process(program, tmp_path, name):
    done = program(KILLED, tmp_path / name if name else tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


# ---- rows


class Copies(TorchDispatchMode):
    """The largest number of elements that torch copied or filled while this was active."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in function.__name__ for word in ("copy", "fill", "clone", "index", "cat")):
            self.most = max(self.most, args[0].numel())
        return function(*args, **(kwargs or {}))


def test_a_step_of_standard_copies_the_batch_only_and_nothing_of_one_in_rows():
    """The representatives are in place before augment() is called."""
    fields = {"x": Field((100,), torch.float32)}
    buffer = make(fields=fields, draws=(30,))
    for in_rows in (False, True) * 4:
        rows = buffer.rows(5) if in_rows else {"x": torch.empty(5, 100), "y": torch.empty(5, dtype=torch.int64)}
        rows["x"].fill_(2.5), rows["y"].fill_(1)
        with Copies() as copies:
            result = buffer.augment(**rows)
        assert copies.most == (5 if in_rows else 500)  # a number per row, of what is no field
        assert result["x"].unique().tolist() == [2.5]
    assert result.sizes == (5, 30)


def test_a_step_of_flyweight_delivers_the_draws_alone():
    with make("flyweight", draws=(30,)) as buffer:
        for _ in range(3):
            buffer.submit(**batch(20))
            with Copies() as copies:
                (draw,) = buffer.wait()
            assert copies.most == 0
        assert len(draw) == 30


# ---- life


def test_close_in_another_thread_wakes_a_wait_that_is_blocked():
    """The step is made long by its size; the wait ends early or not at all, by an error or a draw."""
    record = 4 * MIB
    buffer = make(fields={"x": Field((record,), torch.uint8)}, capacity=60, draws=(60,))
    x = torch.ones(60, record, dtype=torch.uint8)
    buffer.wait()
    outcome = []

    def wait():
        try:
            outcome.append(len(buffer.wait()[0]))
        except RuntimeError as error:
            outcome.append(str(error))

    buffer.submit(x=x, y=torch.arange(60))
    waiter = threading.Thread(target=wait)
    waiter.start()
    buffer.close()
    waiter.join(30)
    assert not waiter.is_alive()
    assert outcome[0] == 60 or "closed" in outcome[0]
    with pytest.raises(RuntimeError, match="closed"):
        buffer.wait()


CLOSED_MEANWHILE = """
record = 200_000
buffer = make(fields={"x": Field((record,), torch.uint8)}, capacity=500)
buffer.submit(x=torch.ones(500, record, dtype=torch.uint8), y=torch.arange(500))
buffer.drain()

def read():
    try:
        while True:
            state = buffer.state_dict()["engine"]["shard"]["columns"]
            assert int(state["x"].min()) == 1 and buffer.class_counts() == {i: 1 for i in range(500)}
    except RuntimeError as error:
        print(error)

reader = threading.Thread(target=read)
reader.start()
time.sleep(float(sys.argv[1]))
buffer.close()
reader.join()
"""


@pytest.mark.parametrize("moment", [0.05, 0.11])
def test_close_in_another_thread_ends_what_reads_the_contents(output_of, moment):
    """The samples are given back to the system by close(): nobody may be reading them then."""
    (line,) = output_of(CLOSED_MEANWHILE, moment)
    assert "closed" in line


def test_a_buffer_that_is_dropped_is_closed():
    before = threads()
    buffer = make(threads=2)
    core = weakref.ref(buffer._native)
    buffer.submit(**batch())
    draws = buffer.wait()
    own = threads() - before
    assert len(own) == 2
    del buffer
    gc.collect()
    assert core() is None
    # The kernel lists a thread for a moment longer than joining it takes.
    deadline = time.monotonic() + 10
    while own & threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not own & threads()
    assert len(draws[0]) == 0


def threads():
    return set(os.listdir("/proc/self/task"))


EXITS = {
    "at the end of the program": "",
    "in the middle": "sys.exit(0)",
    "with a draw at hand": "buffer.wait(); kept = buffer.wait()",
    "in a thread of its own": "t = threading.Thread(target=feed, args=(buffer, 5000)); t.start(); t.join()",
    "after close": "buffer.close()",
    "with a failure": "buffer.drain(); buffer._native.fail_next_step('x'); feed(buffer)",
}


@pytest.mark.parametrize("end", EXITS)
def test_the_interpreter_ends_quietly_with_steps_in_flight(output_of, end):
    code = "buffer = make(fields={'id': Field((), torch.int64)}, capacity=10_000, draws=(4000,), threads=2)\n"
    assert output_of(code + "for _ in range(6): feed(buffer, 3000)\n" + EXITS[end]) == []


def test_the_interpreter_ends_quietly_on_an_exception(program):
    done = program("buffer = make()\nfeed(buffer)\nraise KeyError('mine')")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("KeyError: 'mine'")


FORKS = """
import gc, multiprocessing, signal, warnings

warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads forks is the point

def child(how):
    global buffer
    signal.alarm(8)  # a hang is a failure
    if how == "drops":
        del buffer
        gc.collect()
    elif how == "closes":
        buffer.close()
    elif how == "exits":
        sys.exit(0)
    else:
        try:
            getattr(buffer, how)() if how != "submit" else feed(buffer)
        except RuntimeError as error:
            print(error, flush=True)
            sys.exit(7)

buffer = make(capacity=4000, draws=(1000,), threads=2)
for how in sys.argv[1:]:
    feed(buffer, 2000)  # in flight while forking
    process = multiprocessing.get_context("fork").Process(target=child, args=(how,))
    process.start()
    process.join()
    print(how, process.exitcode, flush=True)
    buffer.wait()
    feed(buffer, 500)
    assert len(buffer.wait()[0]) == 1000
print(len(buffer))
"""


def test_a_forked_child_may_drop_close_or_ignore_the_buffer_and_the_parent_goes_on(output_of):
    lines = output_of(FORKS, "exits", "drops", "closes")
    assert lines == ["exits 0", "drops 0", "closes 0", "4000"]


@pytest.mark.parametrize("how", ["submit", "wait", "state_dict", "drain", "__len__"])
def test_a_forked_child_that_uses_the_buffer_gets_an_error(output_of, how):
    """Neither the engine's thread nor the samples come along."""
    message, code, *_ = output_of(FORKS, how)
    assert "process" in message
    assert code == f"{how} 7"


SAVES = """
import itertools
buffer = make(capacity=60, fields={"id": Field((), torch.int64), "x": Field((3000,), torch.uint8)})
for generation in itertools.count(int(sys.argv[2])):
    ids = torch.arange(60) + 1000 * generation
    x = (ids % 251).to(torch.uint8).view(-1, 1).expand(-1, 3000)
    buffer.submit(id=ids, x=x, y=torch.full((60,), generation))
    buffer.save(sys.argv[1])
    print(generation, flush=True)
"""


def test_a_process_killed_while_it_saves_leaves_the_last_snapshot_or_the_one_being_written(programs, tmp_path):
    """fifo keeps exactly the newest batch, so that a snapshot is of one generation as a whole."""
    chance, saved = random.Random(5), 0
    code = PRELUDE + SAVES.replace("capacity=60,", "capacity=60, policy='fifo',")
    for kill in range(10):
        writer = programs.start(code, tmp_path, saved + 1)
        while len(writer.out.read_text().split()) < 1 + kill % 3:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.02)
        writer.kill()
        saved = int(writer.wait().stdout.split()[-1])
        arguments = {"fields": {**ID_ONLY, "x": Field((3000,), torch.uint8)}, "capacity": 60, "draws": (8,)}
        with RehearsalBuffer.restore(tmp_path, **arguments, policy="fifo") as restored:
            columns = restored.state_dict()["engine"]["shard"]["columns"]
        generations = set(columns["y"].tolist())
        assert generations in ({saved}, {saved + 1})
        (saved,) = generations
        assert sorted(columns["id"].tolist()) == list(range(1000 * saved, 1000 * saved + 60))
        assert torch.equal(columns["x"], (columns["id"] % 251).to(torch.uint8).view(-1, 1).expand(-1, 3000))
    assert saved >= 10


# ---- tensors of torch before 2.10, which does not hand out all of a tensor at once


WITHOUT_API = """
import pytest
del torch.Tensor.__dlpack_c_exchange_api__
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.skipif(not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch is an older one")
def test_older_versions_of_torch_are_asked_for_attributes_instead(program):
    suite = Path(__file__).parents[1] / "contract"
    chosen = "(views_and_tensors or lazy or any_strides or every_dtype or gradients or tasks) and not python"
    done = program(WITHOUT_API, suite / "test_together.py", "-k", chosen)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
