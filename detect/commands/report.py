"""``detect report``: a page that tells of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from converters.running.signals import exit_on_sigterm
from detect.options import DebugOption
from dpipe.cli_errors import one_line_errors


def report(
    work_dir: Annotated[Path, typer.Argument(metavar="WORK_DIR", help="The work directory of a training run")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="What to write (default: report.html in WORK_DIR)"),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Show these detections in the validation set, COCO results JSON such as of detect test --out, instead "
            "of those that the run kept of its best evaluation",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Images to show, half of them those with the most mistakes")] = 12,
    debug: DebugOption = False,
) -> None:
    """Write a page on a training run: recipe, curves, metrics, sample predictions. Training does it at its end."""
    with one_line_errors(debug), exit_on_sigterm():
        from detect.reporting.report import report as make_report

        path = make_report(
            work_dir, out=output, results=results, samples=samples, say=lambda line: typer.echo(line, err=True)
        )
        typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
