"""Every operation of dpipe on colours, after each kind of geometry, in both backends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dpipe.operations.colours import Brightness, Color, Contrast, Equalize
from dpipe.operations.cropping import RandomCrop
from dpipe.operations.geometric import RandomFlip, Resize, Rotate
from dpipe.operations.operation import Operation
from dpipe.plan import PhotometricStep, SamplePlan
from dpipe.policy import Augment

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

from dpipe.backends.dali import DaliBackend
from dpipe.backends.opencv import OpenCVBackend

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
GEOMETRY = {
    "nothing": [],
    "crop": [RandomCrop((0.7, 0.6), "relative", allow_negative_crop=True)],
    "crop, smaller": [RandomCrop((0.7, 0.6), "relative", allow_negative_crop=True), Resize((160, 160))],
    "smaller": [Resize((320, 320)), RandomFlip(1.0)],
    "half": [Resize((200, 200))],
    "much smaller": [Resize((90, 90)), RandomFlip(1.0, "diagonal")],
    "warp": [Rotate(5, prob=1), Resize((450, 450))],
    "warp and halving": [Rotate(10, prob=1), Resize((150, 150))],
}
COLOURS: list[Operation] = [
    *(kind(level, prob=1.0) for kind in (Color, Brightness, Contrast) for level in (0, 3, 7, 10)),
    Equalize(prob=1.0),
]


def steps_of(operations: Sequence[Operation]) -> list[tuple[PhotometricStep, ...]]:
    return [Augment([each]).draw((1, 1), seed=0, epoch=0, sample=0).photometric for each in operations]


def apart(paths: Sequence[Path], geometry: Sequence[Operation], device: str) -> list[torch.Tensor]:
    """Grey levels between the backends, for each operation on colours, over all pictures."""
    augment = Augment(geometry)
    plans: list[SamplePlan] = []
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            plans.append(augment.draw((image.height, image.width), seed=0, epoch=0, sample=number))
    batches = [[replace(plan, photometric=steps) for plan in plans] for steps in steps_of(COLOURS)]
    dali = DaliBackend(paths, augment, device=device, max_batch_size=len(paths))
    pairs = zip(dali.stream(batches), OpenCVBackend(paths, augment).stream(batches), strict=True)
    differences = [(ours.images.cpu().int() - reference.images.int()).abs() for ours, reference in pairs]
    dali.close()
    return differences


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures with slopes, some grain, and a bias of colour, as photographs have; edges of odd length."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    paths = []
    for number, (height, width) in enumerate([(300, 400), (399, 301), (288, 400)]):
        image = cv2.resize(rng.uniform(0, 255, (6, 8, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
        image = image * (0.4, 0.7, 0.9) + 25 + rng.normal(0, 3, image.shape)
        paths.append(root / f"{number}.png")
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(paths[-1])
    return paths


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("geometry", GEOMETRY)
def test_colours_agree_after_any_geometry(pictures: list[Path], geometry: str, device: str) -> None:
    for operation, difference in zip(COLOURS, apart(pictures, GEOMETRY[geometry], device), strict=True):
        assert (difference > 2).float().mean() < 0.001, operation


@pytest.mark.realdata
@pytest.mark.parametrize("geometry", ["nothing", "smaller", "much smaller", "warp", "warp and halving"])
def test_colours_agree_on_photographs(data_root: Path, geometry: str) -> None:
    paths = sorted((data_root / "coco_mini" / "val").glob("*.jpg"))[:12]
    assert len(paths) == 12
    # On the CPU, where both decode alike.
    for operation, difference in zip(COLOURS, apart(paths, GEOMETRY[geometry], "cpu"), strict=True):
        assert (difference > 2).float().mean() < 0.001, operation
