"""``detect draw-anchors``: what becomes of a dense head's anchors, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from converters.running.signals import exit_on_sigterm
from detect.options import ConfigArgument, DebugOption
from dpipe.cli_errors import one_line_errors
from dpipe.errors import InputError


def draw_anchors(
    config: ConfigArgument,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="Image files; KEY=VALUE, where no file has that name, sets the recipe's"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Gets a picture of each image")],
    annotations: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="COCO JSON that names the images (default: the recipe's training set)"),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Draw the anchors or points that are positive, negative and ignored in training. Reads no weights."""
    with one_line_errors(debug), exit_on_sigterm():
        from rich.console import Console

        from detect.config import load_config
        from detect.looking.anchor_pictures import draw_anchors as draw

        overrides = [word for word in images if "=" in word and not Path(word).exists()]
        if len(overrides) == len(images):
            raise InputError("no image was given, only values of the recipe")
        draw(
            load_config(config, overrides),
            [word for word in images if word not in overrides],
            output,
            annotations=annotations,
            console=Console(highlight=False, markup=False, soft_wrap=True),
        )
