"""Every shipped recipe loads data, builds, trains a step and predicts, at reduced size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detect.config import Config, build_model, load_config
from detect.data import train_index, train_loader, val_index, val_loader
from detect.models.detectors import total_loss
from detect.running.devices import make_fabric
from dpipe.recipes import load_recipe, shipped_recipes

# What makes a model wide, wherever a recipe says it.
WIDTHS = {"out_channels": 16, "feat_channels": 16, "num_groups": 8, "fc_out_channels": 32, "conv_out_channels": 16}
LONG, SHORT = 128, 96
SMALL_ANCHORS = {"rpn_r50_c4_voc": [1, 2, 4]}  # whose own are of 128 px and more, and must lie inside the image


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, the last without objects; two classes, with polygons."""
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, (width, height) in enumerate([(128, 96), (96, 128), (128, 96)]):
        cv2.imwrite(str(root / f"{number}.png"), rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        for label in (1, 2) if number < 2 else ():
            x, y, w, h = 10 * label, 12 * label, 40, 30
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    categories = [{"id": 1, "name": "box"}, {"id": 2, "name": "crate"}]
    file = {"images": images, "annotations": annotations, "categories": categories}
    (root / "scenes.json").write_text(json.dumps(file))
    return root


def reduced(name: str, scenes: Path) -> Config:
    """A shipped recipe with small widths and images, on the scenes."""
    values = load_recipe(name).values
    overrides = [
        f"data.{split}.{key}={value}"
        for split in ("train", "val")
        for key, value in (("annotations", scenes / "scenes.json"), ("images", scenes))
    ]
    overrides += ["data.train.repeat=1", "data.train.filter_empty=false", "data.batch_size=2"]
    overrides += ["data.classes=null", "data.backend=opencv"]
    overrides += _narrow(values["model"], "model")
    if name in SMALL_ANCHORS:
        overrides.append(f"model.rpn_head.scales={SMALL_ANCHORS[name]}")
    for key in ("train_transforms", "test_transforms"):
        for index, transform in enumerate(values["data"][key]):
            if transform["type"] == "Resize":
                overrides.append(f"data.{key}.{index}.scale={[LONG, SHORT]}")
    return load_config(name, overrides)


def _narrow(node: Any, path: str) -> list[str]:
    if isinstance(node, list):
        return [override for index, item in enumerate(node) for override in _narrow(item, f"{path}.{index}")]
    if not isinstance(node, dict):
        return []
    overrides = [f"{path}.base_channels=8"] if node.get("type") == "ResNet" else []
    for key, value in node.items():
        overrides += [f"{path}.{key}={WIDTHS[key]}"] if key in WIDTHS else _narrow(value, f"{path}.{key}")
    return overrides


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_it_trains_a_step_and_predicts(name: str, scenes: Path) -> None:
    config = reduced(name, scenes)
    fabric = make_fabric(1, "cpu", "32-true")
    index = train_index(config)
    torch.manual_seed(0)
    model = build_model(config, len(index.class_names), pretrained=False)

    model.train()
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    reached: set[str] = set()
    optimizer = torch.optim.SGD(trainable.values(), lr=0.01)
    for batch in train_loader(config, index, fabric):
        loss = total_loss(model(batch.images, batch.targets))
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        assert not [name for name, weight in trainable.items() if weight.grad is None]
        reached.update(name for name, weight in trainable.items() if weight.grad.any())
        optimizer.step()
    # Gradients and not what they changed: rounding keeps a weight of 1 from moving by little.
    assert len(reached) > 0.9 * len(trainable)

    model.eval()
    seen = []
    with torch.no_grad():
        for batch in val_loader(config, val_index(config, index.class_names), fabric):
            for target, found in zip(batch.targets, model(batch.images, batch.targets), strict=True):
                seen.append(target.image_id)
                height, width = target.original_size
                assert found.boxes.shape == (len(found), 4)
                assert (found.boxes >= 0).all()
                assert (found.boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
    assert sorted(seen) == [0, 1, 2]


OFFICIAL = {
    "cascade_mask_rcnn_r50_fpn_coco": "cascade-mask-rcnn_r50_fpn_1x_coco",
    "double_head_faster_rcnn_r50_fpn_coco": "dh-faster-rcnn_r50_fpn_1x_coco",
    "faster_rcnn_r50_caffe_fpn_fcos_rpn_coco": "faster-rcnn_r50_fpn_fcos-rpn_1x_coco",
    "faster_rcnn_r50_fpn_coco": "faster-rcnn_r50_fpn_1x_coco",
    "faster_rcnn_r50_fpn_fcos_rpn_coco": "faster-rcnn_r50_fpn_fcos-rpn_1x_coco",
    "faster_rcnn_r50_pafpn_coco": "faster-rcnn_r50_pafpn_1x_coco",
    "fcos_r50_caffe_fpn_gn_coco": "fcos_r50-caffe_fpn_gn-head_1x_coco",
    "mask_rcnn_r50_fpn_coco": "mask-rcnn_r50_fpn_1x_coco",
    "rpn_r50_fpn_coco": "rpn_r50_fpn_1x_coco",
}


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_full_size_names_and_shapes(name: str, parity: Callable[[str], Any]) -> None:
    with torch.device("meta"):
        model = build_model(load_config(name), 80, pretrained=False)
    case = parity("full_size_keys")
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == case.json(OFFICIAL[name])
    if name != "faster_rcnn_r50_caffe_fpn_fcos_rpn_coco":  # whose BatchNorm is frozen, unlike the model's in the list
        frozen = {key for key, weight in model.named_parameters() if not weight.requires_grad}
        assert frozen == set(case.json("_summary")[OFFICIAL[name]]["frozen_tensors"])


@pytest.mark.parametrize("name", ["rpn_r50_fpn_coco", "fcos_rpn_r50_fpn_coco", "rpn_r50_c4_voc"])
def test_recipes_that_only_propose(name: str) -> None:
    with torch.device("meta"):
        model = build_model(load_config(name), 80, pretrained=False)
    assert model.proposes
    assert getattr(model.bbox_head, "num_classes", 1) == 1


def test_the_classic_rpn_reads_one_level_of_1024_channels() -> None:
    model = build_model(load_config("rpn_r50_c4_voc"), 20, pretrained=False)
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert not [key for key in shapes if key.startswith(("neck", "backbone.layer4"))]
    assert model.backbone.strides == (16,)
    head = {key.removeprefix("bbox_head."): shape for key, shape in shapes.items() if key.startswith("bbox_head")}
    assert head == {
        "rpn_conv.weight": [512, 1024, 3, 3],
        "rpn_conv.bias": [512],
        "rpn_cls.weight": [18, 512, 1, 1],
        "rpn_cls.bias": [18],
        "rpn_reg.weight": [36, 512, 1, 1],
        "rpn_reg.bias": [36],
    }
    anchors = model.bbox_head.anchors.base_anchors[0]
    sides = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
    assert sorted(sides.sqrt().round().tolist()) == [128.0] * 3 + [256.0] * 3 + [512.0] * 3
    for conv in (model.bbox_head.rpn_conv, model.bbox_head.rpn_cls, model.bbox_head.rpn_reg):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert conv.weight.mean().item() == pytest.approx(0.0, abs=0.001)
        assert not conv.bias.any()
    rpn = model.bbox_head
    assert (rpn.train_nms_pre, rpn.train_max_per_img) == (12000, 600)
    assert (rpn.test_nms_pre, rpn.test_max_per_img) == (3000, 300)
    assert (rpn.nms_iou, rpn.min_size, rpn.allowed_border) == (0.7, 16, 0)
