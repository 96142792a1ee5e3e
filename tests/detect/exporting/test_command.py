"""What ``detect export`` refuses: one line, exit code 2, and no file."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from detect.cli import app
from detect.config import build_model, load_config
from detect.exporting import export as exporting
from detect.exporting.checks import check_exportable
from detect.exporting.comparing import Expected, compare
from detect.models.single_stage import SingleStageDetector
from dpipe.errors import InputError
from dpipe.recipes import shipped_recipes

NO_RESIZE = "data.test_transforms=[{type: Normalize, mean: [0, 0, 0], std: [9, 9, 9]}]"


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Runs the command, and gives its one line after it has looked that nothing was written."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert not list(tmp_path.iterdir())
        return result.stderr

    return run


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-o", "model.trt"), "model.trt: the output is a .onnx or .pt2 file"),
        (("-o", "model.ONNX"), "model.ONNX: the output is a .onnx or .pt2 file"),
        (("-o", f"{__file__}/model.onnx"), "test_command.py: is a file, expected a folder"),
        (("-o", "model.pt2", "--opset", 18), "opset is a version of ONNX's operators, which a .pt2 file has not"),
        (("-o", "model.onnx", "--opset", 17), "opset must be from 18 to 23, got 17"),
        (("-o", "model.onnx", "--size", "640"), "--size: expected WIDTHxHEIGHT in pixels"),
        (("-o", "model.onnx", "--size", "99999x99999"), "size 99999x99999, batch 1: expected 1 to"),
        (("-o", "model.onnx", "--size", "640x16"), "640x16: a file for any size takes 33 px and more"),
        (("-o", "model.onnx", "--image", "none.png"), "none.png: no such image file"),
        (("-o", "model.onnx", "model.bbox_head.nms.type=SoftNMS"), "model.bbox_head.nms: SoftNMS cannot be exported"),
        (("-o", "model.onnx", NO_RESIZE), "resize to no size: expected one (--size"),
    ],
)
def test_it_refuses_what_cannot_be_done(arguments, told, refused, case, tmp_path_factory):
    made = case("fcos")
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(made.config.to_yaml() + "\n")
    assert told in refused(recipe, made.checkpoint, *arguments, "model.bbox_head.nms={type: NMS}", *arguments[2:])


@pytest.mark.parametrize("size", ["480x240", 480, (480,), (480.0, 240), [480, "240"]])
def test_a_size_is_two_numbers(size, case, tmp_path):
    made = case("fcos")
    with pytest.raises(InputError, match=r"^size is .*; expected \(height, width\) in pixels$"):
        exporting.export(made.config, made.checkpoint, tmp_path / "model.pt2", size=size)


@pytest.mark.parametrize(
    ("batch", "told"),
    [(0, "batch must be at least 1, got 0"), (4, "size 8192x16384, batch 4: expected 1 to 268435456")],
)
def test_a_batch_has_images_and_fits_into_memory(batch, told, case, tmp_path):
    made = case("fcos")
    with pytest.raises(InputError, match=f"^{told}"):
        exporting.export(made.config, made.checkpoint, tmp_path / "model.pt2", size=(2**14, 2**13), batch=batch)


def test_a_missing_package_is_named_with_the_extra(refused, case, monkeypatch):
    def without_onnx(name, *args, **kwargs):
        if name == "onnxscript":
            raise ImportError("No module named 'onnxscript'")
        return before(name, *args, **kwargs)

    before = exporting.check_packages.__globals__["importlib"].import_module
    monkeypatch.setattr("detect.exporting.checks.importlib.import_module", without_onnx)
    told = refused("demo_streets", case("rpn").checkpoint, "-o", "model.onnx")
    assert "No module named 'onnxscript'" in told
    assert "pip install 'dpipe-detect[export]'" in told


def test_a_file_that_differs_is_not_kept(case, monkeypatch):
    made = case("rpn")
    trace = exporting.trace

    def spoiled(graph, *args):
        other = copy.deepcopy(graph)
        other.std *= 1.1
        return trace(other, *args)

    monkeypatch.setattr(exporting, "trace", spoiled)
    with pytest.raises(InputError, match=r"differs\.pt2: the exported model differs from the detector on images of 1x"):
        made.export("differs.pt2", fixed=True)
    assert not [path for path in made.checkpoint.iterdir() if "differs" in path.name]


def test_a_model_that_cannot_be_traced_is_told_in_a_line(case, monkeypatch):
    made = case("rpn")
    monkeypatch.setattr("detect.exporting.graph.pyramid", lambda _, images: [images[: int(images.sum())]])
    with pytest.raises(InputError, match=r"^the model cannot be exported: [^\n]*; --fixed, for one size, may do$"):
        made.export("never.pt2")
    assert not [path for path in made.checkpoint.iterdir() if "never" in path.name]


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_can_be_exported(name):
    with torch.device("meta"):
        check_exportable(build_model(load_config(name), 2, pretrained=False))


def test_parts_of_ones_own_are_refused_by_name(case):
    class OwnHead(torch.nn.Module):
        pass

    with pytest.raises(InputError, match="model: OwnHead cannot be exported, only SingleStageDetector"):
        check_exportable(OwnHead())

    class DerivedDetector(SingleStageDetector):
        pass

    derived = copy.copy(case("fcos").model)
    derived.__class__ = DerivedDetector
    with pytest.raises(InputError, match="model: DerivedDetector cannot be exported, only SingleStageDetector"):
        check_exportable(derived)


@pytest.mark.parametrize(
    ("family", "part", "told"),
    [
        ("mask", "rpn_head", "rpn_head"),
        ("cascade", "roi_head", "roi_head"),
        ("mask", "roi_head.nms", "roi_head.nms"),
        ("rpn", "bbox_head", "rpn_head"),
        ("fcos", "bbox_head", "bbox_head"),
        ("fcos", "bbox_head.nms", "bbox_head.nms"),
    ],
)
def test_derived_parts_are_refused_by_name(family, part, told, case):
    model = copy.deepcopy(case(family).model)
    check_exportable(model)
    derived = functools.reduce(getattr, part.split("."), model)
    derived.__class__ = type("Derived", (type(derived),), {})
    with pytest.raises(InputError, match=f"^model.{told}: Derived cannot be exported, only "):
        check_exportable(model)


def found(count, shift=0.0, score=0.0):
    boxes = np.arange(count, dtype=np.float32)[:, None] * 30 + np.float32([0, 0, 20, 10]) + np.float32(shift)
    scores = np.linspace(0.9, 0.5, count, dtype=np.float32) + np.float32(score)
    return Expected(boxes, scores, np.zeros(count, dtype=np.int64), None)


def outputs(one):
    return [np.array([len(one.scores)]), one.boxes[None], one.scores[None], one.labels[None]]


def test_comparing_tells_rounding_from_difference():
    images = torch.zeros(1, 3, 40, 50)
    agreement = compare([found(10)], outputs(found(10, shift=5e-4, score=2e-4)), images, "m")
    assert (agreement.shape, agreement.detections, agreement.others) == ((1, 40, 50), 10, 0)
    assert agreement.boxes == pytest.approx(5e-4, rel=0.1)
    assert agreement.scores == pytest.approx(2e-4, rel=0.1)
    assert agreement.masks is None
    # One of each that the other does not have: what a threshold decides by rounding.
    one = found(10)
    moved = Expected(one.boxes + np.eye(10, 4, -9, dtype=np.float32), one.scores, one.labels, None)
    assert compare([one], outputs(moved), images, "m").others == 2
    for other in (found(10, shift=0.01), found(10, score=2e-3), found(7), found(13)):
        with pytest.raises(InputError, match="m: the exported model differs from the detector on images of 1x40x50"):
            compare([one], outputs(other), images, "m")


def test_comparing_takes_no_other_detections_for_rounding_where_there_are_few():
    images = torch.zeros(1, 3, 40, 50)
    for count in (1, 2, 3):
        one = found(count)
        labels = one.labels.copy()
        labels[0] = 1
        other = Expected(one.boxes, one.scores, labels, None)
        if count < 3:
            with pytest.raises(InputError, match=f"of {count} detections 2 differ"):
                compare([one], outputs(other), images, "m")
        else:
            assert compare([one], outputs(other), images, "m").others == 2
    with pytest.raises(InputError, match="of 0 detections 1 differ"):
        compare([found(0)], outputs(found(1)), images, "m")
    assert compare([found(0)], outputs(found(0)), images, "m").detections == 0


def test_comparing_pairs_a_detection_once():
    one = found(10)
    twice = Expected(
        np.repeat(one.boxes[:1], 10, axis=0), *[np.repeat(x[:1], 10) for x in (one.scores, one.labels)], None
    )
    with pytest.raises(InputError, match="of 10 detections 18 differ"):
        compare([twice], outputs(found(10)), torch.zeros(1, 3, 40, 50), "m")


def test_comparing_bears_the_rounding_of_large_boxes_and_pairs_the_nearest():
    boxes = np.float32([[0, 0, 3000, 50], [0, 0, 3000, 50.01]])
    one = Expected(boxes, np.float32([0.5, 0.5]), np.zeros(2, dtype=np.int64), None)
    images = torch.zeros(1, 3, 40, 50)
    swapped = Expected(boxes[::-1], one.scores, one.labels, None)
    assert compare([one], outputs(swapped), images, "m").boxes == 0
    moved = Expected(boxes + np.float32([0, 0, 0.02, 0]), one.scores, one.labels, None)
    assert compare([one], outputs(moved), images, "m").others == 0
    small, moved = (
        Expected(np.float32([[x, 0, x + 10, 9]]), one.scores[:1], one.labels[:1], None) for x in (3000, 3000.02)
    )
    with pytest.raises(InputError, match="of 1 detections 2 differ"):
        compare([small], outputs(moved), images, "m")


def test_comparing_looks_at_masks_of_the_same_detections():
    one = found(3)
    masks = np.zeros((3, 4, 4), dtype=np.float32)
    expected = Expected(one.boxes, one.scores, one.labels, masks)
    images = torch.zeros(1, 3, 40, 50)
    assert compare([expected], [*outputs(one), masks[None] + 5e-4], images, "m").masks == pytest.approx(5e-4)
    with pytest.raises(InputError, match="and masks by"):
        compare([expected], [*outputs(one), masks[None] + 2e-3], images, "m")
    with pytest.raises(InputError, match="and masks by nan"):
        compare([expected], [*outputs(one), masks[None] * np.nan], images, "m")
