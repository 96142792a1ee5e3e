"""The names of the numbers that each kind of evaluation gives, known before anything is evaluated."""

from __future__ import annotations

from detect.metrics.scores import Kind, Options

_COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_PROPOSALS = ("AR100", "AR300", "AR1000")
_NAMES: dict[Kind, tuple[str, ...]] = {
    "bbox": _COCO,
    "segm": _COCO,
    "proposal": (*_PROPOSALS, "ARs", "ARm", "ARl"),
    "cityscapes": ("AP", "AP50"),
}


def metric_names(kind: Kind, options: Options = Options()) -> tuple[str, ...]:
    """The names in ``Scores.metrics``, in their order.

    Args:
        kind: What is evaluated.
        options: How; ``voc`` names its numbers by the IoUs.
    """
    if kind == "voc":
        from detect.metrics.voc import ap_name

        return ("mAP", *dict.fromkeys(map(ap_name, options.voc_ious)))
    if kind == "proposal_fast":
        from detect.metrics.recall import IOUS, PROPOSALS, recall_name

        return (*_PROPOSALS, *(recall_name(most, iou) for most in PROPOSALS for iou in IOUS.tolist()))
    return _NAMES[kind]
