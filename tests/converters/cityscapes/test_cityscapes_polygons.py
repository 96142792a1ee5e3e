"""Cityscapes' polygons: the same pixels as cityscapesscripts paints, and odd files told in one line."""

from __future__ import annotations

import json

import numpy as np
import orjson
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from PIL import Image

from converters import ConversionError, convert_cityscapes
from converters.cityscapes.polygons import paint_polygons

LABELS = (
    "road",
    "sky",
    "person",
    "car",
    "bicycle",
    "persongroup",
    "cargroup",
    "caravan",
    "license plate",
    "out of roi",
)


def annotation(seed, height=60, width=90):
    """Overlapping polygons, some of few points, some outside, some deleted, some of broken numbers."""
    rng = np.random.default_rng(seed)
    objects = []
    for number in range(40):
        points = rng.normal(rng.uniform(0, (width, height)), 15, (int(rng.integers(2, 9)), 2))
        polygon = points.round(1) if number % 3 == 0 else points.round().astype(int)
        item = {"label": str(rng.choice(LABELS)), "polygon": polygon.tolist()}
        if number % 10 == 9:
            item["deleted"] = 1
        objects.append(item)
    return {"imgHeight": height, "imgWidth": width, "objects": objects}


def painted_by_cityscapesscripts(document):
    reference = Annotation()
    reference.fromJsonText(json.dumps(document))
    return np.asarray(createInstanceImage(reference, "ids"))


@pytest.mark.parametrize("seed", range(20))
def test_pixels_are_those_of_cityscapesscripts(tmp_path, seed):
    document = annotation(seed)
    (tmp_path / "a.json").write_text(json.dumps(document))
    expected = painted_by_cityscapesscripts(document)
    np.testing.assert_array_equal(paint_polygons(tmp_path / "a.json"), expected)
    assert len(np.unique(expected)) > 10


def polygons_of(root):
    """Draws polygons for every label image, and the label image that cityscapesscripts makes of them."""
    for number, path in enumerate(sorted((root / "gtFine").rglob("*_instanceIds.png"))):
        height, width = np.asarray(Image.open(path)).shape
        document = annotation(number, height, width)
        Image.fromarray(painted_by_cityscapesscripts(document).astype(np.uint16)).save(path)
        path.with_name(path.name.replace("instanceIds.png", "polygons.json")).write_text(json.dumps(document))


def test_polygons_give_the_files_that_label_images_give(write_cityscapes, street, tmp_path):
    root = write_cityscapes(
        {split: {f"{split}/{split}_{seed}": street(seed) for seed in range(3)} for split in ("train", "val")}
    )
    polygons_of(root)
    for source in ("instance-ids", "polygons"):
        convert_cityscapes(root, tmp_path / source, source=source, nproc=1)
    for path in (tmp_path / "instance-ids").iterdir():
        assert path.read_bytes() == (tmp_path / "polygons" / path.name).read_bytes()
        assert len(orjson.loads(path.read_bytes())["annotations"]) > 20

    for path in (root / "gtFine").rglob("*_instanceIds.png"):
        path.unlink()
    convert_cityscapes(root, tmp_path / "again", source="polygons", nproc=1)
    with pytest.raises(ConversionError, match=r"no split has annotations \(gtFine/<split>/<city>/\*_gtFine_insta"):
        convert_cityscapes(root, tmp_path / "none", nproc=1)


def test_a_missing_polygon_file_is_told(write_cityscapes, street, tmp_path):
    root = write_cityscapes({"val": {f"a/a_{seed}": street(seed) for seed in range(2)}})
    polygons_of(root)
    (root / "gtFine/val/a/a_1_gtFine_polygons.json").unlink()
    with pytest.raises(ConversionError, match=r"a_1_gtFine_polygons\.json: is missing, although there is .*a_1_leftI"):
        convert_cityscapes(root, tmp_path / "out", source="polygons", nproc=1)


@pytest.mark.realdata
def test_pixels_are_those_of_cityscapesscripts_on_real_streets(data_root):
    paths = sorted((data_root / "coco_streets/gtFine").rglob("*_polygons.json"))
    assert len(paths) == 90
    for path in paths:
        expected = painted_by_cityscapesscripts(json.loads(path.read_bytes()))
        np.testing.assert_array_equal(paint_polygons(path), expected)


def person(polygon):
    return {"label": "person", "polygon": polygon}


def document(*objects, **changes):
    return {"imgHeight": 4, "imgWidth": 5, "objects": list(objects), **changes}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([], r"is \[\], expected imgWidth, imgHeight and objects"),
        (document(imgHeight=None), "imgHeight is missing, expected a number of pixels"),
        (document(imgWidth="5"), "imgWidth is '5', expected a number of pixels"),
        (document(imgWidth=0), "imgWidth is 0, expected"),
        (document(imgWidth=True), "imgWidth is True, expected"),
        (document(imgWidth=5.5), "imgWidth is 5.5, expected"),
        (document(imgWidth=10**6, imgHeight=10**6), "its image has 1000000x1000000 pixels, expected at most"),
        (document(objects={}), "has no list of objects"),
        (document(7), "object 1: is 7, expected a label and a polygon"),
        (document(person([[0, 0], [1, 1]]), {"polygon": []}), "object 2: has the label missing, which is none of"),
        (document({"label": ["car"], "polygon": []}), r"object 1: has the label \['car'\], which is none of"),
        (document({"label": "x\ny" * 99, "polygon": []}), r"object 1: has the label 'x\\nyx\\ny.*\.\.\., which is"),
        (document({"label": "group", "polygon": []}), "object 1: has the label 'group', which is none"),
        (document({"label": "car"}), "object 1: its polygon is missing, expected a list of at least 2 points"),
        (document(person([[0, 0]])), r"object 1: its polygon is \[\[0, 0\]\], expected a list of at least 2 points"),
        (document(person([[0, 0], [1, 1, 1]])), r"a point of its polygon is \[1, 1, 1\], expected x and y in pixels"),
        (document(person([[0, 0], ["1", 1]])), r"a point of its polygon is \['1', 1\], expected"),
        (document(person([[0, 0], [True, 1]])), r"a point of its polygon is \[True, 1\], expected"),
        (document(person([[0, 0], [1e300, 1]])), r"a point of its polygon is \[1e\+300, 1\], expected"),
        (document(person([[0, 0], [2**40, 1]])), r"a point of its polygon is \[1099511627776, 1\], expected"),
        (document(*[person([[0, 0], [1, 1]])] * 1001), "object 1001: is the 1001th of its label, but ids tell 1000"),
    ],
)
def test_odd_content_is_one_line(tmp_path, content, line):
    path = tmp_path / "a_polygons.json"
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS))
    with pytest.raises(ConversionError, match=rf"^{path}: .*{line}") as caught:
        paint_polygons(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe{}", b'{"imgWidth": NaN}', b"nul"])
def test_what_is_no_json_is_one_line(tmp_path, content):
    path = tmp_path / "a_polygons.json"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=rf"^{path}: is not JSON \("):
        paint_polygons(path)


def test_a_byte_order_mark_is_read_over(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + orjson.dumps(document(person([[0, 0], [3, 0], [3, 1], [0, 1]]))))
    np.testing.assert_array_equal(np.unique(paint_polygons(path)), [0, 24000])


def test_files_that_are_too_large_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("converters.cityscapes.polygons.LARGEST_JSON", 100)
    (tmp_path / "a.json").write_bytes(b" " * 101)
    with pytest.raises(ConversionError, match=r"a\.json: has 101 bytes, expected at most"):
        paint_polygons(tmp_path / "a.json")
    with pytest.raises(ConversionError, match=r"b\.json: is missing"):
        paint_polygons(tmp_path / "b.json")
