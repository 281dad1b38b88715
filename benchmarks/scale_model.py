"""A model of global sampling on more ranks than there are here: blocked time and traffic for 8 to 4,096 of them.

    python benchmarks/scale_model.py --costs results.json --png scale.png
    python benchmarks/scale_model.py --check-against results.json

Events of every step: waiting, submitting, planning, requests, queues at the owners' server threads and at both nodes'
network cards, replies, local copies; then compute with jitter, and an allreduce that lets nobody go ahead. Costs of the
engine come from results of global_sampling.py, figures of networks are stated below. The same seed gives the same bits.

Every queue serves in order of arrival, and what comes into one depends on earlier queues only. So a step is computed
queue by queue for all ranks at once, instead of event by event; only a message that arrives after one of the next
step would be served in another order. Not in it: failures, other jobs' traffic, engines that wait for a busy core.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from reprise.benchmarks.show import console, table, us
from reprise.benchmarks.workloads import PUBLIC, WORKLOADS, Workload
from reprise.runtime.files import atomic_write

RANKS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_WARMUP = 3
_GETS_PER_RECORD, _GETS_PER_OWNER = 5, 3
"""Of a one-sided draw of one field: version, label and task, weight, the field, version; its counters in each round."""
_Z95 = 1.6449
"""95 % of a normal distribution lie below so many standard deviations."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Costs:
    """What one rank's engine takes, in µs. The defaults are of one virtual machine with two cores; measure your own."""

    call_us: float = 25.0
    """submit() and wait() of a step whose draw is ready, median."""
    call_p95_us: float = 90.0
    call_warm_us: float = 6.0
    """The same of a loop that does nothing else, whose calls find their code and data in the caches."""
    insert_us: dict[str, float] = field(default_factory=lambda: {"cifar": 70.0, "imagenet": 600.0})
    """By workload, a step's candidates into the slab."""
    plan_us: float = 1.0
    plan_near_us: float = 0.5
    """For each other rank of the node: its fill count, and whether it runs still."""
    plan_far_us: float = 0.02
    """For each rank of another node: what is known of its fill count."""
    record_us: float = 0.5
    """Of copying a record on the same node, besides its bytes."""
    byte_us: float = 7e-5
    issue_us: float = 1.0
    """Of posting a request."""
    serve_us: float = 25.0
    """From a request's arrival until its owner, whose server thread sleeps, begins to gather."""
    sources: dict[str, str] = field(default_factory=dict)
    """Where values come from, if not from the defaults."""


@dataclass(frozen=True)
class Network:
    """What connects nodes. Each node has one card for all its ranks."""

    gigabytes_per_s: float
    """Of a card, each way, as a program sees it."""
    latency_us: float
    """One way, from one program to the other."""
    one_sided: bool
    """Cards read the owner's memory by themselves, in three rounds (cpp_loader/src/network_reads.h): versions, records,
    versions; else one request per owner, whose server thread gathers and sends, and the reader copies."""
    thread_gigabytes_per_s: float
    """How fast one thread moves bytes through the network stack; for two-sided ones."""
    link_share: float
    """Part of the card that the gradients' allreduce leaves to draws."""
    source: str


NETWORKS = {
    "tcp-100g": Network(
        11.0, 25.0, False, 3.0, 0.5, "assumed: 100 GbE, kernel TCP, one switch; a thread as fast as UCX on loopback"
    ),
    "ib-200g": Network(
        23.0, 2.5, False, 10.0, 0.5, "assumed: 200 Gb/s InfiniBand (HDR), one switch; a thread copies a message once"
    ),
    "ib-200g-get": Network(23.0, 2.5, True, 0.0, 0.5, "assumed: the same with one-sided reads of whole records"),
}


@dataclass(frozen=True)
class Job:
    """What all ranks do in every step."""

    ranks: int
    ranks_per_node: int
    record_bytes: int
    records: int
    """r: of a step's draws together, per rank."""
    insert_us: float
    compute_us: float
    jitter: float = 0.05
    """Standard deviation of a step's compute on a rank, relative."""
    sync: bool = True
    """Whether nobody begins a step before all have ended the last one."""
    slower: float = 1.0
    """How often longer everything on a CPU takes where ranks share cores."""


@dataclass
class Outcome:
    """Per step and rank, after the first few steps."""

    blocked_us: Floats
    """In submit() and wait()."""
    prepared_us: Floats
    """From the submit until the draw is ready: what compute has to hide."""
    requests: Floats
    """Ranks of other nodes that are asked."""
    messages: Floats
    """To other nodes: requests and replies, or one-sided reads."""
    network_bytes: Floats
    """Read from other nodes."""
    node_bytes: Floats
    """Read from other ranks of the node."""

    def summary(self) -> dict[str, float]:
        return {
            "blocked_p50_us": float(np.percentile(self.blocked_us, 50)),
            "blocked_p95_us": float(np.percentile(self.blocked_us, 95)),
            "prepared_p50_us": float(np.percentile(self.prepared_us, 50)),
            "prepared_p95_us": float(np.percentile(self.prepared_us, 95)),
            "requests_per_step": float(self.requests.mean()),
            "messages_per_step": float(self.messages.mean()),
            "network_bytes_per_step": float(self.network_bytes.mean()),
            "node_bytes_per_step": float(self.node_bytes.mean()),
        }


# ---- the model


def simulate(job: Job, costs: Costs, network: Network, steps: int, seed: int = 1) -> Outcome:
    """Let all ranks run `steps` steps, and a few before that do not count. Draws are uniform over equal shards."""
    random = np.random.default_rng(seed)
    cards = _Cards(-(-job.ranks // job.ranks_per_node), network)
    servers, readers = np.zeros(job.ranks), np.zeros(job.ranks)  # when each is free
    now, ready = np.zeros(job.ranks), np.zeros(job.ranks)
    columns: list[list[Floats]] = [[] for _ in range(6)]
    spread = np.log(max(costs.call_p95_us / costs.call_us, 1.0)) / _Z95
    near = min(job.ranks_per_node, job.ranks) - 1
    far = job.ranks - 1 - near
    before_fetch = job.insert_us + costs.plan_us + costs.plan_near_us * near + costs.plan_far_us * far
    for step in range(-_WARMUP, steps):
        call = job.slower * costs.call_us * np.exp(spread * random.standard_normal(job.ranks))
        begun = np.maximum(now, ready) + call
        blocked = begun - now
        planned = begun + job.slower * before_fetch
        requests, rows_here = _draw(job, random)
        leaves = planned[requests.reader] + job.slower * costs.issue_us * (requests.position + 1)
        last_leaves = planned.copy()
        np.maximum.at(last_leaves, requests.reader, leaves)
        copied = last_leaves + job.slower * rows_here * (costs.record_us + job.record_bytes * costs.byte_us)
        arrived, handling = _travel(job, costs, network, requests, leaves, servers, cards)
        # The reader's own copies come first, then replies as they arrive.
        readers[:] = copied
        _, finished = fifo(requests.reader, arrived, handling, readers)
        ready = copied.copy()
        np.maximum.at(ready, requests.reader, finished)
        if step >= 0:
            sent = np.bincount(requests.reader, minlength=job.ranks).astype(np.float64)
            fetched = np.bincount(requests.reader, weights=requests.rows, minlength=job.ranks)
            # A rank sends as many replies as requests, on average.
            messages = _GETS_PER_RECORD * fetched + _GETS_PER_OWNER * sent if network.one_sided else 2 * sent
            in_node = requests.near_others * job.record_bytes
            observed = (blocked, ready - begun, sent, messages, fetched * job.record_bytes, in_node)
            for column, values in zip(columns, observed, strict=True):
                column.append(values)
        now = begun + job.slower * job.compute_us * np.maximum(1 + job.jitter * random.standard_normal(job.ranks), 0)
        if job.sync:
            now[:] = now.max()
        # Times stay small, so that no bits are lost.
        base = now.min()
        for times in (now, ready, servers, cards.sending, cards.receiving):
            times -= base
    return Outcome(*(np.stack(column) for column in columns))


@dataclass(frozen=True)
class _Requests:
    """To other nodes: who asks whom for how many rows, and as which of its requests."""

    reader: Ints
    owner: Ints
    rows: Ints
    position: Ints
    near_others: Floats
    """Per rank: rows on other ranks of its node."""


def _draw(job: Job, random: np.random.Generator) -> tuple[_Requests, Floats]:
    """The requests of one step, and per rank the rows on its own node."""
    readers = np.repeat(np.arange(job.ranks), job.records)
    owners = random.integers(0, job.ranks, job.ranks * job.records)
    same_node = readers // job.ranks_per_node == owners // job.ranks_per_node
    near = np.bincount(readers[same_node], minlength=job.ranks).astype(np.float64)
    others = np.bincount(readers[same_node & (readers != owners)], minlength=job.ranks).astype(np.float64)
    pairs, rows = np.unique(readers[~same_node] * job.ranks + owners[~same_node], return_counts=True)
    reader, owner = pairs // job.ranks, pairs % job.ranks
    first = np.searchsorted(reader, np.arange(job.ranks))
    return _Requests(reader, owner, rows, np.arange(len(reader)) - first[reader], others), near


class _Cards:
    """When each node's card is free to send and to receive."""

    def __init__(self, nodes: int, network: Network) -> None:
        self.sending, self.receiving = np.zeros(nodes), np.zeros(nodes)
        self.byte_us = 1e-3 / (network.gigabytes_per_s * network.link_share)


def _travel(
    job: Job, costs: Costs, network: Network, requests: _Requests, leaves: Floats, servers: Floats, cards: _Cards
) -> tuple[Floats, Floats]:
    """When each request's reply has been received, and what it then costs the reader."""
    num_bytes: Floats = requests.rows.astype(np.float64) * job.record_bytes
    transmission: Floats = num_bytes * cards.byte_us
    ask = leaves + network.latency_us
    if network.one_sided:
        # After the round of versions; records lie in memory as they are.
        sendable, handling = ask + 2 * network.latency_us, np.zeros(len(ask))
    else:
        through_stack: Floats = job.slower * num_bytes * 1e-3 / network.thread_gigabytes_per_s
        gather = job.slower * (requests.rows * costs.record_us + num_bytes * costs.byte_us)
        serve = job.slower * costs.serve_us
        start, sent = fifo(requests.owner, ask, serve + gather + through_stack, servers)
        # Messages leave while others are still being gathered; the last one not before that has ended.
        sendable, handling = np.maximum(start + serve, sent - transmission), through_stack
    start, _ = fifo(requests.owner // job.ranks_per_node, sendable, transmission, cards.sending)
    # The first byte arrives while the last one still waits to be sent.
    coming = start + network.latency_us
    _, arrived = fifo(requests.reader // job.ranks_per_node, coming, transmission, cards.receiving)
    if network.one_sided:
        return arrived + 2 * network.latency_us, handling  # versions again
    # A reader handles a reply's messages while the rest is on the way.
    return np.maximum(arrived - handling, coming), handling


def fifo(resource: Ints, arrival: Floats, service: Floats, free: Floats) -> tuple[Floats, Floats]:
    """When each job at a resource starts and ends, if each serves one at a time in order of arrival.

    free: when each resource has done what came before; updated.
    """
    if not len(resource):
        return np.empty(0), np.empty(0)
    order = np.lexsort((arrival, resource))
    where, need = resource[order], service[order]
    before = np.cumsum(need) - need
    # The k-th one ends at max over j <= k of (arrival_j + service_j + ... + service_k): a running maximum, kept apart
    # between resources by an offset.
    slack = np.maximum(arrival[order], free[where]) - before
    apart = where * (slack.max() - slack.min() + 1.0)
    begun = np.maximum.accumulate(slack + apart) - apart + before
    ended = begun + need
    np.maximum.at(free, where, ended)
    start, end = np.empty(len(order)), np.empty(len(order))
    start[order], end[order] = begun, ended
    return start, end


# ---- costs from measurements


def costs_from(results: dict[str, Any]) -> Costs:
    """Costs as measured by global_sampling.py; what its results do not hold stays as it is by default."""
    found: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def take(name: str, value: Any, source: str) -> None:
        found[name], sources[name] = value, source

    cases = _cases(results, "shm")
    if len(cases) >= 2:
        record, byte = fit_copy([(case["records"], case["bytes"], case["fetch_p50_us"]) for case in cases])
        take("record_us", record, "draws over shm, fetch of all sizes")
        take("byte_us", byte, "draws over shm, fetch of all sizes")
        take("plan_us", float(np.median([case["plan_p50_us"] for case in cases])), "draws over shm, plan")
    if far := _cases(results, "ucx"):
        least = min(far, key=lambda case: case["records"] * case["bytes"])
        yardstick = least["perftest_us"].get("am_lat")
        if yardstick:
            value = max(least["fetch_p50_us"] - 2 * yardstick, 0.0)
            take("serve_us", value, "draws over ucx, the smallest, beyond ucx_perftest's round trip")
    inserts = {
        name: computes["0"]["shm"]["parts_us"]["insert"]
        for name, computes in results.get("hidden", {}).get("2", {}).items()
        if "p50_us" in _at(computes, "0", "shm")
    }
    if inserts:
        take("insert_us", {**Costs().insert_us, **inserts}, "steps of 2 ranks over shm without compute")
        warm = (_at(computes, "0", "shm") for computes in results["hidden"]["2"].values())
        take("call_warm_us", min(row["submit_p50_us"] for row in warm if "p50_us" in row), "the same, submit()")
    if hidden := _longest(results):
        take("call_us", hidden["p50_us"], "steps of 2 ranks over shm with the longest compute, p50")
        take("call_p95_us", hidden["p95_us"], "steps of 2 ranks over shm with the longest compute, p95")
    for name, transport in (("plan_near_us", "shm"), ("plan_far_us", "ucx")):
        plans = {
            int(ranks): one[transport]["plan_p50_us"]
            for ranks, one in results.get("ranks", {}).items()
            if "plan_p50_us" in _at(one, transport)
        }
        if len(plans) >= 2:
            slope = float(np.polyfit(list(plans), list(plans.values()), 1)[0])
            take(name, max(slope, 0.0), f"plan over {transport} at {min(plans)} to {max(plans)} ranks, slope of p50")
    return Costs(**found, sources=sources)


def fit_copy(points: Sequence[tuple[int, int, float]]) -> tuple[float, float]:
    """µs per record and per byte, none negative, from (records, bytes of each, µs): least squares, relative errors."""
    records, sizes, times = np.array(points, dtype=np.float64).T
    terms = np.stack([records, records * sizes], axis=1) / times[:, None]
    (record, byte), *_ = np.linalg.lstsq(terms, np.ones(len(times)))
    if record < 0 or byte < 0:
        only = 1 if record < 0 else 0
        column = terms[:, only]
        value = float(column.sum() / (column @ column))
        return (0.0, value) if only else (value, 0.0)
    return float(record), float(byte)


def _cases(results: dict[str, Any], transport: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _at(results.get("draws", {}), transport).get("cases", [])
    return found


def _longest(results: dict[str, Any]) -> dict[str, Any] | None:
    """The row of shared memory with the longest compute, of the first workload."""
    for computes in results.get("hidden", {}).get("2", {}).values():
        if not isinstance(computes, dict) or not computes:
            return None
        row = _at(computes, max(computes, key=float), "shm")
        return row if "p50_us" in row else None
    return None


def _at(tree: Any, *path: str) -> dict[str, Any]:
    """What lies at the path, or nothing."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


# ---- predictions


def predict(
    costs: Costs,
    ranks: Sequence[int] = RANKS,
    steps: int = 100,
    *,
    workloads: Sequence[str] = ("imagenet", "cifar"),
    networks: Sequence[str] = tuple(NETWORKS),
    ranks_per_node: Sequence[int] = (4, 8),
    compute_ms: float = 20.0,
    jitter: float = 0.05,
    seed: int = 1,
) -> dict[str, Any]:
    """A point for every combination, with everything that it rests on."""
    points = []
    for workload in workloads:
        for network in networks:
            for per_node in ranks_per_node:
                for count in ranks:
                    job = _job(WORKLOADS[workload], costs, count, per_node, 1000 * compute_ms, jitter=jitter)
                    outcome = simulate(job, costs, NETWORKS[network], steps, seed)
                    key = {"workload": workload, "network": network, "ranks_per_node": per_node, "ranks": count}
                    points.append({**key, **outcome.summary()})
    return {
        "costs": asdict(costs),
        "networks": {name: asdict(NETWORKS[name]) for name in networks},
        "compute_ms": compute_ms,
        "jitter": jitter,
        "steps": steps,
        "seed": seed,
        "points": points,
    }


def _job(workload: Workload, costs: Costs, ranks: int, per_node: int, compute_us: float, **more: Any) -> Job:
    # A workload that nothing was measured of: by bytes, as if inserting cost what drawing does.
    bytes_in = workload.candidates * (costs.record_us + workload.record_bytes * costs.byte_us)
    insert_us = costs.insert_us.get(workload.name, bytes_in)
    return Job(ranks, per_node, workload.record_bytes, sum(workload.draws), insert_us, compute_us, **more)


def compare(costs: Costs, results: dict[str, Any], steps: int = 400) -> list[dict[str, Any]]:
    """The model beside measured points on one machine: blocked time at 2 and 4 ranks, traffic at all counts.

    Where ranks share cores, what they do on a CPU takes that many times longer. Without compute this is what the engine
    takes; the costs were measured elsewhere (draws), except for inserting and calling.
    """
    cores = int(_at(results, "environment").get("cpu_count") or 1)
    rows: list[dict[str, Any]] = []

    def add(ranks: int, workload: str, transport: str, what: str, model: float, measured: float) -> None:
        key = {"ranks": ranks, "workload": workload, "transport": transport, "what": what}
        rows.append({**key, "model": model, "measured": measured, "ratio": model / measured if measured else None})

    for text, workloads in results.get("hidden", {}).items():
        for workload, computes in workloads.items() if "failed" not in workloads else ():
            for compute, transports in computes.items():
                for transport in ("shm", "ucx"):
                    measured = _at(transports, transport)
                    if "p50_us" not in measured:
                        continue
                    ranks = int(text)
                    outcome = _here(costs, results, ranks, workload, transport, 1000 * float(compute), cores, steps)
                    summary = outcome.summary()
                    label = f"blocked at {compute} ms"
                    add(ranks, workload, transport, f"{label}, p50 µs", summary["blocked_p50_us"], measured["p50_us"])
                    add(ranks, workload, transport, f"{label}, p95 µs", summary["blocked_p95_us"], measured["p95_us"])
    for text, transports in results.get("ranks", {}).items():
        measured = _at(transports, "shm")
        if "p50_us" not in measured:
            continue
        ranks = int(text)
        # Over shared memory nothing is asked for; counted are the ranks that rows come from.
        summary = _here(costs, results, ranks, "cifar", "ucx", 0.0, cores, steps // 4).summary()
        traffic = summary["network_bytes_per_step"]
        add(ranks, "cifar", "shm", "ranks read from", summary["requests_per_step"], measured["requests_per_step"])
        add(ranks, "cifar", "shm", "bytes read from others", traffic, measured["remote_bytes_per_step"])
    return rows


def _here(
    costs: Costs,
    results: dict[str, Any],
    ranks: int,
    workload: str,
    transport: str,
    compute_us: float,
    cores: int,
    steps: int,
) -> Outcome:
    """As measured: on one machine, without an allreduce. UCX goes over loopback, as if every rank were a node."""
    streams = [case for case in _cases(results, "ucx") if "am_bw" in case["perftest_us"]]
    rates = [case["bytes"] / case["perftest_us"]["am_bw"] / 1000 for case in streams]
    rates += [case["records"] * case["bytes"] / case["fetch_p50_us"] / 1000 for case in streams]
    fastest = max(rates, default=3.0)
    latency = min((case["perftest_us"]["am_lat"] for case in streams), default=8.0)
    loopback = Network(1000.0, latency, False, fastest, 1.0, "measured by ucx_perftest on loopback")
    per_node = ranks if transport == "shm" else 1
    slower = max(ranks / cores, 1.0)
    job = _job(WORKLOADS[workload], costs, ranks, per_node, compute_us, sync=False, slower=slower)
    if compute_us:
        # The calls were measured where every core was busy, too.
        return simulate(replace(job, slower=1.0), costs, loopback, steps)
    return simulate(job, replace(costs, call_us=costs.call_warm_us, call_p95_us=costs.call_warm_us), loopback, steps)


# ---- output


def show_model(model: dict[str, Any], out: Console) -> None:
    """Tables of the points, what they rest on, and the model beside what was measured."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for point in model["points"]:
        groups.setdefault((point["workload"], point["network"], point["ranks_per_node"]), []).append(point)
    header = (
        "ranks",
        "blocked p50 µs",
        "p95",
        "draw ready after p50 µs",
        "p95",
        "ranks asked/step",
        "messages/step",
        "KiB/step by network",
        "KiB/step in node",
    )
    for (workload, network, per_node), points in groups.items():
        rows = [
            (
                f"{point['ranks']:,}",
                us(point["blocked_p50_us"]),
                us(point["blocked_p95_us"]),
                us(point["prepared_p50_us"]),
                us(point["prepared_p95_us"]),
                f"{point['requests_per_step']:.2f}",
                f"{point['messages_per_step']:.2f}",
                f"{point['network_bytes_per_step'] / 1024:,.0f}",
                f"{point['node_bytes_per_step'] / 1024:,.0f}",
            )
            for point in points
        ]
        title = f"model: {workload}, {network}, {per_node} ranks per node, {model['compute_ms']:g} ms of compute"
        table(title, header, rows, out)
    for name, network in model["networks"].items():
        kind = (
            "one-sided" if network["one_sided"] else f"two-sided, {network['thread_gigabytes_per_s']:g} GB/s a thread"
        )
        figures = f"{network['gigabytes_per_s']:g} GB/s a node, of which {network['link_share']:.0%} for draws"
        out.print(f"{name}: {figures}, {network['latency_us']:g} µs one way, {kind}; {network['source']}")
    costs = {name: value for name, value in model["costs"].items() if name != "sources"}
    out.print("costs: " + ", ".join(f"{name} {_short(value)}" for name, value in costs.items()), highlight=False)
    assumed = [name for name in costs if name not in model["costs"]["sources"]]
    out.print(f"of which not measured: {', '.join(assumed)}", highlight=False)
    show_comparison(model.get("against_measured", []), out)


def show_comparison(rows: Sequence[dict[str, Any]], out: Console) -> None:
    """The model beside measured points."""
    if rows:
        header = ("ranks", "workload", "transport", "", "model", "measured", "model / measured")
        lines = [
            (
                str(row["ranks"]),
                row["workload"],
                row["transport"],
                row["what"],
                us(row["model"]),
                us(row["measured"]),
                f"{row['ratio']:.2f}" if row["ratio"] else "-",
            )
            for row in rows
        ]
        table("the model against what was measured", header, lines, out, left=4)


def plot(model: dict[str, Any], path: Path) -> None:
    """Time until a draw is ready and time blocked, and traffic, over ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, messages, traffic) = pyplot.subplots(1, 3, figsize=(18, 5))
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for point in model["points"]:
        groups.setdefault((point["workload"], point["network"], point["ranks_per_node"]), []).append(point)
    for index, ((workload, network, per_node), points) in enumerate(groups.items()):
        style: dict[str, Any] = {"color": f"C{index % 10}", "label": f"{workload}, {network}, {per_node}/node"}
        style["marker"] = "os^"[index // 10 % 3]
        ranks = [point["ranks"] for point in points]
        times.plot(ranks, [point["prepared_p95_us"] for point in points], "-", **style)
        messages.plot(ranks, [point["messages_per_step"] for point in points], "-", **style)
        traffic.plot(ranks, [point["network_bytes_per_step"] / 1024 for point in points], "-", **style)
        style["label"] = None
        times.plot(ranks, [point["blocked_p95_us"] for point in points], ":", **style)
    times.set(title="p95 until a draw is ready (lines), p95 blocked (dots)", ylabel="µs", yscale="log")
    times.axhline(1000 * model["compute_ms"], color="grey", linewidth=0.8)
    times.annotate("compute of a step", (model["points"][0]["ranks"], 1000 * model["compute_ms"]), color="grey")
    messages.set(title="messages sent, per rank and step", ylabel="messages")
    traffic.set(title="read from other nodes, per rank and step", ylabel="KiB", yscale="symlog")
    for axes in (times, messages, traffic):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("ranks")
        axes.grid(alpha=0.3)
    traffic.legend(fontsize="x-small", loc="lower right")
    figure.tight_layout()
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=110)
    pyplot.close(figure)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} {_short(one)}" for name, one in value.items()) + "}"
    return f"{value:.3g}"


def main(arguments: list[str] | None = None) -> int:
    """Predict, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description="A model of global sampling on up to thousands of ranks.")
    add = parser.add_argument
    add("--costs", type=Path, metavar="FILE", help="results of global_sampling.py to take the engine's costs from")
    add("--check-against", type=Path, metavar="FILE", help="such results to compare the model with, at 2 to 32 ranks")
    add("--ranks", nargs="+", type=int, default=list(RANKS))
    add("--ranks-per-node", nargs="+", type=int, default=[4, 8])
    add("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--workload", nargs="+", choices=PUBLIC, default=["imagenet", "cifar"])
    add("--compute-ms", type=float, default=20.0, help="of a step (20)")
    add("--jitter", type=float, default=0.05, help="standard deviation of it, relative (0.05)")
    add("--steps", type=int, default=100, help="(100)")
    add("--seed", type=int, default=1)
    add("--json", type=Path, metavar="FILE", help="write everything there")
    add("--png", type=Path, metavar="FILE", help="plot it there")
    chosen = parser.parse_args(arguments)
    out = console()
    measured = chosen.costs or chosen.check_against
    costs = costs_from(json.loads(measured.read_text(encoding="utf-8"))) if measured else Costs()
    model = predict(
        costs,
        chosen.ranks,
        chosen.steps,
        workloads=chosen.workload,
        networks=chosen.network,
        ranks_per_node=chosen.ranks_per_node,
        compute_ms=chosen.compute_ms,
        jitter=chosen.jitter,
        seed=chosen.seed,
    )
    if chosen.check_against:
        model["against_measured"] = compare(costs, json.loads(chosen.check_against.read_text(encoding="utf-8")))
    show_model(model, out)
    if chosen.json:
        with atomic_write(chosen.json) as stream:
            stream.write(json.dumps(model, indent=1) + "\n")
    if chosen.png:
        plot(model, chosen.png)
    for path in (chosen.json, chosen.png):
        if path:
            out.print(f"Written: {path}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
