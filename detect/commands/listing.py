"""``detect list`` and ``detect describe``: what recipes can name."""

from __future__ import annotations

import json
import textwrap
from itertools import groupby
from typing import Annotated

import typer

from detect.options import DebugOption
from dpipe.cli_errors import one_line_errors


def list_parts(
    wanted: Annotated[
        str, typer.Argument(metavar="TEXT", help="Only what has this in its kind, name or description")
    ] = "",
    config: Annotated[
        str | None, typer.Option("--config", metavar="CONFIG", help="A recipe, to list the parts of its own as well")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list with kind, name and summary")] = False,
    debug: DebugOption = False,
) -> None:
    """List the parts, transforms and recipes there are, a line each."""
    with one_line_errors(debug):
        from dataclasses import asdict

        from detect.looking.listing import list_parts as listed

        found = listed(wanted, config)
        if as_json:
            typer.echo(json.dumps([asdict(entry) for entry in found], indent=2, ensure_ascii=False))
            return
        width = max(len(entry.name) for entry in found)
        for number, (kind, group) in enumerate(groupby(found, key=lambda entry: entry.kind)):
            typer.echo(("\n" if number else "") + _heading(kind))
            for entry in group:
                typer.echo(f"  {entry.name.ljust(width)}  {entry.summary}".rstrip())


def describe(
    name: Annotated[str, typer.Argument(metavar="TYPE", help="A part's or a transform's name, or a dotted path")],
    debug: DebugOption = False,
) -> None:
    """Tell what a part or a transform is, and what it takes."""
    with one_line_errors(debug):
        from detect.looking.listing import describe_part

        part = describe_part(name)
        typer.echo(f"{part.name} ({part.kind}): {part.doc.summary}".removesuffix(": "))
        if part.doc.text:
            typer.echo(f"\n{part.doc.text}")
        typer.echo("\nArguments:" if part.arguments else "\nIt takes no arguments.")
        for argument in part.arguments:
            typer.echo(f"  {argument.name}: {argument.expected} ({argument.default})")
            if argument.text:
                typer.echo(textwrap.fill(argument.text, 110, initial_indent=" " * 6, subsequent_indent=" " * 6))
        typer.echo(f"\n{part.path}")
        if part.source:
            typer.echo(part.source)


def _heading(kind: str) -> str:
    return {"loss": "losses"}.get(kind, f"{kind}s")
