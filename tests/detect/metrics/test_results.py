"""Detections as arrays, as COCO results, and read from files of anybody's."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from detect.metrics import results as results_module
from detect.metrics.results import Results, read_results, results_of
from detect.models.detections import Detections
from dpipe.errors import InputError


def rle(mask: np.ndarray) -> dict:
    encoded = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


@pytest.fixture
def masks() -> np.ndarray:
    bitmaps = np.zeros((2, 6, 8), dtype=np.uint8)
    bitmaps[0, 1:3, 2:5] = 1
    bitmaps[1, 4:, :] = 1
    return bitmaps


@pytest.fixture
def index(save):
    return save(
        {
            "images": [{"id": id_, "file_name": f"{id_}.jpg", "width": 8, "height": 6} for id_ in (42, 7)],
            "categories": [{"id": 11, "name": "box"}, {"id": 13, "name": "disc"}],
            "annotations": [],
        }
    )


def test_results_are_in_the_data_sets_terms(masks):
    detections = Detections(
        boxes=torch.tensor([[2.0, 1.0, 5.0, 3.0], [0.0, 0.0, 8.0, 6.0]]),
        scores=torch.tensor([0.75, 0.5]),
        labels=torch.tensor([1, 0]),
        masks=[rle(mask) for mask in masks],
    )
    first, second = Results.of_image(detections, 42, [11, 13]).to_coco()
    assert first["image_id"] == 42
    assert (first["category_id"], second["category_id"]) == (13, 11)
    assert first["bbox"] == [2.0, 1.0, 3.0, 2.0]
    assert first["score"] == 0.75
    assert (mask_utils.decode(first["segmentation"]) == masks[0]).all()
    json.dumps(first)
    assert detections.boxes[0].tolist() == [2.0, 1.0, 5.0, 3.0]  # not changed in passing


def test_parts_are_ordered_by_image(masks):
    def part(image_id: int, scores: list[float], masks: list | None = None) -> Results:
        boxes = torch.zeros(len(scores), 4)
        labels = torch.zeros(len(scores), dtype=torch.int64)
        return Results.of_image(Detections(boxes, torch.tensor(scores), labels, masks), image_id, [1])

    whole = Results.concatenate([part(7, [0.5, 0.25]), part(3, []), part(4, [0.75])])
    assert whole.image_ids.tolist() == [4, 7, 7]
    assert whole.scores.tolist() == [0.75, 0.5, 0.25]
    assert whole.masks is None
    falling = np.linspace(1, 0.5, 40).tolist()
    assert (np.diff(Results.concatenate([part(7, falling), part(4, falling)]).scores.reshape(2, 40)) < 0).all()
    with_masks = Results.concatenate(
        [part(7, [0.5], [rle(masks[0])]), part(3, [], []), part(4, [0.75], [rle(masks[1])])]
    )
    assert with_masks.masks == [rle(masks[1]), rle(masks[0])]
    assert Results.concatenate([part(3, [], [])]).masks == []
    # A part of no detection, such as that of a process that had no image, takes nobody's masks away.
    assert Results.concatenate([with_masks, Results.concatenate([])]).masks == with_masks.masks
    assert Results.concatenate([part(3, [], []), Results.concatenate([])]).masks == []
    assert Results.concatenate([with_masks, part(9, [0.5])]).masks is None
    assert len(Results.concatenate([])) == 0


def test_a_file_is_read_as_it_was_written(masks, index, tmp_path):
    rows = [
        {"image_id": 7, "category_id": 13, "bbox": [1, 2.5, 3, 2], "score": 1, "segmentation": rle(masks[0])},
        {"image_id": 42, "category_id": 11, "bbox": [0, 0, 0, 0], "score": 0.125, "segmentation": rle(masks[1])},
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    assert read_results(path, index).to_coco() == rows
    # Boxes of masks, and counts as a list, as pycocotools has them.
    rows = [{key: value for key, value in row.items() if key != "bbox"} for row in rows]
    rows[0]["segmentation"] = {"size": [6, 8], "counts": [13, 2, 4, 2, 4, 2, 21]}
    path.write_text(json.dumps(rows))
    results = read_results(path, index)
    assert results.boxes.tolist() == [[2, 1, 3, 2], [0, 4, 8, 2]]
    assert results.masks == [rle(masks[0]), rle(masks[1])]
    # Where some have boxes of their own, these count.
    for number, own in ((0, [5, 0, 1, 1.5]), (1, [0, 0, 2, 2])):
        some = [dict(row) for row in rows]
        some[number]["bbox"] = own
        path.write_text(json.dumps(some))
        boxes = read_results(path, index).boxes.tolist()
        assert boxes[number] == own
        assert boxes[1 - number] == results.boxes[1 - number].tolist()


def test_masks_are_of_their_images_sizes_in_whatever_order_these_come(save, tmp_path):
    widths = {42: 8, 7: 9, 9: 10}
    index = save(
        {
            "images": [{"id": id_, "file_name": f"{id_}.jpg", "width": w, "height": 6} for id_, w in widths.items()],
            "categories": [{"id": 1, "name": "box"}],
            "annotations": [],
        }
    )
    found = {id_: rle(np.ones((6, width))) for id_, width in widths.items()}
    rows = [{"image_id": id_, "category_id": 1, "score": 0.5, "segmentation": found[id_]} for id_ in (7, 9, 42)]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    assert read_results(path, index).boxes[:, 2].tolist() == [9, 10, 8]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_other_encodings_than_utf8_are_named_but_for_its_mark(encoding, index, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD]), encoding=encoding)
    if encoding == "utf-8-sig":
        assert read_results(path, index).to_coco() == [GOOD]
        return
    with pytest.raises(InputError, match=r"results\.json: is not UTF-8$"):
        read_results(path, index)


GOOD = {"image_id": 7, "category_id": 13, "bbox": [1, 2, 3, 4], "score": 0.5}
MASK = {"size": [6, 8], "counts": "=200"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "is not JSON"),
        ("[" + json.dumps(GOOD), r"is not JSON: [^(]*\(char \d+\)$"),
        ([GOOD, {**GOOD, "score": float("nan")}], "detection 1: score is NaN; NaN and Infinity are no numbers in JSON"),
        ([GOOD, {**GOOD, "bbox": [1, -float("inf"), 3, 4]}], r"detection 1: bbox is \[1, -Infinity, 3, 4\]; NaN and"),
        ([{**GOOD, "more": {"a": [float("nan")]}}], r'detection 0: more is {"a": \[NaN\]}; NaN'),
        ("", "is empty; COCO results are a list of detections$"),
        ('[{"score": "\\ud800"}]', "is not JSON: "),
        ({"images": [], "annotations": []}, "holds a dict, as of a data set; COCO results are a list of detections"),
        (3, "holds a int; COCO results are a list"),
        ([GOOD, [1, 2]], r"detection 1 is \[1, 2\]; expected a mapping with image_id"),
        ([GOOD, {**GOOD, "image_id": 8}], r"detection 1: image_id 8 is not in .*truth\.json$"),
        ([{**GOOD, "image_id": "7"}], r'detection 0: image_id "7" is not in '),
        ([{**GOOD, "category_id": 1}], "detection 0: category_id 1 is not in "),
        ([{**GOOD, "category_id": True}], "detection 0: category_id true is not in "),
        ([GOOD, {**GOOD, "image_id": 7.0}], r"detection 1: image_id 7\.0 is not in "),
        ([GOOD, {"image_id": 7, "category_id": 13, "bbox": [1, 2, 3, 4]}], "detection 1 has no score"),
        ([{"image_id": 7, "category_id": 13, "score": 0.5}], "detection 0 has no bbox"),
        ([{"category_id": 13, "score": 0.5}], "detection 0 has no image_id"),
        ([{**GOOD, "score": None}], "detection 0: score is null; expected a number"),
        ([{**GOOD, "score": [0.5]}], r"detection 0: score is \[0.5\]; expected a number"),
        ("[" + json.dumps(GOOD).replace("0.5", "1e999") + "]", "detection 0: score is Infinity; NaN and"),
        ([{**GOOD, "bbox": [1, 2, 3]}], r"detection 0: bbox is \[1, 2, 3\]; expected 4 numbers"),
        ([{**GOOD, "bbox": [1, 2, "3", 4]}], "expected 4 numbers"),
        ([GOOD, {**GOOD, "bbox": [5, 5, -1, 2]}], r"detection 1: bbox \[5, 5, -1, 2\] has a negative side"),
        ([{**GOOD, "segmentation": MASK}, GOOD], "detection 1 has no segmentation"),
        ([{**GOOD, "segmentation": [[1, 1, 5, 1, 5, 5]]}], r"segmentation is \[\[1, 1.*masks as run lengths"),
        ([{**GOOD, "segmentation": {**MASK, "size": [8, 6]}}], r"detection 0: .*\[8, 6\], its image \[6, 8\]"),
        ([{**GOOD, "segmentation": {**MASK, "counts": "zz"}}], "detection 0: run lengths are damaged"),
        ([{**GOOD, "segmentation": {"size": [6, 8]}}], "detection 0: run-length mask has counts null"),
    ],
)
def test_wrong_files_are_refused_in_one_line(content, message, index, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        read_results(path, index)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damaged", range(5))
def test_masks_are_checked_in_all_blocks(damaged, index, tmp_path, monkeypatch):
    monkeypatch.setattr(results_module, "BLOCK", 30)  # two masks
    mask = rle(np.eye(6, 8))
    rows = [{**GOOD, "segmentation": mask} for _ in range(5)]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    assert read_results(path, index).masks == [mask] * 5
    rows[damaged]["segmentation"] = {**mask, "counts": mask["counts"] + "1"}
    path.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=f"detection {damaged}: run lengths are damaged"):
        read_results(path, index)


@pytest.mark.parametrize("compressed", [True, False])
def test_masks_are_checked_in_little_memory(compressed, save, monkeypatch):
    monkeypatch.setattr(results_module, "BLOCK", 1 << 12)
    bitmap = np.random.default_rng(0).random((50, 60)) < 0.5
    mask = rle(bitmap)
    if not compressed:
        runs = np.diff(
            np.flatnonzero(np.diff(bitmap.ravel(order="F"), prepend=False, append=~bitmap[-1, -1])), prepend=0
        )
        mask = {"size": [50, 60], "counts": runs.tolist()}
    index = save(
        {
            "images": [{"id": 7, "file_name": "7.jpg", "width": 60, "height": 50}],
            "categories": [{"id": 13, "name": "disc"}],
            "annotations": [],
        }
    )
    text = json.dumps([{**GOOD, "segmentation": mask}] * 600)
    rows = json.loads(text)
    tracemalloc.start()
    try:
        found = results_of(rows, index, str)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.masks is not None
    assert len(found.masks) == 600
    assert (mask_utils.decode(found.masks[-1]) == bitmap).all()
    assert peak < len(text)


def test_a_file_that_is_not_there(index, tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_results(tmp_path / "results.json", index)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_results(tmp_path, index)
