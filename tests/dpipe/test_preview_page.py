from __future__ import annotations

import base64
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from dpipe import geometry
from dpipe.cli import app
from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.looking.page_parts import svg_paths
from dpipe.looking.preview_page import describe_matrix, facts, preview_page
from dpipe.looking.preview_samples import preview_samples
from dpipe.operations.cropping import LargeScaleJitter, RandomCrop
from dpipe.operations.geometric import RandomFlip, Resize, Rotate
from dpipe.plan import SamplePlan
from dpipe.policy import Augment, RandAugment
from dpipe.polygons import Polygons

HOSTILE = "</script><img src=x onerror=alert(1)> \"'&"
VOID = {"meta", "input", "img"}


class Page(HTMLParser):
    """The tags of a page, and whether they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if attributes.get("class") == name]


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """Two pictures: one with a triangle, a box without a mask and a crowd, one with nothing; the names are hostile."""
    images = tmp_path / "images"
    images.mkdir()
    canvas = np.full((120, 200, 3), 60, dtype=np.uint8)
    canvas[:, 100:] = 200
    records = []
    for number, name in enumerate(("<b>&.png", "plain.png"), 1):
        cv2.imwrite(str(images / name), canvas)
        records.append({"id": number, "file_name": name, "height": 120, "width": 200})
    shared = {"image_id": 1, "category_id": 1, "area": 9, "iscrowd": 0}
    annotations = [
        {**shared, "id": 8, "bbox": [150, 10, 20, 20]},
        {**shared, "id": 7, "bbox": [30, 30, 60, 70], "segmentation": [[30, 30, 90, 40, 50, 100]]},
        {**shared, "id": 9, "bbox": [100, 60, 40, 20], "iscrowd": 1},
    ]
    path = tmp_path / "instances.json"
    categories = [{"id": 1, "name": HOSTILE}]
    path.write_text(json.dumps({"images": records, "annotations": annotations, "categories": categories}))
    return path, images


def page_of(data: tuple[Path, Path], augment: Augment, **options: Any) -> tuple[str, Page]:
    text = preview_page(CocoIndex.load(data[0]), data[1], augment, title="<i>title</i>", **options)
    return text, Page(text)


def test_the_page_stands_alone_and_escapes_all_names(data: tuple[Path, Path]) -> None:
    text, page = page_of(data, Augment([Resize((100, 60))]))
    assert not re.search(r"https?://", text)
    assert HOSTILE not in text
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert not {"i", "b", "img", "link"} & set(tags)
    assert "&lt;i&gt;title&lt;/i&gt;" in text
    assert "&lt;b&gt;&amp;.png" in text
    (policy,) = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_shapes_are_in_pixels_of_their_sample(data: tuple[Path, Path]) -> None:
    _, page = page_of(data, Augment([Resize((100, 60))]))
    sizes = [attributes["viewbox"] for tag, attributes in page.tags if tag == "svg" and "viewbox" in attributes]
    assert sorted(sizes) == ["0 0 100 60"] * 2 + ["0 0 200 120"] * 2
    boxes = [tuple(attributes[key] for key in ("x", "y", "width", "height")) for attributes in page.of_class("box")]
    assert boxes == [  # of each pane the largest first, so that it covers nothing
        ("15.0", "15.0", "30.0", "35.0"),
        ("75.0", "5.0", "10.0", "10.0"),
        ("30.0", "30.0", "60.0", "70.0"),
        ("150.0", "10.0", "20.0", "20.0"),
    ]
    assert {attributes["d"] for attributes in page.of_class("mask")} == {
        "M15.0 15.0L45.0 20.0L25.0 50.0Z",
        "M30.0 30.0L90.0 40.0L50.0 100.0Z",
    }
    assert {attributes["x"] for attributes in page.of_class("ignored")} == {"50.0", "100.0"}


def test_images_are_those_of_the_samples(data: tuple[Path, Path]) -> None:
    text, _ = page_of(data, Augment([RandomFlip(1.0)]), count=1)
    images = [
        cv2.imdecode(np.frombuffer(base64.b64decode(code), dtype=np.uint8), cv2.IMREAD_GRAYSCALE)
        for code in re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    ]
    assert [image.shape for image in images] == [(120, 200), (120, 200)]
    augmented, original = images
    assert abs(int(original[60, 20]) - 60) < 4
    assert abs(int(augmented[60, 20]) - 200) < 4


def test_a_data_set_as_it_is_has_no_originals(data: tuple[Path, Path]) -> None:
    text, page = page_of(data, Augment([]))
    assert len(page.of_class("box")) == 2
    assert "originals" not in {attributes.get("value") for _, attributes in page.tags}
    assert "<dt>matrix</dt>" not in text
    assert "<dd>200x120</dd>" in text


def test_large_images_are_shrunk(tmp_path: Path, data: tuple[Path, Path]) -> None:
    text, _ = page_of(data, Augment([Resize((3000, 1800))]), count=1)
    first = re.search(r"data:image/jpeg;base64,([^\"]+)", text)
    assert first is not None
    image = cv2.imdecode(np.frombuffer(base64.b64decode(first[1]), dtype=np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (768, 1280, 3)


def test_a_mask_is_a_path_a_part_with_its_holes() -> None:
    polygons = Polygons(
        vertices=np.array([[0, 0], [9, 0], [9, 9], [1, 1], [2, 1], [2, 2], [20, 0], [29, 0], [29, 9]], np.float32),
        ring_offsets=np.array([0, 3, 6, 9]),
        instance_offsets=np.array([0, 0, 3]),
        holes=np.array([False, True, False]),
    )
    assert svg_paths(polygons, 0) == []
    assert svg_paths(polygons, 1) == [
        "M0.0 0.0L9.0 0.0L9.0 9.0ZM1.0 1.0L2.0 1.0L2.0 2.0Z",
        "M20.0 0.0L29.0 0.0L29.0 9.0Z",
    ]


def test_outlines_lose_vertices_within_a_tolerance_and_rings_without_area() -> None:
    staircase = [[0, 0], [9, 0], [9, 1], [10, 1], [10, 9], [0, 9]]
    speck = [[20, 0], [20.3, 0], [20.3, 0.3]]
    hole_in_speck = [[20.1, 0], [20.2, 0], [20.2, 0.1]]
    polygons = Polygons(
        vertices=np.array([*staircase, *speck, *hole_in_speck], np.float32),
        ring_offsets=np.array([0, 6, 9, 12]),
        instance_offsets=np.array([0, 3]),
        holes=np.array([False, False, True]),
    )
    assert len(svg_paths(polygons, 0)) == 2
    (path,) = svg_paths(polygons, 0, tolerance=1.5)
    assert path.count("L") == 3  # the staircase's corner is one, and the speck with its hole is gone


def plan_of(*steps: np.ndarray, size: tuple[int, int] = (100, 200)) -> SamplePlan:
    matrix = geometry.identity()
    for step in steps:
        matrix = geometry.compose(matrix, step)
    return SamplePlan(0, 0, 0, (100, 200), size, matrix)


def test_matrices_in_words() -> None:
    assert describe_matrix(plan_of()) == "scaled x1.000"
    turn = geometry.rotation(30, (100, 50), 1.0)
    assert describe_matrix(plan_of(turn)) == "scaled x1.000, turned +30.0°"
    assert describe_matrix(plan_of(geometry.horizontal_flip(200))) == "mirrored, scaled x1.000"
    assert describe_matrix(plan_of(geometry.vertical_flip(100))) == "mirrored, scaled x1.000, turned +180.0°"
    both = plan_of(geometry.scaling(0.5, 0.25), geometry.translation(7, -3), size=(25, 100))
    assert describe_matrix(both) == "scaled x0.500 across, x0.250 down, shifted +7.0, -3.0 px"


def test_matrices_can_be_made_again_of_their_words() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        wanted = rng.normal(size=(2, 2))
        if abs(np.linalg.det(wanted)) < 0.3:
            continue  # the shear of what is nearly flat has no three digits
        matrix = np.concatenate([wanted, rng.normal(size=(2, 1))], axis=1)
        text = describe_matrix(SamplePlan(0, 0, 0, (1, 1), (1, 1), matrix))
        scale_x, scale_y = map(float, re.findall(r"x(-?[\d.]+)", text))
        sheared = re.search(r"sheared ([-+\d.]+)", text)
        turned = re.search(r"turned ([-+\d.]+)", text)
        angle = math.radians(float(turned[1])) if turned else 0.0
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        shear = np.array([[1, float(sheared[1]) if sheared else 0.0], [0, 1]])
        mirror = np.diag([-1 if "mirrored" in text else 1, 1])
        # The text says what is done first first.
        assert np.allclose(turn @ shear @ np.diag([scale_x, scale_y]) @ mirror, wanted, atol=0.02)


def test_facts_tell_what_was_drawn(data: tuple[Path, Path]) -> None:
    index = CocoIndex.load(data[0])
    augment = Augment([Rotate(10, prob=1.0, random_negative_prob=0.0), Resize((50, 30))])
    samples = preview_samples(index, data[1], augment, count=2)
    told = dict(facts(next(sample for sample in samples if sample.target.image_id == 1)))
    assert told["size"] == "200x120 to 50x30"
    assert told["objects"] == "2, ignored 1"
    assert told["drawn"] == "Rotate +30.0°, Resize 200x120 to 50x30"
    assert told["matrix"] == "scaled x0.250, turned +30.0°"
    assert told["resampled"] == "one warp, halved 2 times down, halved 2 times across"
    assert told["filled with"] == "#808080"


def test_what_policies_and_crops_drew_is_told_as_it_was(data: tuple[Path, Path]) -> None:
    index = CocoIndex.load(data[0])
    augment = Augment([RandAugment(9, num_ops=3), RandomCrop((80, 60)), LargeScaleJitter((64, 64), 0.5, 0.5)])
    told = []
    for epoch in range(8):
        for sample in preview_samples(index, data[1], augment, count=2, epoch=epoch):
            crop, jitter = sample.operations[-2:]
            told += sample.operations
            assert crop.startswith("RandomCrop 80x60 at ")
            assert jitter.startswith("LargeScaleJitter x0.40")
            # What was drawn with a level is told with it, not with the 0 that stands in the list.
            assert not {"Color 0.10", "Rotate +0.0°"} & set(sample.operations)
    assert any(text.startswith("Rotate ") and text.endswith("27.0°") for text in told)


def test_the_command_writes_page_picture_or_both(data: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def run(*options: object) -> set[str]:
        result = CliRunner().invoke(app, ["preview", *map(str, (*data, *options))])
        assert result.exit_code == 0, result.output
        names = {path.name for path in out.iterdir()}
        for name in names:
            assert str(out / name) in result.output
            (out / name).unlink()
        return names

    assert run("--html", out / "a.html") == {"a.html"}
    assert run("--html", out / "a.html", "--raw", "-o", out / "a.png") == {"a.html", "a.png"}
    assert run("--raw", "-o", out / "a.png") == {"a.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--html", f"{__file__}/a.html"], "test_preview_page.py: is a file, expected a folder"),
        (["--html", "."], "is a folder"),
        (["--html", "a.html", "--raw", "--config", "x"], "expected one only"),
    ],
)
def test_mistakes_are_told_before_the_work(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dpipe.coco.CocoIndex.load", lambda *_, **__: pytest.fail("the work began"))
    result = CliRunner().invoke(app, ["preview", *map(str, data), *options])
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert message in line
    assert not (tmp_path / "a.html").exists()


def test_numbers_out_of_range_are_told(data: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="columns must be at least 1"):
        page_of(data, Augment([]), columns=0)
    with pytest.raises(InputError, match="count must be at least 1"):
        page_of(data, Augment([]), count=0)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not there to read the script")
def test_the_script_switches_layers_and_classes(data: tuple[Path, Path], tmp_path: Path) -> None:
    text, _ = page_of(data, Augment([]))
    script = text[text.index("<script>") + 8 : text.index("</script>")]
    # As much of a document as the script asks for.
    harness = (
        """
const listeners = [];
const make = extra => Object.assign({ addEventListener(event, act) { this[event] = act; } }, extra);
const layers = ["boxes", "masks"].map(value => make({ value, checked: true }));
const classes = ["0", "1"].map(value => make({ value, checked: true }));
const shapes = ["0", "1"].map(label => ({ dataset: { label }, style: {} }));
const hidden = new Set();
const main = { classList: { toggle: (name, on) => (on ? hidden.add(name) : hidden.delete(name)) },
               querySelectorAll: () => shapes };
const byId = { columns: make({ value: "3" }), every: make({}), none: make({}) };
const root = { style: { setProperty: (name, value) => { root[name] = value; } } };
globalThis.document = { querySelector: () => main, documentElement: root, getElementById: id => byId[id],
                        querySelectorAll: which => (which.startsWith("#layers") ? layers : classes) };
new Function(SCRIPT)();
const shown = () => shapes.map(shape => shape.style.display);
const told = [[...hidden], shown()];
layers[1].checked = false; layers[1].change(); told.push([...hidden]);
byId.none.click(); told.push(shown());
classes[1].checked = true; classes[1].change(); told.push(shown());
byId.every.click(); told.push(shown());
byId.columns.input(); told.push(root["--columns"]);
console.log(JSON.stringify(told));
"""
    ).replace("SCRIPT", json.dumps(script))
    path = tmp_path / "harness.js"
    path.write_text(harness)
    done = subprocess.run(["node", str(path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [
        [],
        ["", ""],
        ["hide-masks"],
        ["none", "none"],
        ["none", ""],
        ["", ""],
        "3",
    ]
