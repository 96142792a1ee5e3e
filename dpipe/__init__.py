"""Data pipelines for object detection and instance segmentation, on NVIDIA DALI and on OpenCV.

The public names below are imported from their modules when they are first used, so that ``import dpipe`` costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, whose import would take longer than all the rest
if TYPE_CHECKING:
    from typing import Any

    from dpipe.adapters import to_detr, to_tensors, to_torchvision
    from dpipe.backends.dali_options import DaliOptions
    from dpipe.batch import Batch
    from dpipe.coco import CocoIndex
    from dpipe.errors import BadSampleError, InputError
    from dpipe.loader import DetectionLoader
    from dpipe.looking.check import CheckReport, check_dataset
    from dpipe.looking.stats import DatasetStats, dataset_stats
    from dpipe.operations.albumentations_op import Albumentations
    from dpipe.operations.colours import Brightness, Color, Contrast, Equalize
    from dpipe.operations.cropping import LargeScaleJitter, MinIoURandomCrop, RandomCrop
    from dpipe.operations.geometric import RandomFlip, Resize, Rotate, Shear, Translate
    from dpipe.operations.operation import Operation
    from dpipe.outlines.polygon_torch import bitmaps_on, grids_on
    from dpipe.plan import SamplePlan
    from dpipe.policy import Augment, AutoAugment, Normalize, Pad, RandAugment
    from dpipe.polygons import Polygons
    from dpipe.sampler import BatchSampler
    from dpipe.target import Target, make_target

HOMES = {
    "adapters": ["to_detr", "to_tensors", "to_torchvision"],
    "backends.dali_options": ["DaliOptions"],
    "batch": ["Batch"],
    "looking.check": ["CheckReport", "check_dataset"],
    "coco": ["CocoIndex"],
    "errors": ["BadSampleError", "InputError"],
    "loader": ["DetectionLoader"],
    "plan": ["SamplePlan"],
    "operations.albumentations_op": ["Albumentations"],
    "operations.cropping": ["LargeScaleJitter", "MinIoURandomCrop", "RandomCrop"],
    "operations.colours": ["Brightness", "Color", "Contrast", "Equalize"],
    "operations.geometric": ["RandomFlip", "Resize", "Rotate", "Shear", "Translate"],
    "operations.operation": ["Operation"],
    "policy": ["Augment", "AutoAugment", "Normalize", "Pad", "RandAugment"],
    "outlines.polygon_torch": ["bitmaps_on", "grids_on"],
    "polygons": ["Polygons"],
    "sampler": ["BatchSampler"],
    "looking.stats": ["DatasetStats", "dataset_stats"],
    "target": ["Target", "make_target"],
}
MODULES = {name: f"dpipe.{module}" for module, names in HOMES.items() for name in names}

__all__ = [
    "Albumentations",
    "Augment",
    "AutoAugment",
    "BadSampleError",
    "Batch",
    "BatchSampler",
    "Brightness",
    "CheckReport",
    "CocoIndex",
    "Color",
    "Contrast",
    "DaliOptions",
    "DatasetStats",
    "DetectionLoader",
    "Equalize",
    "InputError",
    "LargeScaleJitter",
    "MinIoURandomCrop",
    "Normalize",
    "Operation",
    "Pad",
    "Polygons",
    "RandAugment",
    "RandomCrop",
    "RandomFlip",
    "Resize",
    "Rotate",
    "SamplePlan",
    "Shear",
    "Target",
    "Translate",
    "bitmaps_on",
    "check_dataset",
    "dataset_stats",
    "grids_on",
    "make_target",
    "to_detr",
    "to_tensors",
    "to_torchvision",
]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'dpipe' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *MODULES])
