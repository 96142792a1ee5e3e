"""Suppression of detections: soft, hard, within classes and across them, and where recipes choose it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detect.config import build_model, load_config
from detect.models.dense_heads.fcos import FCOSHead, FCOSOutputs
from detect.models.nms import NMS, SoftNMS
from detect.models.roi_extractors import SingleRoIExtractor
from detect.models.roi_heads.bbox_head import Shared2FCBBoxHead
from detect.models.roi_heads.cascade import CascadeRoIHead
from detect.models.roi_heads.standard import StandardRoIHead
from dpipe.errors import InputError

STRIDES = (4, 8, 16, 32)


def candidates(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 20 + torch.rand(count, 2, generator=generator) * 30], dim=1)
    return boxes, torch.rand(count, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def iou(a, b):
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def by_the_definition(boxes, scores, labels, iou_thr, method, sigma, min_score, class_agnostic):
    """All that is taken, [(index, score)], one box after the other."""
    boxes, labels = boxes.tolist(), labels.tolist()
    left, taken = dict(enumerate(scores.tolist())), []
    while left:
        best = max(left, key=left.__getitem__)
        taken.append((best, left.pop(best)))
        for other in list(left):
            overlap = iou(boxes[best], boxes[other])
            if not class_agnostic and labels[best] != labels[other]:
                factor = 1.0
            elif method == "gaussian":
                factor = math.exp(-(overlap**2) / sigma)
            else:
                factor = 1 - overlap if overlap >= iou_thr else 1.0
            left[other] *= factor
            if left[other] < min_score:
                del left[other]
    return taken


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize(("iou_thr", "sigma", "min_score"), [(0.3, 0.5, 0.05), (0.5, 0.2, 1e-3), (0.7, 1.0, 0.4)])
def test_soft_nms_is_its_definition(method, class_agnostic, iou_thr, sigma, min_score):
    given = candidates()
    expected = by_the_definition(*given, iou_thr, method, sigma, min_score, class_agnostic)
    soft = SoftNMS(method, sigma, min_score, class_agnostic)
    for most in (1000, 7):
        kept, scores = soft.suppress(*given, iou_thr, most)
        assert kept.tolist() == [index for index, _ in expected][:most]
        torch.testing.assert_close(scores, torch.tensor([score for _, score in expected][:most]))
    assert len(expected) < len(given[0])
    assert torch.equal(given[1], candidates()[1])


class Waits(TorchDispatchMode):
    """Counts the operations whose result the host needs to go on."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_soft_nms_waits_for_the_device_once():
    with Waits() as waits:
        SoftNMS().suppress(*candidates(), 0.5, 100)
    assert waits.count == 1


def test_soft_nms_of_equal_boxes_and_of_low_scores():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(3, 4)
    labels = torch.tensor([0, 0, 1])
    kept, scores = SoftNMS(min_score=0.0).suppress(boxes, torch.tensor([0.5, 0.9, 0.7]), labels, 0.5, 10)
    assert kept.tolist() == [1, 2, 0]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.7, 0.0]))
    # The best one is taken whatever its score.
    kept, scores = SoftNMS(min_score=0.6).suppress(boxes, torch.tensor([0.5, 0.4, 0.3]), labels, 0.5, 10)
    assert (kept.tolist(), scores.tolist()) == ([0], [0.5])


def test_the_threshold_itself_lowers_a_score_and_suppresses_nothing():
    boxes, scores = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]]), torch.tensor([0.8, 0.4])
    labels = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(SoftNMS().suppress(boxes, scores, labels, 0.5, 10)[1], torch.tensor([0.8, 0.2]))
    assert torch.equal(NMS().suppress(boxes, scores, labels, 0.5, 10)[1], scores)


@pytest.mark.parametrize("nms", [NMS(), NMS(class_agnostic=True), SoftNMS(), SoftNMS("gaussian")])
def test_nothing_to_suppress(nms):
    kept, scores = nms.suppress(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5, 10)
    assert (kept.shape, kept.dtype, scores.shape) == ((0,), torch.int64, (0,))


def test_nms_within_classes_and_across_them(parity):
    case = parity("mmdet_parts")
    given = [case.inputs[f"nms/{name}"] for name in ("boxes", "scores", "ids")]
    for nms, name in ((NMS(), "batched_keep"), (NMS(class_agnostic=True), "class_agnostic_keep")):
        kept, scores = nms.suppress(*given, 0.5, 50)
        assert kept.tolist() == case.expected[f"nms/{name}_0.5"].tolist()[:50]
        assert torch.equal(scores, given[1][kept])


def roi_heads(**options):
    extractor = SingleRoIExtractor(7, STRIDES)
    heads = [Shared2FCBBoxHead(4, 2, fc_out_channels=8) for _ in range(3)]
    for head in heads:
        for layer in (head.fc_cls, head.fc_reg):
            torch.nn.init.zeros_(layer.weight)
        head.fc_cls.bias.data = torch.tensor([1.0, 0.5, -9.0])
    options = {"score_thr": 0.0, "nms_iou": 0.5, **options}
    return [StandardRoIHead(extractor, heads[0], **options), CascadeRoIHead(extractor, heads, **options)]


@pytest.mark.parametrize("kind", [0, 1])
def test_roi_heads_suppress_as_they_are_told(kind, make_target):
    """Both RoIs, of IoU 0.6, have both classes: four detections at one place."""
    torch.manual_seed(0)
    features = [torch.randn(1, 4, 64 // s, 96 // s) for s in STRIDES]
    rois = torch.tensor([[8.0, 8, 40, 40], [16, 8, 48, 40]])

    def scores(**options):
        (found,) = roi_heads(**options)[kind].eval().predict(features, [rois], [make_target([])])
        return found.labels.tolist(), found.scores

    with torch.no_grad():
        labels, hard = scores()
        assert labels == [0, 1]
        labels, across = scores(nms=NMS(class_agnostic=True))
        assert labels == [0]
        assert torch.equal(across, hard[:1])
        labels, soft = scores(nms=SoftNMS())
        assert labels == [0, 1, 0, 1]
        torch.testing.assert_close(soft, torch.cat([hard, hard * 0.4]))
        labels, soft = scores(nms=SoftNMS("gaussian"))
        torch.testing.assert_close(soft, torch.cat([hard, hard * math.exp(-0.72)]))
        assert scores(nms=SoftNMS(), max_per_img=3)[0] == [0, 1, 0]


def test_fcos_suppresses_as_it_is_told(make_target, monkeypatch):
    """Two cells side by side predict boxes of IoU 0.6."""
    logits = torch.full((1, 1, 8, 12), -20.0)
    logits[0, 0, 3, 4], logits[0, 0, 3, 5] = 2.0, 1.0
    outputs = FCOSOutputs([logits], [torch.full((1, 4, 8, 12), 16.0)], [torch.zeros(1, 1, 8, 12)])
    monkeypatch.setattr(FCOSHead, "forward", lambda self, levels: outputs)

    def scores(nms):
        head = FCOSHead(4, (8,), 1, feat_channels=8, num_groups=2, regress_ranges=((-1, 1e8),), nms=nms).eval()
        (found,) = head.predict([], [make_target([])])
        return found.scores

    hard = torch.tensor([2.0, 1.0]).sigmoid() * 0.5
    torch.testing.assert_close(scores(None), hard[:1])
    torch.testing.assert_close(scores(SoftNMS()), hard * torch.tensor([1.0, 0.4]))


def test_a_recipe_chooses_its_suppression():
    chosen = "{type: SoftNMS, method: gaussian, sigma: 0.3, min_score: 0.05}"
    with torch.device("meta"):
        config = load_config("faster_rcnn_r50_fpn_coco", [f"model.roi_head.nms={chosen}"])
        roi_head = build_model(config, 3, pretrained=False).roi_head
        config = load_config("fcos_r50_caffe_fpn_gn_coco", ["model.bbox_head.nms={type: NMS, class_agnostic: true}"])
        fcos = build_model(config, 3, pretrained=False).bbox_head
    assert (roi_head.nms.method, roi_head.nms.sigma, roi_head.nms.min_score) == ("gaussian", 0.3, 0.05)
    assert fcos.nms.class_agnostic


def test_what_cannot_suppress_is_refused():
    message = "StandardRoIHead: nms cannot be a SingleRoIExtractor, which has no suppress"
    with pytest.raises(InputError, match=message):
        roi_heads(nms=SingleRoIExtractor(7, STRIDES))
