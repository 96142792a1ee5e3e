"""``dpipe check``: everything that is wrong in a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.report import counted
from converters.running.progress import progress
from converters.running.signals import exit_on_sigterm
from dpipe.cli_errors import one_line_errors
from dpipe.cli_text import printable, table_console

if TYPE_CHECKING:
    from dpipe.looking.check import CheckReport
    from dpipe.looking.check_findings import Finding

EXIT_ERRORS_FOUND = 1


def check(
    annotations: Annotated[Path, typer.Argument(help="COCO JSON", show_default=False)],
    images: Annotated[Path, typer.Argument(help="Folder that its file names are relative to", show_default=False)],
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file to write with all findings", show_default=False)
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode/--no-decode", help="Decode all images, or look at their headers only")
    ] = True,
    threads: Annotated[
        int | None, typer.Option(min=1, help="That look at images (default: all cores)", show_default=False)
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
) -> None:
    """Look for what is wrong in a data set: images, boxes, masks, ids.

    Exit code 0 where nothing but warnings was found, 1 where there are errors, 2 where the JSON cannot be read.
    """
    with one_line_errors(debug), exit_on_sigterm():
        import json
        from functools import partial

        from dpipe.files import check_writable_file, write_whole
        from dpipe.looking.check import check_dataset

        if report is not None:
            check_writable_file(report)
        found = check_dataset(
            annotations, images, decode=decode, threads=threads, progress=partial(progress, shown=True)
        )
        if report is not None:
            write_whole(report, json.dumps(found.as_dict(), indent=1, ensure_ascii=True) + "\n")
        _show(found)
    if found.errors:
        raise typer.Exit(EXIT_ERRORS_FOUND)


def _show(report: CheckReport) -> None:
    """Prints a table of what was found, and a line that sums it up."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from dpipe.looking.check_findings import ERRORS, WARNINGS

    if report.counts:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for title in ("", "kind"):
            table.add_column(title, no_wrap=True)
        table.add_column("count", justify="right", no_wrap=True)
        table.add_column("what it means, for example", overflow="fold")
        for kind, count in report.counts.items():
            severity = "error" if kind in ERRORS else "warning"
            lines = [{**ERRORS, **WARNINGS}[kind], *(f"- {_describe(finding)}" for finding in report.examples(kind))]
            # Names in a data set may hold anything, rich's own markup too.
            style = "bold red" if severity == "error" else "yellow"
            table.add_row(Text(severity, style), kind, f"{count:,}", Text(printable("\n".join(lines))))
        table_console().print(table)
    looked = "" if report.decoded else ", whose pixels were not decoded"
    images, annotations = counted(report.image_count, "image"), counted(report.annotation_count, "annotation")
    typer.echo(
        f"{images}{looked}, {annotations}: {counted(report.errors, 'error')}, {counted(report.warnings, 'warning')}"
    )


def _describe(finding: Finding) -> str:
    """Where something was found, and what is known of it."""
    number = "" if finding.annotation is None else f"#{finding.annotation}"
    where = " ".join(filter(None, (finding.image, number)))
    return f"{where} ({finding.detail})" if where and finding.detail else where or finding.detail
