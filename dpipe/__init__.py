"""Data pipelines for object detection and instance segmentation, on NVIDIA DALI and on OpenCV.

The public names below are imported from their modules when they are first used, so that ``import dpipe`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpipe.coco import CocoIndex as CocoIndex
    from dpipe.colours import Brightness as Brightness
    from dpipe.colours import Color as Color
    from dpipe.colours import Contrast as Contrast
    from dpipe.colours import Equalize as Equalize
    from dpipe.errors import BadSampleError as BadSampleError
    from dpipe.errors import InputError as InputError
    from dpipe.geometric import RandomFlip as RandomFlip
    from dpipe.geometric import Resize as Resize
    from dpipe.geometric import Rotate as Rotate
    from dpipe.geometric import Shear as Shear
    from dpipe.geometric import Translate as Translate
    from dpipe.loader import Batch as Batch
    from dpipe.loader import DetectionLoader as DetectionLoader
    from dpipe.operation import Operation as Operation
    from dpipe.plan import SamplePlan as SamplePlan
    from dpipe.policy import Augment as Augment
    from dpipe.policy import AutoAugment as AutoAugment
    from dpipe.policy import Normalize as Normalize
    from dpipe.policy import Pad as Pad
    from dpipe.polygons import Polygons as Polygons
    from dpipe.sampler import BatchSampler as BatchSampler
    from dpipe.target import Target as Target
    from dpipe.target import make_target as make_target

HOMES = {
    "coco": ["CocoIndex"],
    "errors": ["BadSampleError", "InputError"],
    "loader": ["Batch", "DetectionLoader"],
    "plan": ["SamplePlan"],
    "colours": ["Brightness", "Color", "Contrast", "Equalize"],
    "geometric": ["RandomFlip", "Resize", "Rotate", "Shear", "Translate"],
    "operation": ["Operation"],
    "policy": ["Augment", "AutoAugment", "Normalize", "Pad"],
    "polygons": ["Polygons"],
    "sampler": ["BatchSampler"],
    "target": ["Target", "make_target"],
}
MODULES = {name: f"dpipe.{module}" for module, names in HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'dpipe' has no attribute {name!r}")
    return getattr(importlib.import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *MODULES])
