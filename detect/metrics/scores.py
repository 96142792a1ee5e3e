"""The kinds of evaluation, what can be chosen about them, and what each of them gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dpipe.errors import InputError

Kind = Literal["bbox", "segm", "proposal", "proposal_fast", "voc", "cityscapes"]
KINDS: tuple[Kind, ...] = get_args(Kind)
VocMode = Literal["11points", "area"]
VOC_MODES: tuple[VocMode, ...] = get_args(VocMode)

MAIN_METRICS: dict[str, str] = {
    "bbox": "AP",
    "segm": "AP",
    "proposal": "AR1000",
    "proposal_fast": "AR1000",
    "voc": "mAP",
    "cityscapes": "AP",
}
"""The number of each kind by which a training run tells which of its checkpoints is best."""
NEED_MASKS = frozenset({"segm", "cityscapes"})
NEED_CLASSES = frozenset({"bbox", "segm", "voc", "cityscapes"})


@dataclass(frozen=True)
class Options:
    """What can be chosen about an evaluation.

    Attributes:
        voc_mode: How the precision of ``voc`` is averaged: at 11 recalls (VOC 2007), or as the area under the curve.
        voc_ious: IoUs from which on ``voc`` counts a box as found; ``mAP`` is the mean over them.
        voc_inclusive: Whether boxes end with their last pixel, as models of mmdetection on VOC predict them; for
            ``voc``, their right and bottom edges are moved by one pixel.
        cityscapes_gt: The folder with ``*_gtFine_instanceIds.png``; by default the ``gtFine`` beside the folder of the
            annotations.
        cityscapes_out: Keeps the files that Cityscapes' evaluator reads; by default they are temporary.

    Raises:
        InputError: For a mode or an IoU that makes no sense.
    """

    voc_mode: VocMode = "area"
    voc_ious: tuple[float, ...] = (0.5,)
    voc_inclusive: bool = False
    cityscapes_gt: str | Path | None = None
    cityscapes_out: str | Path | None = None

    def __post_init__(self) -> None:
        if self.voc_mode not in VOC_MODES:
            raise InputError(f"voc_mode is {self.voc_mode!r}; expected {' or '.join(map(repr, VOC_MODES))}")
        if not self.voc_ious or not all(0 < iou <= 1 for iou in self.voc_ious):
            raise InputError(f"voc_ious are {list(self.voc_ious)}; expected IoUs above 0 and up to 1")


@dataclass(frozen=True)
class Scores:
    """The result of one evaluation.

    Attributes:
        kind: What was evaluated.
        metrics: The numbers by name, from 0 to 1; -1 where the data set has no object to count.
        per_class: Numbers of each class, in the order of the class names; NaN where it has no object. Empty for
            proposals, which have no class.
        settings: What the numbers depend on, such as the number of detections that count; for a table's title.
    """

    kind: Kind
    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    settings: str = ""

    @property
    def main(self) -> float:
        """The number by which checkpoints are compared."""
        return self.metrics[MAIN_METRICS[self.kind]]


def main_of_record(record: Mapping[str, Any]) -> float:
    """The main metric of the first kind in the record of an evaluation in ``train.jsonl``.

    Raises:
        KeyError: If the record has none.
    """
    kind = next(iter(key for key in record if key in MAIN_METRICS), "no kind of evaluation")
    return float(record[kind][MAIN_METRICS[kind]])
