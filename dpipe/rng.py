"""Random streams that are functions of numbers, not of what ran before.

Philox is a counter-based generator: its state is a key and a counter, so every (seed, epoch, number) has a stream of
its own, made in microseconds, whatever was drawn elsewhere (Salmon et al., "Parallel random numbers: as easy as 1, 2,
3", SC 2011).
"""

from __future__ import annotations

import numpy as np

from dpipe.errors import InputError

ORDER = 1
"""Purpose of the streams that shuffle samples."""

AUGMENT = 2
"""Purpose of the streams that draw augmentations."""


def random_stream(purpose: int, seed: int, epoch: int, number: int = 0) -> np.random.Generator:
    """Returns the generator that belongs to these numbers alone.

    Args:
        purpose: ``ORDER`` or ``AUGMENT``, so that both may use one seed.
        seed: 0..2**64-1.
        epoch: 0 or more.
        number: The sample number, 0 or more.
    """
    # The lowest word of the counter is the one that drawing advances; the others tell streams of one key apart.
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, number, epoch, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def check_number(name: str, value: int) -> None:
    """Checks that a seed, an epoch or a sample's number fits the generator.

    Raises:
        InputError: If it is no integer in 0..2**64-1.
    """
    if not isinstance(value, int | np.integer) or not 0 <= value < 2**64:
        raise InputError(f"{name} {value!r} is out of range: expected an integer in 0..2**64-1")
