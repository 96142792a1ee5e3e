"""The section ``evaluation`` of a recipe."""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import Field, ValidationInfo, field_validator

from detect.metrics.names import metric_names
from detect.metrics.scores import KINDS, Kind, Options, VocMode
from detect.sections.section import Count, Section, mistake
from dpipe.building.problems import nearest, shorten

Scale = Annotated[list[Count], Field(min_length=2, max_length=2)]
Iou = Annotated[float, Field(gt=0, le=1)]


class Tta(Section):
    """The views of test-time augmentation, which ``--tta`` switches on; see ``docs/prediction.md``.

    Attributes:
        scales: What takes the place of the ``scale`` of the ``Resize`` in ``data.test_transforms``, one view each;
            ``null``: that scale alone.
        flip: Whether each view is looked at mirrored, left and right, as well.
    """

    scales: Annotated[list[Scale], Field(min_length=1)] | None = None
    flip: bool = True


class Evaluation(Section):
    """What is evaluated, after epochs of training and by ``detect test`` without ``--eval``.

    Attributes:
        kinds: ``bbox``, ``segm``, ``proposal``, ``proposal_fast``, ``voc``, ``cityscapes``. ``null``: ``proposal`` for
            a model that only proposes, else ``bbox``, and ``segm`` where the model and the data have masks.
        voc_mode: How ``voc`` averages precision: ``11points`` (VOC 2007) or ``area``.
        voc_ious: IoUs from which on ``voc`` counts a box as found.
        voc_inclusive: Whether the model's boxes end with their last pixel, as those of mmdetection's models on VOC.
        cityscapes_gt: The folder with ``*_gtFine_instanceIds.png``; ``null``: ``gtFine`` beside the annotations'.
        cityscapes_out: Keeps the files that Cityscapes' evaluator reads; ``null``: they are temporary.
        tta: See :class:`Tta`.
        best: The number by which training tells its best checkpoint, a kind and one of its metrics, such as
            ``bbox/AP50``; where ``kinds`` is ``null``, the kind is evaluated besides. ``null``: the main metric of the
            first kind.
    """

    kinds: Annotated[list[Kind], Field(min_length=1)] | None = None
    voc_mode: VocMode = "area"
    voc_ious: Annotated[list[Iou], Field(min_length=1)] = Field(default_factory=lambda: [0.5])
    voc_inclusive: bool = False
    cityscapes_gt: str | None = None
    cityscapes_out: str | None = None
    tta: Tta = Field(default_factory=Tta)
    best: str | None = None

    @field_validator("best")
    @classmethod
    def _is_metric(cls, best: str | None, info: ValidationInfo) -> str | None:
        if best is None or info.data.keys() != cls.model_fields.keys() - {"best"}:
            return best  # what is wrong elsewhere is told there
        kind, _, metric = best.partition("/")
        kinds = info.data["kinds"] or KINDS
        if kind not in kinds:
            raise mistake(
                f"expected one of {', '.join(kinds)} before a slash, such as {kinds[0]}/..., got {shorten(best)}"
            )
        known = metric_names(cast(Kind, kind), Options(voc_ious=tuple(info.data["voc_ious"])))
        if metric not in known:
            raise mistake(f"{kind} has no {shorten(metric)}{nearest(metric, known)}")
        return best

    @property
    def best_parts(self) -> tuple[Kind, str]:
        """The kind and the metric that ``best``, which is not None, names."""
        kind, _, metric = str(self.best).partition("/")
        return cast(Kind, kind), metric

    @property
    def options(self) -> Options:
        """What can be chosen about the kinds."""
        values = self.model_dump(exclude={"kinds", "tta", "best"})
        return Options(**{**values, "voc_ious": tuple(self.voc_ious)})
