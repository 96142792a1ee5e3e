"""Which kinds are evaluated, alone and by the commands, and what is refused in one line."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner

import detect
from converters import convert_cityscapes
from detect.cli import app
from detect.commands.evaluation import KindName, VocModeName
from detect.config import build_model
from detect.evaluation import abilities, image_progress
from detect.metrics.evaluating import check_kinds, default_kinds, evaluate_results
from detect.metrics.scores import KINDS, MAIN_METRICS, VOC_MODES, Kind, Options
from detect.running.logs import read_log
from detect.running.state import ModelInfo, save_checkpoint
from detect.training import train
from dpipe.coco import CocoIndex
from dpipe.errors import InputError

RPN = """model={_delete_: true, type: RPN, backbone: {type: ResNet, depth: 18, base_channels: 8},
 neck: {type: FPN, out_channels: 8, num_outs: 5},
 rpn_head: {type: RPNHead, feat_channels: 8, scales: [4], test_nms_pre: 200, test_max_per_img: 200}}""".replace(
    "\n", ""
)

MASK_PARTS = ("roi_head.mask_head", "roi_head.mask_roi_extractor", "auxiliary_head.mask_head")


@pytest.fixture
def run():
    """A function that runs the command with its arguments."""

    def invoke(*arguments: object):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def files(tmp_path, random_case) -> tuple[Path, Path]:
    """Results and their data set."""
    truth, results = random_case(0)
    paths = tmp_path / "results.json", tmp_path / "truth.json"
    for path, content in zip(paths, (results, truth), strict=True):
        path.write_text(json.dumps(content))
    return paths


def checkpoint_of(config, folder: Path) -> Path:
    """A checkpoint of the recipe's model that has learned nothing."""
    torch.manual_seed(0)
    folder.mkdir()
    return save_checkpoint(
        folder, build_model(config, 2), {}, ModelInfo(("box", "disc"), (4, 9), config.to_yaml(), 0, 0)
    )


def assert_one_line(result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def titles(text: str) -> list[str]:
    """What the tables of scores are of."""
    lines = [line.strip() for line in text.splitlines()]
    return [line.partition(",")[0] for line in lines if line.endswith(", in percent") and line.count(",") > 1]


def test_every_kind_has_a_main_metric_and_a_word_on_the_command_line():
    assert set(MAIN_METRICS) == set(KINDS) == {name.value for name in KindName}
    assert {name.value for name in VocModeName} == set(VOC_MODES)


class TestEval:
    """``detect eval``: results without a model."""

    def test_all_kinds_at_once(self, files, run):
        done = run("eval", *files, "--eval", "voc", "proposal", "segm", "bbox", "proposal_fast", "bbox")
        assert done.exit_code == 0, done.output
        assert titles(done.stdout) == [
            *("Pascal VOC", "COCO proposals", "COCO segm", "COCO bbox", "Recall of proposals")
        ]
        assert "class 21" in done.stdout
        tables = [line for line in done.stdout.splitlines() if line == "Classes, in percent"]
        assert len(tables) == 2  # in two of these, numbers have room beside their class

    def test_the_numbers_are_those_of_the_function(self, files, run):
        (scores,) = evaluate_results(*files, ["voc"], Options(voc_mode="11points", voc_ious=(0.3, 0.6)))
        done = run("eval", *files, "--eval", "voc", "--voc-mode", "11points", "--voc-iou", "0.3", "0.6")
        assert done.exit_code == 0, done.output
        assert "Pascal VOC, 11 points, IoU 0.3, 0.6, in percent" in done.stdout
        for value in scores.metrics.values():
            assert f" {100 * value:.1f} " in done.stdout
        inclusive = run("eval", *files, "--eval", "voc", "--voc-inclusive")
        assert "Pascal VOC, area, IoU 0.5, boxes end with their last pixel, in percent" in inclusive.stdout

    def test_masks_where_both_have_them(self, files, run):
        done = run("eval", *files)
        assert titles(done.stdout) == ["COCO bbox", "COCO segm"]
        assert "not evaluated" not in done.stdout
        results = [{**row} for row in json.loads(files[0].read_text())]
        for row in results:
            del row["segmentation"]
        files[0].write_text(json.dumps(results))
        done = run("eval", *files)
        assert titles(done.stdout) == ["COCO bbox"]
        assert done.stdout.startswith("segm is not evaluated, as the results have no masks\n")
        assert "not evaluated" not in run("eval", *files, "--eval", "bbox").stdout
        assert_one_line(run("eval", *files, "--eval", "segm"), "the results have no masks")
        assert_one_line(run("eval", *files, "--eval", "bbox", "cityscapes"), "knows the classes person", "not class 3")

    def test_mistakes(self, files, run, tmp_path):
        results, truth = files
        assert_one_line(run("eval", truth, results), f"{results}: ")  # the wrong way round
        assert_one_line(run("eval", truth, truth), "holds a dict, as of a data set")
        assert_one_line(run("eval", tmp_path / "none.json", truth), "none.json", "No such file")
        assert_one_line(run("eval", *files, "--eval", "voc", "--voc-iou", "0"), "voc_ious are [0.0]")
        assert_one_line(run("eval", *files, "--eval", "voc", "--voc-iou", "nan"), "voc_ious are [nan]")
        done = run("eval", *files, "--eval", "boxes")
        assert done.exit_code == 2
        assert "boxes" in done.stderr
        rows = json.loads(results.read_text())
        rows[3]["image_id"] = 4711
        results.write_text(json.dumps(rows))
        assert_one_line(run("eval", *files), "detection 3: image_id 4711 is not in")


def test_results_of_another_data_set(random_case, save, load):
    truth, results = random_case(0)
    index = save(truth)
    found = load(results, index)
    assert evaluate_results(found, index, ["bbox"])[0].main > 0
    wrong = replace(found, image_ids=found.image_ids + 1)
    with pytest.raises(InputError, match=r"the results' detection \d+: image_id 35 is not in .*truth\.json$"):
        evaluate_results(wrong, index)
    with pytest.raises(InputError, match="detection 0: category_id"):
        evaluate_results(replace(found, category_ids=found.category_ids * 0), index)


NOT_OF_STREETS: list[Kind] = [kind for kind in KINDS if kind != "cityscapes"]


def test_some_images_only_in_every_kind(random_case, save, load):
    truth, results = random_case(0)
    index = save(truth)
    ids = [10, 13, 15]
    part = evaluate_results(load(results, index), index, NOT_OF_STREETS, image_ids=ids)
    images = [image for image in truth["images"] if image["id"] in ids]
    objects = [row for row in truth["annotations"] if row["image_id"] in ids]
    index = save({**truth, "images": images, "annotations": objects})
    alone = evaluate_results(load([row for row in results if row["image_id"] in ids], index), index, NOT_OF_STREETS)
    assert [scores.metrics for scores in part] == [scores.metrics for scores in alone]


def test_the_order_of_images_and_classes_makes_no_difference(random_case, save, load):
    truth, results = random_case(0)
    index = save(truth)
    first = evaluate_results(load(results, index), index, NOT_OF_STREETS)
    index = save({**truth, "images": truth["images"][::-1], "categories": truth["categories"][::-1]})
    assert index.image_ids[0] > index.image_ids[-1]
    for one, other in zip(first, evaluate_results(load(results, index), index, NOT_OF_STREETS), strict=True):
        assert other.metrics == pytest.approx(one.metrics, abs=1e-12)
        assert list(other.per_class) == list(one.per_class)[::-1]
        for name, numbers in one.per_class.items():
            assert other.per_class[name] == pytest.approx(numbers, abs=1e-12, nan_ok=True)


def test_a_folder_to_keep_files_in_that_cannot_be_written(streets_files, run, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("eval", *streets_files, "--eval", "cityscapes", "--cityscapes-out", tmp_path / "file" / "out")
    assert_one_line(done, "file: is a file, expected a folder to write to")
    index = CocoIndex.load(streets_files[1])
    with pytest.raises(InputError, match="file: is a file, expected a folder to write to"):  # before the work
        check_kinds(["cityscapes"], index, Options(cityscapes_out=tmp_path / "file" / "out"))
    with pytest.raises(InputError, match="predicts no masks: cityscapes evaluation needs them, bbox does not"):
        check_kinds(["bbox", "cityscapes"], index, Options(), has_masks=False)


def test_one_kind_needs_no_list_around_it(files):
    (alone,) = evaluate_results(*files, "bbox")
    assert alone == evaluate_results(*files, ["bbox"])[0]
    with pytest.raises(InputError, match="no evaluation of the kind 'box'"):
        evaluate_results(*files, "box")


@pytest.mark.parametrize("results", [[], None, [{"image_id": 1}]])
def test_results_are_a_path_or_in_memory(results, files):
    for function in (evaluate_results, detect.analyze):
        with pytest.raises(InputError, match=r"^results: expected the path of a JSON file, or detect\.Results, got "):
            function(results, files[1])


def test_the_function_refuses_other_kinds(files):
    with pytest.raises(InputError, match="no evaluation of the kind 'boxes'; expected one of bbox, segm"):
        evaluate_results(*files, ["boxes"])
    with pytest.raises(InputError, match="voc_mode is 'circle'; expected '11points' or 'area'"):
        Options(voc_mode="circle")
    with pytest.raises(InputError, match=r"voc_ious are \[\]"):
        Options(voc_ious=())
    assert Options(voc_ious=(1.0,)).voc_ious == (1.0,)
    assert detect.evaluate_results(*files, ["bbox"])[0].kind == "bbox"


def test_a_bar_counts_images_on_a_terminal(monkeypatch):
    bars = []
    monkeypatch.setattr(
        "detect.evaluation.Progress", lambda *_, **options: bars.append(Progress(**options)) or bars[-1]
    )
    for is_terminal, active in ((False, True), (True, False), (True, True)):
        file = io.StringIO()
        with image_progress(3, Console(file=file, force_terminal=is_terminal), active) as on_images:
            on_images(2)
            counted = [bar.tasks[0].completed for bar in bars]
            on_images(2)  # all processes together may have seen a few more
        assert bool(file.getvalue()) == (is_terminal and active)
    assert counted == [2]
    assert bars[0].tasks[0].completed == 3


def test_what_a_model_proposes_has_no_masks():
    model = torch.nn.Module()
    assert abilities(model) == {"proposes": False, "has_masks": True}  # one of one's own may have them
    model.roi_head = torch.nn.Module()
    assert abilities(model)["has_masks"]  # likewise
    model.roi_head.mask_head = None
    assert not abilities(model)["has_masks"]
    del model.roi_head
    model.proposes = True
    assert abilities(model) == {"proposes": True, "has_masks": False}


class TestProposals:
    """A model that only proposes."""

    def test_is_evaluated_by_recall(self, shapes, run, tmp_path):
        checkpoint = checkpoint_of(shapes.config(RPN), tmp_path / "checkpoints")
        out = tmp_path / "results.json"
        done = run("test", shapes.recipe, checkpoint, RPN, "--out", out)
        assert done.exit_code == 0, done.output
        assert "COCO proposals, maxDets=100, 300, 1000, in percent" in done.stdout
        assert "COCO bbox" not in done.stdout
        again = run("eval", out, shapes.root / "val.json", "--eval", "proposal")
        assert again.stdout.splitlines() == done.stdout.splitlines()[-len(again.stdout.splitlines()) :]
        assert {row["category_id"] for row in json.loads(out.read_text())} == {4}

        both = run("test", shapes.recipe, checkpoint, RPN, "--eval", "proposal_fast", "proposal")
        assert both.exit_code == 0, both.output
        for kind in ("bbox", "voc"):
            done = run("test", shapes.recipe, checkpoint, RPN, "--eval", kind)
            assert_one_line(done, f"without their classes: {kind} evaluation needs these")

    def test_trains_by_recall(self, shapes, tmp_path):
        often = ("train.epochs=2", "train.eval_every=1", "train.checkpoint_every=2", "optimizer.lr=1e-9")
        train(shapes.config(RPN, *often), tmp_path)
        record = next(record for record in read_log(tmp_path / "train.jsonl") if record["kind"] == "evaluation")
        assert list(record["proposal"])[:3] == ["AR100", "AR300", "AR1000"]
        best = torch.load(tmp_path / "checkpoints" / "best" / "state.pt", weights_only=True)["evaluations"]["best"]
        assert best[:2] == [2, record["proposal"]["AR1000"]]

    def test_of_one_class_can_be_evaluated_as_detections(self, save):
        one = save({"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]})
        check_kinds(["bbox", "voc"], one, Options(), proposes=True)


class TestRecipe:
    """The recipe's section ``evaluation``."""

    KINDS = "evaluation={kinds: [voc, proposal_fast], voc_mode: 11points, voc_ious: [0.25]}"

    def test_names_what_is_evaluated(self, shapes, run, tmp_path):
        config = shapes.config(self.KINDS)
        checkpoint = checkpoint_of(config, tmp_path / "checkpoints")
        done = run("test", shapes.recipe, checkpoint, self.KINDS)
        assert done.exit_code == 0, done.output
        assert titles(done.stdout) == ["Pascal VOC", "Recall of proposals"]
        assert "Pascal VOC, 11 points, IoU 0.25" in done.stdout
        assert titles(run("test", shapes.recipe, checkpoint, self.KINDS, "--eval", "bbox").stdout) == ["COCO bbox"]
        assert [scores.kind for scores in detect.evaluate(config, checkpoint)] == ["voc", "proposal_fast"]
        twice = shapes.config("evaluation.kinds=[bbox, voc, bbox]")
        assert [scores.kind for scores in detect.evaluate(twice, checkpoint)] == ["bbox", "voc"]

    def test_the_first_kind_tells_the_best_checkpoint(self, shapes, tmp_path, capsys):
        config = shapes.config(self.KINDS, "train.epochs=2", "train.eval_every=1", "model.roi_head.score_thr=0")
        train(config, tmp_path)
        records = [record for record in read_log(tmp_path / "train.jsonl") if record["kind"] == "evaluation"]
        assert [list(record)[3:] for record in records] == [["voc", "proposal_fast"]] * 2
        best = torch.load(tmp_path / "checkpoints" / "last" / "state.pt", weights_only=True)["evaluations"]["best"]
        assert best[1] == max(record["voc"]["mAP"] for record in records)
        assert "Pascal VOC, 11 points, IoU 0.25" in capsys.readouterr().out
        train(config, tmp_path, resume=True)  # which reads what it was before
        assert "evaluation after" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("evaluation.kinds=[boxes]", "evaluation.kinds"),
            ("evaluation.kinds=[]", "evaluation.kinds"),
            ("evaluation.voc_ious=[0]", "evaluation.voc_ious"),
            ("evaluation.voc_mode=circle", "evaluation.voc_mode"),
            ("evaluation.voc_iou=0.5", "unknown key; did you mean 'voc_ious'?"),
        ],
    )
    def test_is_checked(self, shapes, override, message):
        with pytest.raises(InputError) as caught:
            shapes.config(override)
        assert message in str(caught.value)

    def test_what_the_data_lacks_is_told_before_training(self, shapes, run, tmp_path):
        words = ("--work-dir", tmp_path / "run")
        done = run("train", shapes.recipe, "evaluation.kinds=[cityscapes]", *words)
        assert_one_line(done, "knows the classes person", "not box, disc")
        no_masks = [f"model.{key}=null" for key in MASK_PARTS]
        done = run("train", shapes.recipe, *no_masks, "evaluation.kinds=[bbox, segm]", *words)
        assert_one_line(done, "the model predicts no masks: segm evaluation needs them")
        done = run("train", shapes.recipe, RPN, "evaluation.kinds=[bbox]", *words)
        assert_one_line(done, "the model finds proposals, without their classes")
        shapes.edit("val.json", lambda truth: truth["annotations"][0].pop("segmentation"))
        done = run("train", shapes.recipe, "evaluation.kinds=[segm]", *words)
        assert_one_line(done, "1 annotations have no segmentation")
        assert not (tmp_path / "run" / "config.yaml").exists()
        assert run("train", shapes.recipe, RPN, "evaluation.kinds=[bbox]", "train.eval_every=0", *words).exit_code == 0


def test_models_with_masks_that_find_nothing_have_masks(shapes, tmp_path):
    config = shapes.config("model.roi_head.score_thr=0.9999")
    scores = detect.evaluate(config, checkpoint_of(config, tmp_path / "checkpoints"))
    assert [(part.kind, part.main) for part in scores] == [("bbox", 0), ("segm", 0)]


def test_kinds_by_default(random_case, save, load):
    truth, results = random_case(0)
    index = save(truth)
    found = load(results, index)
    assert default_kinds(index, found) == (("bbox", "segm"), "")
    assert default_kinds(index, found, proposes=True) == (("proposal",), "")
    del truth["annotations"][0]["segmentation"]
    kinds, note = default_kinds(save(truth), found)
    assert kinds == ("bbox",)
    assert f"as 1 of {len(truth['annotations'])} objects have no mask" in note
    for annotation in truth["annotations"]:
        annotation.pop("segmentation", None)
    said: list[str] = []
    index = save(truth)
    assert [scores.kind for scores in evaluate_results(found, index, say=said.append)] == ["bbox"]
    assert said == [
        f"{index.path}: segm is not evaluated, as {len(index.labels)} of {len(index.labels)} objects have no mask"
    ]
    evaluate_results(replace(found, masks=None), index, say=said.append)
    assert len(said) == 1  # nobody has masks


def test_no_results_lack_no_masks(random_case, save, load):
    truth, _ = random_case(0)
    index = save(truth)
    said: list[str] = []
    (bbox, *_) = evaluate_results(load([], index), index, say=said.append)
    assert bbox.kind == "bbox"
    assert said == []


def perfect(annotations: Path) -> list[dict]:
    """The objects of a data set as results."""
    rows = json.loads(annotations.read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox", "segmentation")
    return [{**{key: row[key] for key in keys}, "score": 0.5} for row in rows if not row["iscrowd"]]


NAME = "aachen_000000_000019"


@pytest.fixture
def streets_files(tmp_path) -> tuple[Path, Path]:
    """Results and their data set, of one image in the layout of Cityscapes."""
    ids = np.full((40, 60), 7, np.uint16)
    ids[10:30, 10:40] = 26000
    pictures = {"leftImg8bit": np.zeros((40, 60, 3), np.uint8), "gtFine_instanceIds": ids}
    for ending, picture in pictures.items():
        path = tmp_path / ending.partition("_")[0] / "val" / "aachen" / f"{NAME}_{ending}.png"
        path.parent.mkdir(parents=True)
        assert cv2.imwrite(str(path), picture)
    convert_cityscapes(tmp_path, nproc=1)
    annotations = tmp_path / "annotations" / "instancesonly_filtered_gtFine_val.json"
    results = tmp_path / "results.json"
    results.write_text(json.dumps(perfect(annotations)))
    return results, annotations


def test_cityscapes_from_the_layout_to_the_table(streets_files, tmp_path, run):
    words = ("eval", *streets_files, "--eval", "cityscapes")
    done = run(*words, "--cityscapes-out", tmp_path / "kept")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-2].split()[1::2] == ["100.0", "100.0"]
    assert (tmp_path / "kept" / f"{NAME}_leftImg8bit.txt").read_text() == "masks/0/0.png 26 0.5\n"
    (tmp_path / "gtFine").rename(tmp_path / "labels")
    assert_one_line(run(*words), "gtFine: is no folder", "cityscapes_gt")
    assert run(*words, "--cityscapes-gt", tmp_path / "labels").exit_code == 0


@pytest.mark.realdata
def test_objects_of_real_streets_score_full_marks(data_root, tmp_path):
    root = data_root / "coco_streets"
    convert_cityscapes(root, tmp_path, splits=["val"], nproc=1)
    annotations = tmp_path / "instancesonly_filtered_gtFine_val.json"
    results = tmp_path / "results.json"
    results.write_text(json.dumps(perfect(annotations)))
    before = sorted(path for path in root.rglob("*"))
    kinds: list[Kind] = ["bbox", "segm", "proposal", "proposal_fast", "cityscapes"]
    for scores in evaluate_results(results, annotations, kinds, Options(cityscapes_gt=root / "gtFine")):
        if scores.kind != "cityscapes":  # which leaves out objects of less than 100 pixels
            assert scores.main == pytest.approx(1)
        assert scores.main > 0.9
    assert sorted(path for path in root.rglob("*")) == before
