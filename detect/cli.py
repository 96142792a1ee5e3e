"""The ``detect`` command: thin functions over training, evaluation and prediction."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from dpipe.cli_errors import one_line_errors

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="Train, evaluate and use object detectors and instance segmenters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


class Metric(str, Enum):
    """What can be evaluated."""

    bbox = "bbox"
    segm = "segm"


class AcceleratorName(str, Enum):
    """What to compute on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class SeveralMetrics(TyperCommand):
    """A command whose ``--eval`` takes several values, ``--eval bbox segm``, as well as being repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeats ``--eval`` in front of each metric that follows one."""
        names = {metric.value for metric in Metric}
        spread: list[str] = []
        for word in args:
            if word in names and len(spread) > 1 and spread[-2] == "--eval" and spread[-1] in names:
                spread.append("--eval")
            spread.append(word)
        return super().parse_args(ctx, spread)


ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A recipe's file, or a shipped recipe's name")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values of the recipe to replace, such as train.epochs=2"),
]
CheckpointArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="A .safetensors or .pth file, a checkpoint's folder, or a work directory"
    ),
]
DevicesOption = Annotated[int, typer.Option(min=1, help="Number of GPUs, or of processes on the CPU")]
AcceleratorOption = Annotated[
    AcceleratorName, typer.Option(help="What to compute on; auto takes GPUs if there are any")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")]


@app.command("train")
def train_command(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where logs and checkpoints go (default: work_dirs/<name of the recipe>)"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest intact checkpoint in the work directory")
    ] = False,
    devices: DevicesOption = 1,
    accelerator: AcceleratorOption = AcceleratorName.auto,
    debug: DebugOption = False,
) -> None:
    """Train a recipe's model. SIGINT and SIGTERM finish the iteration, save, and exit with 130 and 143."""
    with one_line_errors(debug):
        from detect.config import load_config
        from detect.control import TrainingInterruptedError
        from detect.training import train

        recipe = load_config(config, overrides or [])
        try:
            train(
                recipe,
                work_dir or Path("work_dirs", Path(config).stem),
                resume=resume,
                devices=devices,
                accelerator=_accelerator(accelerator),
            )
        except TrainingInterruptedError as interruption:
            print(interruption, file=sys.stderr)
            raise typer.Exit(128 + interruption.signum) from None


@app.command("test", cls=SeveralMetrics)
def evaluate_command(
    config: ConfigArgument,
    checkpoint: CheckpointArgument,
    overrides: OverridesArgument = None,
    metrics: Annotated[
        list[Metric] | None,
        typer.Option(
            "--eval",
            metavar="bbox|segm...",
            help="What to evaluate: --eval bbox segm (default: bbox, and segm where model and data have masks)",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the detections there, as COCO results JSON")
    ] = None,
    devices: DevicesOption = 1,
    accelerator: AcceleratorOption = AcceleratorName.auto,
    debug: DebugOption = False,
) -> None:
    """Evaluate a checkpoint on the recipe's validation set."""
    with one_line_errors(debug):
        from detect.config import load_config
        from detect.evaluation import evaluate
        from detect.metrics import class_table, score_table

        console = _console()
        all_scores = evaluate(
            load_config(config, overrides or []),
            checkpoint,
            list(dict.fromkeys(metric.value for metric in metrics or [])),
            out=out,
            devices=devices,
            accelerator=_accelerator(accelerator),
            console=console,
        )
        if all_scores:
            console.print(class_table(all_scores))
        for scores in all_scores:
            console.print(score_table(scores))


@app.command("predict")
def predict_command(
    config: ConfigArgument,
    checkpoint: CheckpointArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Gets the pictures, predictions.json and images.json")
    ],
    score_thr: Annotated[
        float, typer.Option(min=0, max=1, help="Lowest score that is drawn; predictions.json holds all")
    ] = 0.3,
    accelerator: AcceleratorOption = AcceleratorName.auto,
    debug: DebugOption = False,
) -> None:
    """Find objects in images: pictures with boxes, masks, names and scores, and COCO results."""
    with one_line_errors(debug):
        from detect.config import load_config
        from detect.prediction import predict

        predict(
            load_config(config),
            checkpoint,
            images,
            output,
            score_thr=score_thr,
            accelerator=_accelerator(accelerator),
            console=_console(),
        )


@app.command("config")
def config_command(config: ConfigArgument, overrides: OverridesArgument = None, debug: DebugOption = False) -> None:
    """Print a recipe with everything it inherits, checked."""
    with one_line_errors(debug):
        from detect.config import load_config

        print(load_config(config, overrides or []).to_yaml(), end="")


def _accelerator(name: AcceleratorName) -> Literal["auto", "cpu", "cuda"]:
    return name.value


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Runs the command line."""
    app()
