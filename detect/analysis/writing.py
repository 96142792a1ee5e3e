"""Writes an analysis into a folder: numbers as JSON, and plots."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from detect.analysis import cost_plots, plots
from detect.analysis.analyzing import Analysis
from detect.analysis.comparing import LEVEL, Comparison
from detect.analysis.errors import ERROR_KINDS, SIZE_LIMITS, SIZES
from dpipe.files import check_writable, named_folder, write_whole
from dpipe.looking.plot_style import png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

FORMAT = 1
"""Of ``analysis.json``; a change that programs have to know of counts it up."""
NUMBERS = "analysis.json"
COMPARISON = "comparison.png"
UNFINISHED = ".analysis-"


def write_analysis(analysis: Analysis, out: str | Path, comparison: Comparison | None = None) -> list[Path]:
    """Writes ``analysis.json`` and plots.

    Everything is written into a hidden folder in ``out`` first, and takes its place when all is there, so that a full
    disk or an interruption leaves what was there. Such folders that killed processes have left are removed; of several
    that write at once, each waits for the one before. Other files in ``out`` stay.

    Args:
        analysis: What is written.
        out: The folder; it is made where it is not there.
        comparison: Of this analysis, as the first, with another.

    Returns:
        The files.

    Raises:
        InputError: If the folder cannot be written, or its name is empty.
        OSError: If that goes wrong later, as for a full disk.
    """
    folder = named_folder(out)
    check_writable(folder)
    with _alone_in(folder), tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as temporary:
        names = []
        for name, draw in _plots(analysis, comparison).items():
            write_whole(Path(temporary, name), png_of(draw()))
            names.append(name)
        content = orjson.dumps(as_dict(analysis, comparison), option=orjson.OPT_INDENT_2)
        write_whole(Path(temporary, NUMBERS), content + b"\n")
        for name in [*names, NUMBERS]:
            Path(temporary, name).replace(folder / name)
    if comparison is None:  # one of an earlier analysis
        (folder / COMPARISON).unlink(missing_ok=True)
    return [folder / name for name in [*names, NUMBERS]]


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process writes an analysis into a folder, and removes what killed ones have left there.

    The folder itself is locked (``flock``), which ends with the process. Where there are no such locks, as on Windows
    and some network file systems, nothing is waited for or removed.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass
        else:
            for left in folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def as_dict(analysis: Analysis, comparison: Comparison | None = None) -> dict[str, Any]:
    """The numbers of an analysis as JSON values; None stands for what is not known (NaN)."""
    errors, calibration, confusion = analysis.errors, analysis.calibration, analysis.confusion
    at = analysis.matches.at(analysis.iou)
    class_curves = analysis.curves.precisions[at].T  # (classes, recalls)
    rows = zip(analysis.classes, class_curves, errors.counts_by_class, errors.cost_by_class, strict=True)
    return {
        "format": FORMAT,
        "kind": analysis.kind,
        "iou": analysis.iou,
        "images": analysis.images,
        "objects": analysis.objects,
        "crowds": analysis.crowds,
        "detections": analysis.detections,
        "ap": _value(analysis.ap),
        "ap_at_iou": _value(analysis.ap_at_iou),
        "classes": [
            {
                **{key: _value(value) for key, value in asdict(told).items()},
                "errors": _kinds(counts, cost),
                "precision": _values(curve),
            }
            for told, curve, counts, cost in rows
        ],
        "curves": {
            "ious": _values(analysis.curves.ious),
            "recall": _values(analysis.curves.recalls),
            "precision": [_values(row) for row in analysis.curves.mean()],
        },
        "errors": {
            "iou": errors.iou,
            "background_iou": errors.background_iou,
            "ap": _value(errors.ap),
            "kinds": _kinds(
                np.array([errors.counts[kind] for kind in ERROR_KINDS]),
                np.array([errors.cost[kind] for kind in ERROR_KINDS]),
            ),
            "false_positives": _value(errors.false_positives),
            "false_negatives": _value(errors.false_negatives),
            "sizes": {
                size: {
                    "area_from": SIZE_LIMITS[place],
                    "area_to": _value(SIZE_LIMITS[place + 1]),
                    "objects": int(errors.objects_by_size[place]),
                    "errors": _kinds(errors.counts_by_size[place], errors.cost_by_size[place]),
                }
                for place, size in enumerate(SIZES)
            },
        },
        "confusion": {
            "iou": confusion.iou,
            "score": confusion.score,
            "names": [*(told.name for told in analysis.classes), None],
            "counts": confusion.counts.tolist(),
        },
        "calibration": None
        if calibration is None
        else {
            "iou": calibration.iou,
            "edges": _values(calibration.edges),
            "counts": calibration.counts.tolist(),
            "confidence": _values(calibration.confidence),
            "precision": _values(calibration.precision),
            "expected_error": _value(calibration.expected_error),
            "largest_error": _value(calibration.largest_error),
        },
        "comparison": None if comparison is None else _comparison(comparison),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    overall, classes = (
        [{key: _value(value) for key, value in {**asdict(row), "difference": row.difference}.items()} for row in rows]
        for rows in (comparison.overall, comparison.classes)
    )
    second = as_dict(comparison.second)
    del second["comparison"]
    return {
        "level": LEVEL,
        "resamples": comparison.resamples,
        "seed": comparison.seed,
        "overall": overall,
        "classes": classes,
        "second": second,
    }


def _plots(analysis: Analysis, comparison: Comparison | None) -> dict[str, Callable[[], Figure]]:
    chosen: dict[str, Callable[[Analysis], Figure]] = {
        "curves_by_iou.png": plots.curves_by_iou,
        "curves_by_class.png": plots.curves_by_class,
        "confusion.png": plots.confusion_matrix,
        "calibration.png": plots.reliability,
        "errors.png": cost_plots.costs,
        "errors_by_class.png": cost_plots.costs_by_class,
        "errors_by_size.png": cost_plots.costs_by_size,
    }
    all_plots: dict[str, Callable[[], Figure]] = {name: partial(draw, analysis) for name, draw in chosen.items()}
    if comparison is not None:
        all_plots[COMPARISON] = partial(cost_plots.differences, comparison)
    return all_plots


def _kinds(counts: NDArray[np.int64], cost: NDArray[np.float64]) -> dict[str, Any]:
    return {
        kind: {"count": int(counts[place]), "cost": _value(float(cost[place]))}
        for place, kind in enumerate(ERROR_KINDS)
    }


def _values(values: NDArray[np.float64]) -> list[float | None]:
    return [_value(value) for value in values.tolist()]


def _value(value: Any) -> Any:
    """A value as JSON has it."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
