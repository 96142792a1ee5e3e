"""What the RPN tells of its errors beside its losses, and the small RPN that logs them."""

from __future__ import annotations

import pytest
import torch

from detect.models.assign import RandomSampler
from detect.models.dense_heads.rpn import RPNHead
from detect.models.dense_heads.rpn_outputs import sample_errors
from detect.models.detectors import total_loss
from detect.models.losses import CrossEntropyLoss, L1Loss

OBJECTS = [(10, 10, 50, 50), (40, 20, 90, 60)]
ERRORS = {"rpn_cls_error", "rpn_box_mae"}


def test_errors_by_hand():
    positive = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0]])  # right, wrong, undecided
    negative = torch.tensor([[2.0, 1.0], [0.0, 3.0]])  # wrong, right
    deltas = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    errors = sample_errors(positive, negative, deltas, torch.zeros(3, 4))
    assert errors["rpn_cls_error"].item() == pytest.approx(3 / 5)
    assert errors["rpn_box_mae"].item() == pytest.approx(4 / 12)
    one_logit = sample_errors(positive[:, :1] - 1.5, negative[:, :1] - 1.5, deltas, torch.zeros(3, 4))
    assert one_logit["rpn_cls_error"].item() == pytest.approx(3 / 5)


def test_errors_of_nothing_are_nought():
    nothing = sample_errors(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0, 4), torch.zeros(0, 4))
    assert {name: value.item() for name, value in nothing.items()} == dict.fromkeys(ERRORS, 0.0)


@pytest.mark.parametrize("use_sigmoid", [True, False])
def test_the_head_tells_the_errors_of_what_it_samples(make_target, use_sigmoid):
    torch.manual_seed(0)
    sampler = RandomSampler(10**6, 0.5, add_gt_as_proposals=False)  # no draw is random where all are taken
    head = RPNHead(
        8,
        (16,),
        feat_channels=8,
        scales=(1.0, 2.0),
        sampler=sampler,
        loss_cls=CrossEntropyLoss(use_sigmoid=use_sigmoid),
        loss_bbox=L1Loss(),
        log_errors=True,
    )
    torch.nn.init.normal_(head.rpn_cls.bias)
    features, targets = [torch.randn(2, 8, 4, 6)], [make_target(OBJECTS), make_target(OBJECTS[:1])]
    losses = head.loss(features, targets)
    assert losses.keys() == {"loss_rpn_cls", "loss_rpn_bbox", *ERRORS}
    assert total_loss(losses) == losses["loss_rpn_cls"] + losses["loss_rpn_bbox"]
    assert not any(losses[name].requires_grad for name in ERRORS)

    outputs = head(features)
    (anchors,) = head.anchors.grids(outputs.sizes)
    wrong, absolute, samples, positives = 0, 0.0, 0, 0
    for image, target in enumerate(targets):
        indices = head.assigner.assign(anchors, target.boxes, target.ignore_boxes).gt_indices
        for number, gt in enumerate(indices.tolist()):
            cell, anchor = divmod(number, 6)
            logits = outputs.logits[0][image].reshape(6, -1, 24)[anchor, :, cell]
            is_object = bool(logits[0] > (0 if use_sigmoid else logits[1]))
            samples += gt >= -1
            wrong += is_object if gt == -1 else gt >= 0 and not is_object
            if gt >= 0:
                positives += 1
                box = head.coder.encode(anchors[number], target.boxes[gt])
                absolute += (outputs.deltas[0][image].reshape(6, 4, 24)[anchor, :, cell] - box).abs().sum().item()
    assert positives > 0
    assert 0 < wrong < samples
    assert losses["rpn_cls_error"].item() == pytest.approx(wrong / samples)
    assert losses["rpn_box_mae"].item() == pytest.approx(absolute / (4 * positives), rel=1e-5)
    # With L1 the box loss is this error, but for what it is divided by.
    assert losses["loss_rpn_bbox"].item() == pytest.approx(absolute / samples, rel=1e-5)


def test_others_tell_no_errors(make_target):
    head = RPNHead(8, (16,), feat_channels=8)
    assert head.loss([torch.randn(1, 8, 4, 6)], [make_target(OBJECTS)]).keys() == {"loss_rpn_cls", "loss_rpn_bbox"}
