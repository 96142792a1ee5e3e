"""The ``detect`` command: thin functions over training, evaluation and prediction."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from detect.commands.analyze import analyze
from detect.commands.draw_anchors import draw_anchors
from detect.commands.evaluation import EVAL_WORDS, KIND_WORDS, evaluate_file, evaluate_model
from detect.commands.export import export
from detect.commands.listing import describe, list_parts
from detect.commands.predict import SAVE_WORDS, predict
from detect.commands.report import report
from detect.commands.summary import summary
from detect.options import (
    AcceleratorName,
    AcceleratorOption,
    ConfigArgument,
    DebugOption,
    DevicesOption,
    OverridesArgument,
    accelerator_of,
    folder_given,
)
from dpipe.cli_common import VersionOption
from dpipe.cli_errors import OneLineUsageGroup, one_line_errors
from dpipe.cli_options import several_values

app = typer.Typer(
    cls=OneLineUsageGroup,
    help="Train, evaluate and use object detectors and instance segmenters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(version: VersionOption = False) -> None:
    pass


@app.command("train")
def train_command(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=folder_given,
            help="Where logs and checkpoints go (default: work_dirs/<name of the recipe>)",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest intact checkpoint in the work directory")
    ] = False,
    resume_from: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Go on from this checkpoint's folder, or from another work directory"),
    ] = None,
    devices: DevicesOption = 1,
    accelerator: AcceleratorOption = AcceleratorName.auto,
    debug: DebugOption = False,
) -> None:
    """Train a recipe's model. SIGINT and SIGTERM finish the iteration, save, and exit with 130 and 143."""
    with one_line_errors(debug):
        from detect.config import load_config

        recipe = load_config(config, overrides or [])  # a wrong name is told before PyTorch loads
        from detect.running.control import TrainingInterruptedError
        from detect.training import train

        try:
            train(
                recipe,
                work_dir,
                resume=resume_from or resume,
                devices=devices,
                accelerator=accelerator_of(accelerator),
            )
        except TrainingInterruptedError as interruption:
            print(interruption, file=sys.stderr)
            raise typer.Exit(128 + interruption.signum) from None


app.command("test", cls=several_values(KIND_WORDS))(evaluate_model)
app.command("eval", cls=several_values(EVAL_WORDS))(evaluate_file)
app.command("analyze")(analyze)


app.command("predict", cls=several_values(SAVE_WORDS))(predict)
app.command("export")(export)
app.command("report")(report)


@app.command("config")
def config_command(config: ConfigArgument, overrides: OverridesArgument = None, debug: DebugOption = False) -> None:
    """Print a recipe with everything it inherits, checked."""
    with one_line_errors(debug):
        from detect.config import load_config

        print(load_config(config, overrides or []).to_yaml(), end="")


@app.command("convert-checkpoint")
def convert_checkpoint_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN", help="A .pth or .safetensors file, its URL, a checkpoint's folder, or a work directory"
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write")],
    debug: DebugOption = False,
) -> None:
    """Write a checkpoint's weights and class names as safetensors."""
    with one_line_errors(debug):
        from detect.conversion import convert_checkpoint

        converted = convert_checkpoint(source, out)
        names = "class names unknown" if converted.class_names is None else f"{len(converted.class_names)} class names"
        print(f"{out}: {converted.num_tensors} tensors, {names}")


app.command("list")(list_parts)
app.command("describe")(describe)
app.command("summary")(summary)
app.command("draw-anchors")(draw_anchors)


def main() -> None:
    """Runs the command line."""
    # GNU OpenMP's threads burn their core while they wait for each other. Where another program wants that core, this
    # makes PyTorch many times slower; a short spin costs nothing where the cores are free. Read when PyTorch loads.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    app()
