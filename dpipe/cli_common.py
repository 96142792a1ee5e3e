"""What several commands of dpipe and detect ask for in the same way."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class FailOrSkip(str, Enum):
    """What to do with an image that cannot be used."""

    fail = "fail"
    skip = "skip"


OnBadSampleOption = Annotated[
    FailOrSkip, typer.Option(help="Whether a bad image ends the command, or is named on stderr and left out")
]
