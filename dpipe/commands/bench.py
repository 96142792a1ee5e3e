"""``dpipe bench``: what this machine gives for a recipe."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.running.signals import exit_on_sigterm
from dpipe.cli_common import FailOrSkip, OnBadSampleOption, finite
from dpipe.cli_errors import one_line_errors
from dpipe.cli_text import table_console

if TYPE_CHECKING:
    from rich.console import Console

    from dpipe.looking.bench import BenchReport


class BackendChoice(str, Enum):
    """What makes the pixels."""

    opencv = "opencv"
    dali = "dali"
    both = "both"


def bench(
    annotations: Annotated[Path, typer.Argument(help="COCO JSON", show_default=False)],
    images: Annotated[Path, typer.Argument(help="Folder that its file names are relative to", show_default=False)],
    config: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Recipe, a file or a shipped name, whose data.train_transforms are measured (default: those that "
            "dpipe preview shows, normalised). Checked are custom_imports and all data.*_transforms",
        ),
    ] = None,
    backend: Annotated[BackendChoice, typer.Option(help="What makes the pixels")] = BackendChoice.opencv,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:<number>: where batches are wanted")] = "cpu",
    threads: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N...",
            min=1,
            help="Threads of the loader: --threads 1 2 4 (default: 1, 2, 4 ... up to all cores)",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a batch")] = 2,
    count: Annotated[int, typer.Option("--images", min=1, help="Number of images to measure on")] = 32,
    seconds: Annotated[float, typer.Option(min=0.01, callback=finite, help="Time for each line of the tables")] = 3.0,
    on_bad_sample: OnBadSampleOption = FailOrSkip.fail,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="JSON file to write", show_default=False)
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
) -> None:
    """Measure what this machine gives for a recipe, by stage and by number of threads."""
    with one_line_errors(debug), exit_on_sigterm():
        import json

        from rich.console import Console

        from dpipe.building.recipe_transforms import recipe_augment
        from dpipe.coco import CocoIndex
        from dpipe.files import check_writable_file, write_whole
        from dpipe.loader import BackendName
        from dpipe.looking.bench import bench as measure
        from dpipe.looking.preview import DEFAULT_AUGMENT
        from dpipe.policy import Augment, Normalize, Pad
        from dpipe.recipes import load_recipe

        if json_file is not None:
            check_writable_file(json_file)
        if config is None:
            imagenet = Normalize((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
            augment = Augment([*DEFAULT_AUGMENT.operations, imagenet, Pad(32)])
        else:
            augment = recipe_augment(load_recipe(config))
        backends: dict[BackendChoice, tuple[BackendName, ...]] = {
            BackendChoice.opencv: ("opencv",),
            BackendChoice.dali: ("dali",),
            BackendChoice.both: ("opencv", "dali"),
        }
        index = CocoIndex.load(annotations)
        with Console(stderr=True).status("") as status:
            report = measure(
                index,
                images,
                augment,
                backends=backends[backend],
                device=device,
                threads=threads,
                batch_size=batch_size,
                count=count,
                seconds=seconds,
                on_bad_sample=on_bad_sample.value,
                progress=lambda text: status.update(f"measuring: {text}"),
            )
        if json_file is not None:
            write_whole(json_file, json.dumps(report.as_dict(), indent=1) + "\n")
        _show(report, table_console())


def _show(report: BenchReport, console: Console) -> None:
    """Prints the machine, the data, the tables and what follows from them."""
    from rich.table import Table

    from dpipe.looking.bench_stages import STAGES

    console.print(", ".join(f"{name} {value}" for name, value in report.machine.items()))
    data = report.data
    formats = ", ".join(f"{count} {name}" for name, count in data["formats"].items())
    console.print(
        f"{data['images']} images ({formats}; {data['kilobytes']:.0f} kB, {data['megapixels']:.2f} megapixels and "
        f"{data['objects']:.1f} objects each) to {data['megapixels_out']:.2f} megapixels, "
        f"batches of {data['batch_size']}"
    )
    if report.stages:
        table = Table(title="opencv, one core, files in memory")
        table.add_column("stage")
        for title in ("ms an image", "images/s", "share"):
            table.add_column(title, justify="right")
        table.add_column("what it is")
        for stage in report.stages:
            a_second = f"{1000 / stage.ms:,.0f}" if stage.ms >= 0.001 else ""
            table.add_row(stage.name, f"{stage.ms:.2f}", a_second, f"{100 * stage.share:.0f}%", STAGES[stage.name])
        total = sum(stage.ms for stage in report.stages)
        table.add_section()
        table.add_row("sum", f"{total:.2f}", f"{1000 / total:,.1f}", "100%", "")
        console.print(table)
    table = Table(title="the whole loader")
    table.add_column("backend")
    for title in ("threads", "images/s", "ms an image", "slowest to fastest"):
        table.add_column(title, justify="right")
    for rate in report.loaders:
        table.add_row(
            rate.backend if rate.device == "cpu" else f"{rate.backend}, {rate.device}",
            str(rate.threads),
            f"{rate.images_per_second:,.1f}",
            f"{1000 / rate.images_per_second:.2f}",
            f"{rate.slowest:,.1f} to {rate.fastest:,.1f}",
        )
    console.print(table)
    for note in report.notes:
        console.print(note)
