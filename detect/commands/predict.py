"""``detect predict``: objects in images and videos, drawn and written."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from converters.running.signals import exit_on_sigterm
from detect.options import (
    AcceleratorName,
    AcceleratorOption,
    CheckpointArgument,
    ConfigArgument,
    DebugOption,
    TtaOption,
    accelerator_of,
    folder_given,
    plain_console,
)
from dpipe.cli_common import FailOrSkip, finite
from dpipe.cli_errors import one_line_errors
from dpipe.errors import InputError


class FormName(str, Enum):
    """What can be written."""

    pictures = "pictures"
    coco = "coco"
    labelme = "labelme"


SAVE_WORDS = {"--save": frozenset(name.value for name in FormName).__contains__}


def predict(
    config: ConfigArgument,
    checkpoint: CheckpointArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Images, videos, folders of them, and quoted patterns such as 'shots/**/*.jpg'; KEY=VALUE, where no "
            "file has that name, sets the recipe's",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            parser=folder_given,
            help="Gets the pictures, predictions.json and images.json",
        ),
    ],
    score_thr: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            callback=finite,
            help="Lowest score that is drawn or given to LabelMe; predictions.json holds all",
        ),
    ] = 0.3,
    save: Annotated[
        list[FormName] | None,
        typer.Option(
            metavar="FORM...",
            help="What to write: pictures (of videos a video), coco (predictions.json and images.json), labelme (a "
            "file for each image, to be corrected by hand); several as in --save coco labelme (default: pictures coco)",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images of one size that the model sees at a time (default: the recipe's)"),
    ] = None,
    on_bad_sample: Annotated[
        FailOrSkip | None,
        typer.Option(
            help="fail: look at all files first, and write nothing if one cannot be used; skip: name it and leave it "
            "out (default: the recipe's)"
        ),
    ] = None,
    tta: TtaOption = False,
    accelerator: AcceleratorOption = AcceleratorName.auto,
    debug: DebugOption = False,
) -> None:
    """Find objects in images and videos: pictures with boxes, masks, names and scores, COCO results, LabelMe files."""
    with one_line_errors(debug), exit_on_sigterm():
        from detect.config import load_config
        from detect.predicting.inputs import is_override

        overrides = [word for word in inputs if is_override(word)]
        if len(overrides) == len(inputs):
            raise InputError("no image was given, only values of the recipe")
        recipe = load_config(config, overrides)  # a wrong name is told before PyTorch loads
        from detect.predicting.files import USUAL_FORMS
        from detect.prediction import predict as predict_files

        predict_files(
            recipe,
            checkpoint,
            [word for word in inputs if word not in overrides],
            output,
            score_thr=score_thr,
            save=[name.value for name in dict.fromkeys(save)] if save else USUAL_FORMS,
            batch_size=batch_size,
            on_bad_sample=None if on_bad_sample is None else on_bad_sample.value,
            tta=tta,
            accelerator=accelerator_of(accelerator),
            console=plain_console(),
        )
