"""Which detectors can be exported, told before any work is done."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from detect.models.dense_heads.fcos import FCOSHead
from detect.models.dense_heads.rpn import RPNHead
from detect.models.detectors import TwoStageDetector
from detect.models.nms import NMS
from detect.models.roi_heads.cascade import CascadeRoIHead
from detect.models.roi_heads.standard import StandardRoIHead
from detect.models.single_stage import RPN, SingleStageDetector
from dpipe.errors import InputError

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Checks that what writes and runs ONNX files is installed.

    Raises:
        InputError: If a package cannot be imported.
    """
    try:
        for name in ONNX_PACKAGES:
            importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"ONNX files need {', '.join(ONNX_PACKAGES)}, of which one cannot be imported ({error}): "
            "pip install 'dpipe-detect[export]'"
        ) from None


def check_exportable(detector: nn.Module) -> None:
    """Checks that a detector consists of parts whose results can be had in shapes that no image decides.

    Backbones, necks, extractors and the layers of bbox and mask heads may be any.

    Args:
        detector: What a recipe builds.

    Raises:
        InputError: For another detector, dense head or RoI head than the project's own, and for Soft-NMS, which is a
            loop as long as an image has objects.
    """
    if isinstance(detector, TwoStageDetector):
        _check_part(detector.rpn_head, (RPNHead, FCOSHead), "rpn_head")
        _check_part(detector.roi_head, (StandardRoIHead, CascadeRoIHead), "roi_head")
        _check_part(detector.roi_head.nms, (NMS,), "roi_head.nms")
    elif isinstance(detector, RPN):
        _check_part(detector.bbox_head, (RPNHead, FCOSHead), "rpn_head")
    else:
        _check_part(detector, (SingleStageDetector,), "")
        _check_part(detector.bbox_head, (FCOSHead,), "bbox_head")
        _check_part(getattr(detector.bbox_head, "nms", None), (NMS,), "bbox_head.nms")


def level_strides(detector: nn.Module) -> tuple[int, ...]:
    """Pixels per position of each level that a detector's dense head reads."""
    head: Any = detector.rpn_head if isinstance(detector, TwoStageDetector) else detector.bbox_head
    return tuple(head.level_strides)


def _check_part(part: Any, known: tuple[type, ...], key: str) -> None:
    """Raises InputError for a part of another class: one that is derived may compute something else."""
    if type(part) not in known:
        where = f"model.{key}" if key else "model"
        names = " or ".join(kind.__name__ for kind in known)
        raise InputError(f"{where}: {type(part).__name__} cannot be exported, only {names}")
