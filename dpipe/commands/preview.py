"""``dpipe preview``: a contact sheet of augmented samples."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dpipe.cli_errors import one_line_errors


class BackendChoice(str, Enum):
    """What makes the pixels."""

    opencv = "opencv"
    dali = "dali"


def preview(
    annotations: Annotated[Path, typer.Argument(help="COCO JSON", show_default=False)],
    images: Annotated[Path, typer.Argument(help="Folder that its file names are relative to", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Picture to write: .png, .jpg or .webp")
    ] = Path("preview.png"),
    config: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Recipe, a file or a shipped name, whose data.train_transforms are shown (default: Rotate, Translate, "
            "Shear, Color, Brightness, Contrast and Equalize in turn, then Resize to 800x600 and RandomFlip)",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of samples")] = 12,
    columns: Annotated[int, typer.Option(min=1, help="Samples in a row")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the order and of the augmentation")] = 0,
    epoch: Annotated[int, typer.Option(min=0, help="Each epoch has its own order and augmentation")] = 0,
    backend: Annotated[BackendChoice, typer.Option(help="What makes the pixels, on the CPU")] = BackendChoice.opencv,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
) -> None:
    """Draw a contact sheet of augmented samples with their boxes and masks."""
    with one_line_errors(debug):
        from dpipe.coco import CocoIndex
        from dpipe.preview import DEFAULT_AUGMENT, check_picture_name, contact_sheet, recipe_augment, write_image
        from dpipe.recipes import load_recipe

        check_picture_name(output)
        augment = DEFAULT_AUGMENT if config is None else recipe_augment(load_recipe(config))
        index = CocoIndex.load(annotations)
        sheet = contact_sheet(
            index,
            images,
            augment,
            count=count,
            columns=columns,
            seed=seed,
            epoch=epoch,
            backend=backend.value,
        )
        write_image(output, sheet)
    note = f"; {index.left_out_note}" if index.left_out_note else ""
    typer.echo(f"{output}: {sheet.shape[1]}x{sheet.shape[0]} pixels{note}")
