"""What several commands of dpipe and detect ask for in the same way."""

from __future__ import annotations

import math
from enum import Enum
from typing import Annotated

import typer

DISTRIBUTION = "dpipe-detect"
"""What is installed, and has a version."""


class FailOrSkip(str, Enum):
    """What to do with an image that cannot be used."""

    fail = "fail"
    skip = "skip"


OnBadSampleOption = Annotated[
    FailOrSkip, typer.Option(help="Whether a bad image ends the command, or is named on stderr and left out")
]


def finite(value: float) -> float:
    """Refuses what ``min`` and ``max`` let through: no number, and infinity."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"{DISTRIBUTION} {version(DISTRIBUTION)}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit")
]
