"""What tests of detect share: the reference cases, and a tiny data set of drawn shapes with a recipe for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dpipe.target import Target

PARITY = Path(__file__).parents[1] / "data" / "parity"
CLASSES = ["box", "disc"]
TINY = """
import torch
from torch import nn

from detect import Detections

class Tiny(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride=8)
        self.norm = nn.BatchNorm2d(channels)
        self.last = nn.Conv2d(channels, 2, 1)

    def forward(self, images, targets):
        out = self.last(self.norm(self.conv(images)).relu()).mean(dim=(2, 3))
        if self.training:
            return {"loss": (out - 1).square().mean()}
        box, label = torch.tensor([[0.0, 0.0, 40.0, 40.0]]), torch.zeros(1, dtype=torch.int64)
        return [Detections(box, row[:1].sigmoid(), label) for row in out]
"""


@dataclass(frozen=True)
class ParityCase:
    """One folder of tests/data/parity; its files are read when they are asked for, and must not be changed in place."""

    folder: Path

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "weights.safetensors")

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return load_file(self.folder / "inputs.safetensors")

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return load_file(self.folder / "expected.safetensors")

    def json(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text())

    def weights_of(self, part: str) -> dict[str, Tensor]:
        """The weights of one part (``backbone``), under the names that they have inside it."""
        return {name.removeprefix(f"{part}."): w for name, w in self.weights.items() if name.startswith(f"{part}.")}

    def levels(self, prefix: str) -> list[Tensor]:
        """Expected tensors ``prefix/0``, ``prefix/1`` ... in order."""
        names = [name for name in self.expected if name.rpartition("/")[0] == prefix]
        return [self.expected[f"{prefix}/{i}"] for i in range(len(names))]

    def targets(self, gt: str = "gt", *, without_objects: Collection[int] = (), rescale: bool = True) -> list[Target]:
        """Targets of the case's two images; without ``rescale`` the resized image passes for the original."""
        targets = []
        for i, image in enumerate(self.json("meta")["images"]):
            prefix = f"{gt}/{i}/"
            inputs = {name.removeprefix(prefix): t for name, t in self.inputs.items() if name.startswith(prefix)}
            scale = np.array(image["scale_factor"] if rescale else (1.0, 1.0))
            keep = slice(0, 0) if i in without_objects else slice(None)
            masks = inputs.get("masks")
            boxes = inputs["boxes"][keep]
            targets.append(
                Target(
                    image_id=i,
                    sample=i,
                    file_name=image["img_path"],
                    size=tuple(image["img_shape"]),
                    original_size=tuple(image["ori_shape"] if rescale else image["img_shape"]),
                    matrix=np.concatenate([np.diag(scale), np.zeros((2, 1))], axis=1),
                    boxes=boxes,
                    labels=inputs["labels"][keep],
                    masks=None if masks is None else masks[keep],
                    annotation_ids=torch.arange(len(boxes)),
                    ignore_boxes=inputs.get("ignored_boxes", torch.zeros(0, 4)),
                )
            )
        return targets


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tests share few cores with other programs, and the same bits are promised for the same number of threads only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def parity() -> Callable[[str], ParityCase]:
    """Gives the reference case of a name."""
    cases: dict[str, ParityCase] = {}

    def case(name: str) -> ParityCase:
        return cases.setdefault(name, ParityCase(PARITY / name))

    return case


@dataclass
class Shapes:
    """Where the data set and the recipe are.

    Attributes:
        root: Holds ``train.json``, ``val.json``, ``images/`` and ``recipe.yaml``.
    """

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def images(self) -> list[Path]:
        return sorted((self.root / "images").iterdir())

    def config(self, *overrides: str):
        from detect.config import load_config

        return load_config(self.recipe, overrides)

    def edit(self, name: str, change: Callable[[Any], None]) -> None:
        """Changes one of the JSON files."""
        path = self.root / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def drawn_shapes(folder: Path, count: int, width: int, height: int, seed: int) -> dict[str, Any]:
    """Draws images of one to three bright boxes and discs, and returns their annotations as COCO JSON."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for number in range(count):
        canvas = rng.integers(60, 90, (height, width, 3), dtype=np.uint8)
        for slot in rng.permutation(3)[: rng.integers(1, 4)]:  # thirds of the width, so that shapes do not overlap
            side = int(rng.integers(height // 4, height // 2))
            x = int(slot * width / 3 + rng.integers(0, max(1, width // 3 - side)))
            y = int(rng.integers(0, height - side))
            label = int(rng.integers(2))
            mask = np.zeros((height, width), np.uint8)
            if label == 0:
                mask[y : y + side, x : x + side] = 1
            else:
                cv2.circle(mask, (x + side // 2, y + side // 2), side // 2 - 1, 1, -1)
            canvas[mask > 0] = (230, 120, 40) if label == 0 else (40, 160, 230)
            (outline,), _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            left, top, wide, high = cv2.boundingRect(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": (4, 9)[label],
                    "bbox": [left, top, wide, high],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": [outline.reshape(-1).tolist()],
                }
            )
        name = f"{number:02d}.png"
        cv2.imwrite(str(folder / name), canvas)
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
    categories = [{"id": id_, "name": name} for id_, name in zip((4, 9), CLASSES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def recipe_for(root: Path, *, channels: int, long: int, short: int) -> dict[str, Any]:
    """A narrow Cascade Mask R-CNN with AugFPN on the shapes in ``root``."""
    normalize = {"type": "Normalize", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    resize = {"type": "Resize", "scale": [long, short], "keep_ratio": True}
    pad = {"type": "Pad", "size_divisor": 32}
    stds = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    head = {"type": "Shared2FCBBoxHead", "fc_out_channels": 2 * channels, "reg_class_agnostic": True}
    mask_head = {"type": "FCNMaskHead", "num_convs": 1, "conv_out_channels": channels}
    return {
        "_base_": "demo_streets",
        "model": {
            "backbone": {"base_channels": channels},
            "neck": {"out_channels": channels},
            "rpn_head": {"feat_channels": channels},
            "roi_head": {
                "bbox_head": [{**head, "target_stds": std} for std in stds],
                "mask_head": [mask_head] * 3,
                "sampler": {"num": 32},
            },
        },
        "data": {
            "root": str(root),
            "train": {"annotations": "${data.root}/train.json", "images": "${data.root}/images"},
            "val": {"annotations": "${data.root}/val.json", "images": "${data.root}/images"},
            "classes": None,
            "batch_size": 2,
            "train_transforms": [resize, {"type": "RandomFlip", "prob": 0.5}, normalize, pad],
            "test_transforms": [resize, normalize, pad],
        },
        "optimizer": {"lr": 0.02},
        "schedule": {"warmup_iters": 50, "warmup_ratio": 0.001, "steps": [100]},
        "train": {"epochs": 2, "eval_every": 2, "log_every": 1, "clip_norm": 10},
    }


def write_shapes(root: Path) -> Shapes:
    """Six drawn images of 96x64 pixels, four to train on and the last two to validate, and a recipe for them."""
    (root / "images").mkdir(parents=True)
    truth = drawn_shapes(root / "images", 6, 96, 64, seed=0)
    for name, ids in (("train.json", range(1, 5)), ("val.json", range(5, 7))):
        part = {
            "images": [image for image in truth["images"] if image["id"] in ids],
            "annotations": [row for row in truth["annotations"] if row["image_id"] in ids],
            "categories": truth["categories"],
        }
        (root / name).write_text(json.dumps(part))
    (root / "recipe.yaml").write_text(json.dumps(recipe_for(root, channels=8, long=96, short=64)))
    return Shapes(root)


@pytest.fixture(scope="session")
def draw_shapes() -> Callable[..., dict[str, Any]]:
    """The function that draws images."""
    return drawn_shapes


@pytest.fixture(scope="session")
def small_recipe() -> Callable[..., dict[str, Any]]:
    """The function that makes a recipe for drawn images."""
    return recipe_for


@pytest.fixture(scope="session")
def make_shapes() -> Callable[[Path], Shapes]:
    """The function that writes the data set and the recipe into a new folder."""
    return write_shapes


@pytest.fixture
def shapes(tmp_path: Path) -> Shapes:
    """The data set and the recipe, in the test's own folder."""
    return write_shapes(tmp_path / "shapes")


@pytest.fixture
def tiny(shapes: Shapes, monkeypatch: pytest.MonkeyPatch) -> str:
    """An override of the recipe by a model that finds nothing, for what is not about models; also in subprocesses."""
    (shapes.root / "tiny_model.py").write_text(TINY)
    monkeypatch.syspath_prepend(str(shapes.root))
    monkeypatch.setenv("PYTHONPATH", str(shapes.root), prepend=os.pathsep)
    return "model={_delete_: true, type: tiny_model.Tiny}"


@pytest.fixture(scope="session")
def make_target() -> Callable[..., Target]:
    """Gives the target of an image at half its original size, with boxes of the classes 0, 1, 2, 0, ..., no masks."""

    def make(boxes: Any, size: tuple[int, int] = (64, 96)) -> Target:
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return Target(
            image_id=0,
            sample=0,
            file_name="image.png",
            size=size,
            original_size=(size[0] * 2, size[1] * 2),
            matrix=np.array([[0.5, 0, 0], [0, 0.5, 0]]),
            boxes=boxes,
            labels=torch.arange(len(boxes)) % 3,
            masks=None,
            annotation_ids=torch.arange(len(boxes)),
            ignore_boxes=torch.zeros(0, 4),
        )

    return make
