"""Losses against the reference's values and against their definitions."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from detect.config import load_config
from detect.models.losses import (
    GHMC,
    GHMR,
    BalancedL1Loss,
    CIoULoss,
    CrossEntropyLoss,
    DIoULoss,
    FocalLoss,
    GIoULoss,
    IoULoss,
    L1Loss,
    SmoothL1Loss,
    accuracy,
    weighted_loss,
)
from dpipe.errors import InputError

CLASS_LOSSES = [CrossEntropyLoss(use_sigmoid=True), FocalLoss(), GHMC(), GHMC(momentum=0.5)]
BOX_LOSSES = [
    *(IoULoss(mode=mode) for mode in ("linear", "square", "log")),
    *(GIoULoss(), DIoULoss(), CIoULoss(), L1Loss(), SmoothL1Loss(), BalancedL1Loss(), GHMR(), GHMR(momentum=0.5)),
]


def named(loss):
    """A name of a loss for the report of the tests."""
    options = {**vars(loss), **getattr(loss, "options", {})}
    return "-".join([type(loss).__name__, *(str(options[key]) for key in ("mode", "momentum") if key in options)])


def test_losses_of_overlaps_by_hand():
    """Unit squares: the same, half over each other, and one unit apart."""
    pred = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]])
    target = torch.tensor([[0.0, 0, 1, 1], [0.5, 0, 1.5, 1], [2, 0, 3, 1]])
    ious = torch.tensor([1, 1 / 3, 0])
    for mode, values in (("linear", 1 - ious), ("square", 1 - ious**2), ("log", -ious.clamp(min=1e-6).log())):
        torch.testing.assert_close(
            IoULoss(mode=mode, reduction="none", eps=1e-6)(pred, target), values, atol=2e-6, rtol=0
        )
    torch.testing.assert_close(GIoULoss(reduction="none")(pred, target), torch.tensor([0, 2 / 3, 1 + 1 / 3]))


def test_cross_entropies_by_hand():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0]])
    labels = torch.tensor([0, 2])
    by_hand = -(logits.log_softmax(1)[0, 0] + logits.log_softmax(1)[1, 2])
    torch.testing.assert_close(CrossEntropyLoss()(logits, labels), by_hand / 2)
    torch.testing.assert_close(CrossEntropyLoss(loss_weight=3.0)(logits, labels, avg_factor=4), by_hand * 3 / 4)

    objectness = torch.tensor([[1.5], [-0.5]])  # one class: label 0 is on, label 1 is the background
    by_hand = -(objectness[0].sigmoid().log() + (1 - objectness[1].sigmoid()).log()).sum()
    torch.testing.assert_close(
        CrossEntropyLoss(use_sigmoid=True)(objectness, torch.tensor([0, 1]), avg_factor=2), by_hand / 2
    )

    pixels, mask = torch.randn(2, 4, 4), torch.randint(0, 2, (2, 4, 4))
    chosen = torch.where(mask == 1, pixels.sigmoid(), 1 - pixels.sigmoid())
    torch.testing.assert_close(CrossEntropyLoss(use_sigmoid=True)(pixels, mask), -chosen.log().mean())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("avg_factor", [None, 0, 3])
@pytest.mark.parametrize("loss", [CrossEntropyLoss(), *CLASS_LOSSES, *BOX_LOSSES], ids=named)
def test_nothing_costs_nothing_and_keeps_the_graph(loss, avg_factor, weighted):
    pred = torch.zeros(0, 4, requires_grad=True)
    target = torch.zeros(0, dtype=torch.int64) if hasattr(loss, "use_sigmoid") else torch.zeros(0, 4)
    value = loss(pred, target, torch.zeros(0) if weighted else None, avg_factor)
    assert value.item() == 0
    value.backward()
    assert pred.grad.shape == pred.shape


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), *CLASS_LOSSES, *BOX_LOSSES], ids=named)
def test_rows_without_weight_have_no_part(loss):
    """Neither in the value nor in the gradient, whatever they hold."""
    torch.manual_seed(0)
    pred = torch.cat([torch.rand(6, 2) * 9, 9 + torch.rand(6, 2) * 9], dim=1)
    target = pred + torch.rand(6, 4)
    if hasattr(loss, "use_sigmoid"):
        pred, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 1, 2])
    weight = torch.tensor([1.0, 1, 1, 0, 0, 0])
    values, grads = [], []
    for wild in (0.0, 5.0):
        loss = copy.deepcopy(loss)
        given = (pred + wild * (weight == 0)[:, None]).requires_grad_()
        values.append(loss(given, target, weight, 3))
        values[-1].backward()
        grads.append(given.grad)
    if getattr(loss, "momentum", 0) == 0:  # the second call is not like the first where there is a memory
        assert values[0] == values[1] > 0
        assert torch.equal(grads[0], grads[1])
    assert grads[1][:3].abs().sum() > 0
    assert grads[1][3:].abs().sum() == 0


@pytest.mark.parametrize("loss", BOX_LOSSES, ids=named)
def test_boxes_that_fit_cost_nothing(loss):
    """Also where sides are so long, or so short, that rounding has its say."""
    boxes = torch.tensor(
        [[0.0, 0, 1, 1], [3, 4, 800, 1333], [100, 100, 100.001, 160], [1e4, 1e4, 1.1e4, 1.2e4], [5, 5, 5, 5]]
    )
    pred = boxes[: 5 if not loss.takes_boxes else 4].clone().requires_grad_()
    value = loss(pred, pred.detach().clone())
    assert value.item() == pytest.approx(0, abs=2e-5)
    value.backward()
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize("loss", [loss for loss in BOX_LOSSES if loss.takes_boxes], ids=named)
def test_boxes_without_extent_give_finite_losses(loss):
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 4, 4], [0, 0, 62.5, 0]])
    pred = boxes.requires_grad_()
    for target in (torch.tensor([[5.0, 5, 5, 5]]), torch.tensor([[0.0, 0, 10, 10]])):
        value = loss(pred, target.expand(3, 4))
        value.backward()
        assert value.isfinite()
        assert pred.grad.isfinite().all()


def test_ious_of_distances_and_ratios_by_hand():
    """A box of 2 x 1 in one of 4 x 4: IoU 1/8; the centres are (1, 1.5) apart, the diagonal's square is 32."""
    pred, target = torch.tensor([[0.0, 0, 2, 1]]), torch.tensor([[0.0, 0, 4, 4]])
    diou = 1 - (1 / 8 - (1 + 1.5**2) / 32)
    assert DIoULoss()(pred, target).item() == pytest.approx(diou)
    assert CIoULoss()(pred, target).item() == pytest.approx(diou)  # ratios count from IoU 0.5 on
    target = torch.tensor([[0.0, 0, 3, 1]])
    v = 4 / math.pi**2 * (math.atan(3) - math.atan(2)) ** 2
    expected = 1 - (2 / 3 - 0.25 / 10 - v * v / (1 - 2 / 3 + v))
    assert CIoULoss()(pred, target).item() == pytest.approx(expected)


def test_gradient_harmony_by_hand():
    """Two bins: three easy examples share the weight of the one that is hard."""
    logits = torch.tensor([[-2.0], [-3.0], [-2.5], [2.0]])
    background = torch.tensor([1, 1, 1, 1])
    losses = F.softplus(logits).flatten()
    factors = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1]) * 4 / 2
    torch.testing.assert_close(GHMC(bins=2)(logits, background), (losses * factors).sum() / 4)
    torch.testing.assert_close(GHMC(bins=2, reduction="none")(logits, background).flatten(), losses * factors)
    torch.testing.assert_close(GHMC(bins=2, reduction="sum")(logits, background), (losses * factors).sum())
    running = GHMC(bins=2, momentum=0.75)
    running(logits, background)
    assert running.acc_sum.tolist() == [0.75, 0.25]
    running(logits[:3], background[:3])  # a bin without elements keeps its number
    assert running.acc_sum.tolist() == [0.75 * 0.75 + 0.25 * 3, 0.25]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        *(CrossEntropyLoss(class_weight=[1, 2, 3, 4], avg_non_ignore=True, use_sigmoid=by) for by in (False, True)),
        *CLASS_LOSSES,
        *BOX_LOSSES,
    ],
    ids=named,
)
def test_no_loss_waits_for_the_device(loss, weighted):
    """Tensors that have shapes and no values: whatever asked for one would fail."""
    loss = copy.deepcopy(loss).to("meta")
    pred = torch.rand(6, 4, device="meta").requires_grad_()
    by_class = hasattr(loss, "use_sigmoid")
    target = torch.zeros(6, dtype=torch.int64, device="meta") if by_class else torch.rand(6, 4, device="meta")
    weight = torch.rand(6, device="meta") if weighted else None
    for avg_factor in (None, 3, torch.rand((), device="meta")):
        value = loss(pred, target, weight, avg_factor)
        assert value.shape == ()
        value.backward()
    assert pred.grad.shape == (6, 4)


@pytest.mark.parametrize("loss", [*CLASS_LOSSES, *BOX_LOSSES], ids=named)
def test_memory_may_be_in_any_order(loss):
    torch.manual_seed(0)
    pred, target = torch.rand(6, 4).cumsum(dim=1), torch.rand(6, 4).cumsum(dim=1)
    target = (target > 2).float() if hasattr(loss, "use_sigmoid") else target
    transposed = [t.T.contiguous().T for t in (pred, target)]
    assert not transposed[0].is_contiguous()
    torch.testing.assert_close(copy.deepcopy(loss)(*transposed), copy.deepcopy(loss)(pred, target))


def test_losses_of_ones_own_get_weights_and_reductions():
    @weighted_loss
    def squared(pred, target, *, scale=1.0):
        """Squares."""
        return scale * (pred - target) ** 2

    pred, target = torch.tensor([[1.0, 2], [3, 4]]), torch.zeros(2, 2)
    assert squared.__name__ == "squared"
    assert squared(pred, target).item() == 30 / 4
    assert squared(pred, target, scale=2).item() == 60 / 4
    assert squared(pred, target, reduction="sum").item() == 30
    assert squared(pred, target, reduction="none").tolist() == [[1, 4], [9, 16]]
    assert squared(pred, target, torch.tensor([2.0, 0]), "none").tolist() == [[2, 8], [0, 0]]
    assert squared(pred, target, torch.tensor([[1.0, 0], [0, 1]]), avg_factor=2).item() == pytest.approx(17 / 2)
    assert squared(pred, target, avg_factor=torch.tensor(5.0)).item() == pytest.approx(6)
    assert squared(pred, target, avg_factor=0).item() == pytest.approx(30 / 1.1920929e-07)
    assert squared(pred, target, torch.tensor([[1.0], [0.5]]), "sum").item() == 5 + 25 / 2
    rows = weighted_loss(lambda pred, target: (pred - target).square().sum(dim=1))
    assert rows(pred, target, torch.tensor([[1.0, 0], [0, 0]]), "none").tolist() == [2.5, 0]
    assert squared(pred[:0], target[:0]).item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "average"}, "the reduction of a loss is one of none, mean, sum, got 'average'"),
        ({"reduction": "sum", "avg_factor": 3}, "avg_factor divides a mean: it cannot be given with the reduction sum"),
        ({"weight": torch.ones(3)}, r"a weight of shape \[3\] does not fit a loss of shape \[2, 2\]"),
        ({"weight": torch.ones(2, 2, 2, 2)}, r"a weight of shape \[2, 2, 2, 2\] does not fit"),
    ],
)
def test_calls_that_make_no_sense(options, message):
    absolute = weighted_loss(lambda pred, target: (pred - target).abs())
    with pytest.raises(InputError, match=message):
        absolute(torch.ones(2, 2), torch.zeros(2, 2), **options)


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), *CLASS_LOSSES, *BOX_LOSSES], ids=named)
def test_overriding_with_an_unknown_reduction_is_refused(loss):
    target = torch.zeros(2, dtype=torch.int64) if hasattr(loss, "use_sigmoid") else torch.zeros(2, 4)
    with pytest.raises(InputError, match="got 'average'"):
        loss(torch.rand(2, 4), target, reduction_override="average")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("{type: FocalLoss, use_sigmoid: false}", "use_sigmoid"),
        ("{type: FocalLoss, alpha: 2}", "alpha"),
        ("{type: GHMC, momentum: 1}", "momentum"),
        ("{type: GHMC, bins: 0}", "bins"),
        ("{type: CrossEntropyLoss, use_sigmoid: true, reduction: average}", "reduction"),
        ("{type: CrossEntropyLoss, use_sigmoid: true, class_weight: [-1]}", "class_weight"),
        ("{type: CrossEntropyLoss, use_sigmoid: true, class_weight: []}", "class_weight"),
        ("{type: CrossEntropyLoss, use_sigmoid: true, ignore_index: 1.5}", "ignore_index"),
    ],
)
def test_arguments_are_checked_in_the_recipe(part, message):
    with pytest.raises(InputError, match=rf"command line: model\.rpn_head\.loss_cls\.{message}.*: expected .*, got"):
        load_config("demo_streets", [f"model.rpn_head.loss_cls={{_delete_: true, {part[1:]}"])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("{type: IoULoss, mode: cubic}", "mode"),
        ("{type: IoULoss, eps: 0}", "eps"),
        ("{type: BalancedL1Loss, alpha: 0}", "alpha"),
        ("{type: GHMR, mu: 0}", "mu"),
        ("{type: CIoULoss, loss_weight: -1}", "loss_weight"),
    ],
)
def test_arguments_of_box_losses_are_checked_in_the_recipe(part, message):
    with pytest.raises(InputError, match=rf"command line: model\.rpn_head\.loss_bbox\.{message}.*: expected .*, got"):
        load_config("demo_streets", [f"model.rpn_head.loss_bbox={{_delete_: true, {part[1:]}"])


def test_accuracy_is_a_percentage():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 5.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])).item() == 75
    assert accuracy(logits[:0], torch.zeros(0, dtype=torch.int64)).item() == 0
