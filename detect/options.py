"""Arguments and options that the commands of ``detect`` share."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dpipe.cli_text import UNLIMITED
from dpipe.errors import InputError
from dpipe.files import named_folder

if TYPE_CHECKING:
    from rich.console import Console


class AcceleratorName(str, Enum):
    """What to compute on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A recipe's file, or a shipped recipe's name")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values of the recipe to replace, such as train.epochs=2"),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")]
CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT", help="A .safetensors or .pth file, its URL, a checkpoint's folder, or a work directory"
    ),
]
TtaOption = Annotated[
    bool, typer.Option("--tta", help="Look at each image several times and merge, as the recipe's evaluation.tta says")
]
DevicesOption = Annotated[
    int, typer.Option(min=1, help="Number of GPUs, or of processes on the CPU; leave it out under torchrun and srun")
]
AcceleratorOption = Annotated[
    AcceleratorName, typer.Option(help="What to compute on; auto takes GPUs if there are any")
]


def folder_given(text: str) -> Path:
    """The folder that an option names; an empty text would be the current one."""
    try:
        return named_folder(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


def accelerator_of(name: AcceleratorName) -> Literal["auto", "cpu", "cuda"]:
    """The accelerator of an option's value."""
    return name.value


def pixels_of(size: str) -> tuple[int, int]:
    """Height and width of an option's WIDTHxHEIGHT.

    Raises:
        InputError: If it is none.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if found is None or not int(found[1]) or not int(found[2]):
        raise InputError(f"--size: expected WIDTHxHEIGHT in pixels, such as 1333x800, got {size!r}")
    return int(found[2]), int(found[1])


def plain_console() -> Console:
    """Standard output for lines and tables: nothing in a line is taken for markup, and lines are not broken."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = UNLIMITED
    return console
