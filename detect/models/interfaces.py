"""What the parts of a detector expect of each other.

A user's own part needs these methods and attributes, and no base class. Backbones map images (N, 3, H, W) to levels,
necks levels to levels; both have ``channels`` and ``strides``, a number for each level that they make. Assigners and
samplers are in ``assign``, suppressions in ``nms``.

Shapes and names:
    N images; R RoIs of all images; P positives of them; K classes; C, S channels and side of RoI features.
    features: the levels of the pyramid, finest first, each (N, C, H_l, W_l).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor, nn

from detect.models.assign import Samples
from detect.models.boxes import DeltaCoder
from detect.models.detections import Detections

if TYPE_CHECKING:
    from dpipe.target import Target

Proposals = tuple[Tensor, Tensor]
"""Boxes (n, 4) and scores (n,) of one image, best first."""


class DenseHead(Protocol):
    """Predictions at every position of every level. Any dense head can propose for a two-stage detector."""

    def loss(self, features: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Scalar losses."""
        ...

    def propose(self, features: Sequence[Tensor], targets: Sequence[Target]) -> list[Proposals]:
        """For each image its best boxes, without gradient. Of targets only ``size`` is read."""
        ...


@runtime_checkable
class JointDenseHead(DenseHead, Protocol):
    """A dense head that saves a two-stage detector in training the second forward pass."""

    def loss_and_propose(
        self, features: Sequence[Tensor], targets: Sequence[Target]
    ) -> tuple[dict[str, Tensor], list[Proposals]]:
        """Both from one forward pass."""
        ...


class DenseDetectionHead(Protocol):
    """A dense head that finds objects itself.

    Attributes:
        num_classes: K, without the background.
    """

    num_classes: int

    def loss(self, features: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Scalar losses."""
        ...

    def predict(self, features: Sequence[Tensor], targets: Sequence[Target]) -> list[Detections]:
        """Detections of each image in coordinates of the original image."""
        ...


class RoIHead(Protocol):
    """Detections from proposals, of which there is one tensor (n, 4) an image."""

    def sample(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> list[Samples]:
        """The RoIs of each image to train on. Features are for samplers that choose by losses."""
        ...

    def loss(
        self, features: Sequence[Tensor], samples: Sequence[Samples], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Scalars, of which those with "loss" in their names are losses."""
        ...

    def predict(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> list[Detections]:
        """Detections of each image in coordinates of the original image."""
        ...


@runtime_checkable
class MaskingRoIHead(RoIHead, Protocol):
    """A RoI head that draws masks in boxes that it is given, so that those of several views can be averaged.

    Attributes:
        mask_thr: From this probability on a pixel belongs to the object.
    """

    mask_thr: float

    @property
    def mask_head(self) -> nn.Module | None:
        """None where it predicts no masks."""
        ...

    def predict_boxes(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target], rescale: bool
    ) -> list[Detections]:
        """Detections without masks, in the original images' coordinates if ``rescale``, else in the input's."""
        ...

    def predict_masks(self, features: Sequence[Tensor], detections: Sequence[Detections]) -> list[Tensor]:
        """Probabilities (n_i, S, S) of the masks of each image's detections, which are in the input's coordinates."""
        ...


class BBoxHead(Protocol):
    """A module that maps RoI features to logits and deltas, and how to read them.

    Attributes:
        num_classes: K, without the background.
        reg_class_agnostic: Whether a RoI has four deltas whatever its class.
        coder: How deltas are encoded.
        loss_cls: Called with logits (R, K + 1), the last column the background's, and labels (R,).
        takes_box_features: Whether it may be called with a second argument, features that boxes are predicted from; a
            head without this attribute may not.
        loss_bbox: Called with deltas (P, 4) and their targets; or with boxes in pixels (P, 4) and the ground truths' if
            it has an attribute ``takes_boxes`` that is true.
    """

    num_classes: int
    reg_class_agnostic: bool
    coder: DeltaCoder
    loss_cls: nn.Module
    loss_bbox: nn.Module

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """RoI features (R, C, S, S) to logits (R, K + 1) and deltas (R, 4) or (R, 4 * K)."""
        ...


class MaskHead(Protocol):
    """A module that maps RoI features to a mask for every class.

    Attributes:
        loss_mask: Called with logits (P, S, S) of the ground truths' classes and targets of 0 and 1.
    """

    loss_mask: nn.Module

    def __call__(self, features: Tensor) -> Tensor:
        """RoI features (P, C, s, s) to logits (P, K, S, S)."""
        ...
