"""The section ``evaluation`` of a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from detect.metrics.scores import Kind, Options, VocMode
from detect.sections import Section

Iou = Annotated[float, Field(gt=0, le=1)]


class Evaluation(Section):
    """What is evaluated, after epochs of training and by ``detect test`` without ``--eval``.

    Attributes:
        kinds: ``bbox``, ``segm``, ``proposal``, ``proposal_fast``, ``voc``, ``cityscapes``; the best checkpoint is the
            one with the best main metric of the first. ``null``: ``proposal`` for a model that only proposes, else
            ``bbox``, and ``segm`` where the model and the data have masks.
        voc_mode: How ``voc`` averages precision: ``11points`` (VOC 2007) or ``area``.
        voc_ious: IoUs from which on ``voc`` counts a box as found.
        voc_inclusive: Whether the model's boxes end with their last pixel, as those of mmdetection's models on VOC.
        cityscapes_gt: The folder with ``*_gtFine_instanceIds.png``; ``null``: ``gtFine`` beside the annotations'.
        cityscapes_out: Keeps the files that Cityscapes' evaluator reads; ``null``: they are temporary.
    """

    kinds: Annotated[list[Kind], Field(min_length=1)] | None = None
    voc_mode: VocMode = "area"
    voc_ious: Annotated[list[Iou], Field(min_length=1)] = Field(default_factory=lambda: [0.5])
    voc_inclusive: bool = False
    cityscapes_gt: str | None = None
    cityscapes_out: str | None = None

    @property
    def options(self) -> Options:
        """What can be chosen about the kinds."""
        values = self.model_dump(exclude={"kinds"})
        return Options(**{**values, "voc_ious": tuple(self.voc_ious)})
