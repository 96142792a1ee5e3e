"""The metric against pycocotools, and the format of results."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detect.metrics import coco_results, evaluate_coco, score_table
from detect.models.detections import Detections
from dpipe.errors import InputError

HEIGHT, WIDTH = 120, 200


def random_case(seed: int, *, images: int = 25, classes: int = 5) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A data set and results that overlap it: crowds, classes and images without objects, all three area ranges."""
    rng = np.random.default_rng(seed)
    category_ids = [3, 7, 8, 20, 21][:classes]
    truth: dict[str, Any] = {
        "images": [{"id": 10 + i, "width": WIDTH, "height": HEIGHT, "file_name": f"{i}.jpg"} for i in range(images)],
        "categories": [{"id": id_, "name": f"class {id_}"} for id_ in category_ids],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        if image["id"] % 6 == 0:  # no objects, yet some results
            results += [detection(rng, image["id"], category_ids, random_box(rng)) for _ in range(3)]
            continue
        for _ in range(rng.integers(1, 12)):
            box = random_box(rng)
            category = int(rng.choice(category_ids[:-1]))  # the last class has no object at all
            crowd = bool(rng.random() < 0.15)
            rle = ellipse(box)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "iscrowd": int(crowd),
                    "bbox": mask_utils.toBbox(rle).tolist(),
                    "area": float(mask_utils.area(rle)),
                    "segmentation": json_rle(rle),
                }
            )
            for _ in range(rng.integers(0, 4)):
                results.append(detection(rng, image["id"], category_ids, box + rng.normal(0, 2, 4), category))
        if image["id"] % 5 == 0:  # more than the metric counts
            results += [detection(rng, image["id"], category_ids, random_box(rng)) for _ in range(120)]
    return truth, results


def random_box(rng: np.random.Generator) -> np.ndarray:
    size = rng.choice([12, 40, 110])
    x, y = rng.uniform(0, WIDTH - 20), rng.uniform(0, HEIGHT - 20)
    return np.array([x, y, size * rng.uniform(0.5, 1.5), size * rng.uniform(0.5, 1.5)])


def ellipse(box: np.ndarray) -> dict[str, Any]:
    x, y, width, height = box
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((columns - x - width / 2) / (width / 2)) ** 2 + ((rows - y - height / 2) / (height / 2)) ** 2 <= 1
    inside[int(np.clip(y, 0, HEIGHT - 1)), int(np.clip(x, 0, WIDTH - 1))] = True  # never empty
    rle: dict[str, Any] = mask_utils.encode(np.asfortranarray(inside.astype(np.uint8)))
    return rle


def json_rle(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def detection(
    rng: np.random.Generator, image_id: int, category_ids: list[int], box: np.ndarray, category: int | None = None
) -> dict[str, Any]:
    box[2:] = np.maximum(box[2:], 2)
    return {
        "image_id": image_id,
        "category_id": category if category and rng.random() < 0.9 else int(rng.choice(category_ids)),
        "bbox": box.tolist(),
        "score": float(np.float32(rng.choice([rng.random(), 0.5]))),  # ties as well
        "segmentation": json_rle(ellipse(box)),
    }


def reference(path: Path, results: list[dict[str, Any]], kind: str) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.fixture
def save(tmp_path: Path):
    def write(truth: dict[str, Any]) -> Path:
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(truth))
        return path

    return write


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_numbers_equal_pycocotools(seed, kind, save):
    truth, results = random_case(seed)
    path = save(truth)
    scores = evaluate_coco(path, results, kind)
    drop = "segmentation" if kind == "bbox" else "bbox"
    bare = [{key: value for key, value in result.items() if key != drop} for result in results]
    expected = reference(path, bare, kind)
    assert " ".join(scores.metrics) == "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl"
    np.testing.assert_allclose(list(scores.metrics.values()), expected.stats, rtol=0, atol=1e-12)
    assert 0.03 < scores.metrics["AP"] < 0.95
    precision = expected.eval["precision"][:, :, :, 0, -1]
    for position, (name, value) in enumerate(scores.per_class.items()):
        of_class = precision[:, :, position]
        if position == 4:
            assert name == "class 21"
            assert np.isnan(value)
        else:
            assert value == pytest.approx(of_class[of_class > -1].mean(), abs=1e-12)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_no_results_score_zero(kind, save):
    truth, _ = random_case(0)
    scores = evaluate_coco(save(truth), [], kind)
    assert scores.metrics["AP"] == 0
    assert scores.metrics["AR100"] == 0


def test_no_objects_score_minus_one_and_print_as_dashes(save):
    truth, results = random_case(0)
    truth["annotations"] = []
    scores = evaluate_coco(save(truth), results, "bbox")
    assert set(scores.metrics.values()) == {-1.0}
    assert "-" in list(score_table(scores).columns[0].cells)


def test_segm_needs_masks_on_both_sides(save):
    truth, results = random_case(0)
    with pytest.raises(InputError, match="predicts no masks"):
        evaluate_coco(save(truth), [{key: value for key, value in results[0].items() if key != "segmentation"}], "segm")
    del truth["annotations"][4]["segmentation"]
    with pytest.raises(InputError, match=r"1 annotations have no segmentation \(such as id 5\)"):
        evaluate_coco(save(truth), results, "segm")


def test_results_are_in_the_data_sets_terms():
    masks = np.zeros((2, 6, 8), dtype=np.uint8)
    masks[0, 1:3, 2:5] = 1
    detections = Detections(
        boxes=torch.tensor([[2.0, 1.0, 5.0, 3.0], [0.0, 0.0, 8.0, 6.0]]),
        scores=torch.tensor([0.75, 0.5]),
        labels=torch.tensor([1, 0]),
        masks=[json_rle(mask_utils.encode(np.asfortranarray(mask))) for mask in masks],
    )
    first, second = coco_results(detections, 42, [11, 13])
    assert first["image_id"] == 42
    assert (first["category_id"], second["category_id"]) == (13, 11)
    assert first["bbox"] == [2.0, 1.0, 3.0, 2.0]
    assert first["score"] == 0.75
    assert (mask_utils.decode(first["segmentation"]) == masks[0]).all()
    json.dumps(first)
    assert detections.boxes[0].tolist() == [2.0, 1.0, 5.0, 3.0]  # not changed in passing
