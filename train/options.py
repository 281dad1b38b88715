"""What can be set: every option of `python main.py`, its type, unit, range and default. The one source of --help,
--print-config, config.yaml's checks and the error messages; how options are read is in runtime/config*.py.

main.py calls `parse` and hands the parts of `Options` on. No torch here: --help and mistakes must answer at once.
"""

import errno
import os
import re
from collections.abc import Sequence
from importlib import metadata
from os.path import expanduser, isdir
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from reprise.runtime import config
from reprise.runtime.config import Choices, ConflictError, Section, Source
from reprise.runtime.config_flags import FlagParser, add_flags, flag_values
from reprise.runtime.config_text import read_section
from reprise.train.peft_options import PeftConfig

Count = Annotated[int, Ge(1)]
FromZero = Annotated[int, Ge(0)]
AboveZero = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Name = Annotated[str, MinLen(1)]

_EVERY = re.compile(r"(\d{1,9})\s*(s|sec|min|h)?")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

DEFAULT_RATIO = 30.0  # per cent; the reference's default
DEFAULT_WARMUP_EPOCHS = 5
DEFAULT_YAML = Path(__file__).resolve().parents[1] / "config.yaml"  # beside main.py


class BufferConfig(Section):
    """The rehearsal buffer (design section 5)."""

    example: ClassVar[str] = "{'rehearsal_ratio': 20}"
    ignored: ClassVar[tuple[str, ...]] = (
        "provider",
        "cuda_rdma",
        "discover_endpoints",
        "num_samples_per_representative",
        "num_samples_per_activation",
        "activation_shape",
    )
    rehearsal_ratio: Annotated[float, Gt(0), Le(100)] | None = Field(
        default=None,
        description="size over all ranks, per cent of the training set; 30 when there is no capacity either",
    )
    capacity: Count | None = Field(
        default=None, description="size in samples over all ranks, instead of rehearsal_ratio"
    )
    implementation: Literal["standard", "flyweight", "python"] = Field(
        default="standard",
        description="who builds the batch: the engine all of it, the engine the representatives only, plain Python",
    )
    num_representatives: FromZero = Field(default=8, description="representatives r drawn per rank and step, samples")
    num_representatives_distillation: FromZero | None = Field(
        default=None,
        description="representatives drawn with their stored outputs (Der, Derpp), samples per rank and step; none: "
        "num_representatives",
    )
    num_candidates: Count = Field(
        default=8, description="candidates c of each batch offered to the policy, samples per rank"
    )
    augmentations_offset: FromZero = Field(default=0, description="first task with replay, counted from 0")
    soft_augmentations_offset: FromZero = Field(default=0, description="first task with distillation, counted from 0")
    insertion: Literal["step", "task"] = Field(
        default="step",
        description="when samples are offered: in the step that trains on them, as published; or a task's when it "
        "has ended, so that replay is of earlier tasks alone",
    )
    policy: Literal["class_balanced", "reservoir", "fifo"] = Field(
        default="class_balanced", description="which samples a rank's share keeps"
    )
    scope: Literal["global", "local"] = Field(
        default="global", description="draw from the samples of all ranks, or of this rank"
    )
    storage: str = Field(
        default="memory", description="where a rank holds its samples: memory, or file:/path for more than fits there"
    )
    store: Literal["raw", "augmented"] | None = Field(
        default=None,
        description="keep samples as before augmentation, or as trained on; none: raw, and augmented where outputs are "
        "stored",
    )
    dtype: Literal["uint8", "float16", "bfloat16", "float32"] | None = Field(
        default=None, description="type of the stored samples; none: the data set's own"
    )
    logits_dtype: Literal["float16", "bfloat16", "float32"] = Field(
        default="float32", description="type of the stored outputs (Der, Derpp)"
    )
    deterministic: bool = Field(
        default=False, description="contents and draws depend on the seed alone, never on timing"
    )
    threads: Count = Field(default=1, description="threads that the engine may copy with, per rank")
    transport: Literal["auto", "shm", "ucx", "collectives"] = Field(
        default="auto",
        description="how samples of other ranks are read; auto: shared memory on a node, UCX between nodes, else "
        "collectives",
    )
    interface: str = Field(
        default="",
        description="network interfaces for samples of other nodes, like eth0; empty: UCX_NET_DEVICES, else all",
    )

    @field_validator("storage")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        if value != "memory" and not (value.startswith("file:") and value.removeprefix("file:").strip()):
            raise ValueError("expected memory, or file:/path with a folder or the name of a file to be made")
        return value

    @model_validator(mode="after")
    def _keys_fit_each_other(self) -> "BufferConfig":
        if self.capacity is not None and self.rehearsal_ratio is not None:
            both = f"rehearsal_ratio {self.rehearsal_ratio:g} and capacity {self.capacity}"
            raise ConflictError(f"{both} are both given; keep one of them", "rehearsal_ratio", "capacity")
        if self.insertion == "task" and "num_candidates" in self.given:
            message = (
                f"num_candidates {self.num_candidates} has no meaning with insertion 'task', which offers whole batches"
            )
            raise ConflictError(f"{message}; leave it out", "num_candidates", "insertion")
        if self.capacity is None and self.rehearsal_ratio is None:
            # Past `frozen`, and so that the ratio does not count as given.
            object.__setattr__(self, "rehearsal_ratio", DEFAULT_RATIO)
        return self


class TasksetsConfig(Section):
    """How the data set becomes a sequence of tasks. Without a key that splits it, the whole data set is one task."""

    example: ClassVar[str] = "{'scenario': 'class', 'initial_increment': 4, 'increment': 3}"
    scenario: Literal["class", "task", "domain", "instance", "reconstruction"] = Field(
        default="class",
        description="tasks of new classes; the same with the task known in evaluation; of all classes in new looks; of "
        "new samples of all classes; of new scans to reconstruct",
    )
    initial_increment: FromZero = Field(
        default=0, description="class, task: classes in the first task; 0: as increment"
    )
    increment: Count = Field(default=1, description="class, task, domain split: classes in each task")
    last_smaller: bool = Field(
        default=False,
        description="class, task: let the last task have fewer classes where increment does not divide them",
    )
    num_tasks: Count = Field(default=1, description="domain, instance, reconstruction: number of tasks")
    domain: Literal["permuted", "rotated", "split"] = Field(
        default="permuted",
        description="domain: what is done to the images of all tasks but the first; or split: tasks of new classes "
        "that have the same labels in every task",
    )
    domain_seed: FromZero = Field(default=0, description="domain: seed of the permutations or angles")
    datasets: Annotated[list[Name], MinLen(1)] | None = Field(
        default=None, description="domain: data sets, one for each task, instead; the first is that of --dataset"
    )
    concatenate_tasksets: bool = Field(
        default=False, description="train task i on the data of tasks 0 to i (from-scratch baseline)"
    )
    task_free: bool = Field(
        default=False, description="a stream: the strategy is not told where tasks begin and end, nor which one it is"
    )
    epochs: FromZero | Annotated[list[FromZero], MinLen(1)] | None = Field(
        default=None,
        description="epochs of each task instead of --epochs; a list's last value counts for the tasks after it",
    )
    class_order_seed: FromZero | None = Field(
        default=None, description="seed that shuffles the classes; none: natural order"
    )
    class_order: Annotated[list[FromZero], MinLen(1)] | None = Field(
        default=None,
        description="the data set's classes, all of them, in the order in which they come; instead of a seed",
    )

    @property
    def splits(self) -> bool:
        """Whether a key says how to split the data set; epochs and the like alone do not."""
        keys = {"scenario", "initial_increment", "increment", "num_tasks", "domain", "domain_seed", "datasets"}
        return bool(keys & self.given.keys())

    @model_validator(mode="after")
    def _keys_fit_the_scenario(self) -> "TasksetsConfig":
        by_class = ("initial_increment", "increment", "last_smaller")
        by_look = ("domain", "domain_seed", "datasets")
        classes = "set increment (classes in each task)"
        kind = f"scenario '{self.scenario}'"
        foreign, remedy = {
            "class": (("num_tasks", *by_look), classes),
            "task": (("num_tasks", *by_look), classes),
            "domain": (by_class, "set num_tasks, or datasets"),
            "instance": ((*by_class, *by_look), "set num_tasks"),
            "reconstruction": ((*by_class, *by_look, "class_order_seed", "class_order"), "set num_tasks"),
        }[self.scenario]
        if self.scenario == "domain" and self.domain == "split":
            kind, remedy = "domain 'split'", classes
            foreign = ("initial_increment", "last_smaller", "num_tasks", "domain_seed")
        for key in foreign:
            if self._is_set(key):
                message = f"{key} {getattr(self, key)} has no meaning for {kind}; {remedy} instead"
                raise ConflictError(message, key, "scenario")
        return self

    @model_validator(mode="after")
    def _keys_fit_each_other(self) -> "TasksetsConfig":
        for key in ("num_tasks", "domain", "domain_seed"):
            if self.datasets and self._is_set(key):
                message = f"{key} {getattr(self, key)} has no meaning with datasets, which are the tasks"
                raise ConflictError(f"{message}; leave one of them out", key, "datasets")
        if self.datasets and len(set(self.datasets)) < len(self.datasets):
            raise ConflictError(f"datasets {self.datasets} names one twice; leave it out", "datasets")
        if self.class_order is not None and self.class_order_seed is not None:
            message = f"class_order and class_order_seed {self.class_order_seed} both say how classes come"
            raise ConflictError(f"{message}; leave one of them out", "class_order_seed", "class_order")
        if self.task_free and self.concatenate_tasksets:
            message = "concatenate_tasksets has no meaning for a task-free stream; leave it or task_free out"
            raise ConflictError(message, "concatenate_tasksets", "task_free")
        return self

    def _is_set(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)


class TransformConfig(Section):
    """What happens to images between the data set and the network."""

    example: ClassVar[str] = "{'preset': 'hide', 'size': 224, 'normalise': 'imagenet'}"
    preset: Literal["own", "hide", "hide_cifar", "slca", "slca_cub"] = Field(
        default="own",
        description="augmentation, evaluation view and normalisation: hide (HiDe-PET's), hide_cifar (its for CIFAR), "
        "slca (SLCA's for ImageNet-R), slca_cub (its for CUB-200 and Cars-196); own: the data set's",
    )
    size: Count | None = Field(
        default=None,
        description="side of the network's input, pixels; none: the data set's own, and 224 with another preset",
    )
    normalise: Literal["own", "none", "imagenet", "half", "cifar"] = Field(
        default="own",
        description="mean and standard deviation; own: the preset's; none: values from 0 to 1; half: 0.5 and 0.5",
    )


class ModelConfig(Section):
    """Hyper-parameters of the strategy."""

    example: ClassVar[str] = "{'alpha': 0.2, 'beta': 0.8}"
    reset_state_dict: bool = Field(
        default=False, description="start every task from the initial weights (from-scratch baseline)"
    )
    alpha: NotNegative = Field(
        default=0.2,
        description="Der, Derpp: weight of the logits' loss",
        json_schema_extra={"origin": "published with DER++"},
    )
    beta: NotNegative = Field(
        default=0.8,
        description="Derpp: weight of the replayed labels' loss",
        json_schema_extra={"origin": "published with DER++"},
    )
    joint_mean: bool = Field(
        default=False,
        description="Derpp: one mean over new and replayed samples instead of the published sum with beta",
    )


class BackboneConfig(Section):
    """Settings of the backbone. Further keys are free here: the backbone itself checks them."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)
    example: ClassVar[str] = "{'lr': 0.01}"
    lr: AboveZero | None = Field(
        default=None, description="learning rate before scaling; none: --lr, then the backbone's own"
    )

    @property
    def own(self) -> dict[str, Any]:
        """The keys that the backbone itself understands."""
        return self.model_dump(exclude={"lr"}, exclude_none=True)


class RunOptions(Section):
    """Run."""

    seed: Annotated[int, Ge(0), Lt(2**32)] = Field(
        default=42, description="seed of everything random, the same on all ranks"
    )
    load_checkpoint: str | None = Field(default=None, description="folder of a checkpoint, or of a run for its latest")
    resume: bool = Field(
        default=False,
        description="go on from the newest whole checkpoint in the run's folder; where there is none, begin",
    )
    checkpoint_every: str = Field(
        default="10min",
        description="save after so many steps (500) or so much time (30s, 10min, 2h), besides the ends of tasks; 0: "
        "there alone",
    )
    keep_checkpoints: FromZero = Field(default=3, description="checkpoints kept, the newest ones; 0: all")
    training_only: bool = Field(default=False, description="train without any evaluation")
    eval_only: bool = Field(
        default=False, description="measure the finished run of --load-checkpoint anew, and train nothing"
    )
    no_cuda: bool = Field(default=False, description="train on the CPU even where there is a GPU")

    @field_validator("load_checkpoint")
    @classmethod
    def _there_is_one(cls, value: str | None) -> str | None:
        if value and not isdir(expanduser(value)):  # False, too, for what cannot be a name
            raise ValueError("there is no such folder; name a checkpoint of an earlier run, or leave it out")
        return expanduser(value) if value else None

    @field_validator("checkpoint_every", mode="before")
    @classmethod
    def _may_be_a_number(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("checkpoint_every")
    @classmethod
    def _is_steps_or_time(cls, value: str) -> str:
        if not _EVERY.fullmatch(value.strip()):
            raise ValueError("expected a number of steps like 500, or a time like 30s, 10min or 2h")
        return value

    @property
    def checkpoint_steps_and_seconds(self) -> tuple[int, float]:
        """What checkpoint_every means; 0 for the one that it does not name."""
        match = _EVERY.fullmatch(self.checkpoint_every.strip())
        assert match is not None
        number, unit = match.groups()
        return (0, float(number) * _UNITS[unit[0]]) if unit else (int(number), 0.0)


def _folder(value: str) -> str:
    """A folder's name, with "~" resolved, whether there is one or not. ValueError for what no folder can be called."""
    path = expanduser(value)
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError("is longer than a name may be; choose a shorter one") from error
    return path


class DataOptions(Section):
    """Data."""

    dataset: Name = Field(default="mnist", description="data set")
    dataset_dir: Name = Field(default="./datasets", description="folder of the data sets")
    download: bool = Field(
        default=False, description="fetch a data set, or pre-trained weights, that are not there yet"
    )
    tasksets_config: TasksetsConfig = Field(
        default=TasksetsConfig(), description="the sequence of tasks; without it the whole data set is one task"
    )
    transform_config: TransformConfig = Field(
        default=TransformConfig(), description="size, augmentation and normalisation of images"
    )
    dataloader_workers: FromZero = Field(
        default=0, description="loader processes per rank; 0: none besides the trainer"
    )

    @field_validator("dataset_dir")
    @classmethod
    def _data_can_lie_there(cls, value: str) -> str:
        return _folder(value)


class ModelOptions(Section):
    """Model."""

    backbone: Name = Field(
        default="mnistnet",
        description="network: candlenet, convnext, efficientnetv2, ghostnet, mlp, mnistnet, mobilenetv3, ptychonn, "
        "resnet18, resnet50, vit, or any of timm by its name there (the reference's default is resnet50)",
    )
    backbone_config: BackboneConfig = Field(default=BackboneConfig(), description="settings of the backbone")
    model: Name = Field(default="Vanilla", description="continual-learning strategy")
    # pydantic keeps the name model_config for itself
    strategy_config: ModelConfig = Field(
        default=ModelConfig(), alias="model_config", description="settings of the strategy"
    )


class TrainingOptions(Section):
    """Training."""

    batch_size: Count = Field(default=64, description="new samples per rank and step")
    eval_batch_size: Count | None = Field(
        default=None, description="samples per rank and evaluation step; none: --batch-size"
    )
    epochs: FromZero = Field(default=25, description="epochs of each task")
    warmup_epochs: FromZero | None = Field(
        default=None,
        description="epochs of learning-rate warm-up in each task; none: 5, but at most a fifth of the task's epochs",
    )
    lr: AboveZero | None = Field(
        default=None, description="learning rate of one rank, before scaling; none: the backbone's own"
    )
    momentum: Annotated[float, Ge(0), Lt(1)] | None = Field(
        default=None, description="momentum instead of the regime's"
    )
    weight_decay: NotNegative | None = Field(default=None, description="weight decay instead of the regime's")
    optimizer_regime: Annotated[list[dict[str, JsonValue]], MinLen(1)] | None = Field(
        default=None, description="phases of the optimiser instead of the backbone's"
    )
    use_amp: bool = Field(default=False, description="train in mixed precision")
    amp_dtype: Literal["auto", "bfloat16", "float16"] = Field(
        default="auto", description="type of mixed precision; auto: float16 on a GPU, bfloat16 on the CPU"
    )
    clip_grad: AboveZero | None = Field(default=None, description="largest norm of the gradient; none: any")
    channels_last: bool = Field(default=False, description="lay images out pixel by pixel instead of plane by plane")
    compile: bool = Field(default=False, description="compile the network with torch.compile before training")


class DistributionOptions(Section):
    """Distribution."""

    batches_per_allreduce: Count = Field(default=1, description="local batches per rank before gradients are averaged")
    fp16_allreduce: bool = Field(default=False, description="compress gradients to 16 bits on their way")
    use_adasum: bool = Field(default=False, description="combine gradients by Adasum instead of the mean")
    gradient_predivide_factor: AboveZero = Field(
        default=1.0, description="divide gradients by this before, not after, summing"
    )
    timeout: AboveZero | None = Field(
        default=None,
        description="seconds that a collective may take before the run ends; none: REPRISE_TIMEOUT, else 300, and "
        "3600 with --download",
    )


class PeftOptions(Section):
    """Parameter-efficient strategies."""

    peft_config: PeftConfig = Field(default=PeftConfig(), description="modules on a frozen vision transformer")


class BufferOptions(Section):
    """Buffer."""

    buffer_config: BufferConfig = Field(default=BufferConfig(), description="settings of the rehearsal buffer")


class OutputOptions(Section):
    """Output."""

    results_dir: Name = Field(default="./results", description="folder of the runs' folders")
    save_dir: str | None = Field(
        default=None, description="name of the run's folder; none: dataset-model-scenario-seed"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe message shown"
    )
    log_interval: Count = Field(default=10, description="steps between two progress records")
    wandb_project: str | None = Field(default=None, description="project on Weights & Biases; none: not used")
    tensorboard: bool = Field(default=False, description="also write TensorBoard events")
    trace: bool = Field(default=False, description="also write trace.json: what all ranks did in the last 200 steps")

    @field_validator("results_dir")
    @classmethod
    def _results_can_lie_there(cls, value: str) -> str:
        return _folder(value)

    @field_validator("save_dir")
    @classmethod
    def _stays_in_results_dir(cls, value: str | None) -> str | None:
        parts = PurePath(value or "run").parts
        if not parts or PurePath(*parts).is_absolute() or ".." in parts:
            raise ValueError("is not inside --results-dir; give a plain name like 'run-1'")
        return value or None

    @field_validator("wandb_project")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None


class Options(
    RunOptions,
    DataOptions,
    ModelOptions,
    TrainingOptions,
    DistributionOptions,
    BufferOptions,
    PeftOptions,
    OutputOptions,
):
    """Every option of a run, checked one by one and against each other."""

    ignored: ClassVar[tuple[str, ...]] = ("use_dali", "fp16_dali", "nsys_run")

    @model_validator(mode="after")
    def _fit_together(self) -> "Options":
        if self.resume and self.load_checkpoint:
            message = "resume goes on from the run's own checkpoints, load_checkpoint from another's"
            raise ConflictError(f"{message}; leave one of them out", "resume", "load_checkpoint")
        if self.eval_only and (self.training_only or not self.load_checkpoint):
            message = "eval_only measures what load_checkpoint names"
            raise ConflictError(
                f"{message}; give that, and leave training_only out", "eval_only", "load_checkpoint", "training_only"
            )
        fewest = min(self._epochs_per_task())
        if self.warmup_epochs is not None and self.warmup_epochs > fewest:
            epochs_key = "epochs" if self.tasksets_config.epochs is None else "tasksets_config.epochs"
            message = f"warmup_epochs {self.warmup_epochs} is more than the {fewest} epochs of a task"
            raise ConflictError(f"{message}; lower it, or leave it out", "warmup_epochs", epochs_key)
        if self.use_adasum and self.use_amp:
            # Adasum combines updates inside backward(), before gradients could be unscaled.
            message = "use_adasum does not go with use_amp; leave one of them out"
            raise ConflictError(message, "use_adasum", "use_amp")
        if self.use_adasum and self.clip_grad is not None:
            message = "use_adasum does not go with clip_grad: it combines updates; leave one of them out"
            raise ConflictError(message, "use_adasum", "clip_grad")
        if self.amp_dtype != "auto" and not self.use_amp:
            message = f"amp_dtype {self.amp_dtype} has no meaning without use_amp; add it, or leave amp_dtype out"
            raise ConflictError(message, "amp_dtype", "use_amp")
        if self.use_adasum and self.gradient_predivide_factor != 1:
            message = f"gradient_predivide_factor {self.gradient_predivide_factor:g} has no meaning with use_adasum"
            raise ConflictError(f"{message}; leave one of them out", "use_adasum", "gradient_predivide_factor")
        return self

    def epochs_of(self, task: int) -> int:
        """Epochs of task `task` (from 0): --epochs, or the tasksets' own list padded with its last value."""
        per_task = self._epochs_per_task()
        return per_task[min(task, len(per_task) - 1)]

    def warmup_epochs_of(self, task: int) -> int:
        """Warm-up epochs of task `task` (from 0); by default 5, but at most a fifth of the task's epochs."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        return min(DEFAULT_WARMUP_EPOCHS, self.epochs_of(task) // 5)

    @property
    def run_name(self) -> str:
        """The run's folder inside results_dir."""
        scenario = self.tasksets_config.scenario if self.tasksets_config.splits else "one-task"
        return self.save_dir or f"{self.dataset}-{self.model}-{scenario}-{self.seed}"

    def _epochs_per_task(self) -> list[int]:
        epochs = self.epochs if self.tasksets_config.epochs is None else self.tasksets_config.epochs
        return epochs if isinstance(epochs, list) else [epochs]


class Invocation(Section):
    """Where options come from."""

    yaml_config: Name | None = Field(
        default=None, description="YAML file with sections of options; none: config.yaml beside main.py"
    )
    config: str | None = Field(
        default=None,
        description="section of that file; its values override the flags, dictionaries are merged; none: no file",
    )
    print_config: bool = Field(
        default=False, description="show every option, its value and where it came from, and stop"
    )


Resolved = config.Resolved[Options]


def parse(argv: Sequence[str], choices: Choices | None = None) -> Resolved:
    """Read flags and the chosen YAML section into checked options; UserError with one line at the first mistake.

    `choices`: the names that exist, for "backbone", "model", "dataset"; what is left out takes any name.
    --help and --version print and raise SystemExit(0).
    """
    choices = choices or {}
    parser = FlagParser(
        "python main.py",
        "Train one model on a sequence of tasks with a rehearsal buffer, alone or on the ranks that a launcher starts.",
        "Accepted for the reference's commands, without meaning here: "
        + ", ".join(f"--{key.replace('_', '-')}" for key in Options.ignored)
        + f"; in --buffer-config {', '.join(BufferConfig.ignored)}.",
    )
    parser.add_argument("--version", action="version", version=f"reprise {_version()}")
    add_flags(parser, Invocation, choices)
    add_flags(parser, Options, choices)
    flags = parser.parse_flags(argv)
    invocation = config.resolve(Invocation, [Source(config.COMMAND_LINE, flag_values(flags, Invocation))], {}).options
    sources = [Source(config.COMMAND_LINE, flag_values(flags, Options))]
    warnings = []
    path = Path(invocation.yaml_config) if invocation.yaml_config else DEFAULT_YAML
    if invocation.config:
        shown = invocation.yaml_config or path.name
        sources.append(Source(f"{shown} [{invocation.config}]", read_section(path, invocation.config)))
    elif invocation.yaml_config:
        warnings.append(f"--yaml-config {path} is not read: --config names no section of it")
    resolved = config.resolve(Options, sources, choices)
    return Resolved(resolved.options, resolved.origin, warnings + resolved.warnings, invocation.print_config)


def _version() -> str:
    try:
        return metadata.version("reprise")
    except metadata.PackageNotFoundError:
        return "(not installed)"
