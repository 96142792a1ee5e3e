"""``dpipe convert``: published data sets into COCO JSON."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


class Labels(str, Enum):
    """Cityscapes' two sets of annotations."""

    fine = "gtFine"
    coarse = "gtCoarse"


class Source(str, Enum):
    """The files that Cityscapes' instances are read from."""

    instance_ids = "instance-ids"
    polygons = "polygons"


class MaskFormat(str, Enum):
    """How masks are written."""

    rle = "rle"
    polygon = "polygon"


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
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Keep what is done in a file of the output folder until all is done, and go on from there if an earlier "
        "run with --resume was interrupted. Without it an interrupted run leaves nothing behind",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Tell what would be written, and write nothing")]
ReportOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write a JSON file that lists all that was left out or repaired, by file"),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")]

MasksOption = Annotated[
    MaskFormat,
    typer.Option(
        help="Write masks as run lengths, or as polygons along their exact pixel edges; masks with holes and crowd "
        "regions remain run lengths"
    ),
]

CITYSCAPES_NAMES = names_beside("leftImg8bit", "gtFine", "gtCoarse", "gtFine*.zip", "gtCoarse*.zip")
VOC_NAMES = names_beside("VOC[0-9][0-9][0-9][0-9]", "VOCdevkit", "Annotations", "JPEGImages", "VOC*.tar", "*.xml")

CITYSCAPES_FILES = (
    "Writes instancesonly_filtered_gtFine_<split>.json (or ..._gtCoarse_...) for each split. In it, file_name is "
    "relative to leftImg8bit/<split>. Published archives are read in place: gtFine_trainvaltest.zip or gtCoarse.zip, "
    "and beside it leftImg8bit_trainvaltest.zip, if it is there, for the sizes of the images. A split or city that has "
    "images or annotations only is left out; --splits test without annotations lists the images."
)
VOC_FILES = (
    "Writes one file for each split, voc_<years>_<split>.json. Years that have a split of the same name are joined: "
    "--years 2007,2012 --splits trainval writes voc_2007_2012_trainval.json. For a file per year, convert one year at "
    "a time, or with --apart. In the files, file_name is relative to VOCdevkit, or to ROOT where that holds no such "
    "folder. A set without ImageSets becomes one split, all. Classes are Pascal VOC's 20 or, where another name "
    "occurs, the names in all annotation files of the chosen years, sorted: their ids do not depend on the splits "
    "chosen."
)


@app.command(epilog=CITYSCAPES_FILES, cls=several_values({"--splits": CITYSCAPES_NAMES, "--classes": CITYSCAPES_NAMES}))
def cityscapes(
    root: Annotated[
        Path | None,
        typer.Argument(
            help="Folder with leftImg8bit and gtFine or with their zip archives, or one of these archives "
            "(default: $CITYSCAPES_DATASET if set, else data/cityscapes)",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = None,
    nproc: NprocOption = None,
    splits: SplitsOption = None,
    labels: Annotated[Labels, typer.Option(help="The annotations to convert, fine or coarse")] = Labels.fine,
    source: Annotated[
        Source,
        typer.Option(
            help="Read the label images *_instanceIds.png, or paint the annotators' *_polygons.json, far objects first"
        ),
    ] = Source.instance_ids,
    masks: MasksOption = MaskFormat.rle,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME...",
            help="Classes to convert: --classes person car, or person,car (default: the 8 that are evaluated)",
        ),
    ] = None,
    min_area: Annotated[int, typer.Option(min=0, help="Leave out objects of fewer pixels; crowd regions are kept")] = 0,
    on_error: OnErrorOption = FailOrSkip.fail,
    report: ReportOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    debug: DebugOption = False,
) -> None:
    """Convert Cityscapes' instance annotations."""
    with one_line_errors(debug, ConversionError), _told_to_resume(resume):
        from converters import convert_cityscapes

        _check_report(report)
        _show(
            convert_cityscapes(
                root,
                output,
                splits=_names(splits),
                labels=labels.value,
                source=source.value,
                classes=_names(classes),
                min_area=min_area,
                outline=_outline(masks),
                nproc=nproc,
                on_error=on_error.value,
                resume=resume,
                dry_run=dry_run,
                show_progress=True,
            ),
            report,
        )


@app.command(epilog=VOC_FILES, cls=several_values({"--splits": VOC_NAMES, "--years": VOC_NAMES}))
def voc(
    root: Annotated[
        Path | None,
        typer.Argument(
            help="VOCdevkit folder, one VOC20xx folder, a folder of one's own with XML files and images, an archive of "
            "one of these, or a folder with the published archives VOC*.tar (default: data/VOCdevkit)",
            show_default=False,
        ),
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
    apart: Annotated[
        bool, typer.Option("--apart", help="Write a file for each year also where years have a split of the same name")
    ] = False,
    masks: MasksOption = MaskFormat.rle,
    strict: Annotated[
        bool, typer.Option("--strict", help="Treat a file that would be repaired as one that cannot be used")
    ] = False,
    on_error: OnErrorOption = FailOrSkip.fail,
    report: ReportOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    debug: DebugOption = False,
) -> None:
    """Convert Pascal VOC, with masks where SegmentationObject has them."""
    with one_line_errors(debug, ConversionError), _told_to_resume(resume):
        from converters import convert_voc

        _check_report(report)
        _show(
            convert_voc(
                root,
                output,
                years=_names(years),
                splits=_names(splits),
                joined=not apart,
                box_origin=int(box_origin.value),
                outline=_outline(masks),
                strict=strict,
                nproc=nproc,
                on_error=on_error.value,
                resume=resume,
                dry_run=dry_run,
                show_progress=True,
            ),
            report,
        )


@contextmanager
def _told_to_resume(resume: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if resume:
            typer.echo("what was done is kept: the same command goes on from there", err=True)
        raise


def _check_report(path: Path | None) -> None:
    """Raises an error for a report that cannot be written, before the work is done."""
    if path is not None:
        from dpipe.files import check_writable_file

        check_writable_file(path)


def _outline(masks: MaskFormat) -> Callable[[Sequence[dict[str, Any]]], list[Any]] | None:
    """Returns what the converters, which know nothing of dpipe, are to apply to their masks."""
    if masks is MaskFormat.rle:
        return None
    from dpipe.outlines.outline_masks import outline_masks

    return outline_masks


def _names(values: Sequence[str] | None) -> list[str] | None:
    """Takes apart what was separated by commas."""
    names = [name.strip() for value in values or () for name in value.split(",") if name.strip()]
    return names or None


def _show(report: ConversionReport, file: Path | None) -> None:
    """Prints the closing table and the files written, and on stderr what was left out.

    Args:
        report: What a converter returned.
        file: A file for all of it; None for none.
    """
    from rich.table import Table

    if report.planned:
        _show_plan(report)
        return
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
    if file is not None:
        from dpipe.files import write_whole

        write_whole(file, _as_json(report))


def _show_plan(report: ConversionReport) -> None:
    for split in report.splits:
        path = os.fsencode(split.path).decode(errors="backslashreplace")
        replaced = ", replacing the file that is there" if split.path.exists() else ""
        typer.echo(f"{split.name}: {counted(split.images, 'image')} would be converted into {path}{replaced}")
    for note in report.notes:
        typer.echo(note, err=True)


def _as_json(report: ConversionReport) -> bytes:
    """Returns all of a report."""
    import dataclasses

    import orjson

    content = dataclasses.asdict(report)
    for split in content["splits"]:
        split["path"] = os.fsencode(split["path"]).decode(errors="backslashreplace")
    del content["planned"]
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
