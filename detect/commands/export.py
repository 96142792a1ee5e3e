"""``detect export``: a trained model as a file that other runtimes execute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.running.signals import exit_on_sigterm
from detect.options import CheckpointArgument, ConfigArgument, DebugOption, OverridesArgument, pixels_of
from dpipe.cli_errors import one_line_errors

if TYPE_CHECKING:
    from detect.exporting.comparing import Agreement
    from detect.exporting.export import Exported


def export(
    config: ConfigArgument,
    checkpoint: CheckpointArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="model.onnx, or model.pt2 for torch.export")
    ],
    overrides: OverridesArgument = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="Size of the images that the file is checked on; with --fixed that of all it takes (default: what "
            "data.test_transforms resize to)",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time, likewise")] = 1,
    fixed: Annotated[
        bool,
        typer.Option("--fixed", help="Take images of this size and number only; else the file takes any"),
    ] = False,
    opset: Annotated[
        int | None, typer.Option(help="Version of ONNX's operators, 18 to 23, of .onnx files (default: 18)")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What the file is checked on (default: a drawn pattern)")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write a model as ONNX or for torch.export, from RGB pictures to boxes, scores, labels and masks.

    The file normalises, pads and suppresses by itself. It is run and compared with the model before it is kept. Number
    and size of the images are dynamic; a size is at least one pixel more than the coarsest stride on each side.
    """
    with one_line_errors(debug), exit_on_sigterm():
        pixels = None if size is None else pixels_of(size)
        from detect.config import load_config
        from detect.exporting.export import export as export_model

        exported = export_model(
            load_config(config, overrides or []),
            checkpoint,
            output,
            size=pixels,
            batch=batch,
            fixed=fixed,
            opset=opset,
            image=image,
            say=typer.echo,
        )
        for line in _lines(exported):
            typer.echo(line)


def _lines(exported: Exported) -> list[str]:
    what = "torch.export" if exported.opset is None else f"ONNX, opset {exported.opset}"
    if exported.size is None:
        takes = f"any number of images of any size from {exported.least_side} px on each side"
    else:
        takes = f"{exported.batch} image(s) of {exported.size[1]}x{exported.size[0]} px"
    lines = [f"{exported.path}: {what}, {exported.num_bytes / 2**20:.1f} MiB, takes {takes}"]
    lines += [_line(agreement) for agreement in exported.agreements]
    if not any(agreement.detections for agreement in exported.agreements):
        lines.append("nothing was found in these images, so that little was compared: --image FILE names a better one")
    return lines


def _line(agreement: Agreement) -> str:
    batch, height, width = agreement.shape
    differences = [f"scores {agreement.scores:.1e}", f"boxes {agreement.boxes:.1e} px"]
    if agreement.masks is not None:
        differences.append(f"masks {agreement.masks:.1e}")
    others = f"; {agreement.others} only in one of the two, decided by rounding" if agreement.others else ""
    return (
        f"{batch} image(s) of {width}x{height} px, {agreement.detections} detections: largest differences "
        f"{', '.join(differences)}{others}"
    )
