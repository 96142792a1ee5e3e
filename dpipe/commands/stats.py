"""``dpipe stats``: numbers on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.running.signals import exit_on_sigterm
from dpipe.cli_errors import one_line_errors
from dpipe.cli_text import printable, table_console

if TYPE_CHECKING:
    from rich.table import Table

    from dpipe.looking.stats import DatasetStats


def stats(
    annotations: Annotated[Path, typer.Argument(help="COCO JSON", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for plots (PNG) and stats.json", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
) -> None:
    """Count what is in a data set: images, objects of each class, sizes, shapes, masks."""
    with one_line_errors(debug), exit_on_sigterm():
        import json

        from dpipe.files import check_writable, write_whole
        from dpipe.looking.stats import dataset_stats

        if output is not None:
            check_writable(output)
        counted = dataset_stats(annotations)
        text = json.dumps(counted.as_dict(), indent=1)
        if as_json:
            typer.echo(text)
        else:
            _show(counted)
        if output is not None:
            from dpipe.looking.stats_plots import write_plots

            paths = [*write_plots(counted, output), output / "stats.json"]
            write_whole(paths[-1], text + "\n")
            for path in paths:
                typer.echo(str(path), err=as_json)


def _show(counted: DatasetStats) -> None:
    """Prints the tables."""
    console = table_console()
    for table in (_overview(counted), _classes(counted), _distributions(counted)):
        if table.row_count:
            console.print(table)


def _overview(counted: DatasetStats) -> Table:
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(justify="left", no_wrap=True)
    table.add_column(justify="right")
    table.add_column(justify="right")
    images, annotations, objects = counted.images, counted.annotations, counted.objects
    for name, count, whole in (
        ("images", images, None),
        ("  without objects", counted.images_without_objects, images),
        ("annotations", annotations, None),
        ("  objects", objects, annotations),
        ("  crowd regions", counted.crowds, annotations),
        ("  to ignore, or difficult", counted.ignored, annotations),
        ("  unusable (see dpipe check)", counted.unusable, annotations),
        ("  with polygons", counted.with_polygons, annotations),
        ("  with run lengths", counted.with_run_lengths, annotations),
        ("  without a mask", counted.without_mask, annotations),
        ("objects by area", objects, None),
        ("  small (below 32²)", counted.small, objects),
        ("  medium", counted.medium, objects),
        ("  large (from 96²)", counted.large, objects),
        ("polygon vertices", counted.vertices, None),
    ):
        table.add_row(name, f"{count:,}", "" if whole is None else _percent(count, whole))
    return table


def _classes(counted: DatasetStats) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("class", overflow="fold")
    for title in ("id", "objects", "share", "images", "ignored"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in sorted(counted.classes, key=lambda each: (-each.objects, each.name)):
        table.add_row(
            Text(printable(each.name)),  # a name may hold what looks like rich's markup
            str(each.id),
            f"{each.objects:,}",
            _percent(each.objects, counted.objects),
            f"{each.images:,}",
            f"{each.ignored:,}",
        )
    return table


def _distributions(counted: DatasetStats) -> Table:
    """A row for each quantile: the other way round, numbers would lose digits on a terminal of 80 columns."""
    from rich import box
    from rich.table import Table

    from dpipe.looking.stats import QUANTILES

    shown = [each for each in counted.distributions.values() if len(each.values)]
    table = Table(title="lengths in pixels", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for each in shown:
        table.add_column(each.name.removesuffix(" (pixels)"), justify="right", overflow="fold")
    ends = {0.0: "least", 0.5: "median", 1.0: "most"}
    titles = ["mean", *(ends.get(at, f"{100 * at:g}%") for at in QUANTILES)]
    columns = [[each.mean(), *each.quantiles()] for each in shown]
    for title, *values in zip(titles, *columns, strict=True) if columns else ():
        table.add_row(title, *(f"{value:,.4g}" for value in values))
    return table


def _percent(count: int, whole: int) -> str:
    return f"{100 * count / whole:.1f}%" if whole else ""
