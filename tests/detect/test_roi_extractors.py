"""RoI features: reference levels and values, gradients, no RoIs at all."""

from __future__ import annotations

import pytest
import torch

from detect.models.roi_extractors import SingleRoIExtractor, SoftRoIExtractor, extract_all_levels, roi_levels
from dpipe.errors import InputError

STRIDES = (4, 8, 16, 32, 64)
BACK_ENDS = {
    "aligned": "torchvision_aligned_true",
    "unaligned": "torchvision_aligned_false",
    "legacy": "legacy_kernel",
}


@pytest.fixture(params=["products", "operator"], autouse=True)
def way(request, monkeypatch):
    """All tests run with what computes on CPUs, and with torchvision's operator, which does elsewhere."""
    if request.param == "operator":
        monkeypatch.setattr("detect.models.roi_extractors.by_products", lambda feature: False)
    return request.param


@pytest.fixture
def cuts(parity):
    case = parity("mmdet_parts")
    return [case.inputs[f"roi/feats/{i}"].float() for i in range(5)], case.inputs["roi/rois"], case.expected


def test_levels_equal_the_reference(cuts):
    _, rois, expected = cuts
    assert torch.equal(roi_levels(rois, 4, 56), expected["roi/levels"])
    assert torch.equal(roi_levels(rois, 5, 56), expected["roi/levels_5"])


def test_a_hair_below_a_boundary_counts_as_on_it():
    rois = torch.tensor([[0, 0.0, 0, 112, 111.9999], [0, 0, 0, 112, 111.99]])
    assert roi_levels(rois, 4, 56).tolist() == [1, 0]


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("factor", [None, 1.3])
def test_features_by_level_equal_the_reference(cuts, size, factor):
    features, rois, expected = cuts
    name = f"roi/out{size}" + (f"_scale_factor_{factor}" if factor else "")
    out = SingleRoIExtractor(size, STRIDES)(features, rois, roi_scale_factor=factor)
    torch.testing.assert_close(out, expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["faster_rcnn_r18_fpn", "cascade_mask_rcnn_r50_fpn"])
def test_features_of_a_detector_equal_the_reference(parity, case):
    expected = parity(case).expected
    stage = "eval/roi" if case.startswith("faster") else "eval/roi/s0"
    rois = expected[f"{stage}/rois"][:16]
    out = SingleRoIExtractor(7, STRIDES)(parity(case).levels("eval/neck"), rois)
    torch.testing.assert_close(out, expected[f"{stage}/feats_first16"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("degenerate", [[0, 5.0, 5, 5, 5], [0, 9.0, 9, 4, 20]])
def test_empty_and_inverted_rois_come_from_the_finest_level(degenerate):
    rois = torch.tensor([degenerate])
    assert roi_levels(rois, 4, 56).tolist() == [0]


def pyramid(channels: int = 3, levels: int = 4, **options) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, 64 >> i, 96 >> i, generator=generator, **options) for i in range(levels)]


@pytest.fixture(params=["single", "soft"])
def extractor(request):
    torch.manual_seed(0)
    return SingleRoIExtractor(7, STRIDES) if request.param == "single" else SoftRoIExtractor(7, STRIDES, 3)


def test_no_rois(extractor):
    features = pyramid(requires_grad=True)
    out = extractor(features, torch.zeros(0, 5))
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    for tensor in (*features, *extractor.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.eq(0).all()


def test_levels_without_rois_stay_in_the_graph(extractor):
    features = pyramid(requires_grad=True)
    extractor(features, torch.tensor([[1, 8.0, 8, 40, 40]])).sum().backward()
    assert all(feature.grad is not None for feature in features)
    assert features[0].grad[0].eq(0).all()  # the other image
    assert features[0].grad[1].ne(0).any()


def test_order_of_rois_is_kept(extractor):
    features = pyramid()
    rois = torch.tensor([[0, 0.0, 0, 300, 250], [1, 4, 4, 30, 30], [1, 0, 0, 200, 200], [0, 10, 10, 40, 20]])
    both = extractor(features, rois)
    for i in range(len(rois)):
        torch.testing.assert_close(both[i], extractor(features, rois[i : i + 1])[0])


def test_bfloat16_features_keep_exact_corners(extractor):
    features = [level.bfloat16() for level in pyramid()]
    rois = torch.tensor([[0, 301.0, 4, 363, 66], [1, 201, 101, 251, 151]])  # bfloat16 would make 302 of 301
    out = extractor.bfloat16()(features, rois)
    assert out.dtype == torch.bfloat16
    expected = extractor.float()([level.float() for level in features], rois)
    torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.02)


def test_further_levels_are_left_alone(extractor):
    rois = torch.tensor([[0, 0.0, 0, 380, 250]])
    assert torch.equal(extractor(pyramid(levels=5), rois), extractor(pyramid(levels=4), rois))


@pytest.mark.parametrize("alignment", list(BACK_ENDS))
def test_soft_selection_equals_the_authors(parity, alignment):
    case, back_end = parity("augfpn_parts"), BACK_ENDS[alignment]
    extractor = SoftRoIExtractor(7, STRIDES[:4], (16, 16, 16, 16), sampling_ratio=2, alignment=alignment)
    extractor.load_state_dict(case.weights_of("bbox_roi_extractor"))
    out = extractor(case.levels("neck/out"), case.inputs["rois"])
    torch.testing.assert_close(out, case.expected[f"soft_roi/{back_end}"], atol=1e-4, rtol=1e-4)
    loss = out.square().mean()
    torch.testing.assert_close(
        loss, case.expected[f"soft_roi/{back_end}_loss_mean_square"].squeeze(), rtol=1e-5, atol=0
    )
    loss.backward()
    for name, weight in extractor.named_parameters():
        norm = case.expected[f"soft_roi/{back_end}_grad_norm/{name}"].squeeze()
        torch.testing.assert_close(weight.grad.norm(), norm, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("alignment", list(BACK_ENDS))
def test_all_levels_equal_the_authors(parity, alignment):
    case = parity("augfpn_parts")
    laterals = case.levels("neck/raw_lateral")
    out = extract_all_levels(laterals, case.inputs["rois"][:5], STRIDES[:4], 7, sampling_ratio=2, alignment=alignment)
    assert out.shape == (5, 4, 16, 7, 7)
    expected = case.expected[f"aux_roi/{BACK_ENDS[alignment]}_first5rois"]
    torch.testing.assert_close(out.flatten(0, 1), expected, atol=1e-4, rtol=1e-4)


def test_soft_selection_needs_levels_of_equal_channels():
    with pytest.raises(InputError, match="SoftRoIExtractor"):
        SoftRoIExtractor(7, STRIDES[:2], (16, 32))
