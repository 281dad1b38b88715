"""Reprise's command line: read the options, build the parts, train, report. `python main.py --help` lists the options.

Works alone and under horovodrun, mpirun, srun and torchrun. The training step is in train/loop.py (the loop),
cl_models/<strategy>.py (what is trained on) and train/stepper.py (the update); train/parts.py makes objects of the
options' names. Imports stand in the functions that need them, because --help and mistakes must be answered at once.

Exit codes: 0 done; 2 a mistake in the options or files, one line says which; 3 another rank was lost; 75 a collective
took longer than --timeout; 85 stopped by SIGTERM or SIGUSR1 with everything saved: start again with --resume.
"""

import itertools
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from reprise.runtime.errors import PeerLost, RanksChanged, SharedUserError, UserError
except ModuleNotFoundError as error:  # the wrong Python: the first mistake everybody makes
    remedy = "run 'make setup' and use .venv/bin/python, or 'pip install -e .' into this Python"
    sys.stderr.write(f"reprise: error: {error} in {sys.executable}; {remedy}\n")
    raise SystemExit(2) from None

if TYPE_CHECKING:
    from reprise.report.run_folder import RunFolder
    from reprise.report.sinks import SinkList
    from reprise.runtime.config import Resolved
    from reprise.runtime.dist import Communicator
    from reprise.runtime.stop import StopRequest
    from reprise.scenarios import Scenario
    from reprise.train.checkpoint import Checkpoint, Progress
    from reprise.train.options import Options
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
    from reprise.train import checkpoint, parts, regroup
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

    device = parts.choose_device(options, comm)
    scenario = parts.read_scenario(options, comm)
    if options.download:
        comm.agree(lambda: parts.fetch_weights(options) if comm.rank == 0 else None)
    network = comm.agree(lambda: parts.make_network(options, scenario)).to(device)
    if comm.rank == 0:
        parts.compare_inputs(options, scenario)
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does take it
    if options.compile:
        comm.agree(lambda: parts.compile_network(network, device))
    tunes = STRATEGIES.get(options.model).tunes
    selector = parts.read_selector(options, scenario, comm) if tunes else None
    regimes = comm.agree(lambda: parts.make_regimes(options, scenario, comm))
    seeds.seed_everything(options.seed, comm.rank)
    buffer = parts.make_buffer(options, scenario, device, comm, resumed)
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
    strategy = parts.make_strategy(options, scenario, network, model, optimizer, buffer, device, comm, spans, selector)
    means, progress = {}, Progress(parts.fingerprint(options))
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
        parts.make_settings(options, scenario, device),
        optimizer=optimizer,
        regime_for=regimes.__getitem__,
        spans=spans,
        progress=progress,
        means=means,
        composition=None if buffer is None else lambda: parts.composition(buffer, comm),
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
    backbone.check(resolved.options.backbone, resolved.options.backbone_config.own)
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
    if options.tasksets_config.concatenate_tasksets:
        raise UserError(
            f"tasksets_config concatenate_tasksets: {options.model} trains a task's classes alone; leave it out"
        )
    if options.buffer_config.store == "augmented" or options.buffer_config.insertion == "task":
        raise UserError(
            f"buffer_config: {options.model} stores raw samples in every step; leave store and insertion out"
        )
    unfit = {
        "use_adasum": options.use_adasum,
        "fp16_allreduce": options.fp16_allreduce,
        "gradient_predivide_factor": options.gradient_predivide_factor != 1,
        "compile": options.compile,
    }
    for key, chosen in unfit.items():
        if chosen:
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


def _resumed(options: "Options", comm: "Communicator") -> "Checkpoint | None":
    """The checkpoint to go on from; None: begin. Collective."""
    from reprise.train import checkpoint, parts

    if options.load_checkpoint:
        found = checkpoint.choose(options.load_checkpoint, parts.fingerprint(options), comm, falls_back=False)
        if found is None:
            raise SharedUserError(
                f"no checkpoint in '{options.load_checkpoint}': expected {checkpoint.MANIFEST} there or in its "
                "checkpoints/; check the path"
            )
        return found
    if options.resume:
        return checkpoint.choose(_run_path(options), parts.fingerprint(options), comm, falls_back=True)
    return None


def _run_path(options: "Options") -> Path:
    return Path(options.results_dir) / options.run_name


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


def _complain(error: Exception, speaks: bool, code: int = USER_MISTAKE) -> int:
    if speaks:
        sys.stderr.write(f"reprise: error: {' '.join(str(error).split())}\n")
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
