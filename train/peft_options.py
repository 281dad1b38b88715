"""The keys of --peft-config: modules on a frozen vision transformer, and what is done with them. Read by options.py."""

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import Field

from reprise.runtime.config import Section

Count = Annotated[int, Ge(1)]
FromZero = Annotated[int, Ge(0)]
AboveZero = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]


ANSWERING = frozenset({"inference", "topk", "topk_by", "topp", "combine", "renormalise", "temperature"})
"""Keys of which training knows nothing. A run may be evaluated with others."""


class PeftConfig(Section):
    """Parameter-efficient strategies (docs/peft.md)."""

    example: ClassVar[str] = "{'technique': 'lora', 'rank': 5}"
    technique: Literal["lora", "prefix", "prompt", "adapter"] = Field(default="lora", description="kind of module")
    blocks: Annotated[list[FromZero], MinLen(1)] | Literal["all"] | None = Field(
        default=None,
        description="blocks with a module, counted from 0; none: the first five, or all of fewer, Slcapp: all",
    )
    rank: Count | None = Field(default=None, description="lora: rank; none: 5, Slcapp: 4")
    alpha: AboveZero | None = Field(
        default=None, description="lora: the update is scaled by alpha / rank; none: 1, Slcapp: 3.2"
    )
    targets: Annotated[list[Literal["q", "k", "v", "fc1", "fc2"]], MinLen(1)] | None = Field(
        default=None, description="lora: the projections that are updated; none: k and v, Slcapp: all"
    )
    init: Literal["kaiming", "svd"] | None = Field(
        default=None,
        description="lora: what A begins as; svd: singular vectors of the frozen weight; none: kaiming, Slcapp: svd",
    )
    length: Count = Field(default=20, description="prefix, prompt: learnt tokens per block")
    bottleneck: Count = Field(default=5, description="adapter: width")
    scale: AboveZero = Field(default=1.0, description="adapter: factor of what it adds")
    layer_norm: bool = Field(default=False, description="adapter: normalise its inputs")
    warm_start: bool = Field(default=True, description="a task's module begins as a copy of the previous one")
    momentum: Share | None = Field(
        default=None,
        description="share of the earlier modules' mean in a module once it is trained; none: 0.01 for prefix and "
        "prompt, 0.1 for lora and adapter",
    )
    continual_type: Literal["first_sl", "slow_learner", "first_adapt", "fix_and_tuning", "same"] = Field(
        default="first_sl",
        description="Selector: the module's learning rate: slow after the first task; slow; none after the first "
        "task; none in the first epochs of each; that of the head",
    )
    slow_lr: NotNegative = Field(default=0.1, description="Selector: factor of the learning rate where it is slow")
    fix_epochs: FromZero = Field(default=10, description="Selector, fix_and_tuning: epochs without the module")
    ema: Share = Field(default=0.99, description="Lae: what the slow module keeps of itself after each task")
    larger_prompt_lr: bool = Field(default=False, description="a tenth of the learning rate for the head")
    train_mask: bool = Field(default=True, description="only classes of the task compete in its training")
    reg: NotNegative = Field(default=0.001, description="Hide, L2c: weight of the contrastive term")
    contrast: Literal["normalised", "code"] = Field(
        default="normalised",
        description="Hide, L2c: features of unit length and no prototype of the same class; or as released",
    )
    statistics: Literal["covariance", "variance", "multi-centroid", "low-rank", "features"] | None = Field(
        default=None,
        description="what is kept of each class's features; features: some of themselves; none: multi-centroid, Slca "
        "and Slcapp: covariance",
    )
    centroids: Count = Field(default=10, description="multi-centroid: clusters per class; features: how many are kept")
    alignment: bool = Field(default=True, description="align the head on pseudo-features after each task")
    ca_optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="alignment: optimiser; published code takes adamw for MAE and BEiT"
    )
    ca_lr: AboveZero | None = Field(
        default=None, description="alignment: learning rate; none: 0.005, Slca and Slcapp: 0.01"
    )
    ca_epochs: Count | None = Field(
        default=None,
        description="alignment: epochs, of as many steps as there are classes; none: 30, Slca and Slcapp: 5",
    )
    ca_batch: Count | None = Field(
        default=None, description="alignment: pseudo-features per rank and step; none: 120, Slca and Slcapp: 256"
    )
    selector: str | None = Field(
        default=None, description="Hide, L2c: folder of the run of Selector that tells tasks apart"
    )
    inference: Literal["hard", "tii+tap", "topk", "topp", "rematch"] | None = Field(
        default=None,
        description="Hide, L2c: the module of the most probable class's task; its answer with the selector's; those "
        "of several tasks; or another one where the answer does not fit; none: hard, L2c: topk",
    )
    topk: Count = Field(default=2, description="topk, topp: tasks or classes that are considered")
    topk_by: Literal["class", "task"] | None = Field(
        default=None, description="topk, topp: what is ranked; none: class, L2c: task"
    )
    topp: Share = Field(default=0.7, description="topp: least weight of what counts")
    combine: Literal["prob", "logit"] | None = Field(
        default=None, description="topk, topp: what is added up; none: logit, L2c: prob"
    )
    renormalise: bool | None = Field(
        default=None, description="topk, topp: whether weights add up to 1; none: false, L2c: true"
    )
    temperature: AboveZero = Field(default=1.0, description="topk, topp: of the selector's probabilities")
    cooperation: NotNegative = Field(
        default=0.5, description="L2c: weight of the loss on replayed samples of other tasks, in the task's module"
    )
    shared_statistics: bool = Field(
        default=True, description="L2c: keep statistics of a task's classes under the earlier modules as well"
    )
    backbone_lr: NotNegative | None = Field(
        default=None,
        description="Slca, Slcapp: factor of the learning rate of the backbone's own weights; none: 0.01, Slcapp: 0.1",
    )
    symmetric: Annotated[list[NotNegative], MinLen(2)] | None = Field(
        default=None, description="Slcapp: weights of cross-entropy and reverse cross-entropy; none: 1 and 0.1"
    )
    logit_norm: AboveZero | None = Field(
        default=None, description="Slca, Slcapp: temperature of normed logits; none: 0.1"
    )
    feature_scale: NotNegative = Field(default=0.02, description="Slcapp: how much features of older tasks are shrunk")
