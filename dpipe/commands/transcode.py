"""``dpipe transcode``: a data set's images in another format."""

from __future__ import annotations

import math
import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.report import counted
from converters.running.progress import progress
from converters.running.signals import exit_on_sigterm
from dpipe.cli_common import FailOrSkip
from dpipe.cli_errors import one_line_errors
from dpipe.cli_text import table_console

if TYPE_CHECKING:
    from dpipe.looking.transcode import TranscodeReport

EPILOG = (
    "Which format? No GPU decodes PNG: DALI does it on the CPU, which then has no time for anything else. Lossless "
    "JPEG 2000 (jp2) keeps every pixel and is decoded on the GPU, but on the CPU it takes many times as long as PNG: "
    "for training with DALI on a GPU. JPEG (quality 95) is the fastest everywhere and the smallest, and changes "
    "pixels by a few grey levels: see the PSNR. Lossless WebP keeps every pixel in less space than PNG, and is decoded "
    "on the CPU about as fast. "
    "Pixels are 8-bit RGB as the pipelines see them; colour profiles and other metadata are left out. With "
    "--annotations, an image that EXIF data turn is written turned if that is what the annotations belong to. "
    "Without, a JPEG keeps its orientation tag, and jp2 and webp, which have none, refuse such an image."
)


class FormatChoice(str, Enum):
    """What to write."""

    jpeg = "jpeg"
    jp2 = "jp2"
    webp = "webp"


def transcode(
    images: Annotated[
        Path, typer.Argument(help="Folder of images, with those in folders below it", show_default=False)
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write into, with the same names", show_default=False)
    ],
    to: Annotated[
        FormatChoice,
        typer.Option(
            "--to",
            help="jp2 (lossless JPEG 2000, which a GPU decodes; PNG none does), jpeg or webp",
            show_default=False,
        ),
    ],
    quality: Annotated[
        int | None,
        typer.Option(metavar="1..100", help="Of jpeg and lossy webp (default: 95)", show_default=False),
    ] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Let webp keep every pixel, as jp2 always does")] = False,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(
            "--annotations",
            "-a",
            metavar="FILE",
            help="COCO JSON whose file names are relative to IMAGES: only the images it names are taken, and it is "
            "written into OUT under its own name, with the new file names in it and without images that were left "
            "out. May be repeated",
            show_default=False,
        ),
    ] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="Images in work at a time (default: all cores)")] = None,
    on_error: Annotated[
        FailOrSkip,
        typer.Option(
            help="Whether a bad image ends the command, or is left out, of the annotations in OUT too, and listed at "
            "the end"
        ),
    ] = FailOrSkip.fail,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Write into a folder that is not empty: files of the same names are replaced, all others stay",
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
) -> None:
    """Write a data set's images in another format, under the same names with another ending."""
    with one_line_errors(debug), exit_on_sigterm():
        from converters.running.runner import available_cores
        from dpipe.images.encode import Encoding
        from dpipe.looking.transcode import plan_transcoding, run_transcoding

        encoding = Encoding(to.value, quality, lossless)
        plan = plan_transcoding(images, output, encoding, annotations or (), overwrite=overwrite)
        with progress(f"writing {to.value}", len(plan.jobs), shown=True) as advance:
            report = run_transcoding(plan, nproc=nproc or available_cores(), on_error=on_error.value, advance=advance)
    _show(report)


def _show(report: TranscodeReport) -> None:
    from rich.table import Table

    table = Table()
    for title in ("images", "before", "after", "after/before", "mean PSNR", "worst PSNR"):
        table.add_column(title, justify="right")
    table.add_row(
        str(report.images),
        _megabytes(report.before),
        _megabytes(report.after),
        f"{report.after / report.before:.2f}",
        _decibel(report.mean_psnr),
        _decibel(report.worst_psnr),
    )
    table_console().print(table)
    # Below the table, whose columns would break a path into pieces. Bytes that are no text cannot be printed.
    if math.isfinite(report.worst_psnr):
        typer.echo(f"worst: {_printable(report.worst)}")
    for path in report.annotations:
        typer.echo(f"annotations: {_printable(path)}")
    if report.skipped:
        also = ", from the annotations too" if report.annotations else ""
        typer.echo(f"left out {counted(len(report.skipped), 'image')} because of errors{also}:", err=True)
        for line in report.skipped:
            typer.echo(f"  {line}", err=True)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _decibel(psnr: float) -> str:
    return f"{psnr:.1f} dB" if math.isfinite(psnr) else "lossless"


def _printable(path: Path) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")
