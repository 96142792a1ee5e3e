"""Mask targets and pasting: the reference's values, both routes alike, the edges of the image."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from detect.models.assign import Samples
from detect.models.detections import Detections, to_original
from detect.models.masks import encode_masks, mask_targets
from detect.models.roi_heads.masks import masked_positives
from dpipe.errors import InputError
from dpipe.polygons import Polygons


def samples_of(boxes, instances):
    n = len(boxes)
    return Samples(boxes, instances, boxes, torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool))


def test_bitmap_targets_equal_the_reference(parity):
    case = parity("mmdet_parts")
    target = SimpleNamespace(masks=case.inputs["mask_target/gt_masks"], file_name="a.png")
    # The fifth box reaches beyond the bitmap; the operator that made the case does not clip it, whole detectors do.
    sample = samples_of(case.inputs["mask_target/boxes"][:4], case.inputs["mask_target/inds"][:4])
    assert torch.equal(mask_targets([sample], [target], 28), case.expected["mask_target/binary_28"][:4].float())


def test_bitmap_targets_are_of_the_clipped_box():
    target = SimpleNamespace(masks=torch.ones(1, 20, 30, dtype=torch.uint8), file_name="a.png")
    boxes = torch.tensor([[-10.0, -10.0, 10.0, 10.0], [25.0, 5.0, 60.0, 50.0]])
    assert mask_targets([samples_of(boxes, torch.tensor([0, 0]))], [target], 28).all()


def test_polygon_targets_agree_with_bitmap_targets():
    segmentations = [[[10.0, 10.0, 60.0, 20.0, 50.0, 70.0, 15.0, 55.0]], [[30.0, 5.0, 90.0, 5.0, 90.0, 60.0]]]
    polygons = Polygons.from_coco(segmentations)
    bitmaps = torch.from_numpy(polygons.to_bitmaps(80, 100))
    boxes = torch.tensor([[8.0, 9.0, 61.0, 71.0], [20.0, 20.0, 45.0, 40.0], [30.0, 4.0, 92.0, 61.0]])
    sample = samples_of(boxes, torch.tensor([0, 0, 1]))
    from_polygons = mask_targets([sample], [SimpleNamespace(masks=polygons, file_name="a")], 28)
    from_bitmaps = mask_targets([sample], [SimpleNamespace(masks=bitmaps, file_name="a")], 28)
    assert from_polygons.shape == (3, 28, 28)
    assert set(from_polygons.unique().tolist()) == {0.0, 1.0}
    assert (from_polygons != from_bitmaps).float().mean() < 0.02


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_targets_of_several_images_are_those_of_each(device):
    """Polygons of all images are measured together: an image's RoIs must not see those of another."""
    rng = np.random.default_rng(0)
    samples, targets = [], []
    for number, kind in enumerate(["polygons", "bitmaps", "none", "polygons", "polygons"]):
        polygons = Polygons.from_coco([[rng.uniform(0, 60, 8).tolist()] for _ in range(number + 1)])
        masks = {"polygons": polygons, "none": None, "bitmaps": torch.from_numpy(polygons.to_bitmaps(60, 60))}[kind]
        count = 0 if kind == "none" else 4
        corners = torch.from_numpy(rng.uniform(0, 30, (count, 2)).astype(np.float32))
        boxes = torch.cat([corners, corners + 25], dim=1)
        samples.append(samples_of(boxes, torch.arange(count) % (number + 1)))
        targets.append(SimpleNamespace(masks=masks, file_name="a.png", boxes=torch.zeros(0, 4)))
    alone = torch.cat([mask_targets([one], [target], 28) for one, target in zip(samples, targets, strict=True)])
    there = [samples_of(one.boxes.to(device), one.gt_indices.to(device)) for one in samples]
    for target in targets:
        if isinstance(target.masks, torch.Tensor):
            target.masks = target.masks.to(device)
    together = mask_targets(there, targets, 28)
    assert together.device.type == device
    assert (together.cpu() != alone).float().mean() < (1e-4 if device == "cuda" else 1e-9)
    assert 0.05 < alone.mean() < 0.95


@pytest.mark.parametrize("masks", [Polygons.empty(0), torch.zeros(0, 20, 30, dtype=torch.uint8)])
def test_targets_without_positives(masks):
    sample = samples_of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert mask_targets([sample], [SimpleNamespace(masks=masks, file_name="a")], 28).shape == (0, 28, 28)


def test_targets_need_masks():
    sample = samples_of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match=r"image 'street.png': its objects are boxes only"):
        mask_targets([sample], [SimpleNamespace(masks=None, file_name="street.png", boxes=torch.zeros(2, 4))], 28)
    nothing = SimpleNamespace(masks=None, file_name="road.png", boxes=torch.zeros(0, 4))
    assert mask_targets([sample], [nothing], 28).shape == (0, 28, 28)


def decode(encoded):
    return np.stack([coco_mask.decode(mask) for mask in encoded])


def test_pasting_equals_the_reference(parity):
    case = parity("mmdet_parts")
    probabilities = case.inputs["paste/probs"][:, 0]
    encoded = encode_masks(probabilities, case.inputs["paste/boxes"], (50, 70), 0.5)
    assert (decode(encoded) != case.expected["paste/binary_50x70"].numpy()).sum() <= 1
    soft = case.expected["paste/soft_50x70"]
    for threshold in (0.2, 0.8):
        ours = torch.from_numpy(decode(encode_masks(probabilities, case.inputs["paste/boxes"], (50, 70), threshold)))
        near = (soft - threshold).abs() < 1e-5
        assert torch.equal(ours.bool()[~near], (soft >= threshold)[~near])


def test_masks_do_not_leak_into_each_other_and_may_be_empty():
    full = torch.ones(3, 28, 28)
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 9.0], [12.0, 2.0, 20.0, 6.0]])
    bitmaps = decode(encode_masks(full, boxes, (30, 40), 0.5))
    assert bitmaps[0].sum() == bitmaps[0, :10, :10].sum() == 100
    assert bitmaps[1].sum() == 0  # a box without width holds no pixel
    assert bitmaps[2].sum() == bitmaps[2, 2:6, 12:20].sum() == 32
    assert encode_masks(full[:0], boxes[:0], (30, 40), 0.5) == []


def test_boxes_beyond_the_image_are_cut():
    bitmaps = decode(
        encode_masks(torch.ones(2, 28, 28), torch.tensor([[-6, -6, 4, 4], [38, 28, 60, 60.0]]), (30, 40), 0.5)
    )
    assert bitmaps.shape == (2, 30, 40)
    assert (bitmaps[0].sum(), bitmaps[1].sum()) == (16, 4)


@pytest.mark.parametrize("pixels", [1, 300])
def test_masks_cut_into_stripes_are_the_same(monkeypatch, pixels):
    """Also where a mask covers the image from edge to edge, so that runs go on from column to column."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(4, 28, 28, generator=generator)
    probabilities[2:] = 1.0
    boxes = torch.tensor([[3.3, 2.1, 33.0, 28.0], [-5, -5, 20, 90], [-9, -9, 60, 60], [10, -9, 20, 60]])
    whole = encode_masks(probabilities, boxes, (30, 40), 0.5)
    monkeypatch.setattr("detect.models.masks.BATCH_PIXELS", pixels)
    assert encode_masks(probabilities, boxes, (30, 40), 0.5) == whole
    assert decode(whole)[2].all()
    for mask in whole:
        again = coco_mask.encode(coco_mask.decode(mask))
        assert again["counts"].decode("ascii") == mask["counts"]


def test_masks_are_pasted_in_full_precision():
    probabilities = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[3.0, 2.0, 133.0, 98.0], [0.0, 0.0, 140.0, 100.0], [5.5, 5.5, 60.0, 90.0]])
    plain = encode_masks(probabilities, boxes, (100, 140), 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encode_masks(probabilities, boxes, (100, 140), 0.5) == plain


def test_detections_select_and_decode():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 1.0, 1.0]])
    masks = encode_masks(torch.ones(3, 28, 28), boxes, (6, 8), 0.5)
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.1]), torch.tensor([0, 1, 2]), masks)
    assert len(found) == 3
    assert found.bitmaps().shape == (3, 6, 8)
    assert found.bitmaps().sum(axis=(1, 2)).tolist() == [16, 4, 1]
    assert isinstance(masks[0]["counts"], str)
    for chosen in (found.scores > 0.5, torch.tensor([0, 1]), slice(2)):
        kept = found.select(chosen)
        assert kept.labels.tolist() == [0, 1]
        assert kept.masks == masks[:2]
    assert found.select(slice(0)).bitmaps().shape == (0, 0, 0)
    assert found.to("cpu").masks == masks
    with pytest.raises(ValueError, match="no masks"):
        Detections(boxes, found.scores, found.labels).bitmaps()


def matrix_target(matrix):
    return SimpleNamespace(matrix=np.array(matrix, dtype=np.float64), file_name="a.png")


def test_boxes_go_back_through_the_matrix():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    original = to_original(boxes, matrix_target([[2, 0, 4], [0, 0.5, 10]]))
    assert original.tolist() == [[3, 20, 13, 100]]
    for bad in ([[2, 0.1, 0], [0, 2, 0]], [[2, 0, 0], [0.1, 2, 0]]):
        with pytest.raises(InputError, match=r"'a\.png'.*resized or mirrored image"):
            to_original(boxes, matrix_target(bad))


def test_masks_are_trained_on_positives_that_have_one():
    boxes = torch.arange(24.0).reshape(6, 4)
    labels = torch.tensor([3, 1, 2, 1])
    sample = Samples(boxes, torch.tensor([0, 2, 1, 0]), boxes[:4] + 1, labels, torch.tensor([True, True, False, False]))
    target = SimpleNamespace(has_mask=torch.tensor([True, False, True]))
    (masked,) = masked_positives([sample], [target])
    kept = torch.tensor([0, 1, 3])
    assert masked.num_positives == len(masked.boxes) == 3
    assert torch.equal(masked.boxes, boxes[kept])
    assert torch.equal(masked.gt_indices, torch.tensor([0, 2, 0]))
    assert torch.equal(masked.gt_boxes, boxes[kept] + 1)
    assert torch.equal(masked.gt_labels, labels[kept])
    assert masked.is_gt.tolist() == [True, True, False]
