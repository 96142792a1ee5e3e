"""Names in plots, whatever their letters are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from dpipe.looking.plot_style import FALLBACK_FONTS, new_figure, png_of, show_names

FONT = FALLBACK_FONTS[-1]
LETTER = "\ue123"
"""Of no alphabet, so that no font of this machine has it."""


@pytest.fixture
def font(tmp_path: Path) -> Iterator[None]:
    """Installs a font with one letter, which is a black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(LETTER): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": FONT, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "font.ttf")
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "font.ttf")
    yield
    font_manager.fontManager.ttflist[:] = before


def ink(name: str) -> int:
    """Dark pixels of a plot with a bar of that name."""
    figure = new_figure(4.0, 3.0)
    axes = figure.add_subplot()
    axes.barh([0], [1.0], color="white")
    axes.set_xticks([])
    axes.set_yticks([0], [name], fontsize=30)
    show_names(axes)
    image = cv2.imdecode(np.frombuffer(png_of(figure), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return int((image[:, :80] < 100).sum())


def test_a_letter_comes_from_a_font_that_has_it(font: None) -> None:
    assert ink(LETTER) > 2000  # a square of 50 pixels; the box for a missing letter is hollow


def test_fonts_that_are_not_there_are_not_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert ink(LETTER) < 2000
        assert ink("a") > 0
    assert not caplog.records
