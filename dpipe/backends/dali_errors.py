"""Finds the file that DALI, which does not tell, stumbled over."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dpipe.errors import BadSampleError
from dpipe.images.decode import decode_image
from dpipe.plan import SamplePlan

# In DALI's messages: an operator that reads or decodes files, and what can go wrong in any operator.
_FILE_OPERATOR = re.compile(r"operator `nvidia\.dali\.fn\.(io\.file\.read|peek_image_shape|decoders\.image)`")
_UNKNOWN_FORMAT = "nvImageCodec failure: '#4'"  # NVIMGCODEC_STATUS_CODESTREAM_UNSUPPORTED
_MACHINE_TROUBLE = re.compile(r"cuda|alloc|out of memory|driver|too many open files", re.IGNORECASE)

Probe = Callable[[SamplePlan], None]
"""Decodes a plan's image by DALI, alone; raises DALI's error."""


def find_culprits(
    plans: Sequence[SamplePlan], paths: Sequence[Path], error: Exception, probe: Probe
) -> list[tuple[SamplePlan, BadSampleError]]:
    """Finds what is wrong with which images of a batch that DALI could not make.

    Args:
        plans: Of the batch.
        paths: Image files by image number.
        error: DALI's.
        probe: Asked where OpenCV reads all of the files.

    Returns:
        At least one image, with the reason that OpenCV gives or, where it reads them all, DALI's; nothing where the
        error is not about a file.
    """
    found = [(plan, _by_opencv(plan, paths[plan.image])) for plan in plans]
    if not any(bad for _, bad in found) and file_trouble(error) is not None:
        found = [(plan, _by_dali(plan, paths[plan.image], probe)) for plan in plans]
    return [(plan, bad) for plan, bad in found if bad is not None]


def _by_opencv(plan: SamplePlan, path: Path) -> BadSampleError | None:
    try:
        decode_image(path, plan.source_size, plan.sample)
    except BadSampleError as bad:
        return bad
    return None


def _by_dali(plan: SamplePlan, path: Path, probe: Probe) -> BadSampleError | None:
    try:
        probe(plan)
    except Exception as error:  # DALI raises errors of many types for bad files
        reason = file_trouble(error)
        if reason is None:
            return None
        if _UNKNOWN_FORMAT in reason:  # GIF and AVIF, among others
            reason = f"DALI cannot read images of this format, the opencv backend can ({reason})"
        else:
            reason = f"DALI: {reason}"
        return BadSampleError(path, reason, plan.sample)
    return None


def file_trouble(error: Exception) -> str | None:
    """Returns what DALI says was wrong with a file; None where the error is about something else."""
    # "... <which operator> ... encountered:\n\n<what went wrong>\n<where in C++>\n..."
    where, _, what = str(error).rpartition("encountered:")
    reason = what.strip().partition("\n")[0].rstrip(" :")  # where a name would follow that DALI does not know
    if not _FILE_OPERATOR.search(where) or _MACHINE_TROUBLE.search(reason):
        return None
    return reason


def probe_inputs(plan: SamplePlan, paths: Sequence[Path]) -> list[np.ndarray]:
    """Returns the inputs of ``build_probe``'s pipeline."""
    path = np.frombuffer(os.fsencode(paths[plan.image]), dtype=np.uint8)
    return [path[None], np.array([plan.source_size], dtype=np.int32)]
