"""``dpipe convert``: published data sets into COCO JSON."""

from __future__ import annotations

import typer

app = typer.Typer(help="Convert a data set into COCO JSON.", no_args_is_help=True)
