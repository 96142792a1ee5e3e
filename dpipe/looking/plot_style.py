"""What plots share: colours, class names that are only text, and PNG files whatever the names' letters are."""

from __future__ import annotations

import io
import warnings

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BARS = "#0072b2"
MARKS = "#d55e00"
DPI = 120
FALLBACK_FONTS = (
    *(f"Noto Sans {name}" for name in ("CJK SC", "CJK JP", "CJK TC", "CJK KR", "SC", "JP", "TC", "KR")),
    *("Source Han Sans SC", "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback"),
    *("PingFang SC", "Hiragino Sans GB", "Hiragino Sans", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS"),
    *(f"Noto Sans {name}" for name in ("Arabic", "Hebrew", "Devanagari", "Bengali", "Tamil", "Thai")),
    *("Noto Emoji", "Segoe UI Emoji", "Segoe UI Symbol", "Symbola", "Unifont"),
)
"""Fonts that have the letters of class names that the usual one lacks, in the order in which they are asked; those that
are not installed are passed over. Fonts of coloured pictures, such as Noto Color Emoji, cannot be drawn."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts keep clear of each other."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def png_of(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # All fonts may lack letters of a class's name: a box stands in their place.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(content, format="png")
    return content.getvalue()


def show_names(axes: Axes) -> None:
    """Takes the labels of both axes, and of the legend, as they are.

    A dollar in a name begins no formula, and letters that the usual font lacks are taken from others.
    """
    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = [*matplotlib.rcParams["font.family"], *(name for name in FALLBACK_FONTS if name in installed)]
    legend = axes.get_legend()
    texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), *(legend.get_texts() if legend else ())]
    for text in texts:
        text.set_parse_math(False)
        text.set_fontfamily(families)
