"""``dpipe preview``: a contact sheet of augmented samples."""

from __future__ import annotations


def preview() -> None:
    """Draw a contact sheet of augmented samples with boxes and masks."""
