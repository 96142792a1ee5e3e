"""Small detectors of each family, whose predictions are many and unlike, and what they are exported to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detect.config import Config, build_augment, build_model, load_config
from detect.exporting.export import Exported, _graph_of, _images, _pattern, export
from detect.exporting.graph import DetectorGraph
from detect.looking.dry_run import blank_target
from detect.running.state import ModelInfo, save_checkpoint

CLASSES = ("cat", "dog", "horse")
RESNET = "model.backbone={_delete_: true, type: ResNet, depth: 18, base_channels: 8, out_indices: [0, 1, 2]}"
TWO_STAGES = [RESNET.replace("[0, 1, 2]", "[0, 1]"), "model.neck.out_channels=8", "model.neck.num_outs=3"]
RPN = ["feat_channels=8", "scales=[4]", "test_nms_pre=200", "test_max_per_img=60"]
BOX_HEAD = ["fc_out_channels=16"]
FCOS = ["feat_channels=8", "num_groups=4", "stacked_convs=1", "regress_ranges=[[-1, 32], [32, 64], [64, 1000]]"]
POINTS = [*FCOS, "test_nms_pre=200", "test_max_per_img=60"]
STAGE = "{type: Shared2FCBBoxHead, fc_out_channels: 16, reg_class_agnostic: true}"
ASSIGNER = "{type: MaxIoUAssigner, pos_iou_thr: 0.5, neg_iou_thr: 0.5}"
MASKS = "{type: FCNMaskHead, num_convs: 1, conv_out_channels: 8}"


def under(key: str, values: list[str]) -> list[str]:
    return [f"model.{key}.{value}" for value in values]


FAMILIES = {
    "cascade": [
        "demo_streets",
        *TWO_STAGES,
        *under("rpn_head", RPN),
        "model.neck.num_outs=2",
        *under("roi_head", [f"bbox_head=[{STAGE}, {STAGE}]", f"mask_head=[{MASKS}, {MASKS}]"]),
        *under("roi_head", [f"assigner=[{ASSIGNER}, {ASSIGNER}]", "stage_loss_weights=[1, 0.5]"]),
        "model.roi_head.max_per_img=40",
    ],
    "mask": [
        "mask_rcnn_r50_fpn_coco",
        *TWO_STAGES,
        *under("rpn_head", RPN),
        *under("roi_head.bbox_head", BOX_HEAD),
        *under("roi_head.mask_head", ["num_convs=1", "conv_out_channels=8"]),
        *under("roi_head", ["bbox_roi_extractor.num_levels=2", "mask_roi_extractor.num_levels=2", "max_per_img=40"]),
    ],
    "fcos_rpn": [
        "faster_rcnn_r50_fpn_fcos_rpn_coco",
        *TWO_STAGES,
        *under("rpn_head", POINTS),
        *under("roi_head.bbox_head", BOX_HEAD),
        *under(
            "roi_head", ["bbox_roi_extractor.num_levels=3", "max_per_img=40", "nms={type: NMS, class_agnostic: true}"]
        ),
    ],
    "fcos": ["fcos_r50_caffe_fpn_gn_coco", *TWO_STAGES, *under("bbox_head", [*FCOS, "max_per_img=40", "nms_pre=200"])],
    "rpn": [
        "rpn_r50_c4_voc",
        RESNET.replace("[0, 1, 2]", "[1]"),
        *under("rpn_head", [*RPN[:1], "test_nms_pre=500", "test_max_per_img=40", "min_size=16"]),
    ],
    "double_head": [
        "double_head_faster_rcnn_r50_fpn_coco",
        *TWO_STAGES,
        "model.neck.type=PAFPN",
        *under("rpn_head", RPN),
        *under("roi_head.bbox_head", [*BOX_HEAD, "conv_out_channels=16", "num_convs=1"]),
        *under("roi_head", ["bbox_roi_extractor.num_levels=2", "bbox_roi_extractor.alignment=unaligned"]),
    ],
    "fcos_alone": ["fcos_rpn_r50_fpn_coco", *TWO_STAGES, *under("rpn_head", [*POINTS, "norm_on_bbox=true"])],
    "legacy": [
        "demo_streets",
        *TWO_STAGES,
        *under("rpn_head", RPN),
        *under("roi_head", ["mask_head=null", "mask_roi_extractor=null", "bbox_roi_extractor.alignment=legacy"]),
        "model.auxiliary_head=null",
    ],
}

# Of the last layers: the mean and the spread that their outputs get.
LIVELY = {
    "rpn_cls": (0, 2), "rpn_reg": (0, 0.3), "fc_cls": (0, 1.5), "fc_reg": (0, 1),
    "conv_cls": (-2, 1), "conv_reg": (3, 0.5), "conv_centerness": (0, 1), "conv_logits": (0, 2),
}  # fmt: skip


def enliven(model: nn.Module, run: Callable[[], Any]) -> None:
    """Changes the last layers so that what they give for some images has the spread of a trained model's."""

    def rescale(layer: Any, _inputs: Any, output: Tensor, mean: float, spread: float) -> Tensor:
        factor = spread / output.std()
        layer.weight.data *= factor
        layer.bias.data.copy_((layer.bias.data - output.mean()) * factor + mean)
        return (output - output.mean()) * factor + mean

    seen: set[str] = set()
    handles = []
    for name, layer in model.named_modules():
        if (last := name.rpartition(".")[2]) in LIVELY:

            def hook(layer: Any, inputs: Any, output: Tensor, name: str = name, last: str = last) -> Tensor | None:
                if name in seen:  # of the finest level, where most is
                    return None
                seen.add(name)
                return rescale(layer, inputs, output, *LIVELY[last])

            handles.append(layer.register_forward_hook(hook))
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()


@dataclass(frozen=True)
class Case:
    """A detector, the graph of it, and where its checkpoint lies."""

    config: Config
    model: nn.Module
    graph: DetectorGraph
    checkpoint: Path

    def check(self, outputs: Sequence[Any], images: Tensor) -> int:
        """Compares outputs (N, k, ...) with the detector, and returns how many detections there are."""
        counts, boxes, scores, labels, *masks = (np.asarray(output) for output in outputs)
        assert counts.dtype == labels.dtype == np.int64
        assert boxes.dtype == scores.dtype == np.float32
        with torch.no_grad():
            inputs, targets = self.graph.prepare(images), [blank_target(tuple(images.shape[2:])) for _ in images]
            found = self.model(inputs, targets)
            grids = self._masks(inputs, targets) if masks else []
        for number, one in enumerate(found):
            count = len(one)
            assert counts[number] == count
            assert labels[number].tolist() == [*one.labels.tolist(), *[-1] * (labels.shape[1] - count)]
            np.testing.assert_allclose(scores[number, :count], one.scores, atol=1e-3, rtol=0)
            np.testing.assert_allclose(boxes[number, :count], one.boxes, atol=1e-3, rtol=0)
            assert not scores[number, count:].any()
            assert not boxes[number, count:].any()
            if masks:
                np.testing.assert_allclose(masks[0][number, :count], grids[number], atol=1e-3, rtol=0)
                assert not masks[0][number, count:].any()
        return int(counts.sum())

    def _masks(self, inputs: Tensor, targets: Sequence[Any]) -> list[Tensor]:
        features, proposals = self.model.propose(inputs, targets)
        found = self.model.roi_head.predict_boxes(features, proposals, targets, rescale=False)
        return self.model.roi_head.predict_masks(features, found)

    def export(self, name: str, **options: Any) -> Exported:
        return export(self.config, self.checkpoint, self.checkpoint / name, **{"size": (96, 128), **options})


def make_case(family: str, folder: Path) -> Case:
    recipe, *overrides = FAMILIES[family]
    config = load_config(recipe, ["model.backbone.pretrained=null", *overrides])
    torch.manual_seed(0)
    model = build_model(config, len(CLASSES), pretrained=False)
    for module in model.modules():  # blocks of a new ResNet add nothing to their input
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
    model.eval()
    info = ModelInfo(CLASSES, (7, 8, 9), config.to_yaml(), 0, 0)
    graph = _graph_of(build_model(config, len(CLASSES), pretrained=False), build_augment(config, train=False))
    graph.detector = model
    images = _images(_pattern(), 1, (192, 256))
    enliven(model, lambda: graph(images))
    save_checkpoint(folder, model, {}, info)
    return Case(config, model, graph, folder)


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Gives the detector of a family, always the same."""
    made: dict[str, Case] = {}

    def get(family: str) -> Case:
        if family not in made:
            made[family] = make_case(family, tmp_path_factory.mktemp(family))
        return made[family]

    return get


@pytest.fixture(scope="session")
def photos(data_root: Path) -> Callable[[int, tuple[int, int]], Tensor]:
    """Gives a batch of photos of a size, (N, 3, H, W), RGB as 0..255."""
    paths = sorted((data_root / "coco_mini" / "val").glob("*.jpg"))

    def batch(count: int, size: tuple[int, int]) -> Tensor:
        pixels = [cv2.resize(cv2.imread(str(path)), size[::-1])[..., ::-1] for path in paths[:count]]
        return torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32))

    return batch
