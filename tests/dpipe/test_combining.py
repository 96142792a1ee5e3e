"""A choice of classes, and several data sets in one, against what pycocotools says and what one merged file gives."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.index import coco_cache
from dpipe.index.coco_cache import arrays_of
from dpipe.loader import DetectionLoader
from dpipe.plan import Draft
from dpipe.target import make_target

CLASSES = ("car", "dog", "größer")


def document(seed: int, images: int = 6, masks: bool = True) -> dict[str, Any]:
    """Images of two sizes with boxes, polygons, run lengths, crowds, and annotations that get no row."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    for number in range(5 * images):
        x, y, w, h = (int(value) for value in rng.integers([0, 0, 2, 2], [20, 20, 20, 20]))
        record: dict[str, Any] = {"id": number + 1, "image_id": int(rng.integers(1, images + 1)), "area": w * h}
        record |= {"category_id": (3, 9, 4)[int(rng.integers(3))], "bbox": [x, y, w, h], "iscrowd": 0}
        if number % 9 == 0:
            record["bbox"] = [x, y, 0, h]
        elif number % 7 == 0 and masks:
            record |= {"iscrowd": 1, "segmentation": {"size": [40, 50], "counts": [9, 300, 1691]}}
        elif number % 3 and masks:
            record["segmentation"] = [[x, y, x + w, y, x + w, y + h], [x, y + h, x + 1, y + h, x, y + h - 1]]
        annotations.append(record)
    return {
        "images": [{"id": n + 1, "file_name": f"{n}.jpg", "height": 40, "width": 50} for n in range(images)],
        "annotations": annotations,
        "categories": [{"id": id_, "name": name} for id_, name in zip((3, 9, 4), CLASSES, strict=True)],
    }


def load(path: Path, content: dict[str, Any]) -> CocoIndex:
    path.write_text(json.dumps(content))
    return CocoIndex.load(path)


def assert_same(one: CocoIndex, other: CocoIndex) -> None:
    assert (one.class_names, one.left_out, one.has_masks) == (other.class_names, other.left_out, other.has_masks)
    assert list(one.file_names) == list(other.file_names)
    arrays = arrays_of(other)
    for name, array in arrays_of(one).items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


@pytest.mark.parametrize("names", [["dog"], ["größer", "car"], ["größer", "dog", "car"]])
def test_a_choice_of_classes_is_that_of_pycocotools(tmp_path: Path, names: list[str]) -> None:
    index = load(tmp_path / "a.json", document(1)).with_classes(names)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(tmp_path / "a.json")
    ids = theirs.getCatIds(catNms=names)
    assert index.class_names == tuple(names)
    assert index.category_ids.tolist() == [theirs.getCatIds(catNms=[name])[0] for name in names]
    for place, image in enumerate(index.image_ids.tolist()):
        rows = slice(int(index.offsets[place]), int(index.offsets[place + 1]))
        expected = [each for each in theirs.loadAnns(theirs.getAnnIds(image, ids)) if each["bbox"][2]]
        assert index.annotation_ids[rows].tolist() == [each["id"] for each in expected]
        assert index.category_ids[index.labels[rows]].tolist() == [each["category_id"] for each in expected]
        assert index.crowd[rows].tolist() == [bool(each["iscrowd"]) for each in expected]
        np.testing.assert_array_equal(
            index.boxes[rows][:, :2], np.reshape([each["bbox"] for each in expected], (-1, 4))[:, :2]
        )
        bitmaps = index.polygons.select(rows).to_bitmaps(40, 50)
        for bitmap, each in zip(bitmaps, expected, strict=True):
            assert ("segmentation" in each) == bool(bitmap.any())
            if each["iscrowd"]:
                np.testing.assert_array_equal(bitmap, theirs.annToMask(each))


def test_a_choice_of_classes_is_a_file_without_the_others(tmp_path: Path) -> None:
    content = document(2)
    index = load(tmp_path / "a.json", content)
    content["categories"] = [content["categories"][2], content["categories"][0]]
    content["annotations"] = [each for each in content["annotations"] if each["category_id"] != 9]
    alone = load(tmp_path / "b.json", content)
    chosen = index.with_classes(["größer", "car"])
    assert index.left_out == chosen.left_out > alone.left_out  # of all classes: the index does not know which
    assert_same(chosen, replace(alone, left_out=index.left_out))
    assert index.with_classes(CLASSES) is index
    np.testing.assert_array_equal(chosen.non_empty(), alone.non_empty())


def test_masks_are_gone_with_the_classes_that_have_them(tmp_path: Path) -> None:
    content = document(3)
    for each in content["annotations"]:
        if each["category_id"] == 9:
            each.pop("segmentation", None)
    index = load(tmp_path / "a.json", content)
    assert index.has_masks
    assert not index.with_classes(["dog"]).has_masks


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dog", "crs"], "has no class 'crs'; did you mean 'car'?"),
        (["dog", 3], "has no class 3; expected one of: car, dog, größer"),
        (["dog", "dog"], "class 'dog' is named twice"),
        ([], r"expected a list of names of classes, got \[\]"),
        ("dog", 'expected a list of names of classes, got "dog"'),
        (None, "expected a list of names of classes, got null"),
    ],
)
def test_a_wrong_choice_of_classes(tmp_path: Path, names: Any, message: str) -> None:
    index = load(tmp_path / "a.json", document(1))
    with pytest.raises(InputError, match=f"a.json: {message.replace('?', '[?]')}"):
        index.with_classes(names)


def test_several_data_sets_are_one_file_with_all_of_them(tmp_path: Path) -> None:
    contents = [document(4), document(5, images=3, masks=False), document(6, images=2)]
    parts = [load(tmp_path / f"{number}.json", content) for number, content in enumerate(contents)]
    merged: dict[str, Any] = {"images": [], "annotations": [], "categories": contents[0]["categories"]}
    folders = ["x", Path("y/größe"), ""]
    for content, folder in zip(copy.deepcopy(contents), folders, strict=True):
        before = len(merged["images"])
        for image in content["images"]:
            image |= {"id": image["id"] + before, "file_name": str(Path(folder, image["file_name"]))}
        for each in content["annotations"]:
            each["image_id"] += before
        merged["images"] += content["images"]
        merged["annotations"] += content["annotations"]
    for number, each in enumerate(merged["annotations"]):
        each["id"] = number + 1
    expected = load(tmp_path / "merged.json", merged)
    index = CocoIndex.concatenate(parts, folders=folders)
    assert str(index.path) == " + ".join(str(tmp_path / f"{number}.json") for number in range(3))
    assert index.left_out == expected.left_out > 0
    # Numbers are given to rows, and those of a file to its annotations, in its order.
    assert index.image_ids.tolist() == expected.image_ids.tolist() == list(range(1, 12))
    assert index.annotation_ids.tolist() == list(range(1, len(index.labels) + 1))
    assert_same(replace(index, annotation_ids=expected.annotation_ids), expected)
    np.testing.assert_array_equal(index.aspect_groups(), expected.aspect_groups())
    np.testing.assert_array_equal(index.non_empty(), expected.non_empty())

    plan = Draft((40, 50), np.random.default_rng(0)).finish(0, 0, 0)
    for image, has_masks in ((0, True), (7, False), (10, True)):
        target = make_target(index, replace(plan, image=image))
        assert target.masks is not None
        assert bool(target.has_mask.any()) == has_masks


def test_ids_that_differ_stay(tmp_path: Path) -> None:
    content = document(4)
    one = load(tmp_path / "a.json", content)
    for kind in ("images", "annotations"):
        for record in content[kind]:
            record["id"] += 1000
    for record in content["annotations"]:
        record["image_id"] += 1000
    content["categories"][0]["id"] = 77  # the first one's count
    for record in content["annotations"]:
        record["category_id"] = {3: 77}.get(record["category_id"], record["category_id"])
    both = CocoIndex.concatenate([one, load(tmp_path / "b.json", content)], folders=["a", "b"])
    assert both.image_ids.tolist() == [1, 2, 3, 4, 5, 6, 1001, 1002, 1003, 1004, 1005, 1006]
    assert set(both.annotation_ids.tolist()) == {*one.annotation_ids.tolist(), *(one.annotation_ids + 1000).tolist()}
    assert both.category_ids.tolist() == [3, 9, 4]
    np.testing.assert_array_equal(both.labels, np.tile(one.labels, 2))


def test_one_data_set_below_a_folder(tmp_path: Path) -> None:
    index = load(tmp_path / "a.json", document(4))
    below = CocoIndex.concatenate([index], folders=["train/"])
    assert below.file_names[0] == "train/0.jpg"
    assert_same(replace(below, file_names=index.file_names), index)


def test_what_cannot_be_put_together(tmp_path: Path) -> None:
    index = load(tmp_path / "a.json", document(4))
    other = load(tmp_path / "b.json", document(4))
    several: tuple[tuple[Any, Any, str], ...] = (
        ([], None, "concatenate: expected at least one index, got none"),
        (index, None, "concatenate: expected a list of indices, got "),
        ([index, "b.json"], None, "concatenate: expected a list of indices, got "),
        ([index, other], None, r"b.json: image 0.jpg is in .*a.json as well: expected other images, or folders"),
        ([index, other], ["x", "x/"], r"b.json: image x/0.jpg is in .*a.json as well"),
        ([index, other], ["x"], "concatenate: expected a folder for each of the 2 indices, got 1"),
        ([index, other], "xy", 'concatenate: folders must be a list of folders, got "xy"'),
        ([index, other], ["x", 3], "concatenate: folders must be a list of folders, got "),
        ([index, other], ["x", "../y"], "concatenate: expected folders below the image folder, got '../y'"),
        ([index, other], ["x", "/y"], "concatenate: expected folders below the image folder, got '/y'"),
        (
            [index, other.with_classes(["dog", "car"])],
            ["x", "y"],
            r"b.json: has the classes \['dog', 'car'\], expected "
            r"were \['car', 'dog', 'größer'\], in this order, as .*a.json has; with_classes chooses and orders them",
        ),
    )
    for indexes, folders, message in several:
        with pytest.raises(InputError, match=message):
            CocoIndex.concatenate(indexes, folders=folders)


def test_names_that_lead_out_are_refused_below_a_folder_too(tmp_path: Path) -> None:
    content = document(4, images=2)
    content["images"][0]["file_name"] = "../0.jpg"
    content["images"][1]["file_name"] = "/0.jpg"
    index = CocoIndex.concatenate([load(tmp_path / "a.json", content)], folders=["a"])
    for only in (0, 1):
        loader = DetectionLoader(index, tmp_path, augment=[], shuffle=False)
        loader.load_state_dict({**loader.state_dict(), "consumed": [[1, only]] if only else []})
        with pytest.raises(InputError, match=r"image file name .* expected a"):
            next(iter(loader))


def test_a_choice_of_a_mapped_index_shares_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPIPE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(coco_cache, "SMALLEST_BYTES", 0)
    index = load(tmp_path / "a.json", document(4))
    assert index.mapped is not None
    turned = index.with_classes(CLASSES[::-1])
    assert turned.boxes is index.boxes
    assert turned.polygons is index.polygons
    chosen = index.with_classes(["dog"])
    assert chosen.widths is index.widths
    for each in (turned, chosen, CocoIndex.concatenate([chosen], folders=["a"])):
        assert_same(pickle.loads(pickle.dumps(each)), each)
    # Also where the stored arrays are gone, and the file is read again.
    pickled = pickle.dumps(chosen)
    for entry in (tmp_path / "cache").glob("*.arrays"):
        entry.unlink()
    assert_same(pickle.loads(pickled), chosen)


@pytest.mark.parametrize("backend", ["opencv", "dali"])
def test_an_epoch_of_several_data_sets_goes_on_on_two_ranks(tmp_path: Path, backend: Any) -> None:
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    parts = []
    for number, folder in enumerate(("x", "y")):
        (tmp_path / folder).mkdir()
        for image in range(5):
            pixels = np.full((40, 50, 3), 20 * image + 100 * number, np.uint8)
            cv2.imwrite(str(tmp_path / folder / f"{image}.jpg"), pixels)
        parts.append(load(tmp_path / f"{folder}.json", document(number, images=5, masks=number == 0)))
    index = CocoIndex.concatenate([part.with_classes(["dog", "car"]) for part in parts], folders=["x", "y"])
    settings: dict[str, Any] = {"augment": [{"type": "RandomFlip"}], "backend": backend, "seed": 3, "threads": 1}

    def seen(batches: Any) -> list[tuple[str, int]]:
        return [
            (target.file_name, round(float(image.float().mean()) / 20))
            for batch in batches
            for image, target in zip(batch.images, batch.targets, strict=True)
        ]

    whole = seen(DetectionLoader(index, tmp_path, batch_size=2, **settings))
    assert sorted(whole) == [(f"{folder}/{n}.jpg", n + 5 * (folder == "y")) for folder in "xy" for n in range(5)]
    loader = DetectionLoader(index, tmp_path, batch_size=2, **settings)
    batches = iter(loader)
    first = seen([next(batches), next(batches)])
    rest = []
    for rank in (0, 1):
        again = DetectionLoader(index, tmp_path, rank=rank, world_size=2, **settings)
        again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        rest.append(seen(again))
    assert first + [each for pair in zip(*rest, strict=True) for each in pair] == whole
    others = CocoIndex.concatenate([part.with_classes(["dog", "car"]) for part in parts], folders=["y", "x"])
    other_loader = DetectionLoader(others, tmp_path, **settings)
    with pytest.raises(
        InputError, match=r"x.json \+ .*y.json: has not the images that the loader's state was saved with"
    ):
        other_loader.load_state_dict(loader.state_dict())
