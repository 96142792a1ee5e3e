from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from dpipe.cli import app
from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.looking import check_rings
from dpipe.looking.check import CheckReport, check_dataset
from dpipe.looking.check_findings import ERRORS, WARNINGS
from dpipe.looking.check_rings import self_intersecting

Content = dict[str, list[Any]]
SQUARE = [10, 10, 40, 10, 40, 40, 10, 40]
BOWTIE = [10, 10, 40, 40, 40, 10, 10, 40]


@pytest.fixture
def content(tmp_path: Path) -> Content:
    """A data set in which nothing is wrong but that its category is rare; its images lie in ``tmp_path/images``."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(3)
    images, annotations = [], []
    for number in range(1, 4):
        cv2.imwrite(str(folder / f"{number}.jpg"), rng.integers(0, 256, (80, 100, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 80, "width": 100})
        annotations.append(
            {
                "id": 10 * number,
                "image_id": number,
                "category_id": 5,
                "bbox": [10, 10, 30, 30],
                "area": 900,
                "iscrowd": 0,
                "segmentation": [SQUARE],
            }
        )
    return {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "kite"}]}


def check(tmp_path: Path, content: Any, **options: Any) -> CheckReport:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return check_dataset(path, tmp_path / "images", **options)


def kinds(report: CheckReport) -> dict[str, int]:
    """What was found, but for the rare category."""
    return {kind: count for kind, count in report.counts.items() if kind != "rare_category"}


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path, content: Content) -> None:
    report = check(tmp_path, content)
    assert report.counts == {"rare_category": 1}
    assert report.errors == 0
    assert (report.image_count, report.annotation_count) == (3, 3)


def change(**values: Any) -> Callable[[Content, Path], None]:
    """Changes values of the first annotation; None takes them away."""

    def spoil(content: Content, _: Path) -> None:
        record = content["annotations"][0]
        record.update(values)
        for key, value in values.items():
            if value is None:
                del record[key]

    return spoil


def rle(height: int = 80, width: int = 100) -> dict[str, Any]:
    """The mask of the square, compressed."""
    bitmap = np.zeros((height, width), dtype=np.uint8, order="F")
    bitmap[10:40, 10:40] = 1
    encoded = coco_mask.encode(bitmap)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


SPOILED: dict[str, list[Callable[[Content, Path], object]]] = {
    "malformed_record": [
        lambda content, _: content["annotations"].append("text"),
        lambda content, _: content["images"].append(7),
        lambda content, _: content["images"][0].update(height=2**31) or content["annotations"].pop(0),
        lambda content, _: content.pop("categories") and content["annotations"].clear(),
        lambda content, _: content["categories"].append({"id": 6}) or content["annotations"][0].update(category_id=6),
        change(bbox=[1, 2, 3]),
        change(bbox=["1", 2, 3, 4]),
        change(area="large"),
        change(iscrowd=2),
        change(id="first"),
    ],
    "duplicate_image_id": [
        lambda content, folder: (
            cv2.imwrite(str(folder / "4.jpg"), np.zeros((80, 100, 3), dtype=np.uint8)),
            content["images"].append({"id": 3, "file_name": "4.jpg", "height": 80, "width": 100}),
        )
    ],
    "duplicate_annotation_id": [change(id=20)],
    "duplicate_category_id": [lambda content, _: content["categories"].append({"id": 5, "name": "bird"})],
    "duplicate_category_name": [
        lambda content, _: (
            content["categories"].append({"id": 6, "name": "kite"}) or content["annotations"][0].update(category_id=6)
        )
    ],
    "unknown_image": [change(image_id=99)],
    "unknown_category": [change(category_id=99)],
    "name_leaves_folder": [lambda content, _: content["images"][0].update(file_name="../1.jpg")],
    "missing_image": [lambda _, folder: (folder / "1.jpg").unlink()],
    "corrupt_image": [
        lambda _, folder: (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:-500]),
        lambda _, folder: (folder / "1.jpg").write_bytes(b""),
        lambda _, folder: (folder / "1.jpg").write_text("no picture"),
    ],
    "image_size_differs": [
        lambda _, folder: cv2.imwrite(str(folder / "1.jpg"), np.zeros((81, 100, 3), dtype=np.uint8))
    ],
    "empty_box": [change(bbox=[10, 10, 0, 30]), change(bbox=[10, 10, -30, 30])],
    "box_outside_image": [change(bbox=[100, 10, 30, 30], segmentation=None)],
    "malformed_mask": [
        change(segmentation=[[10, 10, 40, 10, 40]]),
        change(segmentation=[["10", 10, 40, 10, 40, 40]]),
        change(segmentation="text"),
        change(segmentation=""),
        change(segmentation=0),
        change(segmentation={}),
        change(segmentation=rle(81)),
        change(segmentation={"size": [80, 100], "counts": [10, 9000]}),
    ],
    "empty_mask": [
        change(segmentation=[[10, 10, 40, 10]]),
        change(segmentation=[[10, 10, 20, 20, 40, 40]]),
        change(segmentation={"size": [80, 100], "counts": [8000]}),
    ],
    "box_contradicts_mask": [change(bbox=[60, 40, 30, 30]), change(bbox=[60, 40, 30, 30], segmentation=rle())],
    "same_content": [lambda _, folder: shutil.copy(folder / "1.jpg", folder / "2.jpg")],
    "box_beyond_border": [change(bbox=[75, 10, 30, 30], segmentation=None)],
    "box_off_mask": [change(bbox=[10, 10, 35, 30]), change(bbox=[5, 10, 35, 30], segmentation=rle())],
    "degenerate_polygon": [
        change(segmentation=[SQUARE, [10, 10, 20, 20]]),
        change(segmentation=[SQUARE, [10, 10, 20, 20, 30, 30]]),
    ],
    "self_intersecting_polygon": [change(segmentation=[BOWTIE])],
    "area_differs": [
        change(area=300),
        change(area=1100, segmentation=[[10, 10, 40, 10, 10, 40]]),
        change(area=1300, segmentation=None),
        change(area=-900),
        change(area=100, segmentation=rle()),
    ],
    "zero_area": [change(area=0)],
    "near_duplicate": [
        lambda content, _: content["annotations"].append({**content["annotations"][0], "id": 11}),
    ],
    "extreme_aspect_ratio": [change(bbox=[10, 10, 60, 2], area=120, segmentation=None)],
    "unused_category": [lambda content, _: content["categories"].append({"id": 6, "name": "bird"})],
}


@pytest.mark.parametrize(
    ("kind", "spoil"), [pytest.param(kind, spoil, id=kind) for kind, several in SPOILED.items() for spoil in several]
)
def test_each_defect_is_found_and_nothing_else(
    tmp_path: Path, content: Content, kind: str, spoil: Callable[[Content, Path], object]
) -> None:
    spoil(content, tmp_path / "images")
    report = check(tmp_path, content)
    found = kinds(report)
    assert found.pop(kind) >= 1
    assert not found
    assert bool(report.errors) == (kind in ERRORS)


def test_every_kind_is_provoked_by_a_test() -> None:
    elsewhere = {"image_without_size", "repeated_file_name", "near_duplicates_unknown", "rare_category"}
    assert set(SPOILED) | elsewhere == set(ERRORS) | set(WARNINGS)


def test_the_rarer_kinds(tmp_path: Path, content: Content) -> None:
    content["images"][0]["width"] = 0
    report = check(tmp_path, content)
    assert kinds(report) == {"image_without_size": 1}
    assert report.examples("image_without_size")[0].detail == "0x80"

    content["images"][0]["width"] = 100
    content["images"][0]["file_name"] = "./2.jpg"
    report = check(tmp_path, content)
    assert kinds(report) == {"repeated_file_name": 1}
    assert report.examples("repeated_file_name")[0].detail == "image ids 1, 2"

    content["images"][0]["file_name"] = "1.jpg"
    template = {**content["annotations"].pop(0), "segmentation": []}
    content["annotations"] += [{**template, "id": 100 + n, "bbox": [n % 60, n // 2, 30, 30]} for n in range(101)]
    assert kinds(check(tmp_path, content)) == {"near_duplicates_unknown": 1}


def test_copies_of_a_file_are_told_once_each(tmp_path: Path, content: Content) -> None:
    folder = tmp_path / "images"
    for number in (2, 3):
        shutil.copy(folder / "1.jpg", folder / f"{number}.jpg")
    (folder / "1.jpg").rename(folder / "0.jpg")
    content["images"][0]["file_name"] = "0.jpg"
    other = np.zeros((80, 100, 3), dtype=np.uint8)
    for name, level in (("dark.bmp", 10), ("light.bmp", 200)):  # of the same length
        cv2.imwrite(str(folder / name), other + level)
        content["images"].append({"id": level, "file_name": name, "height": 80, "width": 100})
    report = check(tmp_path, content)
    assert kinds(report) == {"same_content": 2}
    told = [(finding.image, finding.detail) for finding in report.examples("same_content")]
    assert told == [("2.jpg", "as 0.jpg"), ("3.jpg", "as 0.jpg")]


def test_a_box_off_its_mask_contradicts_it_below_an_iou_of_a_quarter(tmp_path: Path, content: Content) -> None:
    for width, kind in ((9, "box_off_mask"), (7, "box_contradicts_mask")):  # 0.3 and 0.23 of the mask's 30 columns
        content["annotations"][0].update(bbox=[10, 10, width, 30])
        assert kinds(check(tmp_path, content)) == {kind: 1}


def test_a_malformed_mask_hides_nothing_from_its_neighbours(tmp_path: Path, content: Content) -> None:
    content["annotations"] = [
        {**content["annotations"][0], "id": number, "image_id": 1 + number % 3, "bbox": [10, 10, 30, 30 - number / 10]}
        for number in range(9)
    ]
    content["annotations"][2]["segmentation"] = "text"
    for number in (1, 4, 8):
        content["annotations"][number].update(segmentation=[BOWTIE], area=450)
    found = [finding for finding in check(tmp_path, content).findings if finding.kind.startswith(("self", "malf"))]
    assert [(finding.kind, finding.annotation) for finding in found] == [
        ("malformed_mask", 2),
        *(("self_intersecting_polygon", number) for number in (1, 4, 8)),
    ]


def test_a_polygon_that_crosses_itself_may_have_any_area_up_to_its_extent(tmp_path: Path, content: Content) -> None:
    # A square that is run round twice, a little apart: 1800 by the sum over its edges, 900 by its pixels.
    twice = [10, 10, 40, 10, 40, 40, 10, 39, 11, 11, 39, 10.5, 39.5, 39, 10.5, 40]
    for area in (450, 880, 895):
        content["annotations"][0].update(segmentation=[twice], area=area)
        assert kinds(check(tmp_path, content)) == {"self_intersecting_polygon": 1}
    content["annotations"][0]["area"] = 1400
    assert kinds(check(tmp_path, content)) == {"self_intersecting_polygon": 1, "area_differs": 1}


def test_what_is_allowed(tmp_path: Path, content: Content) -> None:
    first, second, third = content["annotations"]
    # Boxes only; boxes that are rounded, or drawn by hand a little loosely; what is over the border by rounding.
    first.update(segmentation=[], bbox=[69.6, 10, 31, 30], area=930)
    second.update(bbox=[9, 9, 33, 33])
    # A crowd's run lengths, not compressed; its area by pixels.
    runs = [10 * 80, *[30, 50] * 59, 30, 50 + 30 * 80]
    third.update(iscrowd=1, segmentation={"size": [80, 100], "counts": runs}, bbox=[10, 0, 60, 30], area=1800)
    content["images"].append({"id": 9, "file_name": "nobody.jpg", "height": 30, "width": 40})
    cv2.imwrite(str(tmp_path / "images" / "nobody.jpg"), np.zeros((30, 40, 3), dtype=np.uint8))
    # An area that is missing is taken from the mask.
    content["annotations"].append({**first, "id": 31, "image_id": 9, "bbox": [1, 1, 3, 3], "area": None})
    assert kinds(check(tmp_path, content)) == {}
    CocoIndex.load(tmp_path / "instances.json")


def test_several_polygons_may_overlap_and_touch_themselves(tmp_path: Path, content: Content) -> None:
    inner = [15, 15, 30, 15, 30, 30, 15, 30]
    content["annotations"][0].update(segmentation=[SQUARE, inner], area=900)
    content["annotations"][1].update(segmentation=[SQUARE, inner], area=1125)
    # Two squares that meet in a corner, as one ring; and a ring that runs out along a line and back.
    content["annotations"][2].update(
        segmentation=[
            [10, 10, 25, 10, 25, 25, 40, 25, 40, 40, 25, 40, 25, 25, 10, 25],
            [*SQUARE, 10, 20, 3, 20, 10, 20],
        ],
        bbox=[3, 10, 37, 30],
    )
    assert kinds(check(tmp_path, content)) == {}


def test_all_defects_are_found_together(tmp_path: Path, content: Content) -> None:
    content["annotations"] += [
        {"id": 10, "image_id": 99, "category_id": 98, "bbox": [0, 0, -1, 5]},
        {"id": 41, "image_id": 1, "category_id": 5, "bbox": [10, 50, 9, 9], "segmentation": [[1, 2, 3]]},
        7,
    ]
    (tmp_path / "images" / "2.jpg").unlink()
    assert kinds(check(tmp_path, content)) == {
        "malformed_record": 1,
        "duplicate_annotation_id": 2,
        "unknown_image": 1,
        "unknown_category": 1,
        "missing_image": 1,
        "empty_box": 1,
        "malformed_mask": 1,
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a JSON value."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def test_anything_may_stand_anywhere(tmp_path: Path, content: Content) -> None:
    content["annotations"][1]["segmentation"] = rle()
    odd = [
        None,
        True,
        0,
        -1,
        0.5,
        2**53,
        2**63,
        -(2**70),
        1e308,
        "",
        "x",
        "a\0b",
        "x" * 300,
        [],
        [[]],
        [[1, 2, 3, 4]],
        {},
    ]
    odd += [
        [0, 0, 0, 0],
        [1e30] * 4,
        ["a"] * 4,
        {"size": [2**31, 2**31], "counts": [2**62]},
        {"size": [80, 100], "counts": "\x7f"},
    ]
    text = json.dumps(content)
    kinds_found: set[str] = set()
    for number, place in enumerate(places(content)):
        for value in odd[number % 5 :: 5]:
            spoiled = json.loads(text)
            record = spoiled
            for key in place[:-1]:
                record = record[key]
            record[place[-1]] = value
            report = check(tmp_path, spoiled, decode=False, threads=1)
            kinds_found |= set(report.counts)
            json.dumps(report.as_dict())
            if not report.errors:
                CocoIndex.load(report.annotations, cache=False)
    assert len(kinds_found) > 12


def test_names_that_the_system_refuses_are_of_missing_files(tmp_path: Path, content: Content) -> None:
    content["images"][0]["file_name"] = "x" * 300
    (finding,) = [found for found in check(tmp_path, content).findings if found.severity == "error"]
    assert (finding.kind, finding.detail) == ("missing_image", "File name too long")


def test_findings_name_image_and_annotation(tmp_path: Path, content: Content) -> None:
    content["annotations"][1].update(bbox=[80, 10, 30, 30], segmentation=[])
    (finding,) = check(tmp_path, content).examples("box_beyond_border")
    assert (finding.image, finding.annotation, finding.severity) == ("2.jpg", 20, "warning")
    assert finding.detail == "by 10.0 pixels"


def test_an_id_that_occurs_twice_is_the_first_images_and_none_is_nobodys(tmp_path: Path, content: Content) -> None:
    content["images"][1]["id"] = 1
    content["images"][2]["id"] = None
    content["annotations"] = content["annotations"][::2]
    content["annotations"][0].update(category_id=99)
    content["annotations"][1].update(image_id=None, category_id=99)
    findings = check(tmp_path, content).findings
    assert [f.image for f in findings if f.kind == "unknown_category"] == ["1.jpg"]
    (lost,) = [f for f in findings if f.kind == "malformed_record" and f.annotation is not None]
    assert (lost.image, lost.annotation) == (None, 30)


def test_ids_that_are_nobodys_are_told(tmp_path: Path, content: Content) -> None:
    content["annotations"][0].update(image_id=98)
    content["annotations"][1].update(category_id=99)
    report = check(tmp_path, content)
    assert [finding.detail for finding in report.examples("unknown_image")] == ["image id 98"]
    assert [finding.detail for finding in report.examples("unknown_category")] == ["category id 99"]


def test_progress_is_told_to_the_end(tmp_path: Path, content: Content) -> None:
    done: dict[tuple[str, int], int] = {}

    @contextmanager
    def progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
        done[name, total] = 0

        def advance(count: int) -> None:
            done[name, total] += count

        yield advance

    content["images"].pop()
    check(tmp_path, content, progress=progress)
    assert done == {("masks", 3): 3, ("images", 2): 2}


def test_headers_alone_do_not_tell_damaged_pixels(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "images" / "1.png"
    content["images"][0]["file_name"] = "1.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(bytes(data))
    assert kinds(check(tmp_path, content, decode=False)) == {}
    assert kinds(check(tmp_path, content)) == {"corrupt_image": 1}


@pytest.mark.parametrize("decode", [True, False])
def test_turned_by_exif_is_the_right_size(tmp_path: Path, content: Content, decode: bool) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 100), (9, 8, 7)).save(tmp_path / "images" / "1.jpg", exif=exif)
    assert kinds(check(tmp_path, content, decode=decode)) == {}


def ring_flags(*rings: list[float]) -> list[bool]:
    vertices = np.concatenate([np.array(ring, dtype=np.float32).reshape(-1, 2) for ring in rings])
    offsets = np.cumsum([0, *(len(ring) // 2 for ring in rings)])
    return self_intersecting(vertices, offsets).tolist()


def test_self_intersection() -> None:
    spiral = [0, 0, 9, 0, 9, 9, 2, 9, 2, 2, 7, 2, 7, 7, 4, 7, 4, 8, 8, 8, 8, 1, 0, 1]
    assert ring_flags([0, 0, 9, 0, 0, 9], SQUARE, BOWTIE, spiral, [x + 0.5 for x in BOWTIE]) == [
        False,
        False,
        True,
        False,
        True,
    ]
    # Crossing by less than the tolerance is rounding.
    assert ring_flags([0, 0, 20, 0, 20, 20, 10, -0.05, 0, 20]) == [False]
    assert ring_flags([0, 0, 20, 0, 20, 20, 10, -0.5, 0, 20]) == [True]


@pytest.mark.parametrize("size", [1, 5, 9])
def test_self_intersection_in_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    rings = [SQUARE, BOWTIE, SQUARE, SQUARE, BOWTIE, BOWTIE, SQUARE]
    monkeypatch.setattr(check_rings, "EDGES", size)
    monkeypatch.setattr(check_rings, "PAIRS", size)
    assert ring_flags(*rings) == [ring is BOWTIE for ring in rings]


def test_self_intersection_against_every_pair_of_edges() -> None:
    rng = np.random.default_rng(1)

    def brute_force(ring: np.ndarray) -> bool:
        starts, stops = ring, np.roll(ring, -1, axis=0)

        def side(a, b, p):
            return ((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])) / np.hypot(*(b - a))

        def parted(a, b, c, d):
            low, high = sorted((side(a, b, c), side(a, b, d)))
            return low < -0.1 and high > 0.1

        pairs = [(i, j) for i in range(len(ring)) for j in range(i)]
        return any(
            parted(starts[i], stops[i], starts[j], stops[j]) and parted(starts[j], stops[j], starts[i], stops[i])
            for i, j in pairs
        )

    rings = []
    for count in rng.integers(4, 12, 120).tolist():
        angles = np.sort(rng.uniform(0, 2 * np.pi, count)) + rng.normal(0, 0.25, count)
        radius = rng.uniform(20, 50, count)
        rings.append(np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1).astype(np.float32))
    expected = [brute_force(ring.astype(np.float64)) for ring in rings]
    assert 20 < sum(expected) < 100
    assert ring_flags(*(ring.ravel().tolist() for ring in rings)) == expected


def test_long_rings_take_little_memory_and_time() -> None:
    angles = np.linspace(0, 2 * np.pi, 200_000, endpoint=False)
    circle = np.stack([1000 * np.cos(angles), 1000 * np.sin(angles)], axis=1)
    assert ring_flags(circle.ravel().tolist(), BOWTIE) == [False, True]


def run(*arguments: object):
    return CliRunner().invoke(app, ["check", *map(str, arguments)], env={"COLUMNS": "200"})


def test_the_command_prints_a_table_writes_a_report_and_exits_1(tmp_path: Path, content: Content) -> None:
    content["images"][0]["file_name"] = "[bold]\x1b[2J.jpg"
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    result = run(path, tmp_path / "images", "--report", tmp_path / "report.json")
    assert result.exit_code == 1, result.output
    assert "missing_image" in result.stdout
    assert r"[bold]\x1b[2J.jpg" in result.stdout
    assert result.stdout.endswith("3 images, 3 annotations: 1 error, 1 warning\n")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["errors"], report["warnings"], report["decoded"]) == (1, 1, True)
    assert report["findings"][-1] == {
        "kind": "missing_image",
        "severity": "error",
        "image": "[bold]\x1b[2J.jpg",
        "annotation": None,
        "detail": "",
    }
    assert [kind["count"] for kind in report["kinds"]] == [1, 1]


@pytest.mark.parametrize("terminal", [False, True])
def test_kinds_are_never_broken(tmp_path: Path, content: Content, terminal: bool) -> None:
    content["annotations"][0]["bbox"] = [0, 0, 3, 3]
    content["categories"] += [dict(content["categories"][0])] * 2
    (tmp_path / "instances.json").write_text(json.dumps(content))
    arguments = ["check", str(tmp_path / "instances.json"), str(tmp_path / "images"), "--no-decode"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"} | ({"FORCE_COLOR": "1"} if terminal else {}))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout).splitlines()
    assert max(map(len, lines)) == 80 if terminal else 100 < max(map(len, lines)) < 1000
    kinds = {line.split()[1]: line.split()[2] for line in lines if line.split()[:1] in (["error"], ["warning"])}
    assert kinds["box_contradicts_mask"] == "1"
    assert kinds["duplicate_category_name"] == "1"
    assert "…" not in result.stdout


def test_the_command_exits_0_where_there_are_only_warnings(tmp_path: Path, content: Content) -> None:
    (tmp_path / "instances.json").write_text(json.dumps(content))
    result = run(tmp_path / "instances.json", tmp_path / "images", "--no-decode")
    assert result.exit_code == 0, result.output
    assert "pixels were not decoded" in result.stdout
    assert result.stderr == ""  # a bar is for terminals


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not valid JSON"), ("[1]", "is no COCO JSON"), ('{"info": {}}', "is no COCO JSON")],
)
def test_a_file_that_is_no_coco_json_exits_2(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(text)
    result = run(path, tmp_path)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"error: {path}: {message}")


def test_mistakes_in_the_arguments_exit_2_before_the_work(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpipe.looking.check.read_records", lambda _: pytest.fail("the work began"))
    for arguments, message in (
        ((tmp_path / "x.json", tmp_path / "none"), "no such folder of images"),
        ((tmp_path / "x.json", tmp_path, "--report", tmp_path), "is a folder"),
        ((tmp_path / "x.json", tmp_path, "--report", f"{__file__}/r.json"), "test_check.py: is a file"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr


def test_ctrl_c_ends_without_a_traceback(tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dpipe.looking.check_images._look", interrupt)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    result = run(tmp_path / "instances.json", tmp_path / "images")
    assert result.exit_code == 130
    assert result.stderr.strip().splitlines()[-1] == "interrupted"


def test_threads_below_one_are_told(tmp_path: Path, content: Content) -> None:
    with pytest.raises(InputError, match="threads must be at least 1, got 0"):
        check(tmp_path, content, threads=0)


@pytest.mark.realdata
def test_real_data(data_root: Path) -> None:
    root = data_root / "coco_mini"
    report = check_dataset(root / "annotations" / "instances_val.json", root / "val")
    assert report.errors == 0
    # Its polygons have lost holes and small parts of the masks that boxes and areas were taken from.
    assert set(report.counts) == {
        "box_off_mask",
        "self_intersecting_polygon",
        "area_differs",
        "unused_category",
        "rare_category",
    }
