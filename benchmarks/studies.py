"""The studies of benchmarks/accuracy.py: what is trained, on which settings, and what has to come out.

A study is a list of runs and a list of statements about the means of their results. Numbers are settings, not results.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from reprise.benchmarks.training_runs import AVALANCHE, FIRST, Run, Summary

Cell = tuple[str, ...]
VANILLA, REHEARSAL = "Vanilla", ("Er", "Agem", "Der", "Derpp")
STRATEGIES = (VANILLA, *REHEARSAL)
ALPHA, BETA = 0.5, 1.0
WEIGHTS = {"Der": f"alpha={ALPHA}", "Derpp": f"alpha={ALPHA} beta={BETA}"}


@dataclass(frozen=True)
class Spread:
    """The same thing measured with several seeds. Standard deviations are of the sample."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def sd(self) -> float:
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def standard_error(self, other: "Spread") -> float:
        """Of the difference of the two means."""
        return float((self.sd**2 / len(self.values) + other.sd**2 / len(other.values)) ** 0.5)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.sd:.3f}" if self.mean < 1000 else f"{self.mean:,.0f} ± {self.sd:,.0f}"


Results = dict[Cell, dict[str, Spread]]
"""Cell -> name of a figure in the summary -> its spread over seeds."""


@dataclass(frozen=True)
class Statement:
    text: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Study:
    """columns: names of the parts of a cell; a further part names the column itself. figures: what of a summary is
    shown. judge: what has to hold.
    """

    title: str
    columns: tuple[str, ...]
    figures: tuple[str, ...]
    runs: Callable[[Sequence[int], str, str], list[Run]]
    judge: Callable[[Results], list[Statement]]


def _options(**values: object) -> tuple[str, ...]:
    words: list[str] = []
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return tuple(words)


def _model(name: str, memory: str, weights: Mapping[str, str] = WEIGHTS) -> tuple[str, ...]:
    """A strategy with its memory. memory: keys of --buffer-config. weights: strategy -> keys of --model-config."""
    words = _options(model=name)
    if name in weights:
        words += _options(model_config=weights[name])
    return words if name == VANILLA else (*words, *_options(buffer_config=f"{memory} deterministic=true"))


# ---- digits: five tasks of two classes, beside a peer


BATCH, LR = 32, 0.05
_DIGITS = _options(dataset="digits", backbone="mlp", batch_size=BATCH, eval_batch_size=512, warmup_epochs=0, lr=LR)
_BY_CLASS = _options(tasksets_config="scenario=class increment=2")
EPOCHS, MEMORIES = (1, 10), (100, 200, 500)
STEP, TASK = "at every step", "at a task's end"
PEER = "Avalanche, " + TASK


def _memory(size: int, insertion: str) -> str:
    when = "insertion=task" if insertion == TASK else f"num_candidates={BATCH}"
    return f"capacity={size} num_representatives={BATCH} {when}"


def _digits_runs(seeds: Sequence[int], dataset: str, folder: str) -> list[Run]:
    runs = []
    for epochs in EPOCHS:
        for memory, name in [(0, VANILLA), *((memory, name) for memory in MEMORIES for name in REHEARSAL)]:
            base = (*_DIGITS, *_BY_CLASS, *_options(epochs=epochs))
            cell = (str(epochs), str(memory), name)
            theirs = {"strategy": name, "dataset": "digits", "increment": 2, "epochs": epochs, "batch_size": BATCH}
            theirs |= {"lr": LR, "memory": memory, "alpha": ALPHA, "beta": BETA}
            for seed in seeds:
                for insertion in (STEP, TASK) if memory else (STEP,):
                    options = (*base, *_model(name, _memory(memory, insertion)))
                    runs.append(Run((*cell, f"Reprise, {insertion}"), seed, options))
                runs.append(Run((*cell, PEER), seed, (), by=AVALANCHE, peer=tuple(theirs.items())))
    return runs


def _digits_judge(results: Results) -> list[Statement]:
    accuracy = {cell: figures["average_accuracy"] for cell, figures in results.items()}
    statements = []
    for cell, theirs in accuracy.items():
        epochs, memory, name, whose = cell
        if whose == PEER and name != VANILLA:
            text = f"{name}, {epochs} epoch(s), memory {memory}: not worse than Avalanche, both insert {TASK}"
            statements.append(not_worse(text, accuracy[epochs, memory, name, f"Reprise, {TASK}"], theirs))
    for memory in ("200", "500"):
        for insertion in (STEP, TASK):

            def ours(name: str, memory: str = memory, insertion: str = insertion) -> Spread:
                return accuracy["10", memory, name, f"Reprise, {insertion}"]

            where = f"10 epochs, memory {memory}, inserted {insertion}"
            vanilla = accuracy["10", "0", VANILLA, f"Reprise, {STEP}"]
            statements.append(at_least(f"Er >= 0.85, {where}", ours("Er"), 0.85))
            statements.append(not_worse(f"Derpp >= Er within one standard error, {where}", ours("Derpp"), ours("Er")))
            statements.append(at_least(f"Der well above Vanilla (0.3), {where}", ours("Der"), vanilla.mean + 0.3))
    return statements


# ---- the three types of incremental learning (van de Ven, Tuytelaars and Tolias 2022)


_TYPES = {
    "digits": (*_DIGITS, *_options(epochs=10)),
    # Their Split MNIST: 2,000 iterations per context of 128 samples, Adam 1e-3, perceptron 400-400, 100 samples per
    # class. Whole epochs come to 1,980 to 2,046 iterations, as contexts are not equally large.
    "mnist": _options(
        dataset="mnist",
        backbone="mlp",
        batch_size=128,
        eval_batch_size=1000,
        warmup_epochs=0,
        lr=1e-3,
        optimizer_regime="[{'epoch': 0, 'optimizer': 'Adam'}]",
    ),
}
_TYPE_MEMORIES = {"digits": _memory(200, STEP), "mnist": "capacity=1000 num_representatives=128 num_candidates=128"}
_TYPE_EPOCHS = {"digits": "", "mnist": " epochs=[20,21,23,21,22]"}


def _types_runs(seeds: Sequence[int], dataset: str, folder: str) -> list[Run]:
    splits = {"class": "scenario=class increment=2", "domain": "scenario=domain domain=split increment=2"}
    return [
        Run(
            (name, kind),
            seed,
            (
                *_TYPES[dataset],
                *_options(tasksets_config=split + _TYPE_EPOCHS[dataset], dataset_dir=folder),
                *_model(name, _TYPE_MEMORIES[dataset]),
            ),
        )
        for name in STRATEGIES
        for kind, split in splits.items()
        for seed in seeds
    ]


def _types_judge(results: Results) -> list[Statement]:
    def accuracy(name: str, kind: str) -> Spread:
        if kind == "task":
            return results[name, "class"]["average_accuracy_task_il"]
        return results[name, kind]["average_accuracy"]

    vanilla = {kind: accuracy(VANILLA, kind) for kind in ("task", "domain", "class")}
    ordered = vanilla["task"].mean >= vanilla["domain"].mean >= vanilla["class"].mean
    shown = ", ".join(f"{kind} {spread.mean:.3f}" for kind, spread in vanilla.items())
    return [
        Statement("Vanilla: task-IL >= domain-IL >= class-IL", shown, ordered),
        at_least("Er well above Vanilla (0.3) in class-IL", accuracy("Er", "class"), vanilla["class"].mean + 0.3),
    ]


# ---- uint8 storage with re-augmentation against the network's float32 inputs


_SYNTHETIC = (
    *_options(dataset="synthetic", backbone="mlp", batch_size=64, eval_batch_size=500, warmup_epochs=0, lr=0.02),
    *_options(epochs=6, tasksets_config="scenario=class increment=2", model="Er"),
)
RAW, INPUTS = "raw uint8, augmented anew", "float32 inputs, as they were"


def _storage_runs(seeds: Sequence[int], dataset: str, folder: str) -> list[Run]:
    ways = {RAW: "store=raw", INPUTS: "store=augmented dtype=float32"}
    memory = "capacity=500 num_representatives=64 num_candidates=64 deterministic=true"
    return [
        Run((way,), seed, (*_SYNTHETIC, *_options(buffer_config=f"{memory} {keys}")))
        for way, keys in ways.items()
        for seed in seeds
    ]


def _storage_judge(results: Results) -> list[Statement]:
    share = results[RAW,]["buffer_bytes_per_rank"].mean / results[INPUTS,]["buffer_bytes_per_rank"].mean
    accuracies = (results[way,]["average_accuracy"] for way in (RAW, INPUTS))
    return [
        Statement("bytes of uint8 are at most 0.26 of float32's", f"{share:.4f}", share <= 0.26),
        not_worse("accuracy with uint8 is not worse", *accuracies),
    ]


# ---- reconstruction of diffraction patterns, two ranks


_PTYCHO = _options(
    dataset="ptycho_synthetic",
    backbone="ptychonn",
    backbone_config="width=8",
    batch_size=8,
    epochs=12,
    tasksets_config="scenario=reconstruction num_tasks=8",
)


def _reconstruction_runs(seeds: Sequence[int], dataset: str, folder: str) -> list[Run]:
    memory = "rehearsal_ratio=30 num_representatives=8 num_candidates=8"
    return [
        Run((name,), seed, (*_PTYCHO, *_model(name, memory, {})), ranks=2)
        for name in (VANILLA, "Er", "Derpp")
        for seed in seeds
    ]


def _reconstruction_judge(results: Results) -> list[Statement]:
    error = {cell[0]: figures["error_on_earlier_tasks"] for cell, figures in results.items()}
    er, vanilla, derpp = error["Er"], error[VANILLA], error["Derpp"]
    worse = derpp.mean - er.mean
    return [
        Statement(
            "Er's error on earlier tasks is at most half of Vanilla's",
            f"{er.mean:.3f} of {vanilla.mean:.3f}",
            er.mean <= vanilla.mean / 2,
        ),
        Statement(
            "Derpp's is at least as good as Er's, within one standard error",
            f"{derpp.mean:.4f} beside {er.mean:.4f}",
            worse <= derpp.standard_error(er),
        ),
    ]


# ---- modules on a frozen transformer, two domains


VIT = "patch_size=2 depth=4 embed_dim=64 num_heads=4"
WEIGHTS_FILE = Path("results/vit-digits.safetensors")  # of benchmarks/pretrain_vit.py
_TUNED = (
    *_options(dataset="digits_two_domains", tasksets_config="increment=2", backbone="vit", warmup_epochs=0),
    *_options(backbone_config=f"{VIT} pretrained={WEIGHTS_FILE}", batch_size=16, eval_batch_size=256, epochs=5),
    *_options(optimizer_regime="[{'optimizer': 'Adam', 'lr': 0.005}]"),
)
_SECOND_STAGE = f"selector={FIRST}"
TUNED = {
    "HeadOnly": "",
    "SeqPeft": "",
    "OraclePeft": "",
    "Selector": "",
    "Hide": _SECOND_STAGE,
    "L2c": f"{_SECOND_STAGE} topk=2",
    "Slcapp": "",
}
"""Strategy -> keys of --peft-config."""
_REPLAYING = ("Selector", "Hide", "L2c", "Slcapp")
_PER_CLASS = 2


def _peft_runs(seeds: Sequence[int], dataset: str, folder: str) -> list[Run]:
    runs = []
    memory = _options(buffer_config=f"capacity={20 * _PER_CLASS} num_representatives=8 deterministic=true")
    for name, peft in TUNED.items():
        words = (*_TUNED, *_options(model=name), *(_options(peft_config=peft) if peft else ()))
        first = (*_TUNED, *_options(model="Selector")) if FIRST in peft else ()
        for seed in seeds:
            runs.append(Run((name, "nothing stored"), seed, words, first))
            if name in _REPLAYING:
                runs.append(Run((name, f"{_PER_CLASS} per class"), seed, (*words, *memory), first))
    return runs


def _peft_judge(results: Results) -> list[Statement]:
    accuracy = {cell: figures["average_accuracy"] for cell, figures in results.items()}
    sequential, head = accuracy["SeqPeft", "nothing stored"], accuracy["HeadOnly", "nothing stored"]
    statements = []
    for name in ("Hide", "Slcapp", "L2c"):
        ours = accuracy[name, "nothing stored"]
        statements.append(at_least(f"{name} is 10 points above SeqPeft", ours, sequential.mean + 0.1))
        noise = 2 * ours.standard_error(head)
        statements.append(at_least(f"{name} is above HeadOnly by two standard errors", ours, head.mean + noise))
    for name in _REPLAYING:
        stored, nothing = accuracy[name, f"{_PER_CLASS} per class"], accuracy[name, "nothing stored"]
        statements.append(not_worse(f"{name} with {_PER_CLASS} samples per class is not worse", stored, nothing))
    return statements


# ---- what statements are made of


def not_worse(text: str, ours: Spread, theirs: Spread) -> Statement:
    """Within one standard error of the difference; larger is better."""
    error = ours.standard_error(theirs)
    measured = f"{ours.mean:.3f} beside {theirs.mean:.3f}, error {error:.3f}"
    return Statement(text, measured, ours.mean >= theirs.mean - error)


def at_least(text: str, ours: Spread, limit: float) -> Statement:
    return Statement(text, f"{ours.mean:.3f}, limit {limit:.3f}", ours.mean >= limit)


def gather(runs: Sequence[Run], summaries: Sequence[Summary], figures: Sequence[str]) -> Results:
    """Figures that a summary does not have are left out of its cell."""
    values: dict[Cell, dict[str, list[float]]] = {}
    for run, summary in zip(runs, summaries, strict=True):
        of_cell = values.setdefault(run.cell, {})
        for figure in figures:
            if summary.get(figure) is not None:
                of_cell.setdefault(figure, []).append(float(summary[figure]))
    return {
        cell: {figure: Spread(tuple(numbers)) for figure, numbers in of_cell.items()}
        for cell, of_cell in values.items()
    }


STUDIES = {
    "digits": Study(
        "Digits, class-incremental, five tasks of two classes: average accuracy",
        ("epochs", "memory", "strategy"),
        ("average_accuracy",),
        _digits_runs,
        _digits_judge,
    ),
    "types": Study(
        "The three types of incremental learning: average accuracy, the task unknown and known",
        ("strategy", "scenario"),
        ("average_accuracy", "average_accuracy_task_il"),
        _types_runs,
        _types_judge,
    ),
    "storage": Study(
        "Er on synthetic images, five tasks of two classes, memory 500",
        ("stored",),
        ("average_accuracy", "forgetting", "buffer_bytes_per_rank"),
        _storage_runs,
        _storage_judge,
    ),
    "reconstruction": Study(
        "Synthetic ptychography, eight tasks, two ranks: mean absolute error, less is better",
        ("strategy",),
        ("average_error", "error_on_earlier_tasks", "error_increase"),
        _reconstruction_runs,
        _reconstruction_judge,
    ),
    "peft": Study(
        "Modules on a frozen transformer, two domains of digits in ten tasks of two classes: average accuracy",
        ("strategy",),
        ("average_accuracy",),
        _peft_runs,
        _peft_judge,
    ),
}
