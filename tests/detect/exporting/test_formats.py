"""Exported files run without the detector, and give what it gives."""

from __future__ import annotations

import json

import onnx
import onnxruntime
import pytest

FAMILIES = ("cascade", "fcos_rpn", "fcos", "rpn")


@pytest.fixture(scope="module")
def exported(case):
    """Gives the ONNX file of a family, which is made once."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = case(family).export("model.onnx")
        return made[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_agrees_on_its_own_pattern(family, exported):
    done = exported(family)
    assert done.path.stat().st_size == done.num_bytes
    assert [agreement.shape for agreement in done.agreements] == [(1, 96, 128), (2, 96, 72)]
    assert all(agreement.detections >= 20 for agreement in done.agreements)
    assert all(max(agreement.scores, agreement.boxes) < 1e-3 for agreement in done.agreements)
    onnx.checker.check_model(str(done.path), full_check=True)


@pytest.mark.realdata
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_finds_what_the_detector_finds(family, exported, case, photos):
    session = onnxruntime.InferenceSession(str(exported(family).path))
    for images in (photos(3, (150, 203)), photos(1, (240, 320))):
        assert case(family).check(session.run(None, {"images": images.numpy()}), images) >= 24 * len(images)


def test_onnx_tells_what_it_takes_and_gives(exported, case):
    session = onnxruntime.InferenceSession(str(exported("cascade").path))
    (taken,) = session.get_inputs()
    assert (taken.name, taken.shape, taken.type) == ("images", ["batch", 3, "height", "width"], "tensor(float)")
    given = {output.name: output.shape for output in session.get_outputs()}
    assert given == {
        "counts": ["batch"],
        "boxes": ["batch", 40, 4],
        "scores": ["batch", 40],
        "labels": ["batch", 40],
        "masks": ["batch", 40, 28, 28],
    }
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["class_names"]) == ["cat", "dog", "horse"]
    assert json.loads(told["category_ids"]) == [7, 8, 9]
    assert json.loads(told["mean"]) == [123.675, 116.28, 103.53]
    assert json.loads(told["transforms"]) == [{"type": "Resize", "scale": [480, 240], "keep_ratio": True}]
    assert json.loads(told["mask_thr"]) == 0.5
    assert "RGB" in told["input"]


def test_onnx_has_the_operators_of_the_opset(exported):
    model = onnx.load(exported("cascade").path)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    operators = {node.op_type for node in model.graph.node}
    assert {"NonMaxSuppression", "RoiAlign"} <= operators
    assert {node.domain for node in model.graph.node} == {""}
    assert not [weight.name for weight in model.graph.initializer if "auxiliary" in weight.name]


def test_a_fixed_file_of_another_opset_takes_one_shape(case):
    done = case("rpn").export("fixed.onnx", fixed=True, opset=20, batch=2)
    assert (done.size, done.batch, done.opset) == ((96, 128), 2, 20)
    assert len(done.agreements) == 1
    session = onnxruntime.InferenceSession(str(done.path))
    assert session.get_inputs()[0].shape == [2, 3, 96, 128]
    assert onnx.load(done.path).opset_import[0].version == 20
