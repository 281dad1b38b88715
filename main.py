"""Reprise's command line: read the options, build the parts, train, report. `python main.py --help` lists the options.

Works alone and under horovodrun, mpirun, srun and torchrun. The training step is in train/loop.py (the loop),
cl_models/<strategy>.py (what is trained on) and train/stepper.py (the update). This is the one place where names become
objects; imports stand in the functions that need them, because --help and mistakes must be answered at once.

Exit codes: 0 done; 2 a mistake in the options or files, one line says which; 3 another rank was lost; 75 a collective
took longer than --timeout.
"""

import itertools
import logging
import sys
import traceback
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprise.runtime.errors import PeerLost, SharedUserError, UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from reprise.buffer import Field, RehearsalBuffer
    from reprise.cl_models import ContinualModel
    from reprise.report.run_folder import RunFolder
    from reprise.report.sinks import SinkList
    from reprise.runtime.config import Resolved
    from reprise.runtime.dist import Communicator
    from reprise.runtime.spans import Spans
    from reprise.scenarios import Scenario
    from reprise.train.loop import Settings
    from reprise.train.options import Options
    from reprise.train.regime import Regime

logger = logging.getLogger(__name__)

BUG, USER_MISTAKE, PEER_LOST, INTERRUPTED = 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. When other ranks may be waiting, the process ends here instead."""
    from reprise.runtime.dist import launcher
    from reprise.train import options

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        resolved = options.parse(arguments)
        if resolved.print_config:
            if launcher.detect().rank == 0:
                print(resolved.describe())
            return 0
        comm = _start(resolved.options)
    except UserError as error:
        _complain(error, launcher.detect().rank == 0)
        return USER_MISTAKE

    try:
        train(resolved, comm, ["main.py", *arguments])
    except SharedUserError as error:
        _complain(error, comm.rank == 0)
        comm.shutdown()
        return USER_MISTAKE
    except UserError as error:
        code = _complain(error, True, USER_MISTAKE)
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


def train(resolved: "Resolved[Options]", comm: "Communicator", command: list[str]) -> None:
    """Build the parts of a run, train, and write its results. Collective."""
    from reprise.report import environment
    from reprise.runtime import log, seeds
    from reprise.runtime.spans import Spans
    from reprise.train import checkpoint
    from reprise.train.loop import Loop
    from reprise.train.results import Results, summarise

    options, spans, made_with = resolved.options, Spans(), _fingerprint(resolved.options)
    source = comm.agree(lambda: checkpoint.find(options.load_checkpoint) if options.load_checkpoint else None)
    resumed = comm.agree(lambda: checkpoint.read(source, made_with) if source else None)
    folder = comm.agree(lambda: _run_folder(options, source) if comm.rank == 0 else None)
    log.setup(options.log_level, comm.rank, folder.log if folder else None)
    for warning in resolved.warnings if comm.rank == 0 else ():
        logger.warning("%s", warning)
    logger.info("%d rank(s), started by %s: %s over %s", comm.size, comm.launcher, comm.name, comm.backend)

    device = _device(options, comm)
    scenario = _scenario(options, comm)
    network = comm.agree(lambda: _network(options, scenario)).to(device)
    regimes = comm.agree(lambda: _regimes(options, scenario, comm))
    seeds.seed_everything(options.seed, comm.rank)
    buffer = _buffer(options, scenario, device, comm, source)
    model, optimizer = comm.data_parallel(
        network,
        regimes[0].build_optimizer(network.parameters()),
        compression="fp16" if options.fp16_allreduce else "none",
        op="adasum" if options.use_adasum else "average",
        gradient_predivide_factor=options.gradient_predivide_factor,
        backward_passes_per_step=options.batches_per_allreduce,
    )
    strategy = _strategy(options, scenario, network, model, optimizer, buffer, device, comm, spans)
    if source and resumed:
        checkpoint.load(source, strategy, comm)
        logger.info("resumed from %s: %d task(s) done", source, resumed.tasks_done)

    results = Results(folder, options.run_name) if folder else None
    sink = comm.agree(lambda: _sinks(resolved, folder))
    if folder:
        folder.write_start(resolved.to_yaml(), command, environment.describe(comm.size, comm.launcher))
    loop = Loop(
        strategy,
        scenario,
        comm,
        _settings(options, scenario, device, made_with),
        optimizer=optimizer,
        regime_for=regimes.__getitem__,
        buffer=buffer,
        sink=sink,
        spans=spans,
        on_evaluation=results.after_task if results else lambda progress: None,
    )
    with closing(sink):
        progress = loop.run(resumed)
    stored = buffer.global_size if buffer else 0
    if results:
        summary = summarise(progress, spans, buffer, stored, comm, strategy=options.model, seed=options.seed)
        results.finish(progress, summary, spans)
    if buffer:
        buffer.close()


# ---- from names to objects, in the order in which `train` needs them


def _start(options: "Options") -> "Communicator":
    """Check the names that need no data, then start the communication between the processes."""
    from reprise.backbone import BACKBONES
    from reprise.cl_models import STRATEGIES
    from reprise.runtime import dist, log
    from reprise.scenarios import DATASETS

    BACKBONES.get(options.backbone)
    STRATEGIES.get(options.model)
    DATASETS.get(options.dataset)
    comm = dist.init(deterministic=options.buffer_config.deterministic, timeout=options.timeout)
    log.setup(options.log_level, comm.rank)
    return comm


def _fingerprint(options: "Options") -> dict[str, Any]:
    """What a checkpoint and the run that resumes it must have in common, as JSON would give it back."""
    return {
        "dataset": options.dataset,
        "tasksets_config": options.tasksets_config.model_dump(mode="json", exclude={"epochs"}),
        "backbone": options.backbone,
        "model": options.model,
        "seed": options.seed,
    }


def _run_folder(options: "Options", source: Path | None) -> "RunFolder":
    from reprise.report.run_folder import RunFolder

    path = Path(options.results_dir) / options.run_name
    resume = source is not None and path.resolve() in source.resolve().parents
    folder = RunFolder(path, resume=resume)
    if folder.checkpoints.exists() and not resume:
        # Another run's: kept, but where --load-checkpoint of this folder does not take them for this run's.
        number = next(n for n in itertools.count(1) if not (path / f"checkpoints.old-{n}").exists())
        folder.checkpoints.rename(path / f"checkpoints.old-{number}")
    return folder


def _device(options: "Options", comm: "Communicator") -> "torch.device":
    import torch

    if options.buffer_config.deterministic:
        torch.use_deterministic_algorithms(True)
        # Filling fresh memory would touch every page of the rehearsal buffer.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.cuda.is_available() and not options.no_cuda:
        return torch.device("cuda", comm.local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def _scenario(options: "Options", comm: "Communicator") -> "Scenario":
    """The tasks. A download is rank 0's alone; the others read what it left."""
    from reprise import scenarios

    tasksets = options.tasksets_config

    def build(download: bool) -> "Scenario":
        return scenarios.build(
            options.dataset,
            options.dataset_dir,
            scenario=tasksets.scenario,
            initial_increment=tasksets.initial_increment,
            increment=tasksets.increment,
            num_tasks=tasksets.num_tasks,
            concatenate_tasksets=tasksets.concatenate_tasksets,
            class_order_seed=tasksets.class_order_seed,
            download=download,
            given=tasksets.splits,
        )

    if options.download:
        comm.agree(lambda: build(True) if comm.rank == 0 else None)
    return comm.agree(lambda: build(False))


def _network(options: "Options", scenario: "Scenario") -> "nn.Module":
    import torch

    from reprise import backbone
    from reprise.runtime import seeds

    torch.manual_seed(seeds.derive(options.seed, "initial weights"))  # the same weights on every rank
    return backbone.build(
        options.backbone,
        num_classes=scenario.num_classes,
        sample_shape=scenario.sample_shape,
        config=_free_keys(options),
    )


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
                scale=min(options.batches_per_allreduce * comm.size, 64),
                warmup_epochs=options.warmup_epochs_of(task.index),
                epochs=epochs,
            )
        )
    return regimes


def _buffer(
    options: "Options", scenario: "Scenario", device: "torch.device", comm: "Communicator", source: Path | None
) -> "RehearsalBuffer | None":
    """The rehearsal buffer where the strategy uses one; from the checkpoint `source` when there is one."""
    from reprise.buffer import RehearsalBuffer
    from reprise.cl_models import STRATEGIES

    if not STRATEGIES.get(options.model).uses_buffer:
        return None
    config = options.buffer_config
    capacity = config.capacity
    if capacity is None:
        assert config.rehearsal_ratio is not None, "one of the two always has a value"
        capacity = int(scenario.total_train_samples() * config.rehearsal_ratio / 100)
    arguments: dict[str, Any] = {
        "fields": {"x": _stored_field(options, scenario)},
        "capacity": capacity,
        "draws": (config.num_representatives,),
        "candidates": config.num_candidates,
        "policy": config.policy,
        "scope": config.scope,
        "implementation": config.implementation,
        "seed": options.seed,
        "deterministic": config.deterministic,
        "device": device,
        "dist": comm,
    }
    if source:
        return RehearsalBuffer.restore(source / "buffer", **arguments)
    return comm.agree(lambda: RehearsalBuffer(**arguments))


def _stored_field(options: "Options", scenario: "Scenario") -> "Field":
    """How a sample is stored: raw as the data set has it, or as the network saw it, in the type asked for."""
    import torch

    from reprise.buffer import Field

    name = options.buffer_config.dtype
    if options.buffer_config.store == "augmented":
        if name == "uint8":
            raise SharedUserError("buffer_config dtype uint8 cannot hold augmented samples; use float16 or store=raw")
        sample = torch.zeros((1, *scenario.sample_shape), dtype=scenario.sample_dtype)
        shape = scenario.train_transform(sample, torch.Generator()).shape[1:]
        return Field(tuple(shape), getattr(torch, name or "float32"))
    if name is not None and getattr(torch, name) != scenario.sample_dtype:
        own = str(scenario.sample_dtype).removeprefix("torch.")
        raise SharedUserError(f"buffer_config dtype {name}: raw samples are {own}; leave it out or use store=augmented")
    return Field(scenario.sample_shape, scenario.sample_dtype)


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
) -> "ContinualModel":
    import torch

    from reprise.cl_models import STRATEGIES, Parts
    from reprise.runtime import seeds
    from reprise.train.stepper import Stepper

    stepper = Stepper(
        model,
        optimizer,
        comm,
        device=device,
        span=spans.span,
        passes=options.batches_per_allreduce,
        use_amp=options.use_amp,
    )
    parts = Parts(
        network=network,
        stepper=stepper,
        loss=torch.nn.CrossEntropyLoss(reduction="none"),
        train_transform=scenario.train_transform,
        eval_transform=scenario.eval_transform,
        augment_rng=seeds.torch_generator(options.seed, "augment", comm.rank),
        buffer=buffer,
        options=options.strategy_config.model_dump(),
        span=spans.span,
        stored_augmented=options.buffer_config.store == "augmented",
        replay_from_task=options.buffer_config.augmentations_offset,
    )
    return STRATEGIES.get(options.model)(parts)


def _sinks(resolved: "Resolved[Options]", folder: "RunFolder | None") -> "SinkList":
    """Where metrics go; nowhere on ranks without a run folder."""
    from reprise.report import sinks

    options, chosen = resolved.options, list[sinks.Sink]()
    if folder:
        chosen += [sinks.CsvSink(folder.metrics_csv), sinks.JsonlSink(folder.metrics_jsonl)]
        if options.tensorboard:
            chosen.append(sinks.TensorBoardSink(folder.tensorboard))
        if options.wandb_project:
            config = options.model_dump(mode="json")
            chosen.append(sinks.WandbSink(options.wandb_project, options.run_name, config, folder.path))
    return sinks.SinkList(chosen)


def _settings(
    options: "Options", scenario: "Scenario", device: "torch.device", made_with: dict[str, Any]
) -> "Settings":
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
        checkpoints=Path(options.results_dir) / options.run_name / "checkpoints",
        fingerprint=made_with,
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
