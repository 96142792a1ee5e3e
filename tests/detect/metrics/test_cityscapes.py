"""Cityscapes' metric on drawn label images, where it can be told by hand what its evaluator must say."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from converters.cityscapes.labels import chosen_labels
from detect.metrics.cityscapes import _evaluator, evaluate_cityscapes
from dpipe.coco import CocoIndex
from dpipe.errors import InputError

CAR, PERSON = 26, 24
NAMES = ["aachen_000000_000019", "ulm_000001_000020"]


class Streets:
    """Two images of 40x100 pixels: in the first two cars of 20x20 pixels, a group of cars and a person; void below."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.truth = root / "gtFine" / "val"
        for name in NAMES:
            ids = np.full((40, 100), 7, np.uint16)  # road
            ids[30:] = 0  # void
            if name == NAMES[0]:
                ids[5:25, 0:20] = CAR * 1000
                ids[5:25, 30:50] = CAR * 1000 + 1
                ids[5:25, 60:75] = CAR
                ids[0:30, 90:95] = PERSON * 1000
            self.write(name, ids)
        images = [
            {"id": i, "file_name": f"{name.split('_')[0]}/{name}_leftImg8bit.png", "width": 100, "height": 40}
            for i, name in enumerate(NAMES, 1)
        ]
        categories = [{"id": label.id, "name": label.name} for label in chosen_labels(None)]
        self.content = {"images": images, "annotations": [], "categories": categories}

    @property
    def index(self) -> CocoIndex:
        path = self.root / "annotations" / "val.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(self.content))
        return CocoIndex.load(path)

    def path(self, name: str) -> Path:
        return self.truth / name.split("_")[0] / f"{name}_gtFine_instanceIds.png"

    def write(self, name: str, ids: np.ndarray) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(self.path(name)), ids)


@pytest.fixture
def streets(tmp_path) -> Streets:
    return Streets(tmp_path / "streets")


def found(category_id: int, score: float, *slices: slice, image_id: int = 1) -> dict:
    mask = np.zeros((40, 100), np.uint8)
    mask[slices] = 1
    return {"image_id": image_id, "category_id": category_id, "score": score, "segmentation": json_rle(mask)}


def json_rle(mask: np.ndarray) -> dict:
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


CARS = [found(CAR, 0.9, slice(5, 25), slice(0, 20)), found(CAR, 0.8, slice(5, 25), slice(30, 50))]
A_PERSON = found(PERSON, 0.7, slice(0, 30), slice(90, 95))


@pytest.fixture
def evaluated(streets, load):
    def evaluate(rows, **options):
        return evaluate_cityscapes(load(rows, streets.index), streets.index, **options)

    return evaluate


def test_all_found(evaluated):
    scores = evaluated([*CARS, A_PERSON])
    assert scores.metrics == {"AP": 1.0, "AP50": 1.0}
    assert scores.per_class["car"] == scores.per_class["person"] == {"AP": 1.0, "AP50": 1.0}
    assert np.isnan(scores.per_class["train"]["AP"])  # there is none


def test_the_mean_is_over_classes_that_have_objects(evaluated):
    scores = evaluated([A_PERSON])
    assert scores.per_class["car"] == {"AP": 0.0, "AP50": 0.0}
    assert scores.metrics == {"AP": 0.5, "AP50": 0.5}
    assert evaluated([]).metrics == {"AP": 0.0, "AP50": 0.0}


def test_what_lies_in_groups_or_void_does_not_count(evaluated):
    group = found(CAR, 0.95, slice(5, 25), slice(60, 75))
    void = found(CAR, 0.95, slice(31, 40), slice(0, 50), image_id=2)
    assert evaluated([*CARS, group, void]).per_class["car"]["AP"] == 1.0
    road = found(CAR, 0.95, slice(5, 25), slice(60, 75), image_id=2)
    # Precision is 2/3 where both are found, 1/2 where one is; the evaluator's steps weigh them by its own rule.
    assert evaluated([*CARS, road]).per_class["car"]["AP"] < 0.75


def test_only_detections_that_do_not_count(evaluated):
    assert evaluated([found(CAR, 0.9, slice(31, 40), slice(0, 50))]).per_class["car"] == {"AP": 0.0, "AP50": 0.0}


def test_ious_are_of_masks(evaluated):
    larger = [found(CAR, 0.9, slice(5, 25), slice(0, 25)), CARS[1]]  # IoU 0.8 with the first car
    numbers = evaluated(larger).per_class["car"]
    assert numbers["AP50"] == 1.0
    assert 0.5 < numbers["AP"] < 1.0


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_those_of_the_whole_evaluator(seed, streets, evaluated, tmp_path, monkeypatch):
    rng = np.random.default_rng(seed)
    rows = []
    for image_id, name in enumerate(NAMES, 1):
        ids = rng.choice([7, 0, CAR, CAR * 1000, CAR * 1000 + 1, PERSON * 1000, PERSON], (4, 10)).astype(np.uint16)
        streets.write(name, ids.repeat(10, axis=0).repeat(10, axis=1))
        for label in (CAR, PERSON):
            for _ in range(12):
                y, x = rng.integers(0, 30), rng.integers(0, 80)
                score = float(rng.choice([0.5, rng.random()]))
                rows.append(found(label, score, slice(y, y + 12), slice(x, x + 12), image_id=image_id))
            instance = np.zeros((40, 100), np.uint8)
            instance[:, 1:] = (cv2.imread(str(streets.path(name)), cv2.IMREAD_UNCHANGED) == label * 1000)[:, :-1]
            rows.append({**found(label, 0.6, slice(0), image_id=image_id), "segmentation": json_rle(instance)})
    scores = evaluated(rows, out=tmp_path / "out")
    assert 0 < scores.metrics["AP"] < 1
    later_first = sorted(rows, key=lambda row: -row["image_id"])
    assert evaluated(later_first).metrics == scores.metrics

    evaluator = _evaluator()
    args = type(evaluator.args)()
    args.__dict__.update(vars(evaluator.args))
    args.quiet, args.JSONOutput = True, False
    args.gtInstancesFile, args.predictionPath = str(tmp_path / "instances.json"), str(tmp_path / "out")
    monkeypatch.setattr(evaluator, "writeDict2JSON", lambda content, path: None)  # fails with new versions of NumPy
    truth = [str(streets.path(name)) for name in NAMES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of classes without objects
        averages = evaluator.evaluateImgLists([evaluator.getPrediction(path, args) for path in truth], truth, args)
    expected = averages["averages"]
    assert scores.metrics == pytest.approx({"AP": expected["allAp"], "AP50": expected["allAp50%"]}, abs=1e-12)
    for name, numbers in scores.per_class.items():
        of_class = expected["classes"][name]
        assert numbers == pytest.approx({"AP": of_class["ap"], "AP50": of_class["ap50%"]}, abs=1e-12, nan_ok=True)


def test_some_images_only(evaluated):
    false = found(CAR, 0.95, slice(5, 25), slice(60, 75), image_id=2)
    assert evaluated([*CARS, A_PERSON, false], image_ids=[1]).metrics["AP"] == 1.0
    assert evaluated([*CARS, A_PERSON, false], image_ids=[2]).metrics == {"AP": -1.0, "AP50": -1.0}


def test_files_are_kept_where_asked_and_only_there(streets, evaluated, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    before = {path: path.read_bytes() for path in streets.root.rglob("*") if path.is_file()}
    evaluated([*CARS, A_PERSON])
    out = tmp_path / "out"
    evaluated([*CARS, A_PERSON], out=out)
    assert {path: path.read_bytes() for path in streets.root.rglob("*.png")}.items() <= before.items()
    assert not list((tmp_path / "temporary").iterdir())
    assert not list((tmp_path / "here").iterdir())
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == [
        *("aachen_000000_000019_leftImg8bit.txt", "masks/1/0.png", "masks/1/1.png", "masks/1/2.png"),
        "ulm_000001_000020_leftImg8bit.txt",
    ]
    assert (out / files[0]).read_text().splitlines() == [
        *("masks/1/0.png 26 0.9", "masks/1/1.png 26 0.8", "masks/1/2.png 24 0.7"),
    ]
    mask = cv2.imread(str(out / "masks/1/0.png"), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask > 0).sum() == 400


def test_the_truth_is_found_in_another_folder(streets, evaluated, tmp_path):
    (streets.root / "gtFine").rename(tmp_path / "elsewhere")
    assert evaluated([*CARS, A_PERSON], truth=tmp_path / "elsewhere").metrics["AP"] == 1.0
    with pytest.raises(InputError, match=r"streets/gtFine: is no folder; .*cityscapes_gt"):
        evaluated(CARS)


def test_a_truth_that_is_missing_or_there_twice(streets, evaluated):
    again = streets.root / "gtFine" / "copy" / streets.path(NAMES[0]).name
    again.parent.mkdir()
    again.write_bytes(streets.path(NAMES[0]).read_bytes())
    with pytest.raises(InputError, match=r"as well; expected one file for each image"):
        evaluated(CARS)
    again.unlink()
    streets.path(NAMES[1]).unlink()
    with pytest.raises(InputError, match=rf"has no {NAMES[1]}_gtFine_instanceIds.png, and lacks 1 of 2 in all"):
        evaluated(CARS)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((40, 90), np.uint16), r"has the shape \(40, 90\); expected \(40, 100\)"),
        (np.zeros((40, 100, 3), np.uint8), r"has the shape \(40, 100, 3\)"),
        (np.full((40, 100), 99, np.uint16), "has the label id 99, which Cityscapes does not have"),
    ],
)
def test_a_truth_of_another_kind(ids, message, streets, evaluated):
    streets.write(NAMES[0], ids)
    with pytest.raises(InputError, match=message):
        evaluated(CARS)


def test_a_damaged_truth(streets, evaluated):
    path = streets.path(NAMES[0])
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(InputError, match="is not an image that can be read"):
        evaluated(CARS)


def test_other_classes_and_results_without_masks(streets, evaluated, load):
    boxes = [{"image_id": 1, "category_id": CAR, "score": 0.5, "bbox": [0, 0, 10, 10]}]
    with pytest.raises(InputError, match="the results have no masks"):
        evaluated(boxes)
    streets.content["categories"] = [{"id": 1, "name": "dog"}, {"id": CAR, "name": "car"}]
    with pytest.raises(InputError, match=r"knows the classes person, rider, .*, not dog$"):
        evaluated(CARS)


def test_images_of_one_name(streets, evaluated):
    streets.content["images"].append({**streets.content["images"][0], "id": 3, "file_name": f"b/{NAMES[0]}.jpg"})
    with pytest.raises(InputError, match=f"several images whose truth is {NAMES[0]}"):
        evaluated(CARS)
