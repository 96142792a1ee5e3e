"""Two-stage detectors: a backbone, a neck and heads put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor, nn

from detect.models.arguments import check_classes, require
from detect.models.channels import check_levels
from detect.models.detections import Detections
from detect.models.interfaces import DenseHead, JointDenseHead, Proposals, RoIHead
from detect.models.roi_align import laid_out
from detect.models.roi_heads.auxiliary import AuxiliaryHead
from detect.models.single_stage import one_class, pyramid, require_proposing
from detect.registry import MODELS
from dpipe.errors import InputError

if TYPE_CHECKING:
    from dpipe.target import Target


@MODELS.register
class TwoStageDetector(nn.Module):
    """Proposals by a dense head, then a RoI head on them: Faster, Mask and Cascade R-CNN are all this class.

    Args:
        backbone: Maps images (N, 3, H, W) to levels, finest first.
        neck: Maps the backbone's levels to the pyramid that the heads read; None hands them to the heads as they are.
        rpn_head: Any dense head (``loss``, ``propose``; best with ``loss_and_propose``); it is built with one class.
        roi_head: Any RoI head (``sample``, ``loss``, ``predict``).
        auxiliary_head: Consistent supervision of the laterals of an AugFPN, in training.

    Raises:
        InputError: If parts do not fit each other.
    """

    level_parts: ClassVar[tuple[str, ...]] = ("backbone", "neck")
    part_context: ClassVar[dict[str, dict[str, Any]]] = {"rpn_head": {"num_classes": 1}}

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None,
        rpn_head: nn.Module,
        roi_head: nn.Module,
        auxiliary_head: AuxiliaryHead | None = None,
    ) -> None:
        super().__init__()
        if auxiliary_head is not None and not hasattr(neck, "pyramid_and_laterals"):
            owner = "a detector without a neck" if neck is None else type(neck).__name__
            raise InputError(f"TwoStageDetector: auxiliary_head needs raw laterals, which {owner} does not hand out")
        require_proposing(rpn_head, "TwoStageDetector: rpn_head")
        require(roi_head, ("sample", "loss", "predict"), "TwoStageDetector: roi_head")
        check_classes([roi_head] if auxiliary_head is None else [roi_head, auxiliary_head], "TwoStageDetector")
        self.backbone = backbone
        self.neck = neck
        self.rpn_head = rpn_head
        self.roi_head = roi_head
        self.auxiliary_head = auxiliary_head
        check_levels(self, rpn_head, auxiliary_head)

    def forward(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor] | list[Detections]:
        """Losses in training, detections in evaluation.

        Args:
            images: (N, 3, H, W) float, normalised, each image at the top left of the padded batch.
            targets: N targets on the images' device. In training their size, boxes, labels, ignore_boxes, masks
                and has_mask are read, in evaluation only size, original_size and matrix.

        Returns:
            In training a dict of scalars, of which those with "loss" in their names add up to the loss
            (:func:`total_loss`). In evaluation for each image its Detections in coordinates of the original image.
        """
        if self.training:
            return self._losses(images, targets)
        features, proposals = self.propose(images, targets)
        return cast(RoIHead, self.roi_head).predict(features, proposals, targets)

    def propose(self, images: Tensor, targets: Sequence[Target]) -> tuple[list[Tensor], list[Tensor]]:
        """The first stage alone, in evaluation.

        Returns:
            The pyramid as the RoI head reads it, finest first, and each image's proposals (n_i, 4), best first.
        """
        features = pyramid(self, images)
        proposals = cast(DenseHead, self.rpn_head).propose(features, targets)
        return laid_out(features), [boxes for boxes, _ in proposals]

    def _losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        if self.auxiliary_head is None:
            features = pyramid(self, images)
        else:
            features, laterals = cast(Any, self.neck).pyramid_and_laterals(self.backbone(images))
        roi_head = cast(RoIHead, self.roi_head)
        rpn_losses, proposals = self._loss_and_propose(features, one_class(targets))
        # A dense head that is a detector of its own calls its losses as a RoI head does.
        losses = {name if "rpn" in name else f"rpn_{name}": value for name, value in rpn_losses.items()}
        features = laid_out(features)
        samples = roi_head.sample(features, [boxes for boxes, _ in proposals], targets)
        losses.update(roi_head.loss(features, samples, targets))
        if self.auxiliary_head is not None:
            losses.update(self.auxiliary_head.loss(laid_out(laterals), samples, targets))
        return losses

    def _loss_and_propose(
        self, features: Sequence[Tensor], targets: Sequence[Target]
    ) -> tuple[dict[str, Tensor], list[Proposals]]:
        if isinstance(self.rpn_head, JointDenseHead):
            return self.rpn_head.loss_and_propose(features, targets)
        head = cast(DenseHead, self.rpn_head)
        return head.loss(features, targets), head.propose(features, targets)


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of those scalars that have "loss" in their names; others, such as an accuracy, are only logged."""
    return sum(
        (value for name, value in losses.items() if "loss" in name), start=next(iter(losses.values())).new_zeros(())
    )
