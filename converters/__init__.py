"""Converters of published data sets into COCO JSON.

``convert_cityscapes`` and ``convert_voc`` are loaded when they are first used, so that importing the package costs
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from converters.errors import ConversionError

if TYPE_CHECKING:
    from converters.cityscapes.convert import convert_cityscapes
    from converters.report import ConversionReport, SplitSummary
    from converters.voc.convert import convert_voc

__all__ = ["ConversionError", "ConversionReport", "SplitSummary", "convert_cityscapes", "convert_voc"]

_HOMES = {
    "ConversionReport": "converters.report",
    "SplitSummary": "converters.report",
    "convert_cityscapes": "converters.cityscapes.convert",
    "convert_voc": "converters.voc.convert",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'converters' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
