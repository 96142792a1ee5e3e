"""Arguments and options that the commands of ``detect`` share."""

from __future__ import annotations

from typing import Annotated

import typer

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A recipe's file, or a shipped recipe's name")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values of the recipe to replace, such as train.epochs=2"),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")]
