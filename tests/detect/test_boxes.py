"""Box arithmetic and anchors: the reference's operators, and empty cases."""

from __future__ import annotations

import pytest
import torch

from detect.models.anchors import AnchorGenerator
from detect.models.boxes import DeltaCoder, boxes_to_rois, clip_boxes, group_nms, pairwise_iof, pairwise_iou
from detect.models.channels import common_channels
from dpipe.errors import InputError

SIZES = [(10, 14), (5, 7), (3, 4), (2, 2), (1, 1)]


@pytest.fixture
def parts(parity):
    return parity("mmdet_parts")


def test_overlaps_equal_the_reference(parts):
    boxes = parts.inputs["nms/boxes"][:20]
    torch.testing.assert_close(pairwise_iou(boxes, boxes), parts.expected["nms/iou_first20"])
    torch.testing.assert_close(pairwise_iof(boxes, boxes), parts.expected["nms/iof_first20"])


def test_overlaps_of_nothing_and_of_points():
    none, point = torch.zeros(0, 4), torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert pairwise_iou(none, point).shape == (0, 1)
    assert pairwise_iof(point, none).shape == (1, 0)
    assert pairwise_iou(point, point).item() == 0


def test_coder_equals_the_reference(parts):
    priors, gts, deltas = (parts.inputs[f"coder/{name}"] for name in ("priors", "gts", "deltas"))
    candidates = {stds: DeltaCoder(stds).encode(priors, gts) for stds in ((1, 1, 1, 1), (0.1, 0.1, 0.2, 0.2))}
    matches = [s for s, e in candidates.items() if torch.allclose(e, parts.expected["coder/encode"], atol=1e-4)]
    assert len(matches) == 1
    coder = DeltaCoder(matches[0])
    torch.testing.assert_close(
        coder.decode(priors, deltas), parts.expected["coder/decode_noclip"], atol=1e-3, rtol=1e-5
    )
    clipped = coder.decode(priors, deltas, torch.tensor([1344.0, 800.0]))
    torch.testing.assert_close(clipped, parts.expected["coder/decode_clip_800x1344"], atol=1e-3, rtol=1e-5)


def test_decoding_undoes_encoding_and_limits_growth():
    coder = DeltaCoder((0.1, 0.1, 0.2, 0.2))
    priors, boxes = torch.tensor([[10.0, 20.0, 50.0, 40.0]]), torch.tensor([[5.0, 30.0, 25.0, 70.0]])
    torch.testing.assert_close(coder.decode(priors, coder.encode(priors, boxes)), boxes)
    huge = coder.decode(priors, torch.tensor([[0.0, 0.0, 1e4, -1e4]]))
    width, height = (huge[0, 2:] - huge[0, :2]).tolist()
    assert width == pytest.approx(40 * 62.5)
    assert height == pytest.approx(20 / 62.5)


def test_clipping_broadcasts_over_images():
    boxes = torch.tensor([[-5.0, -5.0, 300.0, 300.0]]).expand(2, 3, 4)
    clipped = clip_boxes(boxes, torch.tensor([[100.0, 50.0], [200.0, 400.0]])[:, None])
    assert clipped[0, 0].tolist() == [0, 0, 100, 50]
    assert clipped[1, 2].tolist() == [0, 0, 200, 300]


@pytest.mark.parametrize("thr", [0.3, 0.5, 0.7])
def test_nms_equals_the_reference(parts, thr):
    boxes, scores, groups = (parts.inputs[f"nms/{name}"] for name in ("boxes", "scores", "ids"))
    kept = group_nms(boxes, scores, groups, thr, 1000)
    assert kept.tolist() == parts.expected[f"nms/batched_keep_{thr}"].tolist()
    alone = group_nms(boxes, scores, torch.zeros_like(groups), thr, 50)
    assert alone.tolist() == parts.expected[f"nms/class_agnostic_keep_{thr}"].tolist()[:50]


def test_nms_of_nothing():
    kept = group_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5, 10)
    assert kept.shape == (0,)


def test_rois_number_images_even_without_boxes():
    rois = boxes_to_rois([torch.ones(2, 4), torch.zeros(0, 4), torch.full((1, 4), 5.0)])
    assert rois[:, 0].tolist() == [0, 0, 2]
    assert boxes_to_rois([torch.zeros(0, 4)]).shape == (0, 5)


def test_anchors_equal_the_reference(parts):
    sizes = [len(parts.expected[f"anchors/{i}"]) // 3 for i in range(5)]
    assert sizes == [h * w for h, w in SIZES]
    generator = AnchorGenerator((4, 8, 16, 32, 64), (8,), (0.5, 1.0, 2.0))
    for level, anchors in enumerate(generator.grids(SIZES)):
        torch.testing.assert_close(anchors, parts.expected[f"anchors/{level}"], atol=0, rtol=0)
    flags = generator.inside_padding(SIZES, (32, 41))
    for level, inside in enumerate(flags):
        assert torch.equal(inside, parts.expected[f"anchors/valid_flags_pad_32x41/{level}"].bool())


def test_anchors_keep_their_area_and_order():
    generator = AnchorGenerator((16,), (8, 16), (0.5, 2.0))
    base = generator.grids([(1, 1)])[0]
    widths, heights = base[:, 2] - base[:, 0], base[:, 3] - base[:, 1]
    torch.testing.assert_close(widths * heights, torch.tensor([128.0**2, 256.0**2] * 2))
    torch.testing.assert_close(heights / widths, torch.tensor([0.5, 0.5, 2.0, 2.0]))
    assert generator.num_anchors == 4


def test_anchors_have_their_centre_where_they_are_asked_to():
    generator = AnchorGenerator((32, 16), (6.8, 3.44, 1.68), (1.0, 2.0, 0.5), center_offset=0.5)
    grids = generator.grids([(8, 8), (16, 16)])
    for anchors, stride, count in zip(grids, (32, 16), (8, 16), strict=True):
        centers = ((anchors[:, :2] + anchors[:, 2:]) / 2).reshape(count, count, 9, 2)
        x = y = (torch.arange(count) + 0.5) * stride
        torch.testing.assert_close(centers[..., 0], x[None, :, None].expand(count, count, 9))
        torch.testing.assert_close(centers[..., 1], y[:, None, None].expand(count, count, 9))
    # At stride 32 of an image of 256 pixels, sizes relative to its side, and all shapes of each.
    sizes = (grids[0][:9, 2:] - grids[0][:9, :2]) / 256
    expected = [[s / r**0.5, s * r**0.5] for r in (1.0, 2.0, 0.5) for s in (0.85, 0.43, 0.21)]
    torch.testing.assert_close(sizes, torch.tensor(expected))
    with pytest.raises(InputError, match=r"center_offset of 0\.\.1, got 1\.5"):
        AnchorGenerator((32,), (8.0,), (1.0,), center_offset=1.5)


def test_channels_of_shared_heads():
    assert common_channels(16, "RPNHead") == common_channels((16, 16), "RPNHead") == 16
    with pytest.raises(InputError, match=r"RPNHead: in_channels is \[16, 32\]"):
        common_channels((16, 32), "RPNHead")
