"""The RPN's two-class softmax, detectors without a neck, and proposals in pictures."""

from __future__ import annotations

import json

import pytest
import torch

from detect.config import build_model
from detect.models.assign import RandomSampler
from detect.models.dense_heads.rpn import RPNHead
from detect.models.detectors import total_loss
from detect.models.losses import CrossEntropyLoss
from detect.prediction import predict
from detect.registry import MODELS
from detect.running.state import ModelInfo, save_checkpoint
from dpipe.errors import InputError

OBJECTS = [(10, 10, 50, 50), (40, 20, 90, 60)]
C4 = {"type": "ResNet", "depth": 18, "base_channels": 4, "num_stages": 3, "out_indices": [2]}
C4_RPN = {"type": "RPNHead", "feat_channels": 8, "scales": [1, 2, 4], "loss_cls": {"type": "CrossEntropyLoss"}}
ROI_HEAD = {
    "type": "StandardRoIHead",
    "bbox_roi_extractor": {"type": "SingleRoIExtractor", "output_size": 7},
    "bbox_head": {"type": "Shared2FCBBoxHead", "fc_out_channels": 8},
    "score_thr": 0.0,
}
FCOS = {"type": "FCOSHead", "feat_channels": 8, "num_groups": 4, "regress_ranges": [[-1, 1e8]], "score_thr": 0.0}
WITHOUT_NECK = {
    "RPN": {"rpn_head": C4_RPN},
    "TwoStageDetector": {"rpn_head": C4_RPN, "roi_head": ROI_HEAD},
    "SingleStageDetector": {"bbox_head": FCOS},
}


def by_softmax_and_by_sigmoid(seed=0):
    """Two heads of equal objectness: the background's logit of one is nought, and so is that of the other's sigmoid."""
    torch.manual_seed(seed)
    softmax = RPNHead(8, (8, 16), feat_channels=8, loss_cls=CrossEntropyLoss())
    sigmoid = RPNHead(8, (8, 16), feat_channels=8)
    with torch.no_grad():
        softmax.rpn_cls.weight.normal_()
        softmax.rpn_cls.bias.normal_()
        softmax.rpn_cls.weight[1::2] = softmax.rpn_cls.bias[1::2] = 0.0
    weights = softmax.state_dict()
    for name in ("rpn_cls.weight", "rpn_cls.bias"):
        weights[name] = weights[name][::2]
    sigmoid.load_state_dict(weights)
    return softmax, sigmoid


def levels():
    return [torch.randn(2, 8, 8, 12), torch.randn(2, 8, 4, 6)]


def test_two_logits_an_anchor_foreground_first(make_target):
    softmax, sigmoid = by_softmax_and_by_sigmoid()
    assert softmax.rpn_cls.weight.shape == (6, 8, 1, 1)
    features, targets = levels(), [make_target(OBJECTS), make_target([])]
    for training in (True, False):
        for head in (softmax, sigmoid):
            head.train(training)
            head.sampler.num = 10**6  # no draw is random where all are taken
        (theirs, their_proposals), (ours, our_proposals) = (
            head.loss_and_propose(features, targets) for head in (sigmoid, softmax)
        )
        torch.testing.assert_close(ours, theirs)
        for one, other in zip(our_proposals, their_proposals, strict=True):
            torch.testing.assert_close(one, other)


def test_a_greater_background_lowers_scores_and_raises_the_loss_of_objects(make_target):
    softmax, _ = by_softmax_and_by_sigmoid()
    features, target = levels(), make_target(OBJECTS)
    before = softmax.propose(features, [target])[0][1]
    with torch.no_grad():
        softmax.rpn_cls.bias[1::2] += 1.0
    after = softmax.propose(features, [target])[0][1]
    # The same order, as every background grew alike.
    torch.testing.assert_close(after, (before.logit() - 1).sigmoid())


def test_class_weights_of_a_softmax_are_the_foregrounds_and_the_backgrounds(make_target):
    features, target = levels(), make_target(OBJECTS)
    losses = []
    for weights in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0]):
        softmax, _ = by_softmax_and_by_sigmoid()
        softmax.sampler.num = 10**6
        softmax.loss_cls = CrossEntropyLoss(class_weight=weights)
        losses.append(softmax.loss(features, [target])["loss_rpn_cls"])
    assert losses[0] > 0
    torch.testing.assert_close(losses[0] + losses[1], losses[2])
    with pytest.raises(InputError, match="RPNHead: loss_cls needs a class_weight of 1 numbers, got 2"):
        RPNHead(8, (8, 16), loss_cls=CrossEntropyLoss(use_sigmoid=True, class_weight=[1.0, 1.0]))


@pytest.mark.parametrize(
    ("border", "rows", "columns"),
    [
        (-1, range(4), range(6)),
        (0, range(1, 3), range(1, 5)),
        (1, range(1, 4), range(1, 6)),
        (15, range(1, 4), range(1, 6)),
        (16, range(4), range(6)),
    ],
)
def test_how_far_anchors_may_reach_beyond_the_image(border, rows, columns, make_target):
    """Anchors are 32 px wide and high, around the corners of cells of 16 px; the image is 96 px wide and 64 px high."""
    everything = RandomSampler(10**6, 0.5, add_gt_as_proposals=False)
    head = RPNHead(8, (16,), scales=[2.0], ratios=[1.0], allowed_border=border, sampler=everything)
    (anchors,) = head.anchors.grids([(4, 6)])
    (sample,) = head.sample_anchors(anchors, [(4, 6)], [make_target([])])
    assert sample.negatives.tolist() == [6 * row + column for row in rows for column in columns]


def test_an_image_that_the_border_leaves_no_anchor(make_target):
    """Anchors of 128 px and more, an image of 64 x 96."""
    head, features = RPNHead(8, (8, 16), feat_channels=8, scales=[16.0], allowed_border=0), levels()
    with pytest.warns(UserWarning, match="RPNHead learns nothing of image.png") as told:
        losses = [head.loss(features, [make_target(OBJECTS), make_target([])]) for _ in range(2)]
    assert [total_loss(each) for each in losses] == [0, 0]
    (warning,) = told
    expected = (
        "with allowed_border 0 no anchor may be trained, as the image is 64x96 px and the smallest anchor 128x128 px"
    )
    assert expected in str(warning.message)
    head.allowed_border = -1
    assert total_loss(head.loss(features, [make_target(OBJECTS), make_target([])])) > 0


@pytest.mark.parametrize(
    ("min_size", "sizes"), [(7.9, {(8, 32), (16, 16)}), (8, {(16, 16)}), (15.9, {(16, 16)}), (16, set())]
)
def test_the_smallest_proposals(min_size, sizes, make_target):
    """They must be wider and higher."""
    head = RPNHead(8, (32,), scales=[0.5], ratios=[1.0, 4.0], center_offset=0.5, min_size=min_size, nms_iou=1.0).eval()
    torch.nn.init.zeros_(head.rpn_reg.weight)
    ((boxes, _),) = head.propose([torch.randn(1, 8, 2, 3)], [make_target([])])
    assert len(boxes) == 6 * len(sizes)
    assert set(map(tuple, (boxes[:, 2:] - boxes[:, :2]).round().tolist())) == sizes


@pytest.mark.parametrize("kind", list(WITHOUT_NECK))
def test_detectors_without_a_neck(kind, make_target):
    torch.manual_seed(0)
    node = {"type": kind, "backbone": C4, "neck": None, **WITHOUT_NECK[kind]}
    model = MODELS.build(node, {"num_classes": 3})
    # The stage that nothing reads is not there.
    names = set(model.state_dict())
    assert not [name for name in names if name.startswith(("neck", "backbone.layer4"))]
    losses = model.train()(torch.randn(2, 3, 64, 96), [make_target(OBJECTS), make_target([])])
    total_loss(losses).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    with torch.no_grad():
        found = model.eval()(torch.randn(2, 3, 64, 96), [make_target([]), make_target([], size=(50, 60))])
    assert all(len(detections) for detections in found)


def test_what_a_backbone_without_a_neck_hands_out_must_fit():
    node = {"type": "RPN", "backbone": C4, "neck": None}
    with pytest.raises(InputError, match=r"RPN: bbox_head has the strides \[8\], but the backbone's are \[16\]"):
        MODELS.build({**node, "rpn_head": {**C4_RPN, "strides": [8]}}, {})
    with pytest.raises(InputError, match=r"RPN: bbox_head has in_channels 8, but the backbone's levels have \[16\]"):
        MODELS.build({**node, "rpn_head": {**C4_RPN, "in_channels": 8}}, {})
    supervised = {
        **WITHOUT_NECK["TwoStageDetector"],
        "auxiliary_head": {"type": "AuxiliaryHead", "bbox_head": {"type": "Shared2FCBBoxHead"}},
    }
    with pytest.raises(InputError, match="raw laterals, which a detector without a neck does not hand out"):
        MODELS.build({**node, "type": "TwoStageDetector", **supervised}, {"num_classes": 3})


def test_proposals_are_drawn_as_objects_of_no_class(shapes, tmp_path):
    rpn = {"type": "RPN", "backbone": C4, "neck": None, "rpn_head": C4_RPN}
    config = shapes.config(f"model={json.dumps({'_delete_': True, **rpn})}")
    torch.manual_seed(0)
    info = ModelInfo(("box", "disc"), (4, 9), config.to_yaml(), 0, 0)
    checkpoint = save_checkpoint(tmp_path, build_model(config, 2), {}, info)
    results = predict(config, checkpoint, shapes.images[:1], tmp_path / "out").results()
    assert results
    assert {(found["category_id"], found["category_name"]) for found in results} == {(1, "object")}
    categories = json.loads((tmp_path / "out" / "images.json").read_text())["categories"]
    assert categories == [{"id": 1, "name": "object"}]
