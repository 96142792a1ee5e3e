"""``detect analyze``: what costs the average precision of detections, and how two results differ."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.running.signals import exit_on_sigterm
from detect.options import DebugOption, folder_given
from dpipe.cli_errors import one_line_errors
from dpipe.cli_text import table_console

if TYPE_CHECKING:
    from detect.analysis.matching import MaskOrBox


class MaskOrBoxName(str, Enum):
    """What is compared."""

    bbox = "bbox"
    segm = "segm"


def analyze(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Detections as COCO results JSON")],
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="The COCO JSON of their data set")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", parser=folder_given, help="Gets analysis.json and plots"),
    ],
    kind: Annotated[
        MaskOrBoxName | None,
        typer.Option(help="Whether boxes or masks are compared (default: masks, where both files have them)"),
    ] = None,
    iou: Annotated[float, typer.Option(help="IoU from which on an object counts as found")] = 0.5,
    background_iou: Annotated[
        float, typer.Option(help="IoU up to which a detection counts as one of the background")
    ] = 0.1,
    score: Annotated[
        float, typer.Option(help="Score from which on detections count in the confusion matrix, and only there")
    ] = 0.3,
    compare: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Other results on the same data set, to compare with")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=1, help="Data sets drawn for the confidence intervals of --compare")
    ] = 1000,
    debug: DebugOption = False,
) -> None:
    """Tell what costs average precision: errors by kind, class and size, confusions, calibration, curves."""
    with one_line_errors(debug), exit_on_sigterm():
        from detect.analysis.analyzing import analyze as analyze_results
        from detect.analysis.comparing import compare as compare_analyses
        from detect.analysis.tables import calibration_line, comparison_tables, summary_tables
        from detect.analysis.writing import write_analysis
        from dpipe.coco import CocoIndex
        from dpipe.files import writable_folder

        with writable_folder(output):
            index = CocoIndex.load(annotations)
            chosen: MaskOrBox | None = None if kind is None else kind.value
            first = analyze_results(results, index, kind=chosen, iou=iou, background_iou=background_iou, score=score)
            comparison = None
            if compare is not None:
                second = analyze_results(
                    compare, index, kind=first.kind, iou=iou, background_iou=background_iou, score=score
                )
                comparison = compare_analyses(first, second, resamples=resamples)
            console = table_console()
            for table in summary_tables(first):
                console.print(table)
            console.print(calibration_line(first))
            for table in comparison_tables(comparison) if comparison is not None else ():
                console.print(table)
            for path in write_analysis(first, output, comparison):
                typer.echo(str(path))
