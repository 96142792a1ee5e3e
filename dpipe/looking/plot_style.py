"""What plots share: colours, class names that are only text, and PNG files whatever the names' letters are."""

from __future__ import annotations

import io
import warnings

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpipe.cli_text import one_line

BARS = "#0072b2"
MARKS = "#d55e00"
DPI = 120


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts keep clear of each other."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def png_of(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # The font may lack letters of a class's name: a box stands in their place.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(content, format="png")
    return content.getvalue()


def short(name: str, most: int = 32) -> str:
    """A name on one line, cut where it is too long."""
    name = one_line(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def show_names(axes: Axes) -> None:
    """Takes the labels of both axes, and of the legend, as they are: a dollar in a name begins no formula."""
    legend = axes.get_legend()
    texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), *(legend.get_texts() if legend else ())]
    for text in texts:
        text.set_parse_math(False)
