"""Reprise's command line: read the options, build the parts, train, report. `python main.py --help` lists the options.

Works alone and under horovodrun, mpirun, srun and torchrun. The training step is in train/loop.py (the loop),
cl_models/<strategy>.py (what is trained on) and train/stepper.py (the update). This is the one place where names become
objects; imports stand in the functions that need them, because --help and mistakes must be answered at once.

Exit codes: 0 done; 2 a mistake in the options or files, one line says which; 3 another rank was lost; 75 a collective
took longer than --timeout; 85 stopped by SIGTERM or SIGUSR1 with everything saved: start again with --resume.
"""

import itertools
import logging
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from reprise.runtime.errors import PeerLost, RanksChanged, SharedUserError, UserError
except ModuleNotFoundError as error:  # the wrong Python: the first mistake everybody makes
    remedy = "run 'make setup' and use .venv/bin/python, or 'pip install -e .' into this Python"
    sys.stderr.write(f"reprise: error: {error} in {sys.executable}; {remedy}\n")
    raise SystemExit(2) from None

if TYPE_CHECKING:
    import torch
    from torch import nn

    from reprise.buffer import Field, RehearsalBuffer
    from reprise.cl_models import ContinualModel
    from reprise.cl_models.base import Stored, Tuning
    from reprise.report.run_folder import RunFolder
    from reprise.report.sinks import SinkList
    from reprise.runtime.config import Resolved
    from reprise.runtime.dist import Communicator
    from reprise.runtime.spans import Spans
    from reprise.runtime.stop import StopRequest
    from reprise.scenarios import Scenario
    from reprise.train.checkpoint import Checkpoint, Progress
    from reprise.train.loop import Settings
    from reprise.train.options import Options
    from reprise.train.regime import Regime
    from reprise.train.regroup import Carried

logger = logging.getLogger(__name__)

BUG, USER_MISTAKE, PEER_LOST, INTERRUPTED = 1, 2, 3, 130
DOWNLOAD_S = 3600.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. When other ranks may be waiting, the process ends here instead."""
    from reprise.runtime.stop import StopRequest

    with StopRequest() as stop:  # before anything that takes time: a scheduler does not wait for the start of all ranks
        return _run(list(sys.argv[1:] if argv is None else argv), stop)


def _run(arguments: list[str], stop: "StopRequest") -> int:
    from reprise.runtime import log
    from reprise.runtime.dist import launcher, regroup
    from reprise.runtime.stop import REQUEUE, StoppedError

    speaks = True
    try:
        # Every rank reads the same options: their mistakes are said once.
        speaks = launcher.detect().rank == 0
        resolved = resolve(arguments)
        if resolved.print_config:
            if speaks:
                print(resolved.describe())
            return 0
        speaks = True
        comm = _start(resolved.options)
    except UserError as error:
        return _complain(error, speaks)

    try:
        carried = None
        while True:
            try:
                carried = train(resolved, comm, ["main.py", *arguments], stop, carried)
                if carried is None:
                    break
            except PeerLost:
                if not comm.elastic or (carried and carried.spent):
                    raise
                # Another one was lost while these were about to go on: with what they still have.
            comm = regroup(comm)
            log.setup(resolved.options.log_level, comm.rank)
    except SharedUserError as error:
        comm.shutdown()
        return _complain(error, comm.rank == 0)
    except StoppedError as error:
        comm.shutdown()
        logger.warning("%s", error)
        return REQUEUE
    except UserError as error:
        code = _complain(error, True)
    except PeerLost as error:
        code = _complain(error, True, PEER_LOST)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception:
        traceback.print_exc()
        code = BUG
    else:
        comm.shutdown()
        return 0
    if comm.size > 1:
        # The others are waiting for this rank: they must notice, and an orderly shutdown would wait for them.
        comm.abort(code)
    return code


def train(
    resolved: "Resolved[Options]",
    comm: "Communicator",
    command: list[str],
    stop: "StopRequest",
    carried: "Carried | None" = None,
) -> "Carried | None":
    """Build the parts of a run, train, and write its results. Collective.

    Returns None at the run's end. Where the launcher replaces ranks, and one was lost or others want to join: what this
    rank has, to be called again with when they have met anew.
    """
    import torch

    from reprise.buffer import take_up
    from reprise.cl_models import STRATEGIES
    from reprise.report.run_folder import RunFolder
    from reprise.runtime import seeds
    from reprise.runtime.spans import KEPT, Spans
    from reprise.runtime.stop import StoppedError
    from reprise.train import checkpoint, regroup
    from reprise.train.checkpoint import Progress
    from reprise.train.checkpointer import Checkpointer, Every
    from reprise.train.loop import Loop
    from reprise.train.results import Results, summarise, timeline_of, trace_of

    options = resolved.options
    spans = Spans(kept=KEPT if options.trace else 0)
    if options.resume and comm.broadcast_object(RunFolder.finished(_run_path(options))):
        logger.info("%s has finished: nothing is left to resume", _run_path(options))
        return None
    shared = regroup.share(carried, comm) if comm.elastic else None
    resumed = None if shared else _resumed(options, comm)
    folder = comm.agree(lambda: RunFolder(_run_path(options)) if comm.rank == 0 else None)

    device = _device(options, comm)
    scenario = _scenario(options, comm)
    if options.download:
        comm.agree(lambda: _fetch_weights(options) if comm.rank == 0 else None)
    network = comm.agree(lambda: _network(options, scenario)).to(device)
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does take it
    if options.compile:
        comm.agree(lambda: _compile(network, device))
    tunes = STRATEGIES.get(options.model).tunes
    selector = _selector(options, scenario, comm) if tunes else None
    regimes = comm.agree(lambda: _regimes(options, scenario, comm))
    seeds.seed_everything(options.seed, comm.rank)
    buffer = _buffer(options, scenario, device, comm, resumed)
    model, optimizer = network, regimes[0].build_optimizer(network.parameters())
    if not tunes:
        model, optimizer = comm.data_parallel(
            network,
            optimizer,
            compression="fp16" if options.fp16_allreduce else "none",
            op="adasum" if options.use_adasum else "average",
            gradient_predivide_factor=options.gradient_predivide_factor,
            backward_passes_per_step=options.batches_per_allreduce,
        )
    strategy = _strategy(options, scenario, network, model, optimizer, buffer, device, comm, spans, selector)
    means, progress = {}, Progress(_fingerprint(options))
    if resumed:
        means, progress = checkpoint.load(resumed, strategy, comm), resumed.progress
    losses = None
    if shared:
        strategy.load_state_dict(shared.state)
        progress = shared.progress
        if buffer is not None:
            losses = take_up(buffer, carried.memory if carried else None, comm)
        if carried:
            carried.spend()
    loop = Loop(
        strategy,
        scenario,
        comm,
        _settings(options, scenario, device),
        optimizer=optimizer,
        regime_for=regimes.__getitem__,
        spans=spans,
        progress=progress,
        means=means,
        composition=None if buffer is None else lambda: _composition(buffer, comm),
    )

    # Nothing is left that could refuse this run: only now may it touch what an earlier one left in the folder.
    goes_on = shared is not None
    sink = comm.agree(lambda: _open(resolved, command, comm, folder, scenario, progress, resumed, goes_on=goes_on))
    if shared:
        regroup.report(shared, losses, comm)
    reconstructs = scenario.target_shape is not None
    tasks = len(scenario.tasks)
    results = Results(folder, options.run_name, sink, tasks, reconstructs=reconstructs) if folder else None
    steps, seconds = options.checkpoint_steps_and_seconds
    try:
        with _closed_at_the_end(sink, comm):
            checkpointer = Checkpointer(
                _run_path(options) / "checkpoints",
                strategy,
                buffer,
                comm,
                every=Every(steps, seconds),
                keep=options.keep_checkpoints,
                stop=stop,
                resumed=resumed,
            )
            go = loop.evaluate_again if options.eval_only else loop.run
            progress = go(sink, results.after_task if results else lambda _: None, checkpointer)
            # Added up by all ranks, as those that are through close their buffers.
            stored = sum(comm.allgather_object(0 if buffer is None else len(buffer), name="stored"))
            trace = comm.allgather_object(trace_of(spans, buffer), name="trace") if options.trace else []
    except (StoppedError, SharedUserError):
        if buffer is not None:
            buffer.close()
        raise
    except (PeerLost, RanksChanged):
        if not comm.elastic:
            raise
        checkpointer.abandon()
        return regroup.carry(loop.progress, loop.updates, strategy, buffer, comm)
    if results:
        summary = summarise(
            progress,
            spans,
            buffer,
            stored,
            comm,
            strategy=options.model,
            seed=options.seed,
            reconstructs=reconstructs,
        )
        results.finish(progress, summary, timeline_of(spans, buffer), trace)
    if buffer is not None:
        buffer.close()
    return None


# ---- from names to objects, in the order in which `train` needs them


def resolve(arguments: Sequence[str]) -> "Resolved[Options]":
    """Read and check the options of a command line, without beginning anything; UserError at the first mistake."""
    from reprise import backbone
    from reprise.train import options

    resolved = options.parse(arguments, _names())
    _check_strategy(resolved.options)
    backbone.check(resolved.options.backbone, _free_keys(resolved.options))
    return resolved


def _names() -> dict[str, list[str]]:
    """The names that options can choose from, where ours are all there are; backbones may be timm's."""
    from reprise.cl_models import STRATEGIES
    from reprise.scenarios import DATASETS

    return {"model": STRATEGIES.names(), "dataset": DATASETS.names()}


def _check_strategy(options: "Options") -> None:
    """Refuse what the strategy cannot work with."""
    from reprise.cl_models import STRATEGIES

    strategy = STRATEGIES.get(options.model)
    if strategy.stores_outputs and options.buffer_config.store == "raw":
        raise UserError(
            f"buffer_config store=raw: {options.model} stores outputs, which belong to the view that made them; "
            "leave it out, or use store=augmented"
        )
    if strategy.tunes:
        _check_tuning(options)
    if strategy.changes_gradients and options.use_adasum:
        raise UserError(
            f"use_adasum does not go with model {options.model}: Adasum combines updates, and there are no averaged "
            "gradients to project; leave it out"
        )


def _check_tuning(options: "Options") -> None:
    """Refuse what strategies that tune modules cannot work with."""
    if options.tasksets_config.task_free:
        raise UserError(f"tasksets_config task_free: {options.model} trains modules task by task; leave it out")
    if options.buffer_config.store == "augmented" or options.buffer_config.insertion == "task":
        raise UserError(
            f"buffer_config: {options.model} stores raw samples in every step; leave store and insertion out"
        )
    for key in ("use_adasum", "fp16_allreduce", "compile"):
        if getattr(options, key):
            raise UserError(
                f"{key} does not go with {options.model}, which reduces its own few gradients; leave it out"
            )


def _start(options: "Options") -> "Communicator":
    """Start the communication between the processes."""
    from reprise.runtime import allocator, dist, log

    allocator.keep_freed_memory()
    if options.no_cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything, Horovod and NCCL included, looks for a GPU
    timeout = options.timeout
    if options.download and timeout is None:
        timeout = DOWNLOAD_S  # the other ranks wait in a collective while rank 0 downloads
    comm = dist.init(deterministic=options.buffer_config.deterministic, timeout=timeout)
    log.setup(options.log_level, comm.rank)
    return comm


def _fingerprint(options: "Options") -> dict[str, Any]:
    """What a checkpoint and the run that resumes it must have in common, as JSON would give it back."""
    from reprise import backbone
    from reprise.train.peft_options import ANSWERING

    phases = options.optimizer_regime or backbone.default_regime(options.backbone, 1, _free_keys(options))
    return {
        "dataset": options.dataset,
        "tasksets_config": options.tasksets_config.model_dump(mode="json", exclude={"epochs"}),
        "transform_config": options.transform_config.model_dump(mode="json"),
        "backbone": options.backbone,
        "backbone_config": _free_keys(options),
        "model": options.model,
        "model_config": options.strategy_config.model_dump(mode="json"),
        "peft_config": options.peft_config.model_dump(mode="json", exclude={*ANSWERING, "selector"}),
        "optimizer": phases[0].get("optimizer"),
        "training_only": options.training_only,
        "seed": options.seed,
    }


def _resumed(options: "Options", comm: "Communicator") -> "Checkpoint | None":
    """The checkpoint to go on from; None: begin. Collective."""
    from reprise.train import checkpoint

    if options.load_checkpoint:
        found = checkpoint.choose(options.load_checkpoint, _fingerprint(options), comm, falls_back=False)
        if found is None:
            raise SharedUserError(
                f"no checkpoint in '{options.load_checkpoint}': expected {checkpoint.MANIFEST} there or in its "
                "checkpoints/; check the path"
            )
        return found
    if options.resume:
        return checkpoint.choose(_run_path(options), _fingerprint(options), comm, falls_back=True)
    return None


def _run_path(options: "Options") -> Path:
    return Path(options.results_dir) / options.run_name


def _device(options: "Options", comm: "Communicator") -> "torch.device":
    import torch

    if options.buffer_config.deterministic:
        torch.use_deterministic_algorithms(True)
        # Filling fresh memory would touch every page of the rehearsal buffer.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        return torch.device("cuda", comm.local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def _scenario(options: "Options", comm: "Communicator") -> "Scenario":
    """The tasks. A download is rank 0's alone; the others read what it left."""
    from reprise import scenarios

    tasksets = options.tasksets_config
    sequence = tasksets.datasets or []
    if sequence and sequence[0] != options.dataset:
        raise SharedUserError(
            f"tasksets_config datasets begins with '{sequence[0]}', and --dataset is '{options.dataset}'; "
            "let both name the first data set"
        )

    def build(download: bool) -> "Scenario":
        return scenarios.build(
            options.dataset,
            options.dataset_dir,
            scenario=tasksets.scenario,
            initial_increment=tasksets.initial_increment,
            increment=tasksets.increment,
            last_smaller=tasksets.last_smaller,
            num_tasks=tasksets.num_tasks,
            domain=tasksets.domain,
            domain_seed=tasksets.domain_seed,
            datasets=sequence,
            task_free=tasksets.task_free,
            concatenate_tasksets=tasksets.concatenate_tasksets,
            class_order_seed=tasksets.class_order_seed,
            class_order=tasksets.class_order or (),
            **options.transform_config.model_dump(),
            download=download,
            given=tasksets.splits,
        )

    if options.download:
        comm.agree(lambda: build(True) if comm.rank == 0 else None)
    return comm.agree(lambda: build(False))


def _fetch_weights(options: "Options") -> None:
    from reprise import backbone

    backbone.fetch(options.backbone, _free_keys(options))


def _network(options: "Options", scenario: "Scenario") -> "nn.Module":
    import torch

    from reprise import backbone
    from reprise.runtime import seeds

    torch.manual_seed(seeds.derive(options.seed, "initial weights"))  # the same weights on every rank
    return backbone.build(
        options.backbone,
        num_classes=scenario.num_classes,
        sample_shape=scenario.input_shape,
        config=_free_keys(options),
        target_shape=scenario.target_shape,
    )


def _compile(network: "nn.Module", device: "torch.device") -> None:
    """Have torch compile the network when it is first used."""
    import torch

    try:
        # Whether it can is known only by trying: torch needs a compiler of the machine's, and looks for it then.
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        remedy = "install g++ or name another C++ compiler in CXX, or leave --compile out"
        raise UserError(f"--compile: torch cannot compile here ({reason}); {remedy}") from error
    # Not network.compile(), which passes silently over a network that is a mere nn.Sequential.
    network.forward = torch.compile(network.forward)


def _regimes(options: "Options", scenario: "Scenario", comm: "Communicator") -> list["Regime"]:
    """One optimiser regime per task: milestones and warm-up count in that task's own epochs."""
    from reprise import backbone
    from reprise.train.regime import Regime

    lr = options.backbone_config.lr or options.lr or backbone.default_lr(options.backbone)
    overrides = {
        key: value
        for key, value in (("momentum", options.momentum), ("weight_decay", options.weight_decay))
        if value is not None
    }
    regimes = []
    for task in scenario.tasks:
        epochs = options.epochs_of(task.index)
        phases = options.optimizer_regime or backbone.default_regime(options.backbone, epochs, _free_keys(options))
        regimes.append(
            Regime(
                [{**phase, **overrides} for phase in phases],
                lr=lr,
                batches_per_step=options.batches_per_allreduce * comm.size,
                samples_per_step=options.batch_size * options.batches_per_allreduce * comm.size,
                warmup_epochs=options.warmup_epochs_of(task.index),
                epochs=epochs,
            )
        )
    return regimes


def _buffer(
    options: "Options",
    scenario: "Scenario",
    device: "torch.device",
    comm: "Communicator",
    resumed: "Checkpoint | None",
) -> "RehearsalBuffer | None":
    """The rehearsal buffer where the strategy uses one; that of the checkpoint when there is one."""
    from reprise.buffer import RehearsalBuffer
    from reprise.cl_models import STRATEGIES
    from reprise.train import checkpoint

    strategy = STRATEGIES.get(options.model)
    config = options.buffer_config
    if not strategy.draws or (strategy.tunes and not config.given):
        return None
    if not scenario.boundaries:
        for key in ("augmentations_offset", "soft_augmentations_offset", "insertion"):
            value = getattr(config, key)
            if value != type(config).model_fields[key].default:
                raise SharedUserError(f"buffer_config {key} {value}: a task-free stream tells no tasks; leave it out")
    capacity = config.capacity
    if capacity is None:
        assert config.rehearsal_ratio is not None, "one of the two always has a value"
        capacity = int(scenario.total_train_samples() * config.rehearsal_ratio / 100)
    arguments: dict[str, Any] = {
        "fields": _stored_fields(options, scenario),
        "capacity": capacity,
        "draws": tuple(_draw_size(options, kind) for kind in strategy.draws),
        "candidates": config.num_candidates if config.insertion == "step" else None,
        "policy": config.policy,
        "scope": config.scope,
        "implementation": config.implementation,
        "seed": options.seed,
        "deterministic": config.deterministic,
        "device": device,
        "dist": comm,
        "storage": config.storage,
        "threads": config.threads,
        "transport": config.transport,
        "interface": config.interface,
    }
    if resumed:
        return RehearsalBuffer.restore(resumed.folder / checkpoint.BUFFER, **arguments)
    if config.scope == "global":
        return RehearsalBuffer(**arguments)
    return comm.agree(lambda: RehearsalBuffer(**arguments))


def _draw_size(options: "Options", kind: str) -> int:
    from reprise.cl_models.base import DISTILLATION

    config = options.buffer_config
    if kind == DISTILLATION and config.num_representatives_distillation is not None:
        return config.num_representatives_distillation
    return config.num_representatives


def _stored_fields(options: "Options", scenario: "Scenario") -> dict[str, "Field"]:
    """What is stored of a sample besides its label, see cl_models/rehearsal.py."""
    import torch

    from reprise.buffer import Field
    from reprise.cl_models import STRATEGIES

    config, fields = options.buffer_config, {}
    stored = _stored(options, scenario)
    view = scenario.transform.view(torch.zeros((1, *scenario.sample_shape), dtype=scenario.sample_dtype))[0]
    if stored == "raw":
        if config.dtype is not None and getattr(torch, config.dtype) != scenario.sample_dtype:
            own = str(scenario.sample_dtype).removeprefix("torch.")
            raise SharedUserError(
                f"buffer_config dtype {config.dtype}: raw samples are {own}; leave it out or use store=augmented"
            )
        fields["x"] = Field(scenario.sample_shape, scenario.sample_dtype)
    elif stored == "views":
        fields["x"] = Field(tuple(view.shape), scenario.sample_dtype)
    else:
        if config.dtype == "uint8":
            raise SharedUserError("buffer_config dtype uint8 cannot hold network inputs; leave it out")
        fields["x"] = Field(tuple(view.shape), getattr(torch, config.dtype or ""))
    if scenario.target_shape is not None:
        fields["target"] = Field(scenario.target_shape, torch.float32)
    if STRATEGIES.get(options.model).stores_outputs:
        outputs = scenario.target_shape or (scenario.num_classes,)
        fields["logits"] = Field(outputs, getattr(torch, config.logits_dtype))
    return fields


def _stored(options: "Options", scenario: "Scenario") -> "Stored":
    """The form of a sample in the buffer, see cl_models/base.py."""
    import torch

    from reprise.cl_models import STRATEGIES

    config = options.buffer_config
    if (config.store or ("augmented" if STRATEGIES.get(options.model).stores_outputs else "raw")) == "raw":
        return "raw"
    return "views" if config.dtype is None or getattr(torch, config.dtype) == scenario.sample_dtype else "inputs"


def _composition(buffer: "RehearsalBuffer", comm: "Communicator") -> dict[int, int]:
    """Label -> number of samples stored on all ranks. Collective."""
    buffer.drain()
    total: Counter[int] = Counter()
    for own in comm.allgather_object(buffer.class_counts(), name="composition"):
        total.update(own)
    return dict(sorted(total.items()))


def _strategy(
    options: "Options",
    scenario: "Scenario",
    network: "nn.Module",
    model: "nn.Module",
    optimizer: "torch.optim.Optimizer",
    buffer: "RehearsalBuffer | None",
    device: "torch.device",
    comm: "Communicator",
    spans: "Spans",
    selector: dict[str, Any] | None,
) -> "ContinualModel":
    from reprise import backbone
    from reprise.cl_models import STRATEGIES, Parts
    from reprise.cl_models.base import DISTILLATION, REPLAY
    from reprise.runtime import seeds
    from reprise.train.grouped_gradients import GroupedGradients
    from reprise.train.stepper import Stepper

    config, tunes = options.buffer_config, STRATEGIES.get(options.model).tunes
    stepper = Stepper(
        model,
        optimizer,
        GroupedGradients(comm) if tunes else comm,
        device=device,
        span=spans.span,
        passes=options.batches_per_allreduce,
        half=_half(options, device),
        channels_last=options.channels_last,
        max_norm=options.clip_grad,
    )
    parts = Parts(
        device=device,
        network=network,
        stepper=stepper,
        loss=backbone.loss(options.backbone),
        augment=scenario.transform.augment,
        view=scenario.transform.view,
        normalise=scenario.transform.normalise,
        augment_rng=seeds.torch_generator(options.seed, "augment", comm.rank),
        buffer=buffer,
        options=options.strategy_config.model_dump(),
        span=spans.span,
        stored=_stored(options, scenario),
        first_task={REPLAY: config.augmentations_offset, DISTILLATION: config.soft_augmentations_offset},
        insertion=config.insertion,
        tuning=_tuning(options, scenario, network, comm, selector) if tunes else None,
    )
    return comm.agree(lambda: STRATEGIES.get(options.model)(parts))


def _tuning(
    options: "Options",
    scenario: "Scenario",
    network: "nn.Module",
    comm: "Communicator",
    selector: dict[str, Any] | None,
) -> "Tuning":
    from reprise import backbone
    from reprise.cl_models.base import Tuning

    # Frozen weights never travel: ranks that have read different ones are found out here.
    found = comm.allgather_object(backbone.fingerprint(network), name="backbone")
    for rank, other in enumerate(found):
        if other != found[0]:
            raise SharedUserError(
                f"rank {rank} has other frozen weights than rank 0; give all nodes the same file of pre-trained weights"
            )
    return Tuning(options.peft_config.model_dump(), comm, scenario.num_classes, options.seed, found[0], selector)


def _selector(options: "Options", scenario: "Scenario", comm: "Communicator") -> dict[str, Any] | None:
    """The state of the run that --peft-config names, where the strategy needs one. Collective."""
    from reprise.cl_models import STRATEGIES
    from reprise.train import selector

    if not STRATEGIES.get(options.model).needs_selector:
        return None
    shared = ("dataset", "tasksets_config", "transform_config", "backbone", "backbone_config")
    wanted = {key: value for key, value in _fingerprint(options).items() if key in shared}
    return selector.load(options.peft_config.selector, options.model, wanted, len(scenario.tasks), comm)


def _half(options: "Options", device: "torch.device") -> "torch.dtype | None":
    """The type of mixed precision; None for none."""
    import torch

    if not options.use_amp:
        return None
    named = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    return named.get(options.amp_dtype, torch.float16 if device.type == "cuda" else torch.bfloat16)


def _open(
    resolved: "Resolved[Options]",
    command: list[str],
    comm: "Communicator",
    folder: "RunFolder | None",
    scenario: "Scenario",
    progress: "Progress",
    resumed: "Checkpoint | None",
    *,
    goes_on: bool,
) -> "SinkList":
    """Start writing into the run's folder; returns where metrics go. Nothing on ranks without a folder.

    goes_on: this very run, on other ranks than before.
    """
    from reprise.report import environment, sinks
    from reprise.runtime import log
    from reprise.train import checkpoint

    if folder is None:
        return sinks.SinkList([], progress.rows)
    options, rows, later = resolved.options, 0, []
    if resumed:
        goes_on = options.resume or folder.path.resolve() in resumed.folder.resolve().parents
        source = resumed.folder.resolve()
        later = list(itertools.takewhile(lambda other: other.resolve() != source, checkpoint.find(folder.path)))
    if goes_on:
        rows = folder.go_on_from(progress.rows, later)
    else:
        folder.start_over()
    log.setup(options.log_level, comm.rank, folder.log)
    for warning in resolved.warnings:
        logger.warning("%s", warning)
    for warning in _unused(options):
        logger.warning("%s", warning)
    logger.info("%d rank(s), started by %s: %s over %s", comm.size, comm.launcher, comm.name, comm.backend)
    if resumed:
        logger.info("resumed from %s: %d task(s), %d steps done", resumed.folder, progress.tasks_done, progress.steps)
    if goes_on and rows < progress.rows:
        logger.warning("%d of %d rows of metrics have not outlived the last end", progress.rows - rows, progress.rows)
    if options.resume and not resumed and not goes_on:
        logger.info("nothing to resume in %s: beginning", folder.checkpoints)
    folder.write_start(resolved.to_yaml(), command, environment.describe(comm.size, comm.launcher))
    folder.write_class_order(
        {
            "dataset": options.dataset,
            "seed": options.tasksets_config.class_order_seed,
            "order": scenario.class_order,
            "tasks": [scenario.classes_of(task) for task in scenario.tasks],
        }
    )
    chosen: list[sinks.Sink] = [sinks.CsvSink(folder.metrics_csv), sinks.JsonlSink(folder.metrics_jsonl)]
    if options.tensorboard:
        chosen.append(sinks.TensorBoardSink(folder.tensorboard, progress.steps if goes_on else None))
    if options.wandb_project:
        config = options.model_dump(mode="json") | {"environment": environment.describe(comm.size, comm.launcher)}
        chosen.append(sinks.WandbSink(options.wandb_project, options.run_name, config, folder.path, rows))
    return sinks.SinkList(chosen, rows)


@contextmanager
def _closed_at_the_end(sink: "SinkList", comm: "Communicator") -> Iterator[None]:
    """What a full disk has refused of the metrics is every rank's error, but never hides why a run ends early."""
    try:
        yield
    except BaseException:
        try:
            sink.close()
        except UserError as error:
            logger.error("%s", error)
        raise
    comm.agree(sink.close)


def _unused(options: "Options") -> list[str]:
    """What was asked for and has no effect in this run, one line each."""
    from reprise.cl_models import STRATEGIES
    from reprise.cl_models.base import DISTILLATION, REPLAY

    strategy = STRATEGIES.get(options.model)
    lines = []
    if options.buffer_config.given and not strategy.draws:
        lines.append(f"--buffer-config has no effect: {options.model} uses no rehearsal buffer")
    if options.peft_config.given and not strategy.tunes:
        lines.append(f"--peft-config has no effect: {options.model} tunes no modules")
    if "threads" in options.buffer_config.given and options.buffer_config.implementation == "python":
        lines.append("buffer_config threads has no effect with implementation python")
    of_a_kind = {
        "augmentations_offset": REPLAY in strategy.draws,
        "soft_augmentations_offset": DISTILLATION in strategy.draws,
        "num_representatives_distillation": DISTILLATION in strategy.draws,
        "logits_dtype": strategy.stores_outputs,
    }
    for key, has_effect in of_a_kind.items():
        if key in options.buffer_config.given and strategy.draws and not has_effect:
            lines.append(f"buffer_config {key} has no effect with {options.model}")
    for key in options.strategy_config.given:
        if key not in strategy.hyperparameters:
            lines.append(f"model_config {key} has no effect with {options.model}")
    if options.strategy_config.joint_mean and "beta" in options.strategy_config.given:
        lines.append("model_config beta has no effect with joint_mean: new and replayed samples share one mean")
    if options.lr and any("lr" in phase for phase in options.optimizer_regime or ()):
        lines.append("--lr has no effect: the phases of --optimizer-regime set the learning rate themselves")
    return lines


def _settings(options: "Options", scenario: "Scenario", device: "torch.device") -> "Settings":
    from reprise.train.loop import Settings

    return Settings(
        epochs=tuple(options.epochs_of(task.index) for task in scenario.tasks),
        batch_size=options.batch_size * options.batches_per_allreduce,
        eval_batch_size=options.eval_batch_size or options.batch_size,
        seed=options.seed,
        log_interval=options.log_interval,
        loader_workers=options.dataloader_workers,
        evaluates=not options.training_only,
        device=device,
    )


def _free_keys(options: "Options") -> dict[str, Any]:
    """The keys of --backbone-config that the backbone itself understands."""
    return options.backbone_config.model_dump(exclude={"lr"}, exclude_none=True)


def _complain(error: Exception, speaks: bool, code: int = USER_MISTAKE) -> int:
    if speaks:
        sys.stderr.write(f"reprise: error: {' '.join(str(error).split())}\n")
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
