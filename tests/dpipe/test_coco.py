from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpipe.coco import CocoIndex, ImagePaths, image_path
from dpipe.errors import InputError

Edit = Callable[[dict[str, Any]], None]


def small() -> dict[str, Any]:
    """Three images, not in the order of ids; four annotations, not in the order of images."""
    return {
        "images": [
            {"id": 30, "file_name": "c.jpg", "height": 40, "width": 60},
            {"id": 10, "file_name": "a/a.jpg", "height": 60, "width": 40},
            {"id": 20, "file_name": "b.jpg", "height": 50, "width": 50},
        ],
        "annotations": [
            {"id": 5, "image_id": 10, "category_id": 7, "bbox": [1, 2, 10, 20], "area": 150.5, "iscrowd": 0},
            {
                "id": 9,
                "image_id": 30,
                "category_id": 2,
                "bbox": [0.5, 0, 4, 4],
                "iscrowd": 0,
                "segmentation": [[0.5, 0, 4.5, 0, 4.5, 4]],
            },
            {"id": 1, "image_id": 10, "category_id": 2, "bbox": [-3, 4, 90, 5], "area": 7, "iscrowd": 0, "ignore": 1},
            {
                "id": 4,
                "image_id": 10,
                "category_id": 7,
                "bbox": [0, 0, 40, 1],
                "area": 40,
                "iscrowd": 1,
                "segmentation": {"size": [60, 40], "counts": [0, 2400]},
            },
        ],
        "categories": [{"id": 7, "name": "car"}, {"id": 2, "name": "person"}],
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(small()))
    return path


def edited(path: Path, edit: Edit) -> CocoIndex:
    data = small()
    edit(data)
    path.write_text(json.dumps(data))
    return CocoIndex.load(path)


def test_arrays_are_in_the_order_of_images(path: Path) -> None:
    index = CocoIndex.load(path)
    assert len(index) == 3
    assert index.path == path
    np.testing.assert_array_equal(index.image_ids, [30, 10, 20])
    np.testing.assert_array_equal(index.widths, [60, 40, 50])
    np.testing.assert_array_equal(index.heights, [40, 60, 50])
    assert list(index.file_names) == ["c.jpg", "a/a.jpg", "b.jpg"]
    np.testing.assert_array_equal(index.offsets, [0, 1, 4, 4])
    np.testing.assert_array_equal(index.annotation_ids, [9, 5, 1, 4])
    np.testing.assert_array_equal(index.boxes, [[0.5, 0, 4.5, 4], [1, 2, 11, 22], [-3, 4, 87, 9], [0, 0, 40, 1]])
    np.testing.assert_array_equal(index.crowd, [False, False, True, True])
    np.testing.assert_array_equal(index.areas, [8, 150.5, 7, 40])
    assert len(index.polygons) == 4
    np.testing.assert_array_equal(index.polygons.areas(), [8, 0, 0, 2400])
    assert index.left_out == 0
    assert index.left_out_note == ""


def test_types(path: Path) -> None:
    index = CocoIndex.load(path)
    kinds = {
        "image_ids": np.int64,
        "widths": np.int32,
        "heights": np.int32,
        "offsets": np.int64,
        "boxes": np.float32,
        "labels": np.int64,
        "crowd": np.bool_,
        "areas": np.float64,
        "annotation_ids": np.int64,
        "category_ids": np.int64,
    }
    assert {name: getattr(index, name).dtype for name in kinds} == kinds


def test_labels_count_categories_in_the_order_of_the_file(path: Path) -> None:
    index = CocoIndex.load(path)
    assert index.class_names == ("car", "person")
    np.testing.assert_array_equal(index.category_ids, [7, 2])
    np.testing.assert_array_equal(index.labels, [1, 0, 1, 0])


def test_classes_that_differ_name_both_lists(path: Path) -> None:
    CocoIndex.load(path, classes=["car", "person"])
    for classes in (["person", "car"], ["car"], ["car", "person", "bus"]):
        with pytest.raises(InputError) as caught:
            CocoIndex.load(path, classes=classes)
        assert str(caught.value) == (
            f"{path}: has the classes ['car', 'person'], expected were {classes}, in this order"
        )


@pytest.mark.parametrize(
    ("place", "others", "message"),
    [
        (60, ["zebra"], "has 80 classes, expected were 80; they differ first at label 60: 'c60', expected was 'zebra'"),
        (79, [], "has 80 classes, expected were 79; they differ first at label 79: 'c79', expected was no more"),
        (80, ["c80"], "has 80 classes, expected were 81; they differ first at label 80: no more, expected was 'c80'"),
    ],
)
def test_long_lists_of_classes_are_told_by_where_they_differ(
    tmp_path: Path, place: int, others: list[str], message: str
) -> None:
    names = [f"c{number}" for number in range(80)]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    path = tmp_path / "many.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    with pytest.raises(InputError) as caught:
        CocoIndex.load(path, classes=[*names[:place], *others, *names[place + 1 :]])
    assert str(caught.value) == f"{path}: {message}"


def test_arguments_of_a_wrong_type(path: Path) -> None:
    for wrong in (None, [path], 3):
        with pytest.raises(InputError, match="CocoIndex: expected the path of a JSON, got"):
            CocoIndex.load(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="CocoIndex: classes must be a list of names, got 'car'"):
        CocoIndex.load(path, classes="car")


def test_an_index_prints_as_a_line(path: Path) -> None:
    assert repr(CocoIndex.load(path)) == f"CocoIndex('{path}': 3 images, 4 instances, 2 classes)"


def test_groups_and_emptiness(path: Path) -> None:
    index = CocoIndex.load(path)
    np.testing.assert_array_equal(index.aspect_groups(), [1, 0, 1])
    np.testing.assert_array_equal(index.non_empty(), [True, True, False])
    only_crowd = edited(path, lambda data: data["annotations"].pop(0))
    np.testing.assert_array_equal(only_crowd.non_empty(), [True, False, False])
    assert index.has_masks


def test_an_area_that_is_missing_is_that_of_the_mask_or_of_the_box(path: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        for record in data["annotations"]:
            record.pop("area", None)

    np.testing.assert_array_equal(edited(path, edit).areas, [8, 200, 450, 2400])


@pytest.mark.parametrize("key", ["iscrowd", "ignore", "difficult"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, True), (1.0, True), (True, True), (0, False), (0.0, False), (False, False), (None, False)],
)
def test_crowd_marks(path: Path, key: str, value: Any, expected: bool) -> None:
    assert edited(path, lambda data: data["annotations"][0].update({key: value})).crowd[1] == expected


@pytest.mark.parametrize("segmentation", [None, []])
def test_no_segmentation(path: Path, segmentation: Any) -> None:
    index = edited(path, lambda data: data["annotations"][1].update(segmentation=segmentation))
    assert np.diff(index.polygons.instance_offsets).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "bbox", [[1, 2, 0, 5], [1, 2, 5, 0], [40, 2, 5, 5], [1, 60, 5, 5], [-5, 2, 5, 5], [1, -5, 5, 5]]
)
def test_boxes_with_nothing_in_them_get_no_row(path: Path, bbox: list[float]) -> None:
    index = edited(path, lambda data: data["annotations"][0].update(bbox=bbox, segmentation=[[0, 0, 9, 0, 9, 9]]))
    assert index.left_out == 1
    assert index.left_out_note == "annotations left out, as their boxes are empty or outside of their images: 1"
    np.testing.assert_array_equal(index.annotation_ids, [9, 1, 4])
    np.testing.assert_array_equal(index.offsets, [0, 1, 3, 3])
    assert len(index.polygons) == len(index.boxes) == len(index.areas) == 3


def test_files_without_annotations_or_images(path: Path) -> None:
    index = edited(path, lambda data: data.update(annotations=[]))
    assert len(index) == 3
    assert index.boxes.shape == (0, 4)
    assert not index.has_masks
    assert not index.non_empty().any()
    index = edited(path, lambda data: data.update(annotations=[], images=[]))
    assert len(index) == 0
    np.testing.assert_array_equal(index.offsets, [0])


def remove(kind: str, number: int, key: str) -> Edit:
    return lambda data: data[kind][number].pop(key)


def put(kind: str, number: int, key: str, value: Any) -> Edit:
    return lambda data: data[kind][number].update({key: value})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data.pop("images"), "has no key 'images'; COCO JSON has images, annotations and categories"),
        (lambda data: data.update(categories={}), "'categories' is a dict; a list was expected"),
        (lambda data: data["annotations"].insert(2, 5), "entry 2 of 'annotations' is a int; an object was expected"),
        (remove("images", 1, "width"), "image 10 has no 'width'"),
        (remove("images", 2, "id"), "entry 2 of the image list has no 'id'"),
        (remove("images", 0, "file_name"), "image 30 has no 'file_name'"),
        (remove("annotations", 1, "bbox"), "annotation 9 has no 'bbox'"),
        (remove("annotations", 1, "image_id"), "annotation 9 has no 'image_id'"),
        (remove("annotations", 3, "category_id"), "annotation 4 has no 'category_id'"),
        (remove("categories", 1, "name"), "category 2 has no 'name'"),
        (put("images", 1, "width", "40"), "image 10: 'width' is \"40\"; a whole number was expected"),
        (put("images", 1, "height", 0), "image 10: 'height' is 0; a positive number of pixels was expected"),
        (put("images", 1, "width", 2**31), "image 10: 'width' is 2147483648; a positive number of pixels was expected"),
        (put("images", 1, "file_name", 7), "image 10: 'file_name' is 7; a string was expected"),
        (put("images", 1, "id", "x"), "image x: 'id' is \"x\"; a whole number was expected"),
        (put("images", 1, "id", 20), "image id 20 occurs 2 times; ids must be unique"),
        (put("annotations", 3, "id", 9), "annotation id 9 occurs 2 times; ids must be unique"),
        (put("categories", 1, "id", 7), "category id 7 occurs 2 times; ids must be unique"),
        (put("annotations", 2, "image_id", 11), "annotation 1: 'image_id' is 11, which is not in 'images'"),
        (put("annotations", 2, "category_id", 1), "annotation 1: 'category_id' is 1, which is not in 'categories'"),
        (
            put("annotations", 2, "bbox", [1, 2, -3, 4]),
            "annotation 1: 'bbox' is [1, 2, -3, 4]; "
            "[x, y, width, height] of finite numbers, width and height not negative, was expected",
        ),
        (put("annotations", 2, "bbox", [1, 2, 3]), "annotation 1: 'bbox' is [1, 2, 3]; [x, y, width, height] of"),
        (put("annotations", 2, "bbox", [1, 2, 3, None]), "annotation 1: 'bbox' is [1, 2, 3, null];"),
        (put("annotations", 2, "bbox", "abcd"), "annotation 1: 'bbox' is \"abcd\";"),
        (put("annotations", 2, "bbox", 5), "annotation 1: 'bbox' is 5;"),
        (put("annotations", 2, "area", "big"), "annotation 1: 'area' is \"big\"; a number was expected"),
        (
            put("annotations", 1, "segmentation", [[1, 2, 3]]),
            "annotation 9: polygon 0 of the segmentation has 3 coordinates; pairs of x and y were expected",
        ),
        (
            put("annotations", 1, "segmentation", [[1, 2, 3, 4, 5, [6]]]),  # as many commas as without the inner list
            "annotation 9: polygon 0 of the segmentation holds [6] where a finite number was expected",
        ),
        (
            put("annotations", 3, "segmentation", {"size": [40, 60], "counts": [2400]}),
            "annotation 4: run-length mask has [height, width] [40, 60], its image [60, 40]",
        ),
        (
            put("annotations", 3, "segmentation", {"size": [60, 40], "counts": "zz"}),
            "annotation 4: run lengths are damaged: ",
        ),
        (put("annotations", 0, "iscrowd", "0"), "annotation 5: 'iscrowd' is \"0\"; 0 or 1 was expected"),
        (put("annotations", 1, "iscrowd", [0]), "annotation 9: 'iscrowd' is [0]; 0 or 1 was expected"),
        (put("annotations", 2, "ignore", "false"), "annotation 1: 'ignore' is \"false\"; 0 or 1 was expected"),
        (put("annotations", 2, "difficult", 2), "annotation 1: 'difficult' is 2; 0 or 1 was expected"),
        (put("annotations", 1, "segmentation", 0), "annotation 9: segmentation is neither a list of polygons nor"),
        (put("annotations", 1, "segmentation", ""), "annotation 9: segmentation is neither a list of polygons nor"),
        (put("annotations", 1, "segmentation", False), "annotation 9: segmentation is neither a list of polygons nor"),
        (put("annotations", 1, "segmentation", {}), "annotation 9: run-length mask has size null; [height, width]"),
        (put("annotations", 1, "segmentation", [""]), "annotation 9: polygon 0 of the segmentation is not a list"),
        (
            put("annotations", 1, "segmentation", [[1, 2, 1e39, 2, 1, 9]]),
            "annotation 9: polygon 0 of the segmentation holds 1e+39, which is beyond 1e+18",
        ),
        (
            put("annotations", 1, "bbox", [1, 1, 1e39, 4]),
            "annotation 9: 'bbox' is [1, 1, 1e+39, 4]; numbers up to 1e+18 were expected",
        ),
        (put("annotations", 1, "bbox", [-1e39, 1, 4, 4]), "annotation 9: 'bbox' is [-1e+39, 1, 4, 4]; numbers up to"),
        (put("categories", 1, "name", "car"), "category name 'car' occurs 2 times; names must be unique"),
    ],
)
def test_mistakes_in_the_file_are_told_in_one_line(path: Path, edit: Edit, message: str) -> None:
    with pytest.raises(InputError) as caught:
        edited(path, edit)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(small())[:-200], "is not valid JSON: "),
        ("", "is not valid JSON: "),
        ('{"images":\n [NaN]}', "is not valid JSON: NaN in line 2, column 3 is no number of JSON"),
        ('{"images": [-Infinity]}', "is not valid JSON: Infinity in line 1, column 14 is no number of JSON"),
        ("[]", "holds a list; an object with images, annotations and categories was expected"),
    ],
)
def test_files_that_are_not_coco_json(path: Path, content: str, message: str) -> None:
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        CocoIndex.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read: No such file or directory$"):
        CocoIndex.load(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory$"):
        CocoIndex.load(os.fspath(tmp_path))


def test_image_paths_stay_below_the_root(tmp_path: Path) -> None:
    assert image_path(tmp_path, "a/b.jpg") == tmp_path / "a" / "b.jpg"
    assert image_path(str(tmp_path), "a..b.jpg") == tmp_path / "a..b.jpg"
    for name in ("../x.jpg", "a/../../x.jpg", "sub/../sub/x.jpg", "..", "a\\..\\..\\x.jpg"):
        with pytest.raises(InputError, match=r"'..' is not allowed, expected a path straight down from"):
            image_path(tmp_path, name)
    for name in ("/etc/passwd", "", "\\x.jpg", "C:\\x.jpg", "a\0b"):
        with pytest.raises(InputError, match="expected a relative path below the image folder"):
            image_path(tmp_path, name)


def test_image_paths_are_a_sequence(tmp_path: Path) -> None:
    paths = ImagePaths(tmp_path, ["a.jpg", "b/c.jpg", "../d.jpg"])
    assert len(paths) == 3
    assert paths[1] == tmp_path / "b" / "c.jpg"
    assert paths[:2] == [tmp_path / "a.jpg", tmp_path / "b" / "c.jpg"]
    with pytest.raises(InputError, match=r"'\.\.' is not allowed"):
        paths[2]


def test_twenty_thousand_annotations_do_not_take_long(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rings = rng.uniform(0, 400, (20_000, 70)).round(2).tolist()
    data = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 480, "width": 640} for n in range(2_000)],
        "annotations": [
            {
                "id": n,
                "image_id": n * 7 % 2_000,
                "category_id": n % 80,
                "bbox": [1, 2, 30, 40],
                "segmentation": [ring],
                "area": 9,
            }
            for n, ring in enumerate(rings)
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(80)],
    }
    path = tmp_path / "many.json"
    path.write_text(json.dumps(data))
    begin = time.process_time()
    index = CocoIndex.load(path)
    # Ten times of what it takes: a loop over vertices would not do.
    assert time.process_time() - begin < 4
    assert len(index.polygons.vertices) == 20_000 * 35
    number = int(np.flatnonzero(index.annotation_ids == 12_345)[0])
    np.testing.assert_allclose(index.polygons.select([number]).vertices.ravel(), rings[12_345], rtol=1e-6)


@pytest.mark.realdata
def test_real_annotations_load(data_root: Path) -> None:
    index = CocoIndex.load(data_root / "coco_mini" / "annotations" / "instances_train.json")
    assert len(index) == 100
    assert len(index.class_names) == 80
    # Their contours run through the centres of border pixels, their boxes around these.
    off = np.abs(index.polygons.boxes() - index.boxes)
    assert np.median(off, axis=0).max() <= 1
