"""``dpipe preview``: augmented samples to look at, as a picture or as a page."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from converters.running.signals import exit_on_sigterm
from dpipe.cli_common import FailOrSkip, OnBadSampleOption
from dpipe.cli_errors import one_line_errors

DEFAULT_OUTPUT = Path("preview.png")


class BackendChoice(str, Enum):
    """What makes the pixels."""

    opencv = "opencv"
    dali = "dali"


def preview(
    annotations: Annotated[Path, typer.Argument(help="COCO JSON", show_default=False)],
    images: Annotated[Path, typer.Argument(help="Folder that its file names are relative to", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help=f"Picture to write: .png, .jpg or .webp (default: {DEFAULT_OUTPUT}, unless there is --html)",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Page to write: one file with switches for boxes, masks, names and classes, and what was done to each "
            "sample, beside its original",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Recipe, a file or a shipped name, whose data.train_transforms are shown (default: Rotate, Translate, "
            "Shear, Color, Brightness, Contrast and Equalize in turn, then Resize to 800x600 and RandomFlip). Checked "
            "are custom_imports and all data.*_transforms; what else it holds is its trainer's: see detect config",
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Show the data set as it is, without any augmentation")] = False,
    count: Annotated[int, typer.Option(min=1, help="Number of samples")] = 12,
    columns: Annotated[int, typer.Option(min=1, help="Samples in a row")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the order and of the augmentation")] = 0,
    epoch: Annotated[int, typer.Option(min=0, help="Each epoch has its own order and augmentation")] = 0,
    backend: Annotated[BackendChoice, typer.Option(help="What makes the pixels, on the CPU")] = BackendChoice.opencv,
    on_bad_sample: OnBadSampleOption = FailOrSkip.fail,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
) -> None:
    """Draw augmented samples with their boxes and masks: a contact sheet, or a page."""
    with one_line_errors(debug), exit_on_sigterm():
        from dpipe.building.recipe_transforms import recipe_augment
        from dpipe.coco import CocoIndex
        from dpipe.errors import InputError
        from dpipe.files import check_writable_file, write_whole
        from dpipe.looking.preview import DEFAULT_AUGMENT, check_picture_name, contact_sheet, write_image
        from dpipe.looking.preview_page import preview_page
        from dpipe.policy import Augment
        from dpipe.recipes import load_recipe

        if raw and config is not None:
            raise InputError("--raw shows samples as they are, --config what a recipe does to them: expected one only")
        if html is not None:
            check_writable_file(html)
        if html is None or output is not None:
            output = output or DEFAULT_OUTPUT
            check_picture_name(output)
        if raw:
            augment, name = Augment([]), "as it is"
        elif config is None:
            augment, name = DEFAULT_AUGMENT, "augmented"
        else:
            augment, name = recipe_augment(load_recipe(config)), f"by {config}"
        index = CocoIndex.load(annotations)
        note = f"; {index.left_out_note}" if index.left_out_note else ""
        if output is not None:
            sheet = contact_sheet(
                index,
                images,
                augment,
                count=count,
                columns=columns,
                seed=seed,
                epoch=epoch,
                backend=backend.value,
                on_bad_sample=on_bad_sample.value,
            )
            write_image(output, sheet)
            typer.echo(f"{output}: {sheet.shape[1]}x{sheet.shape[0]} pixels{note}")
        if html is not None:
            page = preview_page(
                index,
                images,
                augment,
                title=f"{annotations.name}, {name}",
                count=count,
                columns=columns,
                seed=seed,
                epoch=epoch,
                backend=backend.value,
                on_bad_sample=on_bad_sample.value,
            )
            write_whole(html, page)
            typer.echo(f"{html}: {len(page) / 1e6:.1f} MB{note}")
