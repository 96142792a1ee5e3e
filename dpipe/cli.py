"""The ``dpipe`` command."""

from __future__ import annotations

import typer

from dpipe.commands import convert, preview

app = typer.Typer(
    help="Convert data sets into COCO JSON and look at augmented batches.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(convert.app, name="convert")
app.command("preview")(preview.preview)


def main() -> None:
    """Runs the command line."""
    app()
