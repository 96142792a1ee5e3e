"""``detect summary``: the modules of a recipe's model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from detect.options import ConfigArgument, DebugOption, OverridesArgument, pixels_of
from dpipe.cli_errors import one_line_errors

if TYPE_CHECKING:
    from detect.looking.summary import Row, Summary

HEADINGS = ("module", "type", "output", "parameters", "trainable", "GFLOPs")


def summary(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Size of the image (default: what data.test_transforms resize to)"),
    ] = None,
    depth: Annotated[int, typer.Option(min=0, help="Levels of modules below the model")] = 2,
    debug: DebugOption = False,
) -> None:
    """Tell a model's modules: shapes, parameters, and operations at the recipe's size. Reads no weights."""
    with one_line_errors(debug):
        pixels = None if size is None else pixels_of(size)
        from detect.config import load_config
        from detect.looking.summary import summarize

        for line in _lines(summarize(load_config(config, overrides or []), size=pixels, depth=depth)):
            typer.echo(line)


def _lines(told: Summary) -> list[str]:
    table = [HEADINGS, *(_cells(row) for row in told.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if number >= 3 else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in table
    ]
    (height, width), (padded_height, padded_width) = told.size, told.padded
    lines += [
        "",
        f"One image of {width}x{height} pixels, padded to {padded_width}x{padded_height}, in evaluation; "
        f"{told.num_classes} classes, {told.classes_from}.",
        "GFLOPs: convolutions and matrix products, a multiplication and an addition as two.",
    ]
    if told.num_proposals is not None:
        lines.append(
            f"RoI heads: {told.num_proposals} proposals, and masks of as many detections as are kept at most. "
            "Heads that only training uses count none."
        )
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    depth = row.name.count(".") + 1 if row.name else 0
    return (
        "  " * depth + (row.name.rpartition(".")[2] or "model"),
        row.type,
        row.output,
        f"{row.parameters:,}",
        f"{row.trainable:,}",
        f"{row.flops / 1e9:.2f}",
    )
