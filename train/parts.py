"""From options to the parts of a run: device, tasks, network, regimes, rehearsal buffer, strategy.

This is the one place where names become objects. Nothing is trained here (loop.py), and what options may not say
together is main.py's and options.py's business.
"""

import logging
from collections import Counter
from typing import Any

import torch
from torch import nn

from reprise import backbone, scenarios
from reprise.buffer import Field, RehearsalBuffer
from reprise.cl_models import STRATEGIES, ContinualModel, Parts
from reprise.cl_models.base import DISTILLATION, REPLAY, Stored, Tuning
from reprise.runtime import seeds
from reprise.runtime.dist import Communicator
from reprise.runtime.errors import SharedUserError, UserError
from reprise.runtime.spans import Spans
from reprise.scenarios import Scenario
from reprise.scenarios.transform_presets import OWN
from reprise.scenarios.transforms import Normalised
from reprise.train import checkpoint, selector
from reprise.train.checkpoint import Checkpoint
from reprise.train.grouped_gradients import GroupedGradients
from reprise.train.loop import Settings
from reprise.train.options import Options
from reprise.train.peft_options import ANSWERING
from reprise.train.regime import Regime
from reprise.train.stepper import Stepper

logger = logging.getLogger(__name__)


def fingerprint(options: Options) -> dict[str, Any]:
    """What a checkpoint and the run that resumes it must have in common, as JSON would give it back."""
    phases = options.optimizer_regime or backbone.default_regime(options.backbone, 1, options.backbone_config.own)
    return {
        "dataset": options.dataset,
        "tasksets_config": options.tasksets_config.model_dump(mode="json", exclude={"epochs"}),
        "transform_config": options.transform_config.model_dump(mode="json"),
        "backbone": options.backbone,
        "backbone_config": options.backbone_config.own,
        "model": options.model,
        "model_config": options.strategy_config.model_dump(mode="json"),
        "peft_config": options.peft_config.model_dump(mode="json", exclude={*ANSWERING, "selector"}),
        "optimizer": phases[0].get("optimizer"),
        "training_only": options.training_only,
        "seed": options.seed,
    }


def choose_device(options: Options, comm: Communicator) -> torch.device:
    if options.buffer_config.deterministic:
        torch.use_deterministic_algorithms(True)
        # Filling fresh memory would touch every page of the rehearsal buffer.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        return torch.device("cuda", comm.local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def read_scenario(options: Options, comm: Communicator) -> Scenario:
    """The tasks. A download is rank 0's alone; the others read what it left."""
    tasksets = options.tasksets_config
    sequence = tasksets.datasets or []
    if sequence and sequence[0] != options.dataset:
        raise SharedUserError(
            f"tasksets_config datasets begins with '{sequence[0]}', and --dataset is '{options.dataset}'; "
            "let both name the first data set"
        )

    def build(download: bool) -> Scenario:
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


def fetch_weights(options: Options) -> None:
    backbone.fetch(options.backbone, options.backbone_config.own)


def make_network(options: Options, scenario: Scenario) -> nn.Module:
    torch.manual_seed(seeds.derive(options.seed, "initial weights"))  # the same weights on every rank
    return backbone.build(
        options.backbone,
        num_classes=scenario.num_classes,
        sample_shape=scenario.input_shape,
        config=options.backbone_config.own,
        target_shape=scenario.target_shape,
    )


def compare_inputs(options: Options, scenario: Scenario) -> None:
    """Say where a data set's own normalisation is not the one that pre-trained weights were made with."""
    config, transform = options.transform_config, scenario.transform
    if not isinstance(transform, Normalised) or (config.preset, config.normalise) != (OWN, OWN):
        return
    expected = backbone.expected_input(options.backbone, options.backbone_config.own)  # may read the weights' file
    if expected is not None and any(
        {*own} != {*wanted} for own, wanted in ((transform.mean, expected.mean), (transform.std, expected.std))
    ):
        logger.warning(
            "the weights of %s were made with images of mean %s and std %s, and those of %s are normalised by mean %s "
            "and std %s; see --transform-config normalise",
            *(options.backbone, expected.mean, expected.std, options.dataset, transform.mean, transform.std),
        )


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Have torch compile the network when it is first used."""
    try:
        # Whether it can is known only by trying: torch needs a compiler of the machine's, and looks for it then.
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        remedy = "install g++ or name another C++ compiler in CXX, or leave --compile out"
        raise UserError(f"--compile: torch cannot compile here ({reason}); {remedy}") from error
    # Not network.compile(), which passes silently over a network that is a mere nn.Sequential.
    network.forward = torch.compile(network.forward)


def make_regimes(options: Options, scenario: Scenario, comm: Communicator) -> list[Regime]:
    """One optimiser regime per task: milestones and warm-up count in that task's own epochs."""
    lr = options.backbone_config.lr or options.lr or backbone.default_lr(options.backbone)
    overrides = {
        key: value
        for key, value in (("momentum", options.momentum), ("weight_decay", options.weight_decay))
        if value is not None
    }
    regimes, own = [], options.backbone_config.own
    for task in scenario.tasks:
        epochs = options.epochs_of(task.index)
        phases = options.optimizer_regime or backbone.default_regime(options.backbone, epochs, own)
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


def make_buffer(
    options: Options,
    scenario: Scenario,
    device: torch.device,
    comm: Communicator,
    resumed: Checkpoint | None,
) -> RehearsalBuffer | None:
    """The rehearsal buffer where the strategy uses one; that of the checkpoint when there is one."""
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


def _draw_size(options: Options, kind: str) -> int:
    config = options.buffer_config
    if kind == DISTILLATION and config.num_representatives_distillation is not None:
        return config.num_representatives_distillation
    return config.num_representatives


def _stored_fields(options: Options, scenario: Scenario) -> dict[str, Field]:
    """What is stored of a sample besides its label, see cl_models/rehearsal.py."""
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


def _stored(options: Options, scenario: Scenario) -> Stored:
    """The form of a sample in the buffer, see cl_models/base.py."""
    config = options.buffer_config
    if (config.store or ("augmented" if STRATEGIES.get(options.model).stores_outputs else "raw")) == "raw":
        return "raw"
    return "views" if config.dtype is None or getattr(torch, config.dtype) == scenario.sample_dtype else "inputs"


def composition(buffer: RehearsalBuffer, comm: Communicator) -> dict[int, int]:
    """Label -> number of samples stored on all ranks. Collective."""
    buffer.drain()
    total: Counter[int] = Counter()
    for own in comm.allgather_object(buffer.class_counts(), name="composition"):
        total.update(own)
    return dict(sorted(total.items()))


def make_strategy(
    options: Options,
    scenario: Scenario,
    network: nn.Module,
    model: nn.Module,
    optimizer: "torch.optim.Optimizer",
    buffer: RehearsalBuffer | None,
    device: torch.device,
    comm: Communicator,
    spans: Spans,
    selector: dict[str, Any] | None,
) -> ContinualModel:

    config, strategy = options.buffer_config, STRATEGIES.get(options.model)
    if strategy.own_classes:
        _check_own_classes(options, scenario)
    stepper = Stepper(
        model,
        optimizer,
        GroupedGradients(comm) if strategy.tunes else comm,
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
        tuning=_tuning(options, scenario, network, comm, selector) if strategy.tunes else None,
    )
    return comm.agree(lambda: strategy(parts))


def _check_own_classes(options: Options, scenario: Scenario) -> None:
    """Refuse tasks that share classes before the first of them is trained."""
    seen: set[int] = set()
    for task in scenario.tasks:
        if seen & set(task.classes):
            raise SharedUserError(
                f"{options.model} tells tasks by their classes, and task {task.index} has some of an earlier one; use "
                "tasksets_config scenario=class, or another model"
            )
        seen |= set(task.classes)


def _tuning(
    options: Options,
    scenario: Scenario,
    network: nn.Module,
    comm: Communicator,
    selector: dict[str, Any] | None,
) -> Tuning:

    # Frozen weights never travel: ranks that have read different ones are found out here.
    found = comm.allgather_object(backbone.fingerprint(network), name="backbone")
    for rank, other in enumerate(found):
        if other != found[0]:
            raise SharedUserError(
                f"rank {rank} has other frozen weights than rank 0; give all nodes the same file of pre-trained weights"
            )
    return Tuning(options.peft_config.model_dump(), comm, scenario.num_classes, options.seed, found[0], selector)


def read_selector(options: Options, scenario: Scenario, comm: Communicator) -> dict[str, Any] | None:
    """The state of the run that --peft-config names, where the strategy needs one. Collective."""
    if not STRATEGIES.get(options.model).needs_selector:
        return None
    shared = ("dataset", "tasksets_config", "transform_config", "backbone", "backbone_config")
    wanted = {key: value for key, value in fingerprint(options).items() if key in shared}
    return selector.load(options.peft_config.selector, options.model, wanted, len(scenario.tasks), comm)


def _half(options: Options, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision; None for none."""
    if not options.use_amp:
        return None
    named = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    return named.get(options.amp_dtype, torch.float16 if device.type == "cuda" else torch.bfloat16)


def make_settings(options: Options, scenario: Scenario, device: torch.device) -> Settings:
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
