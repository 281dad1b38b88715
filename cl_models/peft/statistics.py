"""ClassStatistics: what stays of a class's features when its samples are gone, and pseudo-features drawn from it.

For classifier alignment (alignment.py) and for prototypes. Exact over all ranks: every class has one owner, a rank that
gets the class's features from all ranks, works in float64 and hands its summary to everybody. Features travel, and not
moments, because k-means and the low-rank form need them, and because up to 1500 of them (d = 768) are fewer bytes than
one matrix of moments.
"""

import hashlib
import math
from array import array
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reprise.runtime.dist import Communicator
from reprise.runtime.errors import SharedUserError, UserError
from reprise.runtime.registry import nearest
from reprise.runtime.seeds import torch_generator

Summary = dict[str, Tensor]

_RESTARTS, _MOST_ROUNDS = 4, 100  # of k-means


class ClassStatistics:
    """Statistics of features (n, d) per class, the same bits on every rank. n_c: samples of class c over all ranks.

    method "covariance": mean mu and S = Xc^T Xc / (n_c - 1) + ridge I, Xc the centred features, kept as S's Cholesky
    factor; draws N(mu, S). "variance": the diagonal of S. "multi-centroid": at most `centroids` clusters of k-means
    (n_c where there are fewer), each with its mean, variance (n_k - 1) + ridge, and share of the samples. "low-rank":
    mu and Xc themselves; draws mu + Xc^T z / sqrt(n_c - 1) + sqrt(ridge) z', which is N(mu, S) without a d x d matrix.
    "features": at most `centroids` of the features themselves, picked at random and kept in float16 (feature replay);
    draws are these, each as likely as the others.
    With n_c = 1 the ridge alone is left of S. Means are kept in float64, what spreads around them in float32.

    A class may have statistics under several experts (modules whose features differ). seed: of k-means. Raises
    UserError for a value out of range. HiDe-PET (arXiv 2407.05229) has the first three.
    """

    def __init__(self, method: str, *, comm: Communicator, seed: int, centroids: int = 10, ridge: float = 1e-4) -> None:
        if method not in _METHODS:
            hint = nearest(method, list(_METHODS)) or ";"
            raise SharedUserError(f"class statistics '{method}' are unknown{hint} choose one of: {', '.join(_METHODS)}")
        if centroids < 1:
            raise SharedUserError(f"centroids={centroids}: a class needs at least 1")
        if not 0 < ridge < math.inf:
            raise SharedUserError(f"ridge={ridge}: few samples span no volume without one; choose it above 0, as 1e-4")
        self.method = method
        self._method = _METHODS[method]
        self._comm = comm
        self._settings = _Settings(seed, centroids, ridge)
        self._shelves: list[_Shelf] = []
        self._ready: dict[tuple[int, int, torch.device], Summary] = {}

    def fit(self, features: Tensor, labels: Tensor, classes: Sequence[int], expert: int = 0) -> None:
        """Take the statistics of `classes`, in place of earlier ones of this expert; a collective.

        features: (n, d) floats and labels: (n,) int64 of this rank, each sample on one rank only; n may be 0. Rows of
        other classes are left out. classes and expert: the same on every rank. Raises UserError on every rank when a
        class has no sample on any, or features that are not finite; RuntimeError when ranks end up with different bits.
        """
        rows, labels = self._at_owners(features, labels, classes)
        own = classes[self._comm.rank :: self._comm.size]
        found = self._comm.collect(
            lambda: {label: self._summarise(rows[labels == label], label, expert) for label in own},
            name="class statistics",
        )
        summaries = {label: summary for part in found for label, summary in part.items()}
        self._check_same(summaries, classes, expert)
        fitted = {(label, expert): summaries[label] for label in classes}
        kept = (shelf.without(fitted) for shelf in self._shelves)
        self._shelves = [*(shelf for shelf in kept if shelf is not None), _Shelf.of(fitted)]
        self.forget_copies()

    @property
    def classes(self) -> tuple[int, ...]:
        """Those with statistics, in ascending order."""
        return tuple(sorted({label for shelf in self._shelves for label in shelf.classes}))

    def mean(self, label: int, expert: int | None = None) -> Tensor:
        """(d,) float64 on the CPU: the mean of what sample() draws."""
        means = [_weighted_mean(summary) for summary in self._of(label, expert).values()]
        return torch.stack(means).mean(dim=0)

    def prototypes(self) -> tuple[list[Tensor], Tensor]:
        """Every stored mean, each centroid one of its own: tensors (m_i, d) float64 and the labels of all their rows,
        (sum m_i,) int32, on the CPU. The means are no copies.
        """
        labels = [torch.empty(0, dtype=torch.int32), *(shelf.labels() for shelf in self._shelves)]
        return [shelf.means() for shelf in self._shelves], torch.cat(labels)

    def sample(
        self, classes: Sequence[int], per_class: int, generator: torch.Generator, expert: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pseudo-features (len(classes) * per_class, d) float32 and labels, class by class, on the generator's device.

        Rows of a class are independent of each other. expert None: each row comes from one of those that have the
        class, all equally likely. Raises KeyError for a class or an expert without statistics. Keeps copies in float32
        on that device for the next call, until forget_copies().
        """
        rows = [self._draw(label, per_class, generator, expert) for label in classes]
        labels = torch.tensor(classes, device=generator.device).repeat_interleave(per_class)
        return torch.cat(rows), labels

    def forget_copies(self) -> None:
        """Free what sample() has kept on its device."""
        self._ready.clear()

    @property
    def bytes(self) -> int:
        """Of all statistics, on this rank; copies on a device not counted."""
        return sum(value.nbytes for shelf in self._shelves for value in shelf.quantities.values())

    def state_dict(self) -> dict[str, Any]:
        """The method's name, and flat tensors named "class.expert.quantity". The same on every rank."""
        return {"method": self.method, **self._tensors()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace everything by what state_dict() gave. Raises UserError when it was another method's."""
        if state["method"] != self.method:
            raise SharedUserError(
                f"saved class statistics are '{state['method']}', here they are '{self.method}'; use the saved method"
            )
        summaries: dict[tuple[int, int], Summary] = {}
        for name, value in state.items():
            if name != "method":
                label, expert, quantity = name.split(".")
                summaries.setdefault((int(label), int(expert)), {})[quantity] = value.cpu()
        self._shelves = [_Shelf.of(summaries)] if summaries else []
        self.forget_copies()

    def _at_owners(self, features: Tensor, labels: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What this rank owns of all ranks' rows: the i-th of `classes` is rank i mod size's."""
        features, labels = features.detach().cpu(), labels.cpu()
        position = {label: index for index, label in enumerate(classes)}
        owner = torch.tensor([position.get(label, -1) for label in labels.tolist()], dtype=torch.int64)
        owner = torch.where(owner < 0, -1, owner % self._comm.size)
        order = owner.argsort(stable=True)[int((owner < 0).sum()) :]
        splits = owner[order].bincount(minlength=self._comm.size)
        rows, _ = self._comm.alltoall(features[order], splits, name="class features")
        of, _ = self._comm.alltoall(labels[order], splits, name="class labels")
        return rows, of

    def _summarise(self, rows: Tensor, label: int, expert: int) -> Summary:
        if len(rows) == 0:
            raise UserError(f"class {label} has no sample on any rank; leave it out of the task, or check its data")
        if not rows.isfinite().all():
            raise UserError(f"features of class {label} are not finite; the training has diverged: lower the lr")
        # In an order that does not depend on who held which row: k-means and draws then do not depend on it either.
        distinct, times = torch.unique(rows.double(), dim=0, return_counts=True)
        summary = self._method.summarise(distinct.repeat_interleave(times, dim=0), self._settings, (expert, label))
        return {name: value.contiguous() for name, value in summary.items()}

    def _check_same(self, summaries: dict[int, Summary], classes: Sequence[int], expert: int) -> None:
        digest = hashlib.sha256(repr((self.method, list(classes), expert)).encode())
        for label in sorted(summaries):
            for name in sorted(summaries[label]):
                digest.update(summaries[label][name].numpy().tobytes())
        digests = self._comm.allgather_object(digest.hexdigest(), name="class statistics checksum")
        others = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if others:
            raise RuntimeError(
                f"statistics of rank {others[0]} differ from rank 0's (expert {expert}, classes {list(classes)}); "
                "name the same classes and expert on every rank"
            )

    def _of(self, label: int, expert: int | None) -> dict[int, Summary]:
        held = {shelf.experts[place]: shelf.summary(place) for shelf in self._shelves for place in shelf.places(label)}
        if not held or (expert is not None and expert not in held):
            raise KeyError(f"no statistics of class {label}" + ("" if expert is None else f" under expert {expert}"))
        return {one: held[one] for one in (sorted(held) if expert is None else [expert])}

    def _draw(self, label: int, n: int, generator: torch.Generator, expert: int | None) -> Tensor:
        device = generator.device
        ready = [self._on_device((label, held, device), summary) for held, summary in self._of(label, expert).items()]
        if len(ready) == 1:
            return self._method.draw(ready[0], n, generator)
        source = torch.randint(len(ready), (n,), generator=generator, device=device)
        drawn = torch.empty((n, ready[0]["mean"].shape[-1]), device=device)
        for index, summary in enumerate(ready):
            rows = (source == index).nonzero().flatten()
            if len(rows):
                drawn[rows] = self._method.draw(summary, len(rows), generator)
        return drawn

    def _on_device(self, key: tuple[int, int, torch.device], summary: Summary) -> Summary:
        if key not in self._ready:
            self._ready[key] = {name: value.to(key[2], torch.float32) for name, value in summary.items()}
        return self._ready[key]

    def _tensors(self) -> Summary:
        """In an order that stays when they are saved and read: sums over prototypes are then the same bits."""
        return {
            f"{label}.{expert}.{name}": value
            for shelf in self._shelves
            for place, (label, expert) in enumerate(zip(shelf.classes, shelf.experts, strict=True))
            for name, value in shelf.summary(place).items()
        }


class _Shelf(NamedTuple):
    """Summaries that came together, each quantity of all of them in one tensor: a tensor costs a kilobyte beside what
    is in it, and there would be several per class.

    classes, experts: of each. starts: quantity -> where the rows of each summary begin, and where the last end; one
    array for all quantities that agree.
    scalars: quantities without dimensions, one row each.
    """

    classes: "array[int]"
    experts: "array[int]"
    quantities: Summary
    starts: "dict[str, array[int]]"
    scalars: frozenset[str]

    @classmethod
    def of(cls, summaries: dict[tuple[int, int], Summary]) -> "_Shelf":
        parts = list(summaries.values())
        rows = {name: [torch.atleast_1d(part[name]) for part in parts] for name in parts[0]}
        begins = {name: (0, *accumulate(map(len, values))) for name, values in rows.items()}
        shared: dict[tuple[int, ...], array[int]] = {}
        return cls(
            classes=array("i", [label for label, _ in summaries]),
            experts=array("i", [expert for _, expert in summaries]),
            quantities={name: torch.cat(values) for name, values in rows.items()},
            starts={name: shared.setdefault(begin, array("i", begin)) for name, begin in begins.items()},
            scalars=frozenset(name for name, value in parts[0].items() if value.ndim == 0),
        )

    def without(self, keys: Collection[tuple[int, int]]) -> "_Shelf | None":
        """The others; None where there are none."""
        own = list(zip(self.classes, self.experts, strict=True))
        others = {key: self.summary(place) for place, key in enumerate(own) if key not in keys}
        if len(others) == len(own):
            return self
        return _Shelf.of(others) if others else None

    def places(self, label: int) -> list[int]:
        return [place for place, one in enumerate(self.classes) if one == label] if label in self.classes else []

    def summary(self, place: int) -> Summary:
        """Views."""
        found = {}
        for name, values in self.quantities.items():
            start, end = self.starts[name][place : place + 2]
            found[name] = values[start] if name in self.scalars else values[start:end]
        return found

    def means(self) -> Tensor:
        """(m, d): of all summaries, each centroid one of its own; a view."""
        return self.quantities["mean"].view(-1, self.summary(0)["mean"].shape[-1])

    def labels(self) -> Tensor:
        """(m,) int32: of their rows."""
        labels = torch.tensor(self.classes, dtype=torch.int32)
        if self.quantities["mean"].ndim == 1:
            return labels
        return labels.repeat_interleave(torch.tensor(self.starts["mean"]).diff())


# ---- methods: rows (n, d) float64 of one class to its summary, and a summary, in float32, to draws (n, d)


class _Settings(NamedTuple):
    seed: int
    centroids: int
    ridge: float


class _Method(NamedTuple):
    summarise: Callable[[Tensor, _Settings, tuple[int, int]], Summary]
    draw: Callable[[Summary, int, torch.Generator], Tensor]


def _covariance(rows: Tensor, settings: _Settings, key: tuple[int, int]) -> Summary:
    mean, centred = _centred(rows)
    covariance = centred.T @ centred / _freedom(rows)
    covariance.diagonal().add_(settings.ridge)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise UserError(
            f"ridge={settings.ridge} is lost beside the variance of class {key[1]}, up to "
            f"{float(covariance.diagonal().max()):.3g}; raise it, or use statistics 'low-rank'"
        )
    # The factor and not the matrix: rounded to float32 it is still one of a covariance.
    return {"mean": mean, "factor": factor.float()}


def _draw_covariance(summary: Summary, n: int, generator: torch.Generator) -> Tensor:
    return summary["mean"] + _normal(n, summary["factor"][0], generator) @ summary["factor"].T


def _variance(rows: Tensor, settings: _Settings, key: tuple[int, int]) -> Summary:
    mean, centred = _centred(rows)
    variance = centred.square().sum(dim=0) / _freedom(rows)
    return {"mean": mean, "std": (variance + settings.ridge).sqrt().float()}


def _draw_variance(summary: Summary, n: int, generator: torch.Generator) -> Tensor:
    return summary["mean"] + summary["std"] * _normal(n, summary["mean"], generator)


def _multi_centroid(rows: Tensor, settings: _Settings, key: tuple[int, int]) -> Summary:
    mean, centred = _centred(rows)
    cluster = k_means(centred, settings.centroids, torch_generator(settings.seed, "k-means", *key))
    count = cluster.bincount()
    means = _sums(centred, cluster, len(count)) / count[:, None]
    squares = _sums((centred - means[cluster]).square(), cluster, len(count))
    # A centroid with one member has no variance of its own. Leaving it out, as HiDe-PET does, would lose its samples,
    # and all of a class that has no more samples than centroids.
    alone = len(rows) == len(count)
    pooled = centred.square().sum(dim=0) / _freedom(rows) if alone else squares.sum(dim=0) / (len(rows) - len(count))
    variance = torch.where(count[:, None] > 1, squares / (count - 1).clamp(min=1)[:, None], pooled)
    return {
        "mean": mean + means,
        "std": (variance + settings.ridge).sqrt().float(),
        "weight": count.double() / len(rows),
    }


def _draw_multi_centroid(summary: Summary, n: int, generator: torch.Generator) -> Tensor:
    centroid = torch.multinomial(summary["weight"], n, replacement=True, generator=generator)
    return summary["mean"][centroid] + summary["std"][centroid] * _normal(n, summary["mean"][0], generator)


def _low_rank(rows: Tensor, settings: _Settings, key: tuple[int, int]) -> Summary:
    mean, centred = _centred(rows)
    root = centred / math.sqrt(_freedom(rows))
    return {"mean": mean, "root": root.float(), "floor": torch.tensor(math.sqrt(settings.ridge))}


def _draw_low_rank(summary: Summary, n: int, generator: torch.Generator) -> Tensor:
    within = _normal(n, summary["root"][:, 0], generator) @ summary["root"]
    return summary["mean"] + within + summary["floor"] * _normal(n, summary["mean"], generator)


def _features(rows: Tensor, settings: _Settings, key: tuple[int, int]) -> Summary:
    picked = torch.randperm(len(rows), generator=torch_generator(settings.seed, "features", *key))[: settings.centroids]
    kept = rows[picked].half()
    if not kept.isfinite().all():
        raise UserError(f"features of class {key[1]} are beyond what float16 holds; use other statistics")
    return {"mean": kept.double().mean(dim=0), "features": kept}


def _draw_features(summary: Summary, n: int, generator: torch.Generator) -> Tensor:
    kept = summary["features"]
    return kept[torch.randint(len(kept), (n,), generator=generator, device=kept.device)]


_METHODS = {
    "covariance": _Method(_covariance, _draw_covariance),
    "variance": _Method(_variance, _draw_variance),
    "multi-centroid": _Method(_multi_centroid, _draw_multi_centroid),
    "low-rank": _Method(_low_rank, _draw_low_rank),
    "features": _Method(_features, _draw_features),
}


def k_means(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The cluster (n,) int64 of each row (n, d); clusters are 0, 1, ..., none is empty, at most k.

    Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii 2007), the best of four. Fewer than k where there
    are fewer distinct rows. Own, because scikit-learn's takes all cores of the node on every rank.
    """
    tries = [_lloyd(rows, _seeds(rows, k, generator)) for _ in range(_RESTARTS)]
    cluster = min(tries, key=lambda found: found[0])[1]
    return torch.unique(cluster, return_inverse=True)[1]


def _seeds(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    first = torch.randint(len(rows), (1,), generator=generator)
    seeds, nearest_square = rows[first], (rows - rows[first]).square().sum(dim=1)
    while len(seeds) < k and nearest_square.max() > 0:
        seed = rows[torch.multinomial(nearest_square, 1, generator=generator)]
        nearest_square = torch.minimum(nearest_square, (rows - seed).square().sum(dim=1))
        seeds = torch.cat([seeds, seed])
    return seeds


def _lloyd(rows: Tensor, centres: Tensor) -> tuple[float, Tensor]:
    """The sum of squared distances and each row's cluster; a cluster that loses its last row stays where it is."""
    before = None
    for _ in range(_MOST_ROUNDS):
        distance, cluster = torch.cdist(rows, centres).min(dim=1)
        if before is not None and torch.equal(cluster, before):
            break
        before, count = cluster, cluster.bincount(minlength=len(centres))[:, None]
        centres = torch.where(count > 0, _sums(rows, cluster, len(centres)) / count.clamp(min=1), centres)
    return float(distance.square().sum()), cluster


def _sums(rows: Tensor, cluster: Tensor, num_clusters: int) -> Tensor:
    return rows.new_zeros((num_clusters, rows.shape[1])).index_add_(0, cluster, rows)


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    mean = rows.mean(dim=0)
    return mean, rows - mean


def _freedom(rows: Tensor) -> int:
    return max(len(rows) - 1, 1)


def _weighted_mean(summary: Summary) -> Tensor:
    return summary["weight"] @ summary["mean"] if "weight" in summary else summary["mean"]


def _normal(n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """(n, len(like)) standard normal."""
    return torch.randn((n, len(like)), generator=generator, device=like.device)
