"""``dpipe convert``: published data sets into COCO JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.errors import ConversionError
from converters.report import counted
from dpipe.cli_common import FailOrSkip
from dpipe.cli_errors import one_line_errors
from dpipe.cli_options import names_beside, several_values
from dpipe.cli_text import table_console

if TYPE_CHECKING:
    from converters import ConversionReport

app = typer.Typer(help="Convert a data set into COCO JSON.", no_args_is_help=True)


class BoxOrigin(str, Enum):
    """The number that a data set gives to the first pixel."""

    one = "1"
    zero = "0"


OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to write into (default: ROOT/annotations)")
]
NprocOption = Annotated[int | None, typer.Option(min=1, help="Number of processes (default: all cores)")]
SplitsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME...", help="Splits to convert: --splits train val, or train,val (default: all with annotations)"
    ),
]
OnErrorOption = Annotated[
    FailOrSkip, typer.Option(help="Whether a bad image ends the conversion, or is left out and listed at the end")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")]

CITYSCAPES_NAMES = names_beside("leftImg8bit", "gtFine")
VOC_NAMES = names_beside("VOC[0-9][0-9][0-9][0-9]", "Annotations", "JPEGImages")

CITYSCAPES_FILES = (
    "Writes instancesonly_filtered_gtFine_<split>.json for each split. In it, file_name is relative to "
    "leftImg8bit/<split>."
)
VOC_FILES = (
    "Writes one file for each split, voc_<years>_<split>.json. Years that have a split of the same name are joined: "
    "--years 2007,2012 --splits trainval writes voc_2007_2012_trainval.json. For a file per year, convert one year at "
    "a time. In the files, file_name is relative to ROOT. Classes are Pascal VOC's 20 or, where another name occurs, "
    "the names in all annotation files of the chosen years, sorted: their ids do not depend on the splits chosen."
)


@app.command(epilog=CITYSCAPES_FILES, cls=several_values({"--splits": CITYSCAPES_NAMES}))
def cityscapes(
    root: Annotated[
        Path | None,
        typer.Argument(
            help="Folder with leftImg8bit and gtFine (default: $CITYSCAPES_DATASET if set, else data/cityscapes)",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = None,
    nproc: NprocOption = None,
    splits: SplitsOption = None,
    on_error: OnErrorOption = FailOrSkip.fail,
    debug: DebugOption = False,
) -> None:
    """Convert Cityscapes' fine instance annotations."""
    with one_line_errors(debug, ConversionError):
        from converters import convert_cityscapes

        _show(
            convert_cityscapes(
                root, output, splits=_names(splits), nproc=nproc, on_error=on_error.value, show_progress=True
            )
        )


@app.command(epilog=VOC_FILES, cls=several_values({"--splits": VOC_NAMES, "--years": VOC_NAMES}))
def voc(
    root: Annotated[
        Path | None,
        typer.Argument(help="VOCdevkit folder, or one VOC20xx folder (default: data/VOCdevkit)", show_default=False),
    ] = None,
    output: OutputOption = None,
    nproc: NprocOption = None,
    years: Annotated[
        list[str] | None,
        typer.Option(metavar="YEAR...", help="Years to convert: --years 2007 2012, or 2007,2012 (default: all)"),
    ] = None,
    splits: SplitsOption = None,
    box_origin: Annotated[
        BoxOrigin, typer.Option(help="The number that the boxes give to the first pixel; Pascal VOC counts from 1")
    ] = BoxOrigin.one,
    on_error: OnErrorOption = FailOrSkip.fail,
    debug: DebugOption = False,
) -> None:
    """Convert Pascal VOC, with masks where SegmentationObject has them."""
    with one_line_errors(debug, ConversionError):
        from converters import convert_voc

        _show(
            convert_voc(
                root,
                output,
                years=_names(years),
                splits=_names(splits),
                box_origin=int(box_origin.value),
                nproc=nproc,
                on_error=on_error.value,
                show_progress=True,
            )
        )


def _names(values: Sequence[str] | None) -> list[str] | None:
    """Takes apart what was separated by commas."""
    names = [name.strip() for value in values or () for name in value.split(",") if name.strip()]
    return names or None


def _show(report: ConversionReport) -> None:
    """Prints the closing table and the files written, and on stderr what was left out."""
    from rich.table import Table

    table = Table()
    table.add_column("split")
    for title in ("images", "instances", "masks", "crowd", "ignored", "categories"):
        table.add_column(title, justify="right")
    for split in report.splits:
        counts = (split.images, split.instances, split.masks, split.crowd, split.ignored, split.categories)
        table.add_row(split.name, *map(str, counts))
    table_console().print(table)
    for split in report.splits:
        # Below the table, whose columns would break a path into pieces. Bytes that are no text cannot be printed.
        path = os.fsencode(split.path).decode(errors="backslashreplace")
        typer.echo(f"{split.name}: {path}")
    for note in report.notes:
        typer.echo(note, err=True)
    if report.skipped:
        typer.echo(f"left out {counted(len(report.skipped), 'image')} because of errors:", err=True)
        for line in report.skipped:
            typer.echo(f"  {line}", err=True)
