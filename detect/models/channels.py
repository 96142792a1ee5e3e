"""What a head reads from the pyramid below it."""

from __future__ import annotations

from collections.abc import Sequence

from dpipe.errors import InputError


def common_channels(in_channels: int | Sequence[int], part: str) -> int:
    """The one number of channels of all levels: heads share their weights over levels.

    Args:
        in_channels: A number, or one number for each level.
        part: Name of the head, for the message.

    Raises:
        InputError: If the levels differ.
    """
    if isinstance(in_channels, int):
        return in_channels
    if len(set(in_channels)) != 1:
        raise InputError(f"{part}: in_channels is {list(in_channels)}; levels that share a head must have equally many")
    return in_channels[0]
