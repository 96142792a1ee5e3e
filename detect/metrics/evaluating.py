"""Runs the kinds of evaluation, and chooses and checks which can be run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from detect.metrics.cityscapes import check_classes, evaluate_cityscapes, truth_files
from detect.metrics.coco import evaluate_coco, evaluate_proposals, objects_without_masks, require_masks
from detect.metrics.recall import evaluate_recall
from detect.metrics.results import Results, check_ids, read_results
from detect.metrics.scores import KINDS, NEED_CLASSES, NEED_MASKS, Kind, Options, Scores
from detect.metrics.voc import evaluate_voc
from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.files import check_writable


def evaluate_results(
    results: str | Path | Results,
    annotations: str | Path | CocoIndex,
    kinds: Sequence[Kind] | Kind = (),
    options: Options = Options(),
    image_ids: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Scores]:
    """Evaluates detections that are there already.

    Args:
        results: A JSON file in COCO's results format, or detections.
        annotations: The data set's COCO JSON.
        kinds: What is evaluated, one kind or several; by default ``bbox``, and ``segm`` where the results and all
            objects have masks.
        options: What can be chosen about the kinds.
        image_ids: Ids of the images that count; all where not given.
        say: Is told where masks are left out without ``kinds``, as the results or the data set have none.

    Returns:
        The scores in the order of ``kinds``, each once.

    Raises:
        InputError: If a file cannot be used, results have ids that the data set does not have, or something that a kind
            needs is not there.
    """
    index = annotations if isinstance(annotations, CocoIndex) else CocoIndex.load(annotations)
    kinds = several(kinds)
    check_kinds(kinds, index, options)
    if isinstance(results, Results):
        found = results
        check_ids(found, index)
    else:
        found = read_results(results, index)
    if not kinds:
        kinds, note = default_kinds(index, found)
        if index.has_masks and found.masks is None and len(found):
            note = "segm is not evaluated, as the results have no masks"
        if note:
            say(note)
    return [_evaluate(found, index, kind, options, image_ids) for kind in dict.fromkeys(kinds)]


def several(kinds: Sequence[Kind] | Kind) -> Sequence[Kind]:
    """Kinds of evaluation as they are given: one may come without a list around it."""
    return (kinds,) if isinstance(kinds, str) else kinds


def default_kinds(index: CocoIndex, results: Results, proposes: bool = False) -> tuple[tuple[Kind, ...], str]:
    """What is evaluated where nobody says.

    Args:
        index: The data set.
        results: The detections.
        proposes: Whether they are proposals.

    Returns:
        The kinds: ``proposal`` for proposals; else boxes, and masks where the results and all objects have them. And a
        line for the user where the results have masks that are left out, as objects have none, else an empty string.
    """
    if proposes:
        return ("proposal",), ""
    if results.masks is None:
        return ("bbox",), ""
    bare = len(objects_without_masks(index))
    if bare:
        return ("bbox",), f"{index.path}: segm is not evaluated, as {bare} of {len(index.labels)} objects have no mask"
    return ("bbox", "segm"), ""


def check_kinds(
    kinds: Sequence[Kind], index: CocoIndex, options: Options, *, proposes: bool = False, has_masks: bool = True
) -> None:
    """Checks what can be known before there are results.

    Args:
        kinds: What is to be evaluated.
        index: The data set.
        options: What can be chosen about the kinds.
        proposes: Whether the results will be proposals, which have no classes.
        has_masks: Whether the results can have masks.

    Raises:
        InputError: If there is no such kind, the data set lacks what it needs, or the results will lack the classes or
            masks that it needs.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"there is no evaluation of the kind {kind!r}; expected one of {', '.join(KINDS)}")
        if proposes and kind in NEED_CLASSES and len(index.class_names) > 1:
            raise InputError(
                f"the model finds proposals, without their classes: {kind} evaluation needs these, "
                "proposal and proposal_fast do not"
            )
        if kind in NEED_MASKS and not has_masks:
            raise InputError(f"the model predicts no masks: {kind} evaluation needs them, bbox does not")
        if kind == "segm":
            require_masks(index)
        if kind == "cityscapes":
            check_classes(index)
            truth_files(index, options.cityscapes_gt)
            if options.cityscapes_out is not None:
                check_writable(Path(options.cityscapes_out))


def _evaluate(
    results: Results, index: CocoIndex, kind: Kind, options: Options, image_ids: Sequence[int] | None
) -> Scores:
    if kind == "bbox" or kind == "segm":
        return evaluate_coco(results, index, kind, image_ids)
    if kind == "proposal":
        return evaluate_proposals(results, index, image_ids)
    if kind == "proposal_fast":
        return evaluate_recall(results, index, image_ids)
    if kind == "voc":
        return evaluate_voc(
            results,
            index,
            mode=options.voc_mode,
            ious=options.voc_ious,
            inclusive=options.voc_inclusive,
            image_ids=image_ids,
        )
    return evaluate_cityscapes(
        results, index, truth=options.cityscapes_gt, out=options.cityscapes_out, image_ids=image_ids
    )
