"""COCO's metrics from predictions in memory to the numbers: detect against pycocotools.

    python benchmarks/evaluation.py

A drawn data set of COCO's size (5,000 images, 80 classes, some 36,000 objects) and 100 detections an image, half of
them near an object. detect gets arrays, pycocotools the list of dicts that its ``loadRes`` reads; both read the truth
from the same file within the time. The numbers must agree to 1e-12. For proposals, classes are off.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from detect.metrics.evaluating import evaluate_results
from detect.metrics.results import Results
from dpipe import CocoIndex

WIDTH, HEIGHT, CLASSES, DETECTIONS = 640, 480, 80, 100


def draw(images: int, path: Path) -> Results:
    """Writes a data set, and returns detections for it."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(7.3, images)
    owners = np.repeat(np.arange(images), counts)
    size = np.exp(rng.normal(4, 0.9, (len(owners), 2))).clip(4, 300)
    boxes = np.concatenate([rng.uniform(0, 1, (len(owners), 2)) * (np.array([WIDTH, HEIGHT]) - size), size], axis=1)
    labels = rng.integers(1, CLASSES + 1, len(owners))
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(images)],
        "categories": [{"id": i, "name": str(i)} for i in range(1, CLASSES + 1)],
        "annotations": [
            {
                "id": i,
                "image_id": int(owner),
                "category_id": int(label),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for i, (owner, label, box) in enumerate(zip(owners, labels, boxes.round(2).tolist(), strict=True), 1)
        ],
    }
    path.write_text(json.dumps(content))
    image_ids = np.repeat(np.arange(images), DETECTIONS)
    found = np.concatenate([rng.uniform(0, 300, (len(image_ids), 2)), rng.uniform(5, 200, (len(image_ids), 2))], axis=1)
    found_labels = rng.integers(1, CLASSES + 1, len(image_ids))
    first = np.concatenate([[0], counts.cumsum()])[image_ids]
    near = (rng.random(len(image_ids)) < 0.5) & (counts[image_ids] > 0)
    chosen = (first + (rng.random(len(image_ids)) * counts[image_ids]).astype(int))[near]
    found[near] = boxes[chosen] + rng.normal(0, 0.08, (near.sum(), 4)) * boxes[chosen][:, [2, 3, 2, 3]]
    found_labels[near] = labels[chosen]
    found[:, 2:] = found[:, 2:].clip(1)
    return Results(image_ids, found_labels.astype(np.int64), found, rng.random(len(image_ids)))


def with_pycocotools(path: Path, rows: list[dict[str, Any]], proposals: bool) -> list[float]:
    """The twelve numbers of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(None):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        if proposals:
            evaluation.params.useCats, evaluation.params.maxDets = 0, [100, 300, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats[6:] if proposals else evaluation.stats)


def timed(run: Callable[[], list[float]]) -> tuple[float, list[float]]:
    """Seconds, and what was computed."""
    began = time.perf_counter()
    numbers = run()
    return time.perf_counter() - began, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5, help="of detect; the figure is the median")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        results = draw(arguments.images, path)
        index = CocoIndex.load(path, cache=False)
        print(describe())
        print(f"{len(index)} images, {len(index.labels)} objects, {len(results)} detections")
        for kind in ("bbox", "proposal"):
            ours = [
                timed(lambda kind=kind: list(evaluate_results(results, index, [kind])[0].metrics.values()))
                for _ in range(arguments.rounds)
            ]
            seconds = statistics.median(second for second, _ in ours)
            rows = results.to_coco()
            theirs, expected = timed(
                lambda kind=kind, rows=rows: with_pycocotools(path, rows, proposals=kind == "proposal")
            )
            np.testing.assert_allclose(ours[0][1], expected, rtol=0, atol=1e-12)
            print(f"{kind}: detect {seconds:.2f} s, pycocotools {theirs:.1f} s, {theirs / seconds:.0f} times")
        began = time.perf_counter()
        evaluate_results(results, index, ["proposal_fast"])
        evaluate_results(results, index, ["voc"])
        print(f"proposal_fast and voc together: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
