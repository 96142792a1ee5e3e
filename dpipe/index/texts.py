"""Many texts in two arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from dpipe.outlines.ragged import offsets_of


class Texts(Sequence[str]):
    """A sequence of texts that lie as UTF-8 in one array and are decoded when they are asked for.

    A tuple of a million names is a million objects, which every process has to make, and which a forked process copies
    by merely looking at them, for their reference counts; two arrays can be mapped from a file by all of them.

    Args:
        data: (B,) uint8, the texts one after another.
        offsets: (n+1,) int64, text i is ``data[offsets[i]:offsets[i+1]]``.
    """

    def __init__(self, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.data = data
        self.offsets = offsets

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Puts texts into arrays."""
        encoded = [text.encode() for text in texts]
        data = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(data, offsets_of(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Texts({len(self)}: {shown}{', ...' if len(self) > 3 else ''})"

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...
    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        if isinstance(place, slice):
            return tuple(self[index] for index in range(*place.indices(len(self))))
        index = range(len(self))[place]  # which knows negative places, and the error
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        blob = self.data.tobytes()
        start = 0
        for end in self.offsets[1:].tolist():
            yield blob[start:end].decode()
            start = end
