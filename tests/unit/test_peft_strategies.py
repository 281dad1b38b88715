"""What tuned strategies compute, against independent computations: heads, losses, rates, gradients over ranks."""

import math
from types import SimpleNamespace

import pytest
import torch

from reprise.cl_models.peft.heads import NEVER, TaskHeads
from reprise.cl_models.peft.hide import contrast, contrast_as_released
from reprise.cl_models.peft.l2c import L2c
from reprise.cl_models.peft.tuned import Tuned
from reprise.runtime import dist
from reprise.train.grouped_gradients import GroupedGradients
from reprise.train.stepper import Stepper

CPU = torch.device("cpu")


def heads(*tasks: tuple[int, ...], num_classes: int = 6) -> TaskHeads:
    made = TaskHeads(3, num_classes, seed=1)
    for task, classes in enumerate(tasks):
        made.add(task, classes, CPU)
    return made


def test_logits_stand_in_the_column_of_their_class_and_unseen_classes_have_never():
    made = heads((4, 1), (0,))
    x = torch.randn(5, 3)
    logits = made(x)
    first, second = made.layers["0"], made.layers["1"]
    expected = torch.full((5, 6), NEVER)
    for row in range(5):
        for place, label in enumerate((4, 1)):
            expected[row, label] = first[place, :3] @ x[row] + first[place, 3]
        expected[row, 0] = second[0, :3] @ x[row] + second[0, 3]
    torch.testing.assert_close(logits, expected)
    assert (TaskHeads(3, 2, 0)(x) == NEVER).all()


def test_a_class_has_one_layer_and_a_layer_depends_on_seed_and_task_alone():
    made = heads((0, 1), (1, 2), (0, 2))
    assert made.classes == (0, 1, 2)
    assert [layer.shape for layer in made.layers.values()] == [(2, 4), (1, 4)]
    assert [p.shape for p in made.of((2,))] == [(1, 4)]
    assert len(made.of((1, 2))) == 2
    torch.manual_seed(99)
    again = heads((0, 1), (1, 2))
    assert torch.equal(again.layers["1"], made.layers["1"])
    assert not torch.equal(made.layers["0"][:1], made.layers["1"])


def test_a_stretched_layer_sees_longer_inputs():
    made = heads((0,), (1,), num_classes=2)
    x = torch.randn(4, 3)
    plain = made(x)
    made.stretch({1: 1.5})
    torch.testing.assert_close(made(x)[:, 1], (1.5 * x) @ made.layers["1"][0, :3] + made.layers["1"][0, 3])
    assert torch.equal(made(x)[:, 0], plain[:, 0])
    made.stretch({})
    assert torch.equal(made(x), plain)


def test_the_contrast_leaves_out_the_own_class_and_goes_by_directions():
    torch.manual_seed(0)
    h, m = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    y, labels = torch.tensor([0, 1, 0, 2]), torch.tensor([5, 1, 6])
    everything = [(v / v.norm(), c) for v, c in zip([*h, *m], [*y.tolist(), *labels.tolist()], strict=True)]
    expected = 0.0
    for i in range(4):
        own, label = everything[i]
        terms = [math.exp(own @ v / 0.8) for j, (v, c) in enumerate(everything) if j == i or c != label]
        expected -= math.log(math.exp(own @ own / 0.8) / sum(terms)) / 4
    assert contrast(h, y, m, labels).item() == pytest.approx(expected, rel=1e-5)
    assert contrast(10 * h, y, m, labels).item() == pytest.approx(expected, rel=1e-5)


def test_the_released_contrast_wants_everything_like_itself_alone():
    torch.manual_seed(0)
    h, m = torch.randn(4, 3), torch.randn(2, 3)
    everything = torch.cat([m, h]).double()
    similar = (everything @ everything.T / 0.8).exp()
    expected = -(similar.diagonal() / similar.sum(dim=1)).log().mean()
    y = torch.zeros(4, dtype=torch.int64)
    assert contrast_as_released(h, y, m, y[:2]).item() == pytest.approx(expected.item(), rel=1e-5)


def stepper(parameters, comm, max_norm=None) -> Stepper:
    def span(name):
        return GroupedGradients(SimpleNamespace(size=1)).accumulate(None)

    optimizer = torch.optim.SGD(parameters, lr=1.0)
    return Stepper(torch.nn.Identity(), optimizer, comm, device=CPU, span=span, max_norm=max_norm)


class TwoRanks:
    """This rank beside one whose gradients are all `other`."""

    size = 2

    def __init__(self, other: float) -> None:
        self.other = other
        self.calls: list[int] = []

    def guard(self, what):
        return GroupedGradients(SimpleNamespace(size=1)).accumulate(None)

    def allreduce(self, flat, name):
        self.calls.append(flat.numel())
        return (flat + self.other) / 2


def test_gradients_are_averaged_in_one_reduction_of_what_is_trained():
    a, b, unused = (torch.nn.Parameter(torch.ones(n)) for n in (2, 3, 4))
    frozen = torch.nn.Parameter(torch.ones(5))
    comm = TwoRanks(other=6.0)
    grouped = GroupedGradients(comm)
    made = stepper([frozen], grouped)
    made.train_only([{"params": [a, b], "lr_scale": 1.0}, {"params": [unused], "lr_scale": 0.5}])

    def loss(x):
        value = 2 * a.sum() + 4 * b.sum() + 0 * frozen.sum()
        return value, {"loss": value.detach()}

    made.minimise(loss, torch.zeros(1))
    assert comm.calls == [9]
    assert grouped.bytes == 4 * 9
    assert a.tolist() == [1 - 4.0] * 2
    assert b.tolist() == [1 - 5.0] * 3
    assert unused.tolist() == [1 - 3.0] * 4, "no gradient here counts as 0, and the other rank has one"
    assert frozen.tolist() == [1.0] * 5


def test_gradients_are_clipped_to_the_norm_of_all_of_them():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    made = stepper([a, b], GroupedGradients(SimpleNamespace(size=1, guard=TwoRanks(0).guard)), max_norm=1.0)
    made.minimise(lambda x: (3 * a.sum() + 4 * b.sum(), {}), torch.zeros(1))
    assert a.item() == pytest.approx(-0.6, rel=1e-4)
    assert b.item() == pytest.approx(-0.8, rel=1e-4)


def test_other_parameters_begin_with_no_running_averages():
    a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([a], lr=0.1, weight_decay=0.5)
    made = Stepper(torch.nn.Identity(), optimizer, TwoRanks(0), device=CPU, span=lambda name: TwoRanks(0).guard(name))
    optimizer.param_groups[0]["lr"] = 0.7
    optimizer.state[a]["step"] = torch.ones(())
    made.train_only([{"params": [b], "lr_scale": 0.25}])
    (group,) = optimizer.param_groups
    assert group["params"] == [b]
    assert (group["lr_scale"], group["weight_decay"]) == (0.25, 0.5)
    assert not optimizer.state


@pytest.mark.parametrize("mask", [True, False])
def test_new_samples_compete_within_their_task_and_replayed_ones_among_all_classes(mask):
    """One mean over both, by hand in float64; logits of classes that nobody has brought have no part in it."""
    made = heads((0, 1), (2, 3), num_classes=6)
    model = object.__new__(Tuned)
    model.parts = SimpleNamespace(  # type: ignore[assignment]
        stepper=SimpleNamespace(forward=made), loss=torch.nn.CrossEntropyLoss(reduction="none")
    )
    model.options, model._others = {"train_mask": mask}, torch.tensor([True, True, False, False, True, True])
    x, old_x = torch.randn(3, 3), torch.randn(2, 3)
    y, old_y = torch.tensor([2, 3, 3]), torch.tensor([0, 2])
    loss, metrics = model.joint_loss(x, y, old_x, old_y, torch.tensor([0, 1]), rows=(3, 2))

    logits = [made(rows).detach().double()[:, :4] for rows in (x, old_x)]
    new = logits[0][:, 2:] if mask else logits[0]
    losses = [math.log(sum(map(math.exp, row))) for row in [*new.tolist(), *logits[1].tolist()]]
    own = [
        float(row[label])
        for rows, of in zip(logits, (y, old_y), strict=True)
        for row, label in zip(rows, of, strict=True)
    ]
    assert float(loss.detach()) == pytest.approx((sum(losses) - sum(own)) / 5)
    assert float(metrics["loss"]) == pytest.approx(float(loss.detach()))
    right = (new.argmax(dim=1) + (2 if mask else 0) == y).sum() + (logits[1].argmax(dim=1) == old_y).sum()
    assert float(metrics["accuracy"]) == pytest.approx(int(right) / 5)


def test_what_a_task_has_trained_leaves_no_gradient_behind():
    comm = dist.init()
    first, second = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    one = stepper([first], comm)
    one.minimise(lambda x: ((first * x).sum(), {}), torch.ones(2))
    assert first.grad is not None
    one.train_only([{"params": [second]}])
    assert first.grad is None


def test_cooperation_is_for_samples_of_other_tasks():
    """What L2c adds for replayed rows: the mean over them of 0 or their loss among all classes, times its weight."""
    made = heads((0, 1), (2, 3), num_classes=6)
    model = object.__new__(L2c)
    model.parts = SimpleNamespace(  # type: ignore[assignment]
        stepper=SimpleNamespace(forward=made), loss=torch.nn.CrossEntropyLoss(reduction="none")
    )
    model.options = {"train_mask": True, "reg": 0, "cooperation": 0.5}
    model._others = torch.tensor([True, True, False, False, True, True])
    x, old_x = torch.randn(3, 3), torch.randn(4, 3)
    y, old_y, old_task = torch.tensor([2, 3, 3]), torch.tensor([0, 2, 1, 3]), torch.tensor([0, 1, 0, 1])
    alone = model.task_loss(x, y, 3)[0].item()
    model.classes = [(0, 1)]
    assert model.joint_loss(x, y, old_x, old_y, old_task, (3, 4))[0].item() == alone
    model.classes = [(0, 1), (2, 3)]
    loss = model.joint_loss(x, y, old_x, old_y, old_task, (3, 4))[0].item()
    of_others = [0.0, 0.0]
    for place, row in enumerate((0, 2)):
        logits = made(old_x)[row, :4].double().tolist()
        of_others[place] = math.log(sum(map(math.exp, logits))) - logits[int(old_y[row])]
    assert loss == pytest.approx(alone + 0.5 * sum(of_others) / 4)
