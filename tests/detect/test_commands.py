"""The ``detect`` command: evaluation and prediction, and one line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import hotcoco
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from detect.cli import app
from detect.config import build_model
from detect.evaluation import evaluate
from detect.running.state import WEIGHTS, ModelInfo, save_checkpoint
from detect.trained import find_weights
from detect.training import train
from dpipe.errors import InputError


@pytest.fixture
def detect():
    """A function that runs the command with its arguments."""

    def run(*arguments: object):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def checkpoint(shapes, tmp_path) -> Path:
    """A checkpoint of a model that has learned nothing, which finds objects everywhere."""
    config = shapes.config()
    torch.manual_seed(0)
    info = ModelInfo(("box", "disc"), (4, 9), config.to_yaml(), 0, 0)
    (tmp_path / "work" / "checkpoints").mkdir(parents=True)
    return save_checkpoint(tmp_path / "work" / "checkpoints", build_model(config, 2), {}, info)


def assert_one_line(result, *parts: str) -> None:
    """Asserts exit code 2 and one line on stderr that holds these parts."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def test_help_answers_without_importing_pytorch():
    code = (
        "import sys, detect, detect.cli\n"
        "heavy = {'torch', 'cv2', 'numpy', 'nvidia', 'lightning_fabric', 'hotcoco'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "detect", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - began < 5  # well under half a second on a machine that is not busy with tests
    for command in ("train", "test", "predict", "config"):
        assert command in done.stdout


@pytest.mark.parametrize("words", [["train", "none"], ["test", "none", "x"], ["predict", "none", "x", "y", "-o", "z"]])
def test_a_wrong_name_is_told_without_importing_pytorch(words, tmp_path):
    code = (
        "import sys, typer.testing, detect.cli\n"
        f"told = typer.testing.CliRunner().invoke(detect.cli.app, {words!r})\n"
        "assert told.exit_code == 2 and 'no such recipe' in told.output, told.output\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_the_package_exports_functions_even_after_their_modules_were_imported():
    import detect
    import detect.training

    for name in detect.__all__:
        assert not hasattr(getattr(detect, name), "__path__")
        assert getattr(detect, name) is getattr(detect, name)
    assert detect.train is detect.training.train
    assert callable(detect.evaluate)
    assert callable(detect.predict)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = detect.nothing


def test_config_prints_the_resolved_recipe(shapes, detect, tmp_path):
    printed = detect("config", shapes.recipe, "train.epochs=7")
    assert printed.exit_code == 0
    (tmp_path / "printed.yaml").write_text(printed.stdout)
    from detect.config import load_config

    assert load_config(tmp_path / "printed.yaml").model_dump() == shapes.config("train.epochs=7").model_dump()


@pytest.mark.parametrize(
    ("words", "titles"),
    [
        (["--eval", "bbox", "segm"], ["bbox", "segm"]),
        (["--eval", "segm", "train.seed=3"], ["segm"]),
        (["--eval", "segm", "--eval", "bbox"], ["segm", "bbox"]),
        ([], ["bbox", "segm"]),
    ],
)
def test_eval_takes_several_metrics(shapes, checkpoint, detect, words, titles):
    result = detect("test", shapes.recipe, checkpoint, *words)
    assert result.exit_code == 0, result.output
    assert [line.split()[1].rstrip(",") for line in result.stdout.splitlines() if line.startswith("COCO ")] == titles
    assert "disc" in result.stdout


def test_eval_refuses_other_metrics(shapes, checkpoint, detect):
    result = detect("test", shapes.recipe, checkpoint, "--eval", "boxes")
    assert result.exit_code == 2
    assert "boxes" in result.stderr


def test_test_writes_results_that_score_the_same(shapes, checkpoint, detect, tmp_path):
    result = detect("test", shapes.recipe, checkpoint, "--out", tmp_path / "results.json", "--eval", "bbox")
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert {entry["image_id"] for entry in results} == {5, 6}
    assert {entry["category_id"] for entry in results} <= {4, 9}
    truth = hotcoco.COCO(str(shapes.root / "val.json"))
    evaluation = hotcoco.COCOeval(truth, truth.load_res(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()
    assert f"{100 * evaluation.stats[8]:.1f}" in result.stdout


@pytest.mark.parametrize(("name", "value"), [("rpn_head.rpn_cls.bias", np.nan), ("backbone.bn1.running_var", np.inf)])
def test_weights_that_are_no_numbers_are_refused(shapes, checkpoint, detect, tmp_path, name, value):
    weights = load_file(checkpoint / WEIGHTS)
    weights[name][-1] = value
    torch.save({"meta": {"CLASSES": ("box", "disc")}, "state_dict": weights}, tmp_path / "diverged.pth")
    told = f"{tmp_path / 'diverged.pth'}: holds weights that are NaN or infinite, in 1 tensors such as {name}"
    assert_one_line(detect("test", shapes.recipe, tmp_path / "diverged.pth"), told)
    words = ("predict", shapes.recipe, tmp_path / "diverged.pth", shapes.images[0], "-o", tmp_path / "out")
    assert_one_line(detect(*words), told)


@pytest.mark.parametrize("form", ["folder", "file", "work directory", "checkpoints", "last"])
def test_a_checkpoint_is_found_by_any_of_its_names(checkpoint, form):
    folder = checkpoint.parent
    names = {"folder": checkpoint, "file": checkpoint / WEIGHTS, "work directory": folder.parent}
    path = names.get(form, folder if form == "checkpoints" else folder / "last")
    assert find_weights(path).resolve() == (checkpoint / WEIGHTS).resolve()


@pytest.mark.parametrize("words", [["test"], ["predict"]], ids=["test", "predict"])
def test_which_checkpoint_of_a_work_directory_is_taken_is_told(shapes, checkpoint, detect, tmp_path, words):
    picture = [shapes.images[0], "-o", tmp_path / "out"] if words == ["predict"] else []
    told = {}
    for path in (checkpoint.parent.parent, checkpoint):
        result = detect(*words, shapes.recipe, path, *picture)
        assert result.exit_code == 0, result.output
        told[path] = [line for line in result.stdout.splitlines() if line.startswith("checkpoint: ")]
    assert list(told.values()) == [[f"checkpoint: {checkpoint}"], []]


def test_a_damaged_newest_checkpoint_and_what_is_taken_are_told(shapes, checkpoint, detect, tmp_path):
    newer = checkpoint.with_name("iter_00000009")
    shutil.copytree(checkpoint, newer)
    (newer / WEIGHTS).write_bytes(b"")
    lines = [
        f"{newer}: damaged ({WEIGHTS} is not what was written)",
        f"{checkpoint}: is taken, the newest that is intact",
    ]
    work_dir = checkpoint.parent.parent
    for words in (("test",), ("predict",)):
        picture = [shapes.images[0], "-o", tmp_path / "out"] if words == ("predict",) else []
        result = detect(*words, shapes.recipe, work_dir, *picture)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[:2] == lines
    (checkpoint / WEIGHTS).unlink()
    assert_one_line(detect("test", shapes.recipe, work_dir), f"{newer}: damaged", "no other to take")


def test_a_pth_checkpoint_tells_its_classes(shapes, checkpoint, detect, tmp_path):
    path = tmp_path / "model.pth"
    weights = load_file(checkpoint / WEIGHTS)
    torch.save({"state_dict": weights, "meta": {"CLASSES": ("box", "disc")}}, path)
    picture = shapes.images[0]
    result = detect("predict", shapes.recipe, path, picture, "-o", tmp_path / "out", "--score-thr", "0")
    assert result.exit_code == 0, result.output
    categories = json.loads((tmp_path / "out" / "images.json").read_text())["categories"]
    assert categories == [{"id": 4, "name": "box"}, {"id": 9, "name": "disc"}]

    torch.save({"state_dict": weights, "meta": {"CLASSES": ("box", "ball")}}, path)
    assert_one_line(detect("test", shapes.recipe, path), "['box', 'ball']", "['box', 'disc']")
    assert detect("predict", shapes.recipe, path, picture, "-o", tmp_path / "out").exit_code == 0
    categories = json.loads((tmp_path / "out" / "images.json").read_text())["categories"]
    assert categories == [{"id": 1, "name": "box"}, {"id": 2, "name": "ball"}]

    torch.save(weights, path)
    (shapes.root / "val.json").unlink()
    assert_one_line(
        detect("predict", shapes.recipe, path, picture, "-o", tmp_path / "out"), "does not tell its class names"
    )


def test_predict_writes_pictures_and_results(shapes, checkpoint, detect, tmp_path):
    other = tmp_path / "other" / "00.png"
    other.parent.mkdir()
    tall = cv2.rotate(cv2.imread(str(shapes.images[1])), cv2.ROTATE_90_CLOCKWISE)
    cv2.imwrite(str(other), tall)
    jpeg = tmp_path / "other" / "photo.JPG"
    cv2.imwrite(str(jpeg), np.full((50, 70, 3), 90, np.uint8))
    pictures = [shapes.images[0], other, jpeg]
    out = tmp_path / "out"
    result = detect("predict", shapes.recipe, checkpoint, *pictures, "-o", out, "--score-thr", "0.2")
    assert result.exit_code == 0, result.output
    assert result.stdout.count(" -> ") == 3
    drawn = [out / "00.png", out / "00_2.png", out / "photo.JPG"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(path.name for path in drawn), "images.json", "predictions.json"]
    )
    for source, picture in zip(pictures, drawn, strict=True):
        before, after = cv2.imread(str(source)), cv2.imread(str(picture))
        assert before.shape == after.shape
        assert (before != after).any()

    results = json.loads((out / "predictions.json").read_text())
    assert {entry["image_id"] for entry in results} == {1, 2, 3}
    for entry in results:
        assert entry["file_name"] == str(pictures[entry["image_id"] - 1])
        assert (entry["category_id"], entry["category_name"]) in {(4, "box"), (9, "disc")}
        assert entry["segmentation"]["size"] == list(cv2.imread(entry["file_name"]).shape[:2])
    data_set = hotcoco.COCO(str(out / "images.json"))
    assert len(data_set.load_res(str(out / "predictions.json")).anns) == len(results)


def test_predict_takes_values_of_the_recipe_among_the_images(shapes, checkpoint, detect, tmp_path):
    image = shapes.images[0]
    few = "model.roi_head.max_per_img=1"
    result = detect("predict", shapes.recipe, checkpoint, few, image, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 1
    assert_one_line(detect("predict", shapes.recipe, checkpoint, few, "-o", tmp_path / "out"), "no image")


def test_predictions_are_those_of_the_evaluation(shapes, checkpoint, detect, tmp_path):
    detect("test", shapes.recipe, checkpoint, "data.batch_size=1", "--out", tmp_path / "results.json")
    detect("predict", shapes.recipe, checkpoint, *shapes.images[4:], "-o", tmp_path / "out")
    tested = json.loads((tmp_path / "results.json").read_text())
    predicted = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["bbox"] for entry in tested] == [entry["bbox"] for entry in predicted]
    assert [entry["segmentation"] for entry in tested] == [entry["segmentation"] for entry in predicted]


def test_an_image_that_exif_turns_is_predicted_upright(shapes, checkpoint, detect, tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to look at it
    Image.open(shapes.images[0]).save(tmp_path / "turned.jpg", exif=exif)
    assert detect("predict", shapes.recipe, checkpoint, tmp_path / "turned.jpg", "-o", tmp_path / "out").exit_code == 0
    (image,) = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert (image["width"], image["height"]) == (64, 96)
    assert cv2.imread(str(tmp_path / "out" / "turned.jpg")).shape[:2] == (96, 64)


def test_a_threshold_of_one_draws_nothing(shapes, checkpoint, detect, tmp_path):
    result = detect("predict", shapes.recipe, checkpoint, shapes.images[0], "-o", tmp_path / "out", "--score-thr", "1")
    assert "nothing -> " in result.stdout
    assert (cv2.imread(str(tmp_path / "out" / "00.png")) == cv2.imread(str(shapes.images[0]))).all()
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())


class TestMistakes:
    """Each is told in one line, with exit code 2."""

    def test_no_such_recipe(self, detect):
        assert_one_line(detect("train", "no_such_recipe"), "no_such_recipe")

    def test_no_annotations(self, shapes, detect, tmp_path):
        (shapes.root / "train.json").unlink()
        assert_one_line(detect("train", shapes.recipe, "--work-dir", tmp_path / "run"), str(shapes.root / "train.json"))

    def test_annotations_cut_off(self, shapes, detect, tmp_path):
        path = shapes.root / "val.json"
        path.write_text(path.read_text()[:100])
        assert_one_line(detect("train", shapes.recipe, "--work-dir", tmp_path / "run"), str(path))

    def test_classes_of_the_two_sets_differ(self, shapes, detect, tmp_path):
        shapes.edit("val.json", lambda truth: truth["categories"].reverse())
        result = detect("train", shapes.recipe, "--work-dir", tmp_path / "run")
        assert_one_line(result, "val.json", "['disc', 'box']", "['box', 'disc']")

    def test_an_empty_name_is_no_work_directory(self, shapes, detect, tmp_path, monkeypatch):
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        assert_one_line(detect("train", shapes.recipe, "--work-dir", ""), "expected the name of a folder")
        with pytest.raises(InputError, match="expected the name of a folder"):
            train(shapes.recipe, "")
        assert not list((tmp_path / "empty").iterdir())

    def test_a_work_directory_that_cannot_be_written(self, shapes, detect, tmp_path):
        (tmp_path / "file").write_text("")
        assert_one_line(detect("train", shapes.recipe, "--work-dir", tmp_path / "file" / "run"), "file: is a file")

    def test_a_work_directory_of_another_run(self, shapes, checkpoint, detect):
        result = detect("train", shapes.recipe, "--work-dir", checkpoint.parent.parent)
        assert_one_line(result, "--resume", "another --work-dir")

    def test_resuming_another_model(self, shapes, checkpoint, detect):
        wider = "model.rpn_head.feat_channels=24"
        result = detect("train", shapes.recipe, wider, "--work-dir", checkpoint.parent.parent, "--resume")
        assert_one_line(result, str(checkpoint), "do not fit")

    def test_an_image_to_train_on_is_damaged(self, shapes, detect, tmp_path):
        path = shapes.images[2]
        path.write_bytes(path.read_bytes()[:200])
        assert_one_line(detect("train", shapes.recipe, "--work-dir", tmp_path / "run"), str(path))

    def test_no_folder_of_images(self, shapes, detect, tmp_path):
        result = detect("train", shapes.recipe, "data.train.images=nowhere", "--work-dir", tmp_path / "run")
        assert_one_line(result, "nowhere")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_no_gpu(self, shapes, detect, tmp_path):
        result = detect("train", shapes.recipe, "--accelerator", "cuda", "--work-dir", tmp_path / "run")
        assert_one_line(result, "error: --accelerator cuda: this machine has no CUDA device\n")
        assert not (tmp_path / "run").exists()

    def test_float16_on_the_cpu(self, shapes, detect, tmp_path):
        words = ("train.precision=16-mixed", "--accelerator", "cpu", "--work-dir", tmp_path / "run")
        assert_one_line(detect("train", shapes.recipe, *words), "16-mixed needs a GPU")

    def test_no_such_checkpoint(self, shapes, detect, tmp_path):
        assert_one_line(detect("test", shapes.recipe, tmp_path / "none"), "no such checkpoint")
        assert_one_line(detect("test", shapes.recipe, shapes.root), "holds no checkpoint")

    def test_a_checkpoint_of_another_model(self, shapes, checkpoint, detect):
        result = detect("test", shapes.recipe, checkpoint, "model.rpn_head.feat_channels=24")
        assert_one_line(result, str(checkpoint / WEIGHTS), "does not fit the model", "rpn_head.rpn_conv.weight")

    def test_a_checkpoint_of_other_classes(self, shapes, checkpoint, detect):
        def rename(truth):
            truth["categories"][1]["name"] = "ball"

        shapes.edit("val.json", rename)
        assert_one_line(detect("test", shapes.recipe, checkpoint), "['box', 'disc']", "['box', 'ball']")

    def test_a_checkpoint_that_is_none(self, shapes, detect, tmp_path):
        for name in ("model.safetensors", "model.pth"):
            (tmp_path / name).write_bytes(b"nothing of the kind")
            assert_one_line(detect("test", shapes.recipe, tmp_path / name), str(tmp_path / name))

    def test_a_checkpoint_without_class_names(self, shapes, checkpoint, detect, tmp_path):
        save_file(load_file(checkpoint / WEIGHTS), tmp_path / "bare.safetensors")
        assert detect("test", shapes.recipe, tmp_path / "bare.safetensors").exit_code == 0

    def test_an_output_that_cannot_be_written(self, shapes, checkpoint, detect, tmp_path):
        (tmp_path / "file").write_text("")
        blocked = tmp_path / "file" / "out"
        assert_one_line(detect("test", shapes.recipe, checkpoint, "--out", blocked / "x.json"), "file: is a file")
        assert_one_line(detect("test", shapes.recipe, "none", "--out", tmp_path), f"{tmp_path}: is a folder")
        result = detect("predict", shapes.recipe, checkpoint, shapes.images[0], "-o", blocked)
        assert_one_line(result, "file: is a file, expected a folder")

    def test_segm_without_masks(self, shapes, checkpoint, detect):
        shapes.edit("val.json", lambda truth: [row.pop("segmentation") for row in truth["annotations"]])
        assert_one_line(detect("test", shapes.recipe, checkpoint, "--eval", "segm"), "have no segmentation")
        assert detect("test", shapes.recipe, checkpoint).exit_code == 0

    def test_segm_of_which_some_lack_masks(self, shapes, checkpoint, detect):
        shapes.edit("val.json", lambda truth: truth["annotations"][0].pop("segmentation"))
        result = detect("test", shapes.recipe, checkpoint)
        assert result.exit_code == 0
        assert "val.json: segm is not evaluated, as 1 of " in result.stdout

    @pytest.mark.parametrize("kind", ["missing", "folder", "text", "cut"])
    def test_an_image_to_predict_on(self, shapes, checkpoint, detect, tmp_path, kind):
        path = tmp_path / "image.png"
        if kind == "folder":
            path.mkdir()
        elif kind == "text":
            path.write_text("no image")
        elif kind == "cut":
            path.write_bytes(shapes.images[0].read_bytes()[:300])
        out = tmp_path / "out"
        assert_one_line(detect("predict", shapes.recipe, checkpoint, shapes.images[0], path, "-o", out), str(path))
        assert not out.exists()

    def test_pictures_would_replace_images(self, shapes, checkpoint, detect):
        before = shapes.images[0].read_bytes()
        result = detect("predict", shapes.recipe, checkpoint, shapes.images[0], "-o", shapes.root / "images")
        assert_one_line(result, "would replace the image")
        assert shapes.images[0].read_bytes() == before

    def test_debug_shows_the_traceback(self, detect):
        result = detect("train", "no_such_recipe", "--debug")
        assert result.exit_code == 1
        assert result.exception is not None


class TestTwoProcesses:
    """Two processes on the CPU, as ``--devices 2`` starts them."""

    @staticmethod
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "detect", *map(str, arguments), "--devices", "2", "--accelerator", "cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

    def test_train_and_evaluate(self, shapes, detect, tmp_path):
        work_dir = tmp_path / "run"
        overrides = ("data.batch_size=1", "train.epochs=1")
        train = json.loads((shapes.root / "train.json").read_text())

        def add(val):  # a third image: one process has two of them, the other one
            val["images"].append(train["images"][0])
            val["annotations"] += [row for row in train["annotations"] if row["image_id"] == val["images"][2]["id"]]

        shapes.edit("val.json", add)
        done = self.run("train", shapes.recipe, *overrides, "--work-dir", work_dir)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        records = [json.loads(line) for line in (work_dir / "train.jsonl").read_text().splitlines()]
        assert [record["kind"] for record in records] == ["train", "train", "epoch", "evaluation"]
        state = torch.load(work_dir / "checkpoints" / "last" / "state.pt", weights_only=True)
        assert state["loader"]["epoch"] == 1
        # The very detections of one process: every image is counted once.
        one, two = tmp_path / "one.json", tmp_path / "two.json"
        result = detect("test", shapes.recipe, work_dir, "data.batch_size=1", "--out", one)
        assert result.exit_code == 0, result.output
        # In training they had the statistics of BatchNorm that the checkpoint has, too.
        for scores in evaluate(shapes.config("data.batch_size=1"), work_dir):
            assert scores.metrics == {name: records[-1][scores.kind][name] for name in scores.metrics}
        done = self.run("test", shapes.recipe, work_dir, "data.batch_size=1", "--out", two)
        assert done.returncode == 0, done.stderr
        rows = json.loads(one.read_text())
        assert rows == json.loads(two.read_text())
        assert {row["image_id"] for row in rows} == {1, 5, 6}

    def assert_one_failed(self, done: subprocess.CompletedProcess[str], *parts: str) -> None:
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("error: ") == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert "c10d" not in done.stderr  # PyTorch's page on a connection that has ended
        for part in parts:
            assert part in done.stderr

    def test_neither_waits_for_the_other_when_an_image_is_damaged(self, shapes, tmp_path):
        path = shapes.images[1]  # that only one of the two will come across
        path.write_bytes(path.read_bytes()[:200])
        done = self.run("train", shapes.recipe, "data.batch_size=1", "--work-dir", tmp_path / "run")
        self.assert_one_failed(done, "truncated PNG")

    @pytest.mark.parametrize("rank", [0, 1])
    def test_nor_when_it_is_one_to_validate_on(self, shapes, checkpoint, tmp_path, rank):
        path = shapes.images[4 + rank]
        path.write_bytes(path.read_bytes()[:200])
        words = (shapes.recipe, "data.batch_size=1", "train.eval_every=1")
        self.assert_one_failed(self.run("train", *words, "--work-dir", tmp_path / "run"), str(path))
        if rank:
            self.assert_one_failed(self.run("test", shapes.recipe, checkpoint, "data.batch_size=1"), str(path))

    def test_a_mistake_that_both_come_across_is_told_once(self, shapes, tmp_path):
        words = ("train.load_from=nowhere.pth", "--work-dir", tmp_path / "run")
        self.assert_one_failed(self.run("train", shapes.recipe, *words), "nowhere.pth")

    @pytest.mark.parametrize("rank", [0, 1])
    def test_nor_when_something_unforeseen_happens_to_one(self, shapes, tmp_path, rank):
        (tmp_path / "spoilt.py").write_text(
            "import os, time\n"
            "from detect.cli import main\n"
            "from detect.running.run import Run\n"
            "def step(self, batch):\n"
            "    if self.fabric.global_rank == int(os.environ['SPOILT']):\n"
            "        raise RuntimeError('out of memory')\n"
            "    time.sleep(1000)  # as a collective operation on a GPU would\n"
            "Run.step = step\n"
            "main()\n"
        )
        words = ["train", shapes.recipe, "--devices", "2", "--accelerator", "cpu", "--work-dir", tmp_path / "run"]
        done = subprocess.run(
            [sys.executable, str(tmp_path / "spoilt.py"), *map(str, words)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "SPOILT": str(rank)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.count("Traceback (most recent call last)") == 1
        assert "RuntimeError: out of memory" in done.stderr
