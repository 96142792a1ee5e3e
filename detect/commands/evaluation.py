"""``detect test`` and ``detect eval``: a model, or detections that are there already, against a data set."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detect.metrics.scores import KINDS, Kind, Options
from detect.options import (
    AcceleratorName,
    AcceleratorOption,
    CheckpointArgument,
    ConfigArgument,
    DebugOption,
    DevicesOption,
    OverridesArgument,
    TtaOption,
    accelerator_of,
    plain_console,
)
from dpipe.cli_errors import one_line_errors

if TYPE_CHECKING:
    from rich.console import Console

    from detect.metrics.scores import Scores


class KindName(str, Enum):
    """What can be evaluated."""

    bbox = "bbox"
    segm = "segm"
    proposal = "proposal"
    proposal_fast = "proposal_fast"
    voc = "voc"
    cityscapes = "cityscapes"


class VocModeName(str, Enum):
    """How VOC's precision is averaged."""

    area = "area"
    eleven_points = "11points"


def is_number(word: str) -> bool:
    """Whether a word is a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True


KIND_WORDS = {"--eval": frozenset(KINDS).__contains__}
EVAL_WORDS = {**KIND_WORDS, "--voc-iou": is_number}

WHAT = f"What to evaluate, of {', '.join(KINDS)}; several as in --eval bbox segm"


def evaluate_model(
    config: ConfigArgument,
    checkpoint: CheckpointArgument,
    overrides: OverridesArgument = None,
    kinds: Annotated[
        list[KindName] | None,
        typer.Option(
            "--eval",
            metavar="KIND...",
            help=f"{WHAT} (default: evaluation.kinds of the recipe, else proposal for a model that only proposes, else "
            "bbox, and segm where model and data have masks). Values of evaluation.* choose more, such as "
            "evaluation.voc_mode=11points",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the detections there, as COCO results JSON")
    ] = None,
    tta: TtaOption = False,
    devices: DevicesOption = 1,
    accelerator: AcceleratorOption = AcceleratorName.auto,
    debug: DebugOption = False,
) -> None:
    """Evaluate a checkpoint on the recipe's validation set."""
    with one_line_errors(debug):
        from detect.config import load_config

        recipe = load_config(config, overrides or [])  # a wrong name is told before PyTorch loads
        from detect.evaluation import evaluate

        console = plain_console()
        all_scores = evaluate(
            recipe,
            checkpoint,
            _kinds(kinds),
            out=out,
            tta=tta,
            devices=devices,
            accelerator=accelerator_of(accelerator),
            console=console,
        )
        _print(all_scores, console)


def evaluate_file(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Detections as COCO results JSON")],
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="The COCO JSON of their data set")],
    kinds: Annotated[
        list[KindName] | None,
        typer.Option(
            "--eval",
            metavar="KIND...",
            help=f"{WHAT} (default: bbox, and segm where both files have masks)",
        ),
    ] = None,
    voc_mode: Annotated[
        VocModeName, typer.Option(help="voc: average precision at 11 recalls (VOC 2007), or the area under the curve")
    ] = VocModeName.area,
    voc_iou: Annotated[
        list[float] | None,
        typer.Option(metavar="IOU...", help="voc: IoUs from which on a box counts as found (default: 0.5)"),
    ] = None,
    voc_inclusive: Annotated[
        bool, typer.Option("--voc-inclusive", help="voc: boxes end with their last pixel, as mmdetection's on VOC")
    ] = False,
    cityscapes_gt: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="cityscapes: folder with *_gtFine_instanceIds.png (default: gtFine beside the annotations' folder)",
        ),
    ] = None,
    cityscapes_out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="cityscapes: keep the files that its evaluator reads")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Evaluate detections that are there already, of whatever program, without a model."""
    with one_line_errors(debug):
        options = Options(
            voc_mode=voc_mode.value,
            voc_ious=tuple(voc_iou or (0.5,)),
            voc_inclusive=voc_inclusive,
            cityscapes_gt=cityscapes_gt,
            cityscapes_out=cityscapes_out,
        )
        from detect.metrics.evaluating import evaluate_results

        console = plain_console()
        _print(evaluate_results(results, annotations, _kinds(kinds), options, say=console.print), console)


def _kinds(names: Sequence[KindName] | None) -> list[Kind]:
    """The kinds in the order given."""
    return [name.value for name in names or ()]


def _print(all_scores: Sequence[Scores], console: Console) -> None:
    """Prints tables of all classes, and one for each kind."""
    from detect.metrics.tables import class_tables, score_table

    for table in [*class_tables(all_scores), *map(score_table, all_scores)]:
        console.print(table)
