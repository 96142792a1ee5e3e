from __future__ import annotations

import base64
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import detect
from detect import report
from detect.cli import app
from detect.reporting.closing import report_at_the_end
from detect.running.control import TrainingInterruptedError
from detect.running.state import problem_of
from dpipe.errors import InputError

HOSTILE = "</script><script>alert(1)</script> \"'&<b>"
Make = Callable[..., Any]


def step(iteration: int, **more: Any) -> dict[str, Any]:
    times = {"data_time": 0.01, "iteration_time": 0.25}
    return {"kind": "train", "epoch": 1, "iteration": iteration, "lr": 0.01, "loss": 9 / iteration, **times, **more}


def evaluation(iteration: int, ap: float) -> dict[str, Any]:
    return {"kind": "evaluation", "epoch": 1, "iteration": iteration, "bbox": {"AP": ap, "per_class": {}}}


def tile(page: Any, name: str) -> list[str]:
    """The value of a tile and what is told with it."""
    at = page.texts.index(name)
    return page.texts[at + 1 : at + 3]


def test_the_page_needs_nothing_but_itself(make: Make, page_of: Make) -> None:
    made = make()
    made.log(step(1), step(2))
    made.evaluate(10)
    page = page_of(made)
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base")
        assert "src" not in attributes
        address = attributes.get("href")
        assert address is None or address.startswith(("#", "data:"))
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(http" not in page.source
    assert "@import" not in page.source


def test_what_comes_from_the_run_is_text(make: Make, page_of: Make) -> None:
    made = make((HOSTILE, "disc"))
    made.evaluate(10)
    recipe = yaml.safe_load((made.work_dir / "config.yaml").read_text())
    (made.work_dir / "config.yaml").write_text(yaml.safe_dump({**recipe, "note": HOSTILE}))
    (made.work_dir / "environment.json").write_text(json.dumps({HOSTILE: [HOSTILE], "packages": {HOSTILE: "1"}}))
    made.log(
        step(1, **{HOSTILE: 1.0}, group_lrs={HOSTILE: 0.1}),
        {"kind": "skipped", "iteration": 1, "set": "val", "files": {HOSTILE: HOSTILE}},
    )
    page = page_of(made)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert page.source.count("alert(1)") > 8
    assert "<script>alert" not in page.source
    assert page.texts.count(HOSTILE) >= 6


def test_numbers_of_the_run_are_told(make: Make, page_of: Make) -> None:
    made = make()
    made.log(step(1, iteration_time=9.0), step(2), step(20, memory_mib=2048))
    made.evaluate(10)
    made.evaluate(20, best=10)
    page = page_of(made)
    (expected,) = re.findall(
        r'"bbox": {\s*"AP": ([\d.]+)', (made.work_dir / "evaluations/best/scores.json").read_text()
    )
    assert tile(page, "bbox AP")[0] == f"{100 * float(expected):.1f}"
    assert tile(page, "bbox AP")[1].startswith("best, epoch 1; last: ")
    assert tile(page, "epoch") == ["1 of 3", "20 iterations"]
    assert tile(page, "loss") == ["0.45", "9 at first"]
    assert tile(page, "seconds an iteration") == ["0.250", "0.010 s of it waiting for data; 2,048 MiB of memory"]
    assert "COCO bbox, maxDets=1, 10, 100, in percent" in page.texts
    at = page.texts.index("AR large")
    assert page.texts[at + 7 : at + 9] == ["–", "–"]  # there are no medium or large objects
    rows = re.findall(r'<th scope="row" title="(box|disc)">.*?data-value="(\d+)"', page.source)
    assert rows == [("box", "2"), ("disc", "1")]  # a crowd is no object
    assert len([each for each in page.of_class("bar") if "style" in each]) == 4  # of each class in each kind
    assert [text for text in page.texts if text in ("best", "last")] == ["best", "last"] * 2  # bbox and segm
    assert "detect train" in page.texts
    assert "2.9" in page.texts


def test_a_run_without_evaluation_shows_its_curves(make: Make, page_of: Make) -> None:
    made = make()
    page = page_of(made)
    assert page.texts.count("Nothing was evaluated yet.") == 2
    assert "Nothing was logged yet." in page.texts
    assert "The run has kept no detections: nothing was evaluated yet." in page.texts
    made.log(step(1), step(2), step(3, loss=float("nan")))
    page = page_of(made)
    assert len(page.of_class("chart")) == 2
    assert tile(page, "loss") == ["nan", "9 at first"]
    # An older run has logged its evaluations and kept none.
    made.log(evaluation(3, 0.25))
    page = page_of(made)
    assert len(page.of_class("chart")) == 3
    assert tile(page, "bbox AP") == ["25.0", "last, epoch 1"]
    assert "The run has kept no detections." in page.texts


def test_samples_show_what_was_found_and_what_is_true(make: Make, page_of: Make) -> None:
    made = make()
    made.evaluate(10)
    page = page_of(made)
    assert [attributes["data-score"] for attributes in page.of_class("right")] == ["0.9", "0.35"]
    assert [attributes["data-score"] for attributes in page.of_class("wrong") if "data-score" in attributes] == [
        "0.5",
        "0.6",
    ]
    assert [attributes["data-score"] for attributes in page.of_class("ignored")] == ["0.8"]
    assert [attributes.get("data-found") for attributes in page.of_class("true") if "style" in attributes] == [
        None,
        "0.9",
        "0.35",
    ]
    assert len([each for each in page.of_class("crowd") if "style" in each]) == 1
    outlines = re.findall(
        r'<path class="mask" d="M([\d.]+) ([\d.]+).*?"/>\s*<rect class="box" x="(.*?)" y="(.*?)"', page.source
    )
    assert len(outlines) == 9
    for values in outlines:
        x, y, left, top = map(float, values)
        assert 0 <= x - left <= 40
        assert 0 <= y - top <= 40
    pictures = [
        cv2.imdecode(np.frombuffer(base64.b64decode(code), dtype=np.uint8), cv2.IMREAD_COLOR)
        for code in re.findall(r"data:image/jpeg;base64,([^\"]+)", page.source)
    ]
    assert [picture.shape for picture in pictures] == [(64, 96, 3)] * 3
    assert "96×64, most mistakes" in page.texts
    assert page.texts.count("96×64, at random") == 2


def test_a_large_image_is_shrunk_and_what_lies_over_it_too(make: Make, page_of: Make) -> None:
    made = make()
    content = json.loads((made.data / "val.json").read_text())
    content["images"] = [{**image, "width": 1920, "height": 1280} for image in content["images"]]
    for row in content["annotations"]:
        row["bbox"] = [20 * value for value in row["bbox"]]
        del row["segmentation"]
    (made.data / "val.json").write_text(json.dumps(content))
    for path in (made.data / "images").iterdir():
        cv2.imwrite(str(path), np.zeros((1280, 1920, 3), np.uint8))
    made.evaluate(10, masks=False)
    page = page_of(made)
    (first, *_) = re.findall(r"data:image/jpeg;base64,([^\"]+)", page.source)
    assert cv2.imdecode(np.frombuffer(base64.b64decode(first), dtype=np.uint8), 0).shape == (533, 800)
    assert {"class": "box", "x": "416.7", "y": "83.3", "width": "166.7", "height": "250.0"} in page.of_class("box")


@pytest.mark.parametrize("kind", ["proposal", "proposal_fast", "voc"])
def test_other_kinds_and_boxes_alone_are_told_too(make: Make, page_of: Make, kind: str) -> None:
    made = make(masks=False)
    made.evaluate(10, [kind], masks=False)
    made.log({**json.loads((made.work_dir / "evaluations/last/scores.json").read_text())})
    page = page_of(made)
    assert f"{kind}, in percent" in page.texts
    assert ("What was evaluated has no classes." in page.texts) == kind.startswith("proposal")
    # A proposal finds an object of any class.
    assert len(page.of_class("right")) == (3 if kind.startswith("proposal") else 2)
    assert ("R@1000" in page.texts) == (kind == "proposal_fast")
    assert "R1000@50" not in page.texts  # which are in a table of their own
    assert not page.of_class("mask")


def test_eighty_classes_have_a_row_each(make: Make, page_of: Make) -> None:
    made = make(tuple(f"class {number}" for number in range(80)))
    made.evaluate(10)
    page = page_of(made)
    rows = [text for text in page.texts if text.startswith("class ")]
    assert len({row for row in rows if row[6:].isdigit()}) == 80


def test_the_number_of_samples_can_be_chosen(make: Make, page_of: Make) -> None:
    made = make()
    made.evaluate(10)
    assert len(page_of(made, samples=1).of_class("sample")) == 1
    assert "None was asked for." in page_of(made, samples=0).texts
    with pytest.raises(InputError, match="samples must be at least 0"):
        report(made.work_dir, samples=-1)


def test_a_picture_has_its_best_detections(make: Make, page_of: Make) -> None:
    made = make()
    made.evaluate(10)
    path = made.work_dir / "evaluations" / "best" / "results.json"
    (row, *_) = json.loads(path.read_text())
    path.write_text(json.dumps([{**row, "score": score / 100} for score in range(60)]))
    scores = [float(each["data-score"]) for each in page_of(made).of_class("detection")]
    assert sorted(scores) == pytest.approx([score / 100 for score in range(10, 60)])


def test_a_validation_set_of_other_classes_is_told_in_the_report(make: Make, page_of: Make) -> None:
    made = make()
    made.evaluate(10)
    recipe = (made.work_dir / "config.yaml").read_text()
    (made.work_dir / "config.yaml").write_text(recipe.replace("classes: null", "classes: [disc, box]"))
    page = page_of(made)
    assert [text for text in page.texts if "val.json: has the classes ['box', 'disc'], expected were" in text]
    assert not page.of_class("sample")


def test_a_chart_has_the_first_numbers_of_its_kind(make: Make, page_of: Make) -> None:
    made = make()
    made.log({**evaluation(1, 0.5), "bbox": {"AP": 0.5, "AP50": 0.7, "AP75": 0.4, "APs": 0.3, "AR1": 0.2}})
    page = page_of(made)
    assert len(page.of_class("key")) == 3
    at = page.texts.index("bbox, in percent")
    assert page.texts[at + 1 : at + 4] == ["AP", "AP50", "AP75"]


def test_masks_are_read_of_the_samples_alone(make: Make, page_of: Make) -> None:
    made = make()
    made.evaluate(10)
    path = made.work_dir / "evaluations" / "best" / "results.json"
    rows = json.loads(path.read_text())
    rows[4]["segmentation"]["counts"] = "damaged"  # of the second image; the first has the most mistakes
    path.write_text(json.dumps(rows))
    assert len(page_of(made, samples=1).of_class("mask")) == 5
    assert [text for text in page_of(made, samples=3).texts if "results.json: detection 4" in text]


def test_files_that_could_not_be_used_are_told_and_no_samples(make: Make, page_of: Make) -> None:
    made = make()
    made.evaluate(10)
    made.log({"kind": "skipped", "iteration": 1, "set": "val", "files": {"1.png": "truncated", "9.png": "empty"}})
    made.log({"kind": "skipped", "iteration": 1, "set": "train", "files": {f"{n}.png": "gone" for n in range(300)}})
    page = page_of(made)
    assert len(page.of_class("sample")) == 2
    at = page.texts.index("1.png")
    assert page.texts[at - 1 : at + 2] == ["val", "1.png", "truncated"]
    assert page.texts.count("gone") == 198
    assert "Files that could not be used, and 102 more in train.jsonl" in page.texts


def test_data_that_is_gone_is_told_in_the_report(make: Make, page_of: Make) -> None:
    made = make()
    made.evaluate(10)
    (made.data / "images" / "2.png").unlink()
    page = page_of(made)
    assert len(page.of_class("sample")) == 3
    assert [text for text in page.texts if text.endswith("2.png: no such image file")]
    (made.data / "val.json").unlink()
    page = page_of(made)
    assert not page.of_class("sample")
    assert [text for text in page.texts if "val.json: cannot be read" in text]
    assert "COCO bbox, maxDets=1, 10, 100, in percent" in page.texts


def test_what_a_page_lacks_is_told_by_the_command(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make()
    made.evaluate(10)
    recipe = (made.work_dir / "config.yaml").read_text()
    (made.work_dir / "config.yaml").write_text(recipe.replace(f"{tmp_path}/", ""))
    page = made.work_dir / "report.html"

    def told(*options: str) -> list[str]:
        done = CliRunner().invoke(app, ["report", str(made.work_dir), *options])
        assert done.exit_code == 0, done.output
        assert done.stdout == f"{page}: {page.stat().st_size / 1e6:.1f} MB\n"
        return done.stderr.splitlines()

    monkeypatch.chdir(tmp_path)
    assert told() == []
    monkeypatch.chdir(made.data)
    (line,) = told()
    assert line.startswith("no samples: data/val.json: cannot be read")
    assert told("--samples", "0") == []
    monkeypatch.chdir(tmp_path)
    (made.data / "images" / "2.png").unlink()
    assert told() == ["1 of 3 pictures cannot be shown, such as data/images/2.png: no such image file"]
    (made.work_dir / "evaluations" / "best" / "scores.json").write_text("{")
    (line,) = told()
    assert "scores.json: cannot be read" in line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.json", "{", "scores.json: cannot be read"),
        ("scores.json", "{}", "scores.json: is not the record of an evaluation"),
        ("results.json", "{}", "results.json: holds a dict"),
        ("results.json", '[{"image_id": 77}]', "results.json: detection 0: image_id 77 is not in"),
        ("results.json", None, "results.json: cannot be read"),
    ],
)
def test_a_damaged_evaluation_is_told_in_the_report(
    make: Make, page_of: Make, name: str, content: str | None, message: str
) -> None:
    made = make()
    made.log(step(1))
    made.evaluate(10)
    path = made.work_dir / "evaluations" / "best" / name
    path.unlink() if content is None else path.write_text(content)
    page = page_of(made)
    assert [text for text in page.texts if message in text]
    assert not page.of_class("sample")
    assert "Nothing was evaluated yet." not in page.texts
    assert "kept no detections" not in page.source
    assert ("COCO bbox, maxDets=1, 10, 100, in percent" in page.texts) == (name == "results.json")
    with pytest.raises(InputError, match=r"other\.json: "):
        report(made.work_dir, results=made.data / "other.json")


@pytest.mark.parametrize(("name", "refused"), [("look.txt", True), ("look", True), ("new/look.html", False)])
def test_the_page_is_html_in_a_folder_that_is_made(make: Make, tmp_path: Path, name: str, refused: bool) -> None:
    out = tmp_path / "out" / name
    done = CliRunner().invoke(app, ["report", str(make().work_dir), "-o", str(out)])
    assert done.exit_code == (2 if refused else 0)
    assert ("expected a name that ends in .html" in done.stderr) == refused
    assert out.exists() != refused
    assert out.parent.exists() != refused


def test_detections_of_a_file_can_be_shown_instead(make: Make, page_of: Make, tmp_path: Path) -> None:
    made = make()
    made.evaluate(10)
    results = json.loads((made.work_dir / "evaluations/best/results.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(results[:1]))
    (made.work_dir / "evaluations/best/scores.json").write_text("{")
    out = tmp_path / "other.html"
    done = CliRunner().invoke(
        app, ["report", str(made.work_dir), "-o", str(out), "--results", str(tmp_path / "other.json")]
    )
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{out}: 0.")
    assert out.read_text().count('data-score="') == 1
    assert "other.json" in out.read_text()
    assert "cannot be read" not in out.read_text()
    assert not (made.work_dir / "report.html").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda made: (made.work_dir / "config.yaml").unlink(), "is not the work directory of a training run"),
        (lambda made: (made.work_dir / "config.yaml").write_text("a: ["), "config.yaml: cannot be read"),
        (lambda made: (made.work_dir / "config.yaml").write_text("- a"), "config.yaml: is not a recipe"),
    ],
)
def test_damage_is_told_in_a_line_and_no_report_is_left(make: Make, damage: Make, message: str) -> None:
    made = make()
    made.evaluate(10)
    damage(made)
    done = CliRunner().invoke(app, ["report", str(made.work_dir)])
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert message in line
    assert not (made.work_dir / "report.html").exists()


def test_a_run_makes_its_report_at_its_end(shapes: Any, tiny: str, tmp_path: Path) -> None:
    detect.train(shapes.config(tiny, "train.epochs=2", "train.eval_every=1"), tmp_path / "run", accelerator="cpu")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "2 of 2" in page
    assert page.count("data:image/jpeg") == 2
    assert 'data-score="' in page


def test_a_run_that_is_stopped_makes_its_report(
    shapes: Any, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detect.running.run import Run

    after_iteration = Run.after_iteration

    def stop_at_third(run: Run) -> None:
        if run.iteration == 3:
            signal.raise_signal(signal.SIGTERM)
            run.stopping = True
        after_iteration(run)

    monkeypatch.setattr(Run, "after_iteration", stop_at_third)
    with pytest.raises(TrainingInterruptedError):
        detect.train(shapes.config(tiny, "train.eval_every=1"), tmp_path / "run", accelerator="cpu")
    assert "2 of 2" in (tmp_path / "run" / "report.html").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {tmp_path / 'run' / 'report.html'}"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "report.html"), "[Errno 28] No space left on device: 'report.html'"),
        (KeyError("a fault\nof ours"), "KeyError: 'a fault\\nof ours'"),
        (OSError(), ""),
    ],
)
def test_a_report_that_cannot_be_made_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr("detect.reporting.report.report", fails)
    said: list[str] = []
    with report_at_the_end(tmp_path / "a run", said.append):
        pass
    assert said == [f"the report cannot be made: {told}; detect report '{tmp_path}/a run' tries it again"]
    with pytest.raises(TrainingInterruptedError), report_at_the_end(tmp_path, said.append):
        raise TrainingInterruptedError(signal.SIGTERM, "there")
    assert len(said) == 2
    with pytest.raises(InputError), report_at_the_end(tmp_path, said.append):
        raise InputError("a run that fails has no report")
    assert len(said) == 2


def test_a_run_whose_report_fails_has_ended_well(
    shapes: Any, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detect.reporting.report.class_table", lambda *_: 1 // 0)
    words = [shapes.recipe, tiny, "train.epochs=1", "train.eval_every=1", "--accelerator", "cpu"]
    done = CliRunner().invoke(app, ["train", *map(str, words), "--work-dir", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "the report cannot be made: ZeroDivisionError: " in done.output.splitlines()[-1]
    (last,) = (tmp_path / "run" / "checkpoints").glob("iter_*")
    assert problem_of(last) is None
