"""What an analysis leaves in its folder, and the command."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import detect
from detect.analysis import cost_plots, plots, tables, writing
from detect.analysis.tables import calibration_line, comparison_tables, summary_tables
from detect.analysis.writing import as_dict
from detect.cli import app
from dpipe.errors import InputError

FILES = [
    "analysis.json",
    "calibration.png",
    "confusion.png",
    "curves_by_class.png",
    "curves_by_iou.png",
    "errors.png",
    "errors_by_class.png",
    "errors_by_size.png",
]


@pytest.fixture
def wrong(truth, found):
    """Results with an error of each class."""
    rows = found(truth)
    for row in rows[::4]:
        row["category_id"] = 30
    return rows[5:]


def pixels(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None, path
    return image


def test_the_folder_has_numbers_and_plots(study, truth, wrong, tmp_path):
    analysis = study(truth, wrong)
    out = tmp_path / "deep" / "out"
    paths = detect.write_analysis(analysis, out)
    assert sorted(path.name for path in paths) == sorted(each.name for each in out.iterdir()) == FILES
    for path in paths[:-1]:
        image = pixels(path)
        assert image.shape[1] > 600
        assert image.std() > 10  # something is drawn
    told = json.loads(paths[-1].read_text())
    assert told == json.loads(json.dumps(as_dict(analysis)))
    assert told["ap"] == analysis.ap
    assert told["errors"]["kinds"]["classification"] == {
        "count": analysis.errors.counts["classification"],
        "cost": analysis.errors.cost["classification"],
    }
    assert told["errors"]["sizes"]["large"]["area_to"] is None
    assert [each["name"] for each in told["classes"]] == ["car", "person", "bus"]
    assert len(told["classes"][0]["precision"]) == len(told["curves"]["recall"]) == 101
    assert np.mean(told["classes"][0]["precision"]) == pytest.approx(analysis.classes[0].ap_at_iou)
    assert np.shape(told["curves"]["precision"]) == (10, 101)
    assert told["confusion"]["counts"] == analysis.confusion.counts.tolist()
    assert told["confusion"]["names"] == ["car", "person", "bus", None]
    assert told["comparison"] is None


def test_a_comparison_is_written_and_taken_away_again(study, truth, wrong, found, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "png_of", lambda figure: b"")
    first, second = study(truth, wrong), study(truth, found(truth))
    comparison = detect.compare(first, second, resamples=20)
    detect.write_analysis(first, tmp_path / "out", comparison)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == sorted([*FILES, "comparison.png"])
    told = json.loads((tmp_path / "out" / "analysis.json").read_text())["comparison"]
    assert told["overall"][0] == {
        "name": "AP",
        "first": first.ap,
        "second": second.ap,
        "low": comparison.overall[0].low,
        "high": comparison.overall[0].high,
        "difference": second.ap - first.ap,
    }
    assert told["second"]["ap"] == second.ap
    assert (told["level"], told["resamples"], told["seed"]) == (0.95, 20, 0)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    detect.write_analysis(first, tmp_path / "out")
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == sorted([*FILES, "notes.txt"])


def test_what_was_there_stays_when_the_disk_is_full(study, truth, wrong, found, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "png_of", lambda figure: str(len(truth["annotations"])).encode())
    detect.write_analysis(study(truth, wrong), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(path, content):
        if path.name == "analysis.json":
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(content)

    monkeypatch.setattr(writing, "write_whole", full)
    del truth["annotations"][0]
    with pytest.raises(OSError, match="No space left"):
        detect.write_analysis(study(truth, found(truth)), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_file_is_no_folder(study, truth, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out: is a file, expected a folder"):
        detect.write_analysis(study(truth, []), tmp_path / "out")
    with pytest.raises(InputError, match="expected the name of a folder"):
        detect.write_analysis(study(truth, []), "")


def test_what_a_killed_process_left_goes_and_a_living_one_is_waited_for(study, truth, wrong, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(writing, "png_of", lambda figure: b"")
    analysis, out = study(truth, wrong), tmp_path / "out"
    left = out / ".analysis-a1b2c3"
    left.mkdir(parents=True)
    (left / "errors.png").touch()
    with ThreadPoolExecutor(1) as pool:
        descriptor = os.open(out, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # as a process that writes
            written = pool.submit(detect.write_analysis, analysis, out)
            assert not wait([written], timeout=0.3).done
            assert (left / "errors.png").exists()
        finally:
            os.close(descriptor)
        assert len(written.result(timeout=60)) == len(FILES)
    assert sorted(each.name for each in out.iterdir()) == FILES


@pytest.mark.parametrize("case", ["no detections", "no objects"])
def test_empty_results_and_data_sets_can_be_shown(case, study, truth, wrong, tmp_path):
    if case == "no objects":
        truth["annotations"] = []
    analysis = study(truth, wrong if case == "no objects" else [])
    comparison = detect.compare(analysis, analysis, resamples=3)
    assert len(detect.write_analysis(analysis, tmp_path / "out", comparison)) == 9
    text = printed([*summary_tables(analysis), *comparison_tables(comparison), calibration_line(analysis)])
    assert "missed" in text
    assert ("calibration: none, as there are no detections" in text) == (case != "no objects")


def printed(parts, width=100) -> str:
    console = Console(width=width, record=True, file=None, quiet=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()


@pytest.mark.parametrize("count", [3, 130])
def test_class_names_of_any_alphabet_and_number(count, study, scenes, found, tmp_path):
    """A name may hold signs that fonts lack, formulas, rich's markup, line ends, or hide from legends."""
    names = ["行人 🚗", "$\\frac{", "[red]_bus\n\x1b[31m" + "x" * 200, "שלום", "_hidden"]
    truth = scenes(images=6)
    truth["categories"] = [
        {"id": 2 + number, "name": f"{names[number % 5]}{number if number > 4 else ''}"} for number in range(count)
    ]
    rng = np.random.default_rng(0)
    for row in truth["annotations"]:
        row["category_id"] = 2 + int(rng.integers(count))
    rows = found(truth)
    for row in rows[::3]:
        row["category_id"] = 2 + int(rng.integers(count))
    analysis = study(truth, rows)
    comparison = detect.compare(analysis, analysis, resamples=3)
    detect.write_analysis(analysis, tmp_path / "out", comparison)
    assert pixels(tmp_path / "out" / "confusion.png").shape[0] > (1500 if count > 3 else 600)
    text = printed([*summary_tables(analysis), *comparison_tables(comparison)])
    assert "\x1b" not in text
    assert "[red]_bus" in text
    for table in [*summary_tables(analysis), *comparison_tables(comparison)]:
        assert max(map(len, printed([table], width=10_000).splitlines())) < 200  # behind a pipe
    told = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert [each["name"] for each in told["classes"]] == [each["name"] for each in truth["categories"]]


def test_a_class_that_no_kind_of_error_costs_anything_alone_is_shown(study, truth, found):
    """All of the class is missed, and its detections are on the background."""
    rows = [row for row in found(truth) if row["category_id"] != 2]
    rows += [{"image_id": 5, "category_id": 2, "bbox": [300.0, 270.0, 20.0, 20.0], "score": 0.9}]
    for row in rows[1::4]:
        row["bbox"][0] += 0.4 * row["bbox"][2]
    analysis = study(truth, rows)
    assert (analysis.classes[1].name, analysis.classes[1].ap_at_iou) == ("person", 0)
    assert not analysis.errors.cost_by_class[1].any()
    row = next(line for line in printed(summary_tables(analysis)).splitlines() if "person" in line)
    assert "none alone; 72 missed" in row
    panel = cost_plots.costs_by_class(analysis).axes[0]
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert names[0] == "person (AP 0, none alone)"
    assert set(names[1:]) == {"car", "bus"}


def test_what_there_is_room_for(study, truth, found, monkeypatch):
    """Plots and tables have the classes that matter most: car gains little, person loses much, bus has most objects."""
    truth["annotations"] = [row for row in truth["annotations"] if row["category_id"] != 7 or row["image_id"] != 5]
    truth["annotations"] = [row for row in truth["annotations"] if row["category_id"] != 2 or row["image_id"] > 8]
    rows = found(truth)
    first = study(truth, [row for row in rows if row["category_id"] != 7 or row["image_id"] != 9])
    second = study(truth, [row for row in rows if row["category_id"] != 2 or row["image_id"] > 20])
    monkeypatch.setattr(cost_plots, "MOST_CLASSES", 1)
    comparison = detect.compare(first, second, resamples=3)
    axes = cost_plots.differences(comparison).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["AP", "AP50", "AP75", "person"]
    assert "2 classes that differ less left out" in axes.get_title()

    for row in rows[:60]:
        row["category_id"] = {7: 2, 2: 30, 30: 7}[row["category_id"]]
    analysis = study(truth, rows)
    monkeypatch.setattr(plots, "MOST_CLASSES", 2)
    labels = plots.confusion_matrix(analysis).axes[0].get_yticklabels()
    most = sorted(analysis.classes, key=lambda each: -each.objects)[:2]
    expected = [each.name for each in analysis.classes if each in most]
    assert [label.get_text() for label in labels] == [*expected, "1 other classes", "background"]
    monkeypatch.setattr(tables, "MOST_ROWS", 2)
    _, classes, pairs = summary_tables(analysis)
    worst = sorted(analysis.classes, key=lambda each: each.ap_at_iou)[:2]
    assert [str(cell) for cell in classes.columns[0].cells] == [each.name for each in worst]
    assert len(analysis.confusion.pairs()) > pairs.row_count == 2


def test_classes_without_errors_are_not_among_those_that_lose(study, truth, found):
    rows = found(truth)
    rows = [row for row in rows if row["category_id"] != 30 or row["image_id"] > 10]
    panel = cost_plots.costs_by_class(study(truth, rows)).axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["bus"]


def test_more_classes_than_the_matrix_has_room_for_are_summed_up(study, scenes, found):
    from detect.analysis.plots import _frequent, _summed_up

    truth = scenes(images=6)
    truth["categories"] = [{"id": 1 + number, "name": str(number)} for number in range(130)]
    for number, row in enumerate(truth["annotations"]):
        row["category_id"] = 1 + (number * 7) % 60 + 70
    rows = found(truth)
    rows[0]["category_id"] = 1  # not shown
    del rows[10:20]
    analysis = study(truth, rows)
    shown = np.sort(_frequent(analysis, 100, with_objects=False))
    summed = _summed_up(analysis.confusion.counts, shown)
    assert summed.shape == (102, 102)
    assert summed.sum() == analysis.confusion.counts.sum()
    kept = [*shown.tolist(), -1]  # and the background
    assert summed[np.ix_([*range(100), -1], [*range(100), -1])].tolist() == (
        analysis.confusion.counts[np.ix_(kept, kept)].tolist()
    )
    assert summed[:-1, -1].sum() > 0
    assert {number for number, each in enumerate(analysis.classes) if each.objects} <= set(shown.tolist())


@pytest.fixture
def run(study):
    def command(*arguments: object):
        return CliRunner().invoke(app, ["analyze", *map(str, arguments)])

    return command


def test_the_command(run, study, truth, wrong, found, tmp_path):
    results, annotations = study.write(truth, wrong)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(found(truth)))
    done = run(results, annotations, "-o", tmp_path / "out", "--compare", other, "--resamples", 20, "--iou", 0.6)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    analysis = detect.analyze(results, annotations, iou=0.6)
    assert f"bbox: AP {100 * analysis.ap:.1f}, at IoU 0.6 {100 * analysis.ap_at_iou:.1f}" in lines[0]
    row = next(line for line in lines if "classification" in line)
    assert f"{analysis.errors.counts['classification']}" in row
    assert f"{100 * analysis.errors.cost['classification']:.1f}" in row
    pair = next(line for line in lines if "car" in line and "bus" in line)
    label, predicted, count = next(each for each in analysis.confusion.pairs() if each[0] == 0)
    assert (label, predicted) == (0, 2)
    assert f" {count} " in pair
    assert f"calibration: expected error {100 * analysis.calibration.expected_error:.1f}%" in done.output
    assert any("AP75" in line and "100.0" in line for line in lines)
    assert {line for line in lines if line.startswith(str(tmp_path))} == {
        str(tmp_path / "out" / name) for name in [*FILES, "comparison.png"]
    }
    told = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert (told["iou"], told["kind"], told["comparison"]["resamples"]) == (0.6, "bbox", 20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 999}, "results.json: detection 0: image_id 999 is not in"),
        ({"category_id": 1}, "detection 0: category_id 1 is not in"),
        ({"score": None}, "detection 0: score is null; expected a number"),
        ({"bbox": [1, 2, 3]}, "expected 4 numbers"),
    ],
)
def test_results_that_cannot_be_used_are_one_line(change, words, run, study, truth, wrong, tmp_path):
    results, annotations = study.write(truth, [{**wrong[0], **change}, *wrong[1:]])
    done = run(results, annotations, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert words in done.output
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_options_of_the_command_that_make_no_sense(run, study, truth, wrong, tmp_path):
    files = study.write(truth, wrong)
    for options, words in (
        (["--kind", "segm"], "annotations have no segmentation"),
        (["--iou", 1.5], "iou is 1.5; expected a number above 0, up to 1"),
        (["--background-iou", 0.7], "background_iou is 0.7"),
        (["--compare", tmp_path / "none.json"], "none.json: cannot be read"),
        (["--kind", "voc"], "voc"),
        (["--resamples", 0], "resamples"),
    ):
        done = run(*files, "-o", tmp_path / "out", *options)
        assert done.exit_code == 2, options
        assert words in done.output
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("results.json", "results.json: is a file, expected a folder to write to"),
        ("results.json/deep", "results.json: is a file, expected a folder to write to"),
        ("", "expected the name of a folder"),
    ],
)
def test_the_output_is_looked_at_before_the_work(output, words, run, study, truth, wrong, tmp_path, monkeypatch):
    files = study.write(truth, wrong)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dpipe.coco.CocoIndex.load", lambda *_, **__: pytest.fail("the work began"))
    done = run(*files, "-o", output)
    assert done.exit_code == 2
    assert words in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.json", "results.json"]
