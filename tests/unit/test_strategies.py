"""Every strategy against its published formula: updates are computed anew here, by hand and in float64.

rehearsal.md 4: of the reference's five strategies three cannot run, and those with stored logits pair them with the
wrong inputs. Several processes are in tests/parallel/test_strategies.py.
"""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from reprise.buffer import Field, RehearsalBuffer
from reprise.cl_models import STRATEGIES, ContinualModel, Parts
from reprise.cl_models.agem import project
from reprise.runtime import dist
from reprise.runtime.seeds import torch_generator
from reprise.train.stepper import Stepper

LR, CLASSES, FEATURES, B, R = 0.05, 3, 6, 4, 3
PLANES = (2, 3, 1)  # of reconstruction: the two planes that an image of 3 x 1 pixels is to become
Weights = dict[str, Tensor]


# ---- a small network and its losses, by hand


def outputs(weights: Weights, x: Tensor) -> Tensor:
    hidden = torch.tanh(x.flatten(1) @ weights["1.weight"].T + weights["1.bias"])
    return hidden @ weights["3.weight"].T + weights["3.bias"]


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return z.exp().sum(1).log() - z[torch.arange(len(y)), y]


def absolute_error(z: Tensor, y: Tensor) -> Tensor:
    return (z - y.flatten(1)).abs().mean(1)


def mean(values: Tensor) -> Tensor:
    return values.mean() if len(values) else torch.zeros((), dtype=torch.float64)


def gradient(loss: Tensor, weights: Weights) -> Weights:
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {name: torch.zeros_like(w) if g is None else g for (name, w), g in zip(weights.items(), found, strict=True)}


def dot(a: Weights, b: Weights) -> float:
    return float(sum((a[name] * b[name]).sum() for name in a))


def double(network: nn.Module) -> Weights:
    return {name: value.detach().double().requires_grad_() for name, value in network.named_parameters()}


# ---- a strategy with everything around it real, and what it drew


class Trial:
    """`name` on a network of two layers. draws: what each step got from the memory, copied."""

    def __init__(
        self,
        name: str,
        *,
        implementation: str = "python",
        stored: str = "raw",
        field: Field | None = None,
        reconstructs: bool = False,
        logits: torch.dtype = torch.float32,
        noise: bool = False,
        passes: int = 1,
        half: torch.dtype | None = None,
        first_task: dict[str, int] | None = None,
        insertion: str = "step",
        **options: object,
    ) -> None:
        torch.manual_seed(1)
        entries = torch.Size(PLANES).numel() if reconstructs else CLASSES
        layers = [nn.Flatten(), nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, entries)]
        self.network = nn.Sequential(*layers, *([nn.Unflatten(1, PLANES)] if reconstructs else []))
        self.forwards = 0
        self.network.register_forward_hook(self._count)
        kind: type[ContinualModel] = STRATEGIES.get(name)
        fields = {"x": field or Field((FEATURES,), torch.uint8)}
        if reconstructs:
            fields["target"] = Field(PLANES, torch.float32)
        if kind.stores_outputs:
            fields["logits"] = Field(PLANES if reconstructs else (CLASSES,), logits)
        comm = dist.current()
        sizes = tuple(R + index for index in range(len(kind.draws)))
        self.buffer = (
            RehearsalBuffer(fields, 64, draws=sizes, implementation=implementation, deterministic=True, dist=comm)
            if kind.draws
            else None
        )
        self.draws: list[dict[str, Tensor]] = []
        self.views: list[Tensor] = []
        optimizer = torch.optim.SGD(self.network.parameters(), lr=LR)
        device = torch.device("cpu")
        stepper = Stepper(
            self.network, optimizer, comm, device=device, span=lambda _: nullcontext(), passes=passes, half=half
        )
        loss = (
            (lambda z, y: (z - y).abs().flatten(1).mean(1)) if reconstructs else nn.CrossEntropyLoss(reduction="none")
        )
        self.strategy = kind(
            Parts(
                device=device,
                network=self.network,
                stepper=stepper,
                loss=loss,
                augment=self._noisy if noise else lambda x, _: x,
                view=lambda x: x,
                normalise=self.normalise,
                augment_rng=torch_generator(3, "augment"),
                buffer=self.buffer,
                options=options,
                span=lambda _: nullcontext(),
                stored=stored,  # type: ignore[arg-type]
                first_task=first_task or {},
                insertion=insertion,  # type: ignore[arg-type]
            )
        )
        self.random = torch_generator(5, "samples")
        self.reconstructs = reconstructs

    @staticmethod
    def normalise(x: Tensor) -> Tensor:
        return x.float() / 16 - 1

    def batch(self) -> tuple[Tensor, Tensor]:
        x = torch.randint(32, (B, FEATURES), generator=self.random, dtype=torch.uint8)
        if self.reconstructs:
            return x, torch.rand((B, *PLANES), generator=self.random)
        return x, torch.randint(CLASSES, (B,), generator=self.random)

    def step(self, x: Tensor, y: Tensor, task: int | None = 0) -> dict[str, Tensor]:
        """One observe(); afterwards `draws` holds copies of what the memory gave."""
        assert self.buffer is not None
        wait, augment = self.buffer.wait, self.buffer.augment

        def waiting():
            drawn = wait()
            self.draws = [{name: draw[name].clone() for name in draw} for draw in drawn]
            return drawn

        def augmenting(**batch):
            joined = augment(**batch)
            self.draws = [{name: joined[name][len(y) :].clone() for name in joined}]
            return joined

        self.buffer.wait, self.buffer.augment = waiting, augmenting  # type: ignore[method-assign]
        try:
            return self.strategy.observe(x, y, task)
        finally:
            self.buffer.wait, self.buffer.augment = wait, augment  # type: ignore[method-assign]

    def inputs(self, kept: Tensor) -> Tensor:
        return self.normalise(kept).double()

    def agrees(self, expected: Weights, tolerance: float = 1e-6) -> None:
        for name, value in self.network.named_parameters():
            torch.testing.assert_close(value.detach().double(), expected[name], rtol=0, atol=tolerance)

    def _noisy(self, x: Tensor, generator: torch.Generator) -> Tensor:
        view = x + torch.randint(8, x.shape, generator=generator, dtype=torch.uint8)
        self.views.append(view)
        return view

    def _count(self, *_: object) -> None:
        self.forwards += 1


def stepped(weights: Weights, change: Weights) -> Weights:
    return {name: (value - LR * change[name]).detach() for name, value in weights.items()}


Formula = Callable[[Weights, Tensor, Tensor, list[tuple[Tensor, Tensor, Tensor | None]]], Tensor]


def follows(trial: Trial, formula: Formula, steps: int = 6, tolerance: float = 1e-6) -> None:
    """Every step of the trial is one of plain gradient descent on the formula."""
    for _ in range(steps):
        before, (x, y) = double(trial.network), trial.batch()
        metrics = trial.step(x, y)
        label = "target" if trial.reconstructs else "y"
        drawn = [
            (trial.inputs(draw["x"]), draw[label], draw["logits"].double().flatten(1) if "logits" in draw else None)
            for draw in trial.draws
        ]
        loss = formula(before, trial.inputs(x), y, drawn)
        assert float(metrics["loss"]) == pytest.approx(loss.item(), abs=1e-5)
        trial.agrees(stepped(before, gradient(loss, before)), tolerance)
    assert all(len(draw["y"]) for draw in trial.draws), "the last steps drew from the memory"


def error_of(trial: Trial) -> Callable[[Tensor, Tensor], Tensor]:
    return absolute_error if trial.reconstructs else cross_entropy


def er(trial: Trial) -> Formula:
    def formula(w, x, y, drawn):
        ((old_x, old_y, _),) = drawn
        return mean(error_of(trial)(outputs(w, torch.cat([x, old_x])), torch.cat([y, old_y])))

    return formula


def der(trial: Trial, alpha: float) -> Formula:
    """Buzzega et al. 2020, equation 5."""

    def formula(w, x, y, drawn):
        ((past_x, _, past_z),) = drawn
        return mean(error_of(trial)(outputs(w, x), y)) + alpha * mean(((outputs(w, past_x) - past_z) ** 2).flatten())

    return formula


def derpp(trial: Trial, alpha: float, beta: float) -> Formula:
    """Buzzega et al. 2020, equation 6."""

    def formula(w, x, y, drawn):
        (past_x, _, past_z), (old_x, old_y, _) = drawn
        error = error_of(trial)
        distilled = mean(((outputs(w, past_x) - past_z) ** 2).flatten())
        return mean(error(outputs(w, x), y)) + alpha * distilled + beta * mean(error(outputs(w, old_x), old_y))

    return formula


def joint(trial: Trial, alpha: float) -> Formula:
    def formula(w, x, y, drawn):
        (past_x, _, past_z), (old_x, old_y, _) = drawn
        labelled = error_of(trial)(outputs(w, torch.cat([x, old_x])), torch.cat([y, old_y]))
        return mean(labelled) + alpha * mean(((outputs(w, past_x) - past_z) ** 2).flatten())

    return formula


# ---- the formulas


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("reconstructs", [False, True], ids=["labels", "targets"])
def test_er_descends_on_the_mean_over_new_and_replayed_samples(reconstructs, passes):
    trial = Trial("Er", reconstructs=reconstructs, passes=passes)
    follows(trial, er(trial))


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("reconstructs", [False, True], ids=["labels", "targets"])
def test_der_adds_the_distance_to_the_stored_outputs(reconstructs, passes):
    trial = Trial("Der", stored="views", reconstructs=reconstructs, passes=passes, alpha=0.7)
    follows(trial, der(trial, 0.7))


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("reconstructs", [False, True], ids=["labels", "targets"])
def test_derpp_adds_two_terms_of_two_independent_draws(reconstructs, passes):
    """rehearsal.md 4: the reference allows beta 1 only, and its two draws share their sections."""
    trial = Trial("Derpp", stored="views", reconstructs=reconstructs, passes=passes, alpha=0.7, beta=0.3)
    follows(trial, derpp(trial, 0.7, 0.3))
    assert [len(draw["y"]) for draw in trial.draws] == [R, R + 1]


def test_derpp_with_a_joint_mean_weighs_new_and_replayed_samples_alike():
    trial = Trial("Derpp", stored="views", alpha=0.7, beta=0.3, joint_mean=True)
    follows(trial, joint(trial, 0.7))


@pytest.mark.parametrize("implementation", ["standard", "flyweight"])
@pytest.mark.parametrize("name", ["Er", "Der", "Derpp"])
def test_the_engines_feed_the_same_formulas(name, implementation):
    trial = Trial(name, implementation=implementation, stored="raw" if name == "Er" else "views", alpha=0.7, beta=0.3)
    follows(trial, {"Er": er(trial), "Der": der(trial, 0.7), "Derpp": derpp(trial, 0.7, 0.3)}[name])


@pytest.mark.parametrize("implementation", ["python", "standard", "flyweight"])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("reconstructs", [False, True], ids=["labels", "targets"])
def test_agem_projects_what_would_hurt_the_memory_and_nothing_else(reconstructs, passes, implementation):
    """Chaudhry et al. 2019, equation 11, both branches; rehearsal.md 4: the reference's Agem cannot run."""
    trial, taken = Trial("Agem", reconstructs=reconstructs, passes=passes, implementation=implementation), []
    error = error_of(trial)
    for _ in range(14):
        before, (x, y) = double(trial.network), trial.batch()
        metrics = trial.step(x, y)
        (draw,) = trial.draws
        g = gradient(mean(error(outputs(before, trial.inputs(x)), y)), before)
        expected = g
        if len(draw["y"]):
            target = draw["target"] if reconstructs else draw["y"]
            r = gradient(mean(error(outputs(before, trial.inputs(draw["x"])), target)), before)
            if dot(g, r) < 0:
                expected = {name: g[name] - dot(g, r) / dot(r, r) * r[name] for name in g}
                assert dot(expected, r) == pytest.approx(0, abs=1e-9)
            assert float(metrics["projected"]) == float(dot(g, r) < 0)
            taken.append(dot(g, r) < 0)
        trial.agrees(stepped(before, expected))
    if not reconstructs:
        assert set(taken) == {True, False}, "both branches were seen"


def test_the_projection_needs_no_reference_and_survives_an_empty_one():
    g = [torch.tensor([1.0, 2.0]), None, torch.tensor([3.0])]
    for reference in ([torch.zeros(2), None, torch.zeros(1)], [torch.zeros(2), torch.ones(4), None]):
        changed = [None if value is None else value.clone() for value in g]
        assert float(project(changed, reference)) == 0
        assert torch.equal(changed[0], g[0])
        assert torch.equal(changed[2], g[2])


def test_an_overflow_in_the_reference_gradient_reaches_the_check_for_overflows():
    """Under float16 a gradient may be infinite; the step must then be skipped, not taken along a wrong direction."""
    g = [torch.tensor([1.0, -1.0])]
    project(g, [torch.tensor([float("inf"), 1.0])])
    assert not torch.isfinite(g[0]).all()


# ---- what is stored, and when it is used


@pytest.mark.parametrize("implementation", ["python", "standard", "flyweight"])
@pytest.mark.parametrize(
    ("dtype", "half"), [(torch.float32, None), (torch.float16, None), (torch.bfloat16, torch.bfloat16)]
)
def test_logits_are_those_of_the_very_view_they_are_stored_with(implementation, dtype, half):
    """rehearsal.md 4 and 6.2-3: logits of one batch with the inputs of another, and garbage under AMP."""
    trial = Trial("Der", implementation=implementation, stored="views", logits=dtype, half=half, noise=True, alpha=0.5)
    made: dict[bytes, Tensor] = {}
    seen = 0
    for _ in range(8):
        x, y = trial.batch()
        before = [value.clone() for value in trial.network.parameters()]
        trial.step(x, y)
        (draw,) = trial.draws
        for view, logits in zip(draw["x"], draw["logits"], strict=True):
            expected = made[view.numpy().tobytes()]
            torch.testing.assert_close(logits.float(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.02)
            seen += 1
        view = trial.views[-1]
        assert not torch.equal(view, x), "the view differs from the raw sample"
        with torch.no_grad():
            after = [value.clone() for value in trial.network.parameters()]
            for value, old in zip(trial.network.parameters(), before, strict=True):
                value.copy_(old)
            for row, logits in zip(view, trial.network(trial.normalise(view)), strict=True):
                made[row.numpy().tobytes()] = logits
            for value, new in zip(trial.network.parameters(), after, strict=True):
                value.copy_(new)
        assert draw["logits"].dtype == dtype
    assert seen > 10


def test_raw_samples_are_augmented_anew_at_every_replay_and_views_are_not():
    for stored, width in (("raw", B + R), ("views", B)):
        trial = Trial("Er", stored=stored, noise=True)
        for _ in range(3):
            trial.step(*trial.batch())
        assert len(trial.views[-1]) == width


def test_inputs_are_stored_as_the_network_gets_them_where_a_float_type_is_asked_for():
    """The reference stores float32 after augmentation; here it is one of three forms."""
    trial = Trial("Er", stored="inputs", field=Field((FEATURES,), torch.float32), noise=True)
    views = []
    for _ in range(3):
        trial.step(*trial.batch())
        views.append(trial.views[-1])
    known = [row.tolist() for row in torch.cat([trial.normalise(view) for view in views])]
    assert all(row.tolist() in known for row in trial.draws[0]["x"])


@pytest.mark.parametrize("name", ["Er", "Agem", "Der", "Derpp"])
def test_draws_are_left_unused_until_their_task_comes(name):
    """augmentations_offset counts for draws with labels, soft_augmentations_offset for those with stored outputs."""
    stored = "views" if STRATEGIES.get(name).stores_outputs else "raw"
    late = {"replay": 1, "distillation": 2}
    trial = Trial(name, stored=stored, alpha=0.7, beta=0.3, first_task=late)

    def plain(w, x, y, drawn):
        return mean(cross_entropy(outputs(w, x), y))

    def used(formula, task):
        before, (x, y) = double(trial.network), trial.batch()
        trial.step(x, y, task)
        drawn = [(trial.inputs(d["x"]), d["y"], d["logits"].double() if "logits" in d else None) for d in trial.draws]
        trial.agrees(stepped(before, gradient(formula(before, trial.inputs(x), y, drawn), before)))

    for _ in range(3):
        used(plain, 0)
    assert len(trial.buffer) == 3 * B, "samples are stored all the same"
    if name == "Er":
        used(er(trial), 1)
    elif name == "Agem":
        assert "projected" in trial.step(*trial.batch(), 1)
    elif name == "Der":
        used(plain, 1)
        used(der(trial, 0.7), 2)
    else:
        used(derpp(trial, 0.0, 0.3), 1)
        used(derpp(trial, 0.7, 0.3), 2)


@pytest.mark.parametrize("name", ["Er", "Agem", "Der", "Derpp"])
def test_without_a_task_number_everything_drawn_is_used(name):
    stored = "views" if STRATEGIES.get(name).stores_outputs else "raw"
    trial = Trial(name, stored=stored, alpha=0.7, beta=0.3, first_task={"replay": 1, "distillation": 2})
    for _ in range(2):
        before = double(trial.network)
        x, y = trial.batch()
        trial.step(x, y, None)
    assert int(trial.draws[0]["task"][0]) == -1
    plain = stepped(before, gradient(mean(cross_entropy(outputs(before, trial.inputs(x)), y)), before))
    moved = [not torch.allclose(v.detach().double(), plain[n]) for n, v in trial.network.named_parameters()]
    assert any(moved) or name == "Agem"


@pytest.mark.parametrize(("name", "forwards"), [("Er", 1), ("Der", 1), ("Derpp", 1), ("Agem", 2)])
def test_a_step_costs_as_many_forward_passes_as_documented(name, forwards):
    stored = "views" if STRATEGIES.get(name).stores_outputs else "raw"
    trial = Trial(name, stored=stored, alpha=0.7, beta=0.3)
    for _ in range(3):
        trial.step(*trial.batch())
    assert trial.forwards == 3 * forwards


@pytest.mark.parametrize("name", ["Er", "Agem", "Der", "Derpp"])
def test_fewer_rows_than_passes_train_and_store_every_row_once(name):
    stored = "views" if STRATEGIES.get(name).stores_outputs else "raw"
    trial = Trial(name, stored=stored, passes=B + R + 3, alpha=0.7, beta=0.3)
    for _ in range(3):
        metrics = trial.step(*trial.batch())
        assert torch.isfinite(metrics["loss"])
    assert len(trial.buffer) == 3 * B


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["Vanilla", "Er", "Agem", "Der", "Derpp"])
def test_mixed_precision_learns_what_single_precision_learns(name, half):
    stored = "views" if STRATEGIES.get(name).stores_outputs else "raw"
    losses = []
    for kind in (None, half):
        trial = Trial(name, stored=stored, half=kind, alpha=0.7, beta=0.3)
        x, y = trial.batch()
        step = trial.step if trial.buffer else trial.strategy.observe
        losses.append([float(step(x, y, 0)["loss"]) for _ in range(12)])
    assert losses[1][-1] < losses[1][0]
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["Er", "Agem"])
def test_a_step_whose_gradients_overflow_changes_nothing(name):
    """The order of unscaling and checking: an infinite loss scale must skip the step, whatever the strategy does."""
    trial = Trial(name, half=torch.float16)
    for _ in range(3):
        trial.step(*trial.batch())
    scaler = trial.strategy.parts.stepper._scaler  # type: ignore[attr-defined]
    scale = scaler.get_scale()
    scaler.update(1e38)
    before = double(trial.network)
    trial.step(*trial.batch())
    trial.agrees(before, 0)
    assert scaler.get_scale() < 1e38
    scaler.update(scale)
    trial.step(*trial.batch())
    with pytest.raises(AssertionError):
        trial.agrees(before, 0)


@pytest.mark.parametrize("name", ["Er", "Agem", "Der", "Derpp"])
@pytest.mark.parametrize("implementation", ["standard", "flyweight", "python"])
def test_what_is_inserted_when_its_task_has_ended_is_replayed_from_the_next_task_on(name, implementation):
    options = {"alpha": 0.5, "beta": 0.5} if name in ("Der", "Derpp") else {}
    trial = Trial(name, implementation=implementation, insertion="task", noise=True, stored="views", **options)
    learnt = [trial.batch() for _ in range(3)]
    for x, y in learnt:
        trial.step(x, y, 0)
        assert all(len(draw["y"]) == 0 for draw in trial.draws)
    assert len(trial.buffer) == trial.buffer.seen == 0
    trial.views.clear()
    trial.network.eval()
    weights = double(trial.network)
    for x, y in learnt:
        trial.strategy.memorise(x, y, 0)
    trial.agrees(weights)
    trial.network.train()
    seen_labels = torch.cat([y for _, y in learnt]).tolist()
    labels = dict(zip(map(tuple, torch.cat(trial.views).tolist()), seen_labels, strict=True))
    for _ in range(4):
        trial.step(*trial.batch(), 1)
        for draw in trial.draws:
            assert len(draw["y"]) >= R
            assert set(draw["task"].tolist()) == {0}
            for x, y in zip(draw["x"].tolist(), draw["y"].tolist(), strict=True):
                assert labels[tuple(x)] == y
            if "logits" in draw:
                expected = outputs(weights, trial.inputs(draw["x"]))
                torch.testing.assert_close(draw["logits"].double(), expected.detach(), rtol=0, atol=1e-5)
    assert len(trial.buffer) == trial.buffer.seen == 12
