"""Saved buffers: files of each rank and a manifest that makes them valid all at once; read on any number of ranks.

Files hold tensors, numbers and strings only (read with torch's weights_only). The manifest names every file with its
SHA-256, so a damaged, missing or half-written file is found before anything is used. A rank has one file, or a chain of
them: all samples, then in each further file those that have changed (increments.py); the last one's counters hold.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from reprise.buffer.deal import Counted, deal
from reprise.buffer.schema import Spec, as_words, share_of
from reprise.runtime import tensor_file
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import UserError
from reprise.runtime.files import atomic_write, disk_errors, sha256

MANIFEST = "buffer.json"
FORMAT = 3


class ShardFile(NamedTuple):
    """A file of one rank. rows: samples in it."""

    file: str
    sha256: str
    rows: int


def schema_of(spec: Spec) -> dict[str, Any]:
    """What must agree between a snapshot and the buffer that reads it, and the world size."""
    return {
        "format": FORMAT,
        "fields": {name: {"shape": list(f.shape), "dtype": str(f.dtype)} for name, f in spec.fields.items()},
        "capacity": spec.capacity,
        "policy": spec.policy,
        "draws": list(spec.draws),
        "world_size": spec.world_size,
    }


def check_schema(saved: dict[str, Any], spec: Spec, where: str) -> None:
    """Raise UserError naming the first thing that differs. The world size may differ."""
    own = schema_of(spec)
    if saved["format"] != FORMAT:
        made = "an older" if saved["format"] < FORMAT else "a newer"
        raise UserError(f"{where}: written by {made} version (format {saved['format']}, this one reads {FORMAT})")
    for key in ("policy", "capacity", "draws"):
        if saved[key] != own[key]:
            raise UserError(f"{where}: {key} is {saved[key]}, this buffer has {own[key]}; use the saved {key}")
    for name in sorted({*saved["fields"], *own["fields"]}):
        theirs, ours = saved["fields"].get(name), own["fields"].get(name)
        if theirs != ours:
            raise UserError(f"{where}: field '{name}' is {_field(theirs)}, this buffer has {_field(ours)}")


def save(folder: Path, state: dict[str, Any], comm: Communicator) -> None:
    """Write this rank's `state`; rank 0 then writes the manifest. Collective; raises UserError on every rank."""
    generation = comm.broadcast_object(_next_generation(folder) if comm.rank == 0 else 0, name="rehearsal.save")
    own: ShardFile | None = None
    problem = ""
    try:
        own = write_shard(folder, state, generation)
    except UserError as error:
        problem = str(error)
    written = comm.allgather_object((own, problem), name="rehearsal.save")
    files = [file for file, _ in written if file is not None]
    failed = [(rank, text) for rank, (_, text) in enumerate(written) if text]
    if not failed and comm.rank == 0:
        try:
            write_manifest(folder, state["schema"], [(file,) for file in files])
        except UserError as error:
            failed = [(0, str(error))]
    failed = comm.broadcast_object(failed, name="rehearsal.save")
    if failed:
        if own:
            (folder / own.file).unlink(missing_ok=True)
        raise UserError(f"the rehearsal buffer was not saved: rank {failed[0][0]}: {failed[0][1]}")
    if comm.rank == 0:
        for old in set(folder.glob("shard-*.pt")) - {folder / file.file for file in files}:
            old.unlink(missing_ok=True)


def write_shard(folder: Path, state: dict[str, Any], number: int) -> ShardFile:
    """Write one rank's `state_dict()`. Raises UserError on disk errors."""
    path = folder / f"shard-{state['rank']:05d}-of-{state['schema']['world_size']:05d}.{number}.pt"
    digest = tensor_file.save(path, state)
    return ShardFile(path.name, digest, len(state["engine"]["shard"]["columns"]["y"]))


def write_manifest(folder: Path, schema: dict[str, Any], shards: Sequence[Sequence[ShardFile]]) -> None:
    """Make the ranks' files, by rank, a saved buffer. Raises UserError on disk errors."""
    body = {"schema": schema, "shards": [[file._asdict() for file in files] for files in shards]}
    with atomic_write(folder / MANIFEST) as stream:
        json.dump({**body, "sha256": _digest(body)}, stream, indent=1)


def read(folder: Path, spec: Spec) -> tuple[dict[str, Any], int | None]:
    """What this rank continues with: its own engine state and None; on another number of ranks a shard and its step.

    Raises UserError for a missing, damaged or different snapshot.
    """
    manifest = read_manifest(folder)
    check_schema(manifest["schema"], spec, str(folder))
    if manifest["schema"]["world_size"] == spec.world_size:
        return read_shard(folder, manifest, spec.rank)["engine"], None
    return reshard(folder, manifest, spec)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a saved buffer; raises UserError when there is none or it is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"no saved rehearsal buffer in '{folder}': {MANIFEST} is missing; check the folder")
    with disk_errors("read", path):
        data = path.read_bytes()
    try:
        manifest = json.loads(data.decode("utf-8"))
        if manifest.pop("sha256") == _digest(manifest):
            return dict(manifest)
    except (ValueError, AttributeError, KeyError, TypeError):
        pass  # not JSON, or JSON of another make: reported below, together with a manifest that was changed
    raise UserError(f"'{path}' is damaged; restore from an earlier checkpoint")


def check_files(folder: Path, manifest: dict[str, Any], rank: int) -> None:
    """Raise UserError for a missing or changed file of a saved rank."""
    for entry in manifest["shards"][rank]:
        path = folder / entry["file"]
        if not path.is_file():
            raise UserError(f"saved rehearsal buffer: '{path}' is missing; restore from an earlier checkpoint")
        with disk_errors("read", path):
            digest = sha256(path)
        if digest != entry["sha256"]:
            raise UserError(
                f"saved rehearsal buffer: '{path}' is damaged (SHA-256 differs); restore an earlier checkpoint"
            )


def read_shard(folder: Path, manifest: dict[str, Any], rank: int) -> dict[str, Any]:
    """State of one saved rank, mapped where it is one file. Raises UserError for a missing or changed file."""
    check_files(folder, manifest, rank)
    first, *later = (
        dict(torch.load(folder / entry["file"], weights_only=True, mmap=True)) for entry in manifest["shards"][rank]
    )
    return _joined(first, later) if later else first


def _joined(first: dict[str, Any], later: list[dict[str, Any]]) -> dict[str, Any]:
    """The state that a chain of files comes to."""
    columns = {}
    ends = [1 + int(state["slots"][-1]) for state in later if len(state["slots"])]
    rows = max([len(_column(first, "y")), *ends])
    for name, samples in first["engine"]["shard"]["columns"].items():
        whole = torch.empty((rows, *samples.shape[1:]), dtype=samples.dtype)
        whole[: len(samples)] = samples
        for state in later:
            as_words(whole).index_copy_(0, state["slots"], as_words(_column(state, name)))
        columns[name] = whole
    last = later[-1]
    return {**last, "engine": {**last["engine"], "shard": {**last["engine"]["shard"], "columns": columns}}}


def _column(state: dict[str, Any], name: str) -> torch.Tensor:
    column: torch.Tensor = state["engine"]["shard"]["columns"][name]
    return column


def reshard(folder: Path, manifest: dict[str, Any], spec: Spec) -> tuple[dict[str, Any], int]:
    """This rank's part of a buffer that another number of ranks saved: (shard state, step). See deal.py."""
    states = [read_shard(folder, manifest, rank)["engine"] for rank in range(len(manifest["shards"]))]
    shards, capacity = [state["shard"] for state in states], manifest["schema"]["capacity"]
    counted = [Counted.of(shard, share_of(capacity, rank, len(shards))) for rank, shard in enumerate(shards)]
    dealt = deal(spec.policy, counted, spec.world_size)
    places = torch.from_numpy(dealt.places(spec.rank))
    columns = {}
    for name, column in shards[0]["columns"].items():
        parts = [
            as_words(shard["columns"][name])[torch.from_numpy(dealt.slots(spec.rank, number))]
            for number, shard in enumerate(shards)
        ]
        rows = torch.cat(parts)
        columns[name] = torch.empty_like(rows).index_copy_(0, places, rows).view(column.dtype)
    policy, submitted = dealt.policies[spec.rank], int(dealt.submitted[spec.rank])
    return {"submitted": submitted, "policy": policy, "columns": columns}, max(int(s["step"]) for s in states)


def _next_generation(folder: Path) -> int:
    return max((generation_of(path.name) for path in folder.glob("shard-*.*.pt")), default=0) + 1


def generation_of(name: str) -> int:
    """The number in a shard file's name; 0 where it has none."""
    number = name.split(".")[1]
    return int(number) if number.isdigit() else 0


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _field(entry: dict[str, Any] | None) -> str:
    return f"{entry['dtype']} {tuple(entry['shape'])}" if entry else "absent"
