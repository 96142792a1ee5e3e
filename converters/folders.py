"""Finding a data set and its parts on disk, with errors that tell what was looked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converters.errors import ConversionError


def existing_root(candidates: Sequence[tuple[str, Path | None]], what: str) -> Path:
    """Returns the first candidate that is a folder.

    Args:
        candidates: How a place is called, for the error, and where it is (None where it is not set).
        what: What is looked for.

    Raises:
        ConversionError: None of them is a folder; the line lists all.
    """
    for _, path in candidates:
        if path is not None and path.is_dir():
            return path
    tried = ", ".join(name if path is None else f"{name} (no such folder)" for name, path in candidates)
    raise ConversionError(f"no {what} found; tried: {tried}")


def chosen(kind: str, found: Sequence[str], named: Sequence[str] | None, where: Path) -> list[str]:
    """Returns the parts to convert: those named, in the order found, or all that were found.

    Args:
        kind: What the parts are: "split", "year".
        found: What the data set has.
        named: What the user named; None or empty for everything.
        where: Where they were looked for, for the error.

    Raises:
        ConversionError: A named part does not exist, or nothing exists.
    """
    unknown = [name for name in named or () if name not in found]
    if unknown or not found:
        wanted = f"no {kind} {', '.join(unknown)}" if unknown else f"no {kind}"
        raise ConversionError(f"{where}: {wanted} here; found: {', '.join(found) or 'none'}")
    return [name for name in found if not named or name in named]
