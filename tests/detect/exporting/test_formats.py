"""Exported files run without the detector, and give what it gives; see ``test_page`` for more of them."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest

FAMILIES = ("fcos", "rpn")


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


def test_onnx_of_a_model_that_proposes_tells_of_one_class(exported):
    session = onnxruntime.InferenceSession(str(exported("rpn").path))
    told = session.get_modelmeta().custom_metadata_map
    assert (told["class_names"], told["category_ids"], told["mask_thr"]) == ('["object"]', "[1]", "null")
    assert [output.name for output in session.get_outputs()] == ["counts", "boxes", "scores", "labels"]


def test_a_fixed_file_of_another_opset_takes_one_shape(case):
    done = case("double_head").export("fixed.onnx", fixed=True, opset=20, batch=2)
    assert (done.size, done.batch, done.opset) == ((96, 128), 2, 20)
    assert [agreement.shape for agreement in done.agreements] == [(2, 96, 128)]
    assert done.agreements[0].detections >= 40
    session = onnxruntime.InferenceSession(str(done.path))
    assert session.get_inputs()[0].shape == [2, 3, 96, 128]
    assert onnx.load(done.path).opset_import[0].version == 20
