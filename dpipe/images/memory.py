"""Memory that is used again.

The kernel hands out new memory page by page and zeroes each page when it is first touched. For an image of two
megapixels this costs about half as much as decoding it, and threads that do it at the same time wait for each other.
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
from numpy.typing import DTypeLike


class Scratch:
    """Arrays that hold something until the next image only. Not for several threads at once: each has its own."""

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Returns a uint8 array with any content; what was got under that name before is overwritten through it."""
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.size < size:
            memory = self._memory[name] = np.empty(size, dtype=np.uint8)
        return memory[:size].reshape(shape)


class BatchMemory:
    """Arrays for batches, whose memory is used again when nobody holds the batch any more.

    An array that was handed out is a view of a block of memory, and a tensor made from it keeps that very array alive
    for as long as the tensor, or anything that shares its memory, is there. So the block is free when the array is
    gone, which a weak reference tells. Only NumPy views of the array refer to the block past it: whoever fills them has
    to hold the array until they are filled.

    Args:
        spare: Free blocks that are kept, at most.
    """

    def __init__(self, spare: int) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=spare)
        self._largest = 0

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Returns an array with any content that shares its memory with no other one that is in use."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        # Blocks are as large as the largest batch so far: where sizes vary, each is soon large enough for any.
        self._largest = max(self._largest, size)
        block = self._free.pop() if self._free else None
        if block is None or block.size < size:
            block = np.empty(self._largest, dtype=np.uint8)
        array: np.ndarray = block[:size].view(dtype).reshape(shape)
        weakref.finalize(array, self._free.append, block).atexit = False
        return array
