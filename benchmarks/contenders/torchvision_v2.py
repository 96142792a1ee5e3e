"""torchvision.transforms.v2: tv_tensors and the functional forms of its transforms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from samples import Output, Sample
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from contenders.bitmaps import read_bitmaps
from dpipe import Normalize


class TorchvisionV2:
    """Rotates, shifts, resizes, flips and pads tv_tensors: image bilinear, masks (n, H, W) nearest, boxes by corners.

    Steps that were not drawn are left out. The functional forms spare the classes' own drawing.

    Args:
        normalize: Where floats are asked for.
    """

    name = "torchvision.transforms.v2"
    threads = 1
    share = 3

    def __init__(self, normalize: Normalize | None) -> None:
        self.normalize = normalize

    def run(self, samples: Sequence[Sample], epoch: int) -> Iterator[Output]:
        """See ``Contender``."""
        torch.set_num_threads(1)
        for sample in samples:
            yield self._one(sample)

    def _one(self, sample: Sample) -> Output:
        steps = sample.steps
        image = tv_tensors.Image(decode_image(str(sample.path), mode=ImageReadMode.RGB))
        masks = tv_tensors.Mask(torch.from_numpy(read_bitmaps(sample)))
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(sample.boxes).float(),
            format="XYXY",
            canvas_size=steps.source_size,
        )
        inputs: list[Any] = [image, masks, boxes]
        # Masks are filled with 0 where nothing is said; saying so costs them nearly twice the time.
        fills: list[Any] = [[float(value) for value in steps.fill], None, None]
        if steps.angle:  # theirs is anticlockwise
            inputs = [
                F.rotate(one, -steps.angle, interpolation=_interpolation(one), fill=fill)
                for one, fill in zip(inputs, fills, strict=True)
            ]
        if steps.shift:
            inputs = [
                F.affine(
                    one,
                    angle=0,
                    translate=[steps.shift, 0],
                    scale=1,
                    shear=[0, 0],
                    interpolation=_interpolation(one),
                    fill=fill,
                )
                for one, fill in zip(inputs, fills, strict=True)
            ]
        inputs = [F.resize(one, list(steps.size), interpolation=_interpolation(one)) for one in inputs]
        if steps.flip:
            inputs = [F.horizontal_flip(one) for one in inputs]
        if self.normalize is not None:
            mean, std = ([value / 255 for value in values] for values in (self.normalize.mean, self.normalize.std))
            inputs[0] = F.normalize(F.to_dtype(inputs[0], torch.float32, scale=True), mean, std)
        right, below = steps.padded[1] - steps.size[1], steps.padded[0] - steps.size[0]
        if right or below:
            inputs = [F.pad(one, [0, 0, right, below]) for one in inputs]
        image, masks, boxes = inputs
        boxes, valid = F.sanitize_bounding_boxes(boxes, min_size=1)
        return Output(image, boxes.numpy(), sample.ids[valid.numpy()], masks[valid])


def _interpolation(value: torch.Tensor) -> InterpolationMode:
    return InterpolationMode.BILINEAR if isinstance(value, tv_tensors.Image) else InterpolationMode.NEAREST
