"""Errors that a user can act on: each message is the one line that the user reads."""

from __future__ import annotations

from pathlib import Path


class InputError(Exception):
    """A mistake in what the user gave: the message says what is wrong, where, and what was expected."""


class BadSampleError(InputError):
    """An image that cannot be used.

    Args:
        path: The image file.
        reason: What is wrong with it.
        sample: The sample number in the (repeated) data set, where it is known.
    """

    def __init__(self, path: str | Path, reason: str, sample: int | None = None) -> None:
        self.path = Path(path)
        self.reason = reason
        self.sample = sample
        where = f"{path}" if sample is None else f"{path} (sample {sample})"
        super().__init__(f"{where}: {reason}")
