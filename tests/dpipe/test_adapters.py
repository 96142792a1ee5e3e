from __future__ import annotations

from typing import Any

import pytest
import torch

from dpipe.adapters import to_detr, to_tensors, to_torchvision
from dpipe.batch import Batch
from dpipe.errors import InputError
from dpipe.geometry import identity
from dpipe.polygons import Polygons
from dpipe.target import Target

SQUARE, TRIANGLE = [2, 3, 12, 3, 12, 13, 2, 13], [20, 0, 40, 0, 20, 10]


def target(size: tuple[int, int], boxes: list[list[float]], **fields: Any) -> Target:
    count = len(boxes)
    return Target(
        **{
            "image_id": 7,
            "sample": 3,
            "file_name": "a.png",
            "size": size,
            "original_size": (2 * size[0], 2 * size[1]),
            "matrix": identity(),
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.arange(count),
            "masks": None,
            "annotation_ids": torch.arange(count),
            "ignore_boxes": torch.zeros((0, 4)),
            **fields,
        }
    )


@pytest.fixture
def batch() -> Batch:
    """A landscape image with a square and a triangle and a region to ignore, and a portrait image with nothing."""
    full = target(
        (16, 48),
        [[2, 3, 12, 13], [20, 0, 40, 10]],
        masks=Polygons.from_coco([[SQUARE], [TRIANGLE]]),
        ignore_boxes=torch.tensor([[40.0, 0, 48, 16]]),
    )
    empty = target((32, 24), [], image_id=9, masks=Polygons.empty())
    images = torch.zeros((2, 3, 32, 48)).to(memory_format=torch.channels_last)
    images[0, :, :16] = 0.25
    images[1, :, :, :24] = 0.5
    return Batch(images, [full, empty])


def test_torchvision_has_images_of_their_own_size_and_labels_from_one(batch: Batch) -> None:
    images, targets = to_torchvision(batch)
    assert [tuple(image.shape) for image in images] == [(3, 16, 48), (3, 32, 24)]
    assert (images[0] == 0.25).all()
    assert (images[1] == 0.5).all()
    assert images[0].data_ptr() == batch.images.data_ptr()
    full, empty = targets
    assert full["labels"].tolist() == [1, 2]
    assert full["boxes"].tolist() == [[2, 3, 12, 13], [20, 0, 40, 10]]
    assert full["masks"].dtype == torch.uint8
    assert full["masks"].shape == (2, 16, 48)
    assert full["masks"][0].sum() == full["masks"][0, 3:13, 2:12].sum() == 100
    assert full["area"].tolist() == [100, 100]  # half of the triangle's box
    assert full["iscrowd"].tolist() == [0, 0]
    assert (full["image_id"], empty["image_id"]) == (7, 9)
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 32, 24)
    assert "masks" not in to_torchvision(batch, masks=False)[1][0]


def test_torchvision_gets_bytes_as_0_to_1(batch: Batch) -> None:
    batch.images = (batch.images * 255).round().to(torch.uint8)
    images, _ = to_torchvision(batch)
    assert images[0].dtype == torch.float32
    torch.testing.assert_close(images[1], torch.full((3, 32, 24), 128 / 255))


def test_detr_boxes_are_fractions_of_the_image_or_of_the_batch(batch: Batch) -> None:
    form = to_detr(batch)
    assert form["pixel_values"] is batch.images
    assert form["pixel_mask"].shape == (2, 32, 48)
    assert form["pixel_mask"].sum() == form["pixel_mask"][0, :16].sum() + form["pixel_mask"][1, :, :24].sum() == 1536
    full, empty = form["labels"]
    assert full["class_labels"].tolist() == [0, 1]
    torch.testing.assert_close(
        full["boxes"], torch.tensor([[7 / 48, 8 / 16, 10 / 48, 10 / 16], [30 / 48, 5 / 16, 20 / 48, 10 / 16]])
    )
    assert full["size"].tolist() == [16, 48]
    assert full["orig_size"].tolist() == [32, 96]
    assert full["image_id"].tolist() == [7]
    assert empty["boxes"].shape == (0, 4)
    assert "masks" not in full
    whole = to_detr(batch, masks=True, relative_to="batch")["labels"][0]
    torch.testing.assert_close(whole["boxes"][0], torch.tensor([7 / 48, 8 / 32, 10 / 48, 10 / 32]))
    assert whole["size"].tolist() == [32, 48]
    assert whole["masks"].shape == (2, 32, 48)
    assert whole["masks"].sum(dim=(1, 2)).tolist() == [100, full_pixels(batch)]


def full_pixels(batch: Batch) -> int:
    masks = batch.targets[0].masks
    assert isinstance(masks, Polygons)
    return int(masks.to_bitmaps(16, 48)[1].sum())


def test_plain_tensors_tell_which_image_each_instance_is_in(batch: Batch) -> None:
    batch.targets.append(batch.targets[0])
    batch.images = torch.cat([batch.images, batch.images[:1]])
    form = to_tensors(batch)
    assert all(isinstance(value, torch.Tensor) for value in form.values())
    assert form["sizes"].tolist() == [[16, 48], [32, 24], [16, 48]]
    assert form["image_ids"].tolist() == [7, 9, 7]
    assert form["image_of"].tolist() == [0, 0, 2, 2]
    assert form["labels"].tolist() == [0, 1, 0, 1]
    assert form["boxes"].shape == (4, 4)
    assert form["ignore_boxes"].tolist() == [[40, 0, 48, 16]] * 2
    assert form["image_of_ignored"].tolist() == [0, 2]
    nothing = to_tensors(Batch(batch.images[:1], [batch.targets[1]]))
    assert nothing["boxes"].shape == nothing["ignore_boxes"].shape == (0, 4)
    assert nothing["image_of"].dtype == torch.int64


def test_bitmaps_are_padded_and_counted() -> None:
    masks = torch.zeros((1, 4, 6), dtype=torch.bool)
    masks[0, 1:3, 1:4] = True
    batch = Batch(torch.zeros(1, 3, 8, 8), [target((4, 6), [[1, 1, 4, 3]], masks=masks)])
    (label,) = to_detr(batch, masks=True)["labels"]
    assert label["masks"].shape == (1, 8, 8)
    assert label["masks"].dtype == torch.uint8
    assert label["area"].tolist() == [6]
    assert to_torchvision(batch)[1][0]["masks"].sum() == 6


@pytest.mark.gpu
def test_on_a_gpu_all_tensors_are_there_and_equal(batch: Batch) -> None:
    moved = batch.to("cuda")
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        *zip(to_torchvision(moved)[1], to_torchvision(batch)[1], strict=True),
        *zip(to_detr(moved, masks=True)["labels"], to_detr(batch, masks=True)["labels"], strict=True),
        (to_tensors(moved), to_tensors(batch)),
    ]
    for ours, expected in pairs:
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert ours[name].device.type == "cuda"
                torch.testing.assert_close(ours[name].cpu(), value)


@pytest.mark.parametrize("masks", [None, Polygons.from_coco([[SQUARE], []])])
def test_instances_without_a_mask(masks: Polygons | None) -> None:
    batch = Batch(torch.zeros(1, 3, 16, 48), [target((16, 48), [[2, 3, 12, 13], [20, 0, 40, 10]], masks=masks)])
    count = 2 if masks is None else 1
    for form in (to_torchvision, lambda batch: to_detr(batch, masks=True)):
        with pytest.raises(InputError, match=rf"a\.png: {count} of 2 objects have no mask: expected one for each"):
            form(batch)
    assert to_torchvision(batch, masks=False)[1][0]["area"].tolist() == [100, 200]
    no_objects = Batch(torch.zeros(1, 3, 16, 48), [target((16, 48), [])])
    assert to_torchvision(no_objects)[1][0]["masks"].shape == (0, 16, 48)


def test_what_detr_cannot_take(batch: Batch) -> None:
    with pytest.raises(InputError, match="relative_to must be image or batch, got 'padding'"):
        to_detr(batch, relative_to="padding")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected normalised images, got uint8"):
        to_detr(Batch(batch.images.to(torch.uint8), batch.targets))


@pytest.mark.parametrize("relative_to", ["image", "batch"])
def test_detr_targets_are_those_of_the_image_processor(batch: Batch, relative_to: Any) -> None:
    # The processor makes boxes relative to the padded size; without padding, to the image's.
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    processor = transformers.DetrImageProcessor(
        do_resize=False,
        do_rescale=False,
        do_normalize=False,
        do_convert_annotations=True,
        do_pad=relative_to == "batch",
    )
    images, targets = to_torchvision(batch)
    annotations = [
        {
            "image_id": target["image_id"],
            "annotations": [
                {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": label - 1, "area": area, "iscrowd": 0}
                for (x0, y0, x1, y1), label, area in zip(
                    target["boxes"].tolist(), target["labels"].tolist(), target["area"].tolist(), strict=True
                )
            ],
        }
        for target in targets
    ]
    ours = to_detr(batch, relative_to=relative_to)
    together = [slice(0, 2)] if relative_to == "batch" else [slice(0, 1), slice(1, 2)]
    for some in together:
        theirs = processor([image.numpy() for image in images[some]], annotations[some], return_tensors="pt")
        for label, expected in zip(ours["labels"][some], theirs["labels"], strict=True):
            for name in ("boxes", "class_labels", "area", "iscrowd", "image_id"):
                torch.testing.assert_close(label[name], expected[name])
        if relative_to == "batch":
            assert all(tuple(label["size"]) == tuple(expected["size"]) for expected in theirs["labels"])
            assert torch.equal(ours["pixel_mask"], theirs["pixel_mask"])
            torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], check_stride=False)
