"""Saved buffers: one file per rank and a manifest that makes them valid all at once; read on any number of ranks.

Files hold tensors, numbers and strings only (read with torch's weights_only). The manifest names every file with its
SHA-256, so a damaged, missing or half-written file is found before anything is used.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reprise.buffer.policies import POLICIES
from reprise.buffer.policies.base import split_counts
from reprise.buffer.schema import Spec, as_words
from reprise.buffer.shard import policy_arrays
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import UserError
from reprise.runtime.files import atomic_write, disk_errors, sha256

MANIFEST = "buffer.json"
FORMAT = 2


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
    generation = comm.broadcast_object(_next_generation(folder) if comm.rank == 0 else None, name="rehearsal.save")
    path = folder / f"shard-{comm.rank:05d}-of-{comm.size:05d}.{generation}.pt"
    entry: dict[str, Any] = {"file": path.name}
    try:
        with atomic_write(path, "wb") as stream:
            torch.save(state, stream)
        entry["sha256"] = sha256(path)
    except (UserError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        entry["error"] = str(error).splitlines()[0]
    entries = comm.allgather_object(entry, name="rehearsal.save")
    failed = [(rank, e["error"]) for rank, e in enumerate(entries) if "error" in e]
    if not failed and comm.rank == 0:
        try:
            with atomic_write(folder / MANIFEST) as stream:
                body = {"schema": state["schema"], "generation": generation, "shards": entries}
                json.dump({**body, "sha256": _digest(body)}, stream, indent=1)
        except UserError as error:
            failed = [(0, str(error))]
    failed = comm.broadcast_object(failed, name="rehearsal.save")
    if failed:
        if "error" not in entry:
            path.unlink(missing_ok=True)
        raise UserError(f"the rehearsal buffer was not saved: rank {failed[0][0]}: {failed[0][1]}")
    if comm.rank == 0:
        for old in set(folder.glob("shard-*.pt")) - {folder / e["file"] for e in entries}:
            old.unlink(missing_ok=True)


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


def read_shard(folder: Path, manifest: dict[str, Any], rank: int) -> dict[str, Any]:
    """State of one saved rank, mapped from its file. Raises UserError for a missing or changed file."""
    entry = manifest["shards"][rank]
    path = folder / entry["file"]
    if not path.is_file():
        raise UserError(f"saved rehearsal buffer: '{path}' is missing; restore from an earlier checkpoint")
    with disk_errors("read", path):
        digest = sha256(path)
    if digest != entry["sha256"]:
        raise UserError(f"saved rehearsal buffer: '{path}' is damaged (SHA-256 differs); restore an earlier checkpoint")
    return dict(torch.load(path, weights_only=True, mmap=True))


def reshard(folder: Path, manifest: dict[str, Any], spec: Spec) -> tuple[dict[str, Any], int]:
    """This rank's part of a buffer that another number of ranks saved: (shard state, step).

    Samples are dealt out in turn, class by class (oldest first where the policy orders by age), so that every rank gets
    its even share of every class. Nothing is lost: shares differ by at most one, as the deal does.
    """
    states = [read_shard(folder, manifest, rank)["engine"] for rank in range(len(manifest["shards"]))]
    shards = [state["shard"] for state in states]
    policies = []
    for rank, shard in enumerate(shards):
        share = manifest["schema"]["capacity"] // len(shards) + (rank < manifest["schema"]["capacity"] % len(shards))
        policies.append(POLICIES[spec.policy](share))
        policies[-1].load_state_dict(policy_arrays(shard))

    labels = np.concatenate([shard["columns"]["y"].numpy() for shard in shards])
    ages = np.concatenate([policy.ages() for policy in policies])
    order = np.lexsort((labels, -ages))
    owners = np.arange(len(order))[::-1] % spec.world_size
    mine = order[owners == spec.rank]

    edges = np.cumsum([0, *(policy.stored for policy in policies)])
    columns = {}
    for name in shards[0]["columns"]:
        parts = []
        for rank, shard in enumerate(shards):
            here = mine[(mine >= edges[rank]) & (mine < edges[rank + 1])] - edges[rank]
            parts.append(as_words(shard["columns"][name])[torch.from_numpy(here)])
        rows = torch.cat(parts)
        # `parts` come source by source; put them back into the order of the deal.
        source = np.argsort(np.searchsorted(edges, mine, side="right"), kind="stable")
        sorted_rows = torch.empty_like(rows).index_copy_(0, torch.from_numpy(source), rows)
        columns[name] = sorted_rows.view(shards[0]["columns"][name].dtype)

    merged = POLICIES[spec.policy].merge([p.state_dict() for p in policies], labels[order], owners, spec.world_size)
    stored = np.bincount(owners, minlength=spec.world_size)
    submitted = split_counts(sum(int(shard["submitted"]) for shard in shards), stored)
    state = {"submitted": int(submitted[spec.rank]), "policy": merged[spec.rank], "columns": columns}
    return state, max(int(s["step"]) for s in states)


def _next_generation(folder: Path) -> int:
    used = [int(number) for path in folder.glob("shard-*.*.pt") if (number := path.name.split(".")[1]).isdigit()]
    return max(used, default=0) + 1


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _field(entry: dict[str, Any] | None) -> str:
    return f"{entry['dtype']} {tuple(entry['shape'])}" if entry else "absent"
