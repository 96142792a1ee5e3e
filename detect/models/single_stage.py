"""Detectors of one stage: a backbone, a neck and a dense head, which finds objects or only proposes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from detect.models.arguments import require
from detect.models.channels import check_levels, check_output
from detect.models.detections import Detections, to_original
from detect.models.interfaces import DenseDetectionHead, DenseHead
from detect.registry import MODELS
from dpipe.errors import InputError

if TYPE_CHECKING:
    from dpipe.target import Target


@MODELS.register
class SingleStageDetector(nn.Module):
    """Objects found by a dense head alone: FCOS is this class with an FCOS head.

    Args:
        backbone: Maps images (N, 3, H, W) to levels, finest first.
        neck: Maps the backbone's levels to the pyramid that the head reads; None hands them to the head as they are.
        bbox_head: A dense head that detects (``loss``, ``predict``).

    Attributes:
        num_classes: K, of the head.

    Raises:
        InputError: If parts do not fit each other.
    """

    level_parts: ClassVar[tuple[str, ...]] = ("backbone", "neck")

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, bbox_head: nn.Module) -> None:
        super().__init__()
        require(bbox_head, ("loss", "predict", "num_classes"), "SingleStageDetector: bbox_head")
        self.backbone = backbone
        self.neck = neck
        self.bbox_head = bbox_head
        self.num_classes = cast(DenseDetectionHead, bbox_head).num_classes
        check_levels(self, bbox_head)

    def forward(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor] | list[Detections]:
        """Losses in training, detections in evaluation.

        Args:
            images: (N, 3, H, W) float, normalised, each image at the top left of the padded batch.
            targets: N targets on the images' device. In training their size, boxes and labels are read, in evaluation
                only size and matrix.

        Returns:
            In training a dict of scalars, in evaluation for each image its Detections in coordinates of the original
            image.
        """
        features = pyramid(self, images)
        head = cast(DenseDetectionHead, self.bbox_head)
        return head.loss(features, targets) if self.training else head.predict(features, targets)


@MODELS.register
class RPN(nn.Module):
    """A dense head that proposes, alone (Faster R-CNN, arXiv 1506.01497): where objects are, not of which class.

    The head is stored as ``bbox_head``, as in OpenMMLab's checkpoints; see ``load_weights`` for its way into the
    ``rpn_head`` of a two-stage detector and back.

    Args:
        backbone: Maps images (N, 3, H, W) to levels, finest first.
        neck: Maps the backbone's levels to the pyramid that the head reads; None hands them to the head as they are.
        rpn_head: Any dense head (``loss``, ``propose``); it is built with one class.

    Attributes:
        proposes: True: its predictions are proposals, which are measured by recall.

    Raises:
        InputError: If parts do not fit each other.
    """

    level_parts: ClassVar[tuple[str, ...]] = ("backbone", "neck")
    part_context: ClassVar[dict[str, dict[str, Any]]] = {"rpn_head": {"num_classes": 1}}
    proposes: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, rpn_head: nn.Module) -> None:
        super().__init__()
        require_proposing(rpn_head, "RPN: rpn_head")
        self.backbone = backbone
        self.neck = neck
        self.bbox_head = rpn_head
        check_levels(self, rpn_head)

    def forward(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor] | list[Detections]:
        """Losses in training, proposals in evaluation.

        Args:
            images: (N, 3, H, W) float, normalised, each image at the top left of the padded batch.
            targets: N targets on the images' device. In training their size, boxes and ignore_boxes are read, in
                evaluation only size and matrix.

        Returns:
            In training a dict of scalars, in evaluation for each image its proposals as Detections of label 0, in
            coordinates of the original image.
        """
        features = pyramid(self, images)
        head = cast(DenseHead, self.bbox_head)
        if self.training:
            return head.loss(features, one_class(targets))
        return [
            Detections(to_original(boxes, target), scores, torch.zeros_like(scores, dtype=torch.int64))
            for (boxes, scores), target in zip(head.propose(features, targets), targets, strict=True)
        ]


def pyramid(detector: nn.Module, images: Tensor) -> Sequence[Tensor]:
    """What heads read: the backbone's levels as the neck maps them, or without a neck as they are.

    Raises:
        InputError: In training, if a part of one's own does not make the levels that it tells.
    """
    features: Any = images
    for name in ("backbone", "neck"):
        part = getattr(detector, name)
        if part is not None:
            features = part(features)
            if detector.training:
                check_output(detector, name, images, features)
    return features


def one_class(targets: Sequence[Target]) -> list[Target]:
    """Targets whose objects are all of label 0, as a head that proposes sees them."""
    return [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]


def require_proposing(head: nn.Module, argument: str) -> None:
    """Checks that a dense head can propose, which it does with one class.

    Args:
        head: The head.
        argument: ``Class: argument``, for the message.

    Raises:
        InputError: If it cannot.
    """
    require(head, ("loss", "propose"), argument)
    num_classes = getattr(head, "num_classes", 1)
    if num_classes != 1:
        raise InputError(f"{argument} has num_classes {num_classes}, but a head that proposes has 1")
