"""What is said at the start about files that no GPU decodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dpipe.errors import InputError

CPU_FORMATS = {".png": "PNG", ".webp": "WebP"}
"""Formats that every GPU decoder leaves to the CPU, by the ends of file names."""

_ENOUGH = 100  # names that tell what a data set consists of


def cpu_format_notice(paths: Sequence[Path]) -> str | None:
    """Tells whether most of a data set is in a format that is decoded on the CPU, whatever the device.

    Args:
        paths: Image files; about a hundred names, spread evenly, are looked at, and no file.

    Returns:
        One line for the user; None where there is nothing to say.
    """
    try:
        names = [paths[number] for number in range(0, len(paths), -(-len(paths) // _ENOUGH) or 1)]
    except InputError:
        return None  # told at the batch that asks for that file
    formats = Counter(CPU_FORMATS.get(path.suffix.lower()) for path in names)
    found, count = formats.most_common(1)[0] if formats else (None, 0)
    if found is None or 2 * count <= len(names):
        return None
    return (
        f"the images are {found} files, which are decoded on the CPU, no GPU can: "
        "`dpipe transcode IMAGES OUT --to jp2` makes JPEG 2000 of them, without loss, which the GPU decodes"
    )
