from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from dpipe.cli import app
from dpipe.coco import CocoIndex
from dpipe.looking.stats import DatasetStats, dataset_stats
from dpipe.looking.stats_plots import write_plots

PLOTS = ["aspect_ratios.png", "box_sizes.png", "class_counts.png", "objects_per_image.png"]


@pytest.fixture
def content() -> dict[str, list[Any]]:
    """Three images, the last without objects; objects of all sizes and kinds of masks."""
    images = [
        {"id": number, "file_name": f"{number}.jpg", "width": 640 * number, "height": 480} for number in (1, 2, 3)
    ]
    ring = [0, 0, 10, 0, 10, 10]
    rows: list[dict[str, Any]] = [
        {"image_id": 1, "category_id": 5, "bbox": [0, 0, 10, 10], "area": 50, "segmentation": [ring]},
        {"image_id": 1, "category_id": 5, "bbox": [0, 0, 40, 20], "segmentation": [ring, [*ring, 0, 10]]},
        {"image_id": 2, "category_id": 5, "bbox": [0, 0, 32, 32], "area": 1024, "segmentation": []},
        {"image_id": 2, "category_id": 9, "bbox": [0, 0, 96, 96], "area": 9216},
        {
            "image_id": 3,
            "category_id": 9,
            "bbox": [0, 0, 9, 9],
            "iscrowd": 1,
            "segmentation": {"size": [], "counts": ""},
        },
        {"image_id": 3, "category_id": 5, "bbox": [0, 0, 9, 9], "difficult": 1},
        {"image_id": 3, "category_id": 5, "bbox": [0, 0, 0, 9]},
        {"image_id": 77, "category_id": 5, "bbox": [0, 0, 9, 9]},
        {"image_id": 3, "category_id": 5},
    ]
    annotations = [{"id": number, **row} for number, row in enumerate(rows)]
    categories = [{"id": 9, "name": "kite"}, {"id": 5, "name": "bird"}, {"id": 7, "name": "cow"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def path(tmp_path: Path, content: dict[str, list[Any]]) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_counts(path: Path) -> None:
    stats = dataset_stats(path)
    assert (stats.images, stats.images_without_objects) == (3, 1)
    assert (stats.annotations, stats.objects, stats.crowds, stats.ignored, stats.unusable) == (9, 4, 1, 1, 3)
    assert (stats.small, stats.medium, stats.large) == (2, 1, 1)
    assert (stats.with_polygons, stats.with_run_lengths, stats.without_mask) == (2, 1, 6)
    assert stats.vertices == 3 + 3 + 4
    told = [(each.name, each.id, each.objects, each.images, each.ignored) for each in stats.classes]
    assert told == [("kite", 9, 1, 1, 1), ("bird", 5, 3, 2, 1), ("cow", 7, 0, 0, 0)]


def test_distributions(path: Path) -> None:
    values = {key: each.values.tolist() for key, each in dataset_stats(path).distributions.items()}
    assert values["box_width"] == [10, 40, 32, 96]
    assert values["box_height"] == [10, 20, 32, 96]
    assert values["object_size"] == pytest.approx([50**0.5, 800**0.5, 32, 96])
    assert values["aspect_ratio"] == [1, 2, 1, 1]
    assert values["objects_per_image"] == [2, 2, 0]
    assert values["vertices_per_mask"] == [3, 7]
    assert values["image_width"] == [640, 1280, 1920]
    told = dataset_stats(path).as_dict()
    assert told["quantiles_at"][4] == 0.5
    assert told["distributions"]["box_width"]["quantiles"][4] == 36
    assert told["distributions"]["box_width"]["mean"] == 44.5


def test_an_empty_data_set(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.write_text('{"images": [], "annotations": [], "categories": []}')
    told = dataset_stats(path).as_dict()
    assert told["objects"] == 0
    assert told["distributions"]["box_width"] == {
        "name": "box width (pixels)",
        "count": 0,
        "mean": None,
        "quantiles": [],
    }
    result = CliRunner().invoke(app, ["stats", str(path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "lengths in pixels" not in result.stdout  # a table without a row
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [*PLOTS, "stats.json"]


def test_the_command_prints_tables(path: Path, content: dict[str, list[Any]]) -> None:
    content["categories"][1]["name"] = "[red]\x07bird"
    path.write_text(json.dumps(content))
    result = CliRunner().invoke(app, ["stats", str(path)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in result.stdout.splitlines()]
    assert ["images", "3", ""] in rows
    assert ["without objects", "1", "33.3%"] in rows
    assert ["small (below 32²)", "2", "50.0%"] in rows
    assert [r"[red]\x07bird", "5", "3", "75.0%", "2", "1"] in rows
    assert rows.index(["kite", "9", "1", "25.0%", "1", "1"]) > rows.index(
        [r"[red]\x07bird", "5", "3", "75.0%", "2", "1"]
    )


def test_no_digit_and_no_name_is_lost_on_a_narrow_terminal(path: Path, content: dict[str, list[Any]]) -> None:
    for number, record in enumerate(content["annotations"]):
        record.update(bbox=[0, 0, 1234.5 + number, 0.01234], area=1234.5 * 0.01234)
    path.write_text(json.dumps(content))
    result = CliRunner().invoke(app, ["stats", str(path)], env={"COLUMNS": "80", "FORCE_COLOR": "1"})
    lines = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout).splitlines()
    assert max(map(len, lines)) == 80
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert len(rows["least"]) == 1 + len(dataset_stats(path).distributions)
    assert rows["least"][1:4] == ["1,234", "0.01234", "3.903"]
    assert {"mean", "median", "most"} <= rows.keys()
    assert "…" not in result.stdout


def test_a_pipe_gets_every_name_on_one_line(path: Path, content: dict[str, list[Any]]) -> None:
    name = "a long name of a class, " * 9
    content["categories"][0]["name"] = name
    path.write_text(json.dumps(content))
    result = CliRunner().invoke(app, ["stats", str(path)], env={"COLUMNS": "80"})
    assert f"│ {name} │" in result.stdout
    (titles,) = (line for line in result.stdout.splitlines() if "box width" in line)
    assert titles.split()[-2:] == ["image", "height"]


def test_json_is_all_that_is_printed(path: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["stats", str(path), "--json", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["objects"] == 4
    assert json.loads((tmp_path / "out" / "stats.json").read_text()) == printed
    assert "class_counts.png" in result.stderr


def plots_of(stats: DatasetStats, folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    return {path.name: cv2.imread(str(path)) for path in write_plots(stats, folder)}


def test_plots_are_drawn_and_have_room_for_80_classes(
    path: Path, content: dict[str, list[Any]], tmp_path: Path
) -> None:
    content["categories"] += [{"id": 100 + number, "name": f"class {number}"} for number in range(77)]
    path.write_text(json.dumps(content))
    many = plots_of(dataset_stats(path), tmp_path / "many")
    assert many["class_counts.png"].shape[0] > 80 * 20  # pixels a class
    assert sorted(many) == PLOTS
    for plot in many.values():
        assert (plot < 128).any(axis=-1).mean() > 0.005  # there is ink
    content["categories"] += [{"id": 1000 + number, "name": f"more {number}"} for number in range(5000)]
    path.write_text(json.dumps(content))
    assert plots_of(dataset_stats(path), tmp_path / "more")["class_counts.png"].shape[0] < 4000


def test_classes_beyond_the_most_frequent_are_left_out(
    path: Path, content: dict[str, list[Any]], tmp_path: Path
) -> None:
    content["categories"] += [{"id": 100 + number, "name": f"m{number:03d}"} for number in range(130)]
    drawn = []
    for last in ("z", "zebra crossing"):
        content["categories"][-1]["name"] = last
        path.write_text(json.dumps(content))
        drawn.append(plots_of(dataset_stats(path), tmp_path / "out")["class_counts.png"])
    assert np.array_equal(*drawn)


def test_a_name_is_plotted_on_one_line(path: Path, content: dict[str, list[Any]], tmp_path: Path) -> None:
    drawn = []
    for name in ("a\nb\x1b", r"a b\x1b"):
        content["categories"][0]["name"] = name
        path.write_text(json.dumps(content))
        drawn.append(plots_of(dataset_stats(path), tmp_path / "out")["class_counts.png"])
    assert np.array_equal(*drawn)


def test_any_name_can_be_plotted(path: Path, content: dict[str, list[Any]], tmp_path: Path) -> None:
    content["categories"][0]["name"] = r"$\frac{1}$"
    content["categories"][1]["name"] = "猫" * 200
    path.write_text(json.dumps(content))
    plots_of(dataset_stats(path), tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["none.json"], "none.json: cannot be read"), (["bad.json"], "bad.json: is not valid JSON")],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{")
    result = CliRunner().invoke(app, ["stats", *arguments])
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"error: {message}")


def test_an_output_that_cannot_be_written_is_told_before_the_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpipe.looking.stats.read_records", lambda _: pytest.fail("the work began"))
    result = CliRunner().invoke(app, ["stats", str(path), "-o", str(path / "out")])
    assert result.exit_code == 2
    assert "is a file, expected a folder to write to" in result.stderr


@pytest.mark.realdata
def test_real_data_counts_as_the_index_does(data_root: Path) -> None:
    path = data_root / "coco_mini" / "annotations" / "instances_train.json"
    stats, index = dataset_stats(path), CocoIndex.load(path)
    assert stats.images == len(index)
    assert stats.objects == (~index.crowd).sum()
    assert stats.crowds == index.crowd.sum()
    assert stats.images - stats.images_without_objects == index.non_empty().sum()
    counts = np.bincount(index.labels[~index.crowd], minlength=len(index.class_names))
    assert [each.objects for each in stats.classes] == counts.tolist()
    assert [each.name for each in stats.classes] == list(index.class_names)
