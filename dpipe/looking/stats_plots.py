"""Plots of a data set's numbers, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from dpipe.cli_text import short
from dpipe.files import write_whole
from dpipe.looking.plot_style import BARS, MARKS, new_figure, png_of, show_names
from dpipe.looking.stats import LARGE, SMALL, DatasetStats

MOST_CLASSES = 120
"""Bars that a plot has room for: of more classes, the most frequent are shown."""


def write_plots(stats: DatasetStats, folder: Path) -> list[Path]:
    """Draws all plots.

    Args:
        stats: The numbers.
        folder: To write into; it is there.

    Returns:
        The files.

    Raises:
        OSError: If a file cannot be written.
    """
    shown = min(max(len(stats.classes), 1), MOST_CLASSES)
    plots: dict[str, tuple[Callable[[Axes, DatasetStats], None], tuple[float, float]]] = {
        "class_counts.png": (_class_counts, (8.0, max(2.5, 1.2 + 0.2 * shown))),
        "box_sizes.png": (_box_sizes, (8.0, 4.5)),
        "aspect_ratios.png": (_aspect_ratios, (8.0, 4.5)),
        "objects_per_image.png": (_objects_per_image, (8.0, 4.5)),
    }
    paths = []
    for name, (draw, size) in plots.items():
        figure = new_figure(*size)
        axes = figure.add_subplot()
        draw(axes, stats)
        axes.spines[["top", "right"]].set_visible(False)
        write_whole(folder / name, png_of(figure))
        paths.append(folder / name)
    return paths


def _class_counts(axes: Axes, stats: DatasetStats) -> None:
    classes = sorted(stats.classes, key=lambda each: (-each.objects, each.name))
    left_out = len(classes) - MOST_CLASSES
    classes = classes[:MOST_CLASSES]
    places = range(len(classes))
    counts = [each.objects for each in classes]
    wide = max(counts, default=0) > 100 * max(min((count for count in counts if count), default=1), 1)
    axes.barh(places, counts, height=0.8, color=BARS, label="objects")
    axes.barh(places, [each.images for each in classes], height=0.3, color=MARKS, label="images with the class")
    if wide:
        axes.set_xscale("log")
        axes.set_xlim(left=0.8)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks(list(places), [short(each.name) for each in classes], fontsize=8)
    show_names(axes)
    for place, count in enumerate(counts):
        axes.annotate(
            f"{count:,}", (max(count, 0.8), place), (3, 0), textcoords="offset points", va="center", fontsize=7
        )
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.set_xlabel("number (log scale)" if wide else "number")
    axes.set_ylabel("class")
    title = f"{stats.objects:,} objects of {len(stats.classes):,} classes in {stats.images:,} images"
    axes.set_title(title + (f"\n{left_out:,} rarer classes left out" if left_out > 0 else ""))
    if classes:
        axes.legend(loc="lower right", fontsize=8)


def _box_sizes(axes: Axes, stats: DatasetStats) -> None:
    sizes = np.maximum(stats.distributions["object_size"].values, 0.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if len(sizes):
        edges = np.geomspace(sizes.min() / 1.05, sizes.max() * 1.05, 60)
        axes.hist(sizes, bins=list(edges), color=BARS)
    for limit in (SMALL, LARGE):
        axes.axvline(math.sqrt(limit), color=MARKS, linestyle="--")
    total = max(stats.objects, 1)
    shares = zip(("small", "medium", "large"), (stats.small, stats.medium, stats.large), strict=True)
    axes.set_title("Object sizes: " + ", ".join(f"{100 * count / total:.0f}% {name}" for name, count in shares))
    axes.set_xlabel("square root of the object's area (pixels, log scale); dashed: 32 and 96")
    axes.set_ylabel("objects")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _aspect_ratios(axes: Axes, stats: DatasetStats) -> None:
    ratios = stats.distributions["aspect_ratio"].values
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}:1" if value >= 1 else f"1:{1 / value:g}"))
    if len(ratios):
        furthest = max(2.0, float(np.exp(np.abs(np.log(ratios)).max()))) * 1.05
        axes.hist(ratios, bins=list(np.geomspace(1 / furthest, furthest, 61)), color=BARS)
        axes.axvline(float(np.median(ratios)), color=MARKS, linestyle="--")
        axes.set_title(f"Shapes of boxes: the median (dashed) is {np.median(ratios):.2f}")
    else:
        axes.set_title("Shapes of boxes")
    axes.set_xlabel("width : height of the box (log scale)")
    axes.set_ylabel("objects")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _objects_per_image(axes: Axes, stats: DatasetStats) -> None:
    counts = stats.distributions["objects_per_image"].values
    if len(counts):
        step = max(1, math.ceil((counts.max() + 1) / 60))
        axes.hist(counts, bins=list(np.arange(-0.5, counts.max() + step + 0.5, step)), color=BARS)
        axes.axvline(float(counts.mean()), color=MARKS, linestyle="--")
        axes.set_title(
            f"Objects an image: {counts.mean():.1f} on average (dashed), "
            f"{stats.images_without_objects:,} images without any"
        )
    else:
        axes.set_title("Objects an image")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("objects in an image")
    axes.set_ylabel("images")
