"""How DALI decodes; apart from the backend, so that the options can be written where DALI is not installed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from dpipe.errors import InputError
from dpipe.plan import Size

Decoder: TypeAlias = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class DaliOptions:
    """Options of DALI's image decoder, which is nvImageCodec since DALI 2.0; they matter only on a CUDA device.

    Args:
        decoder: ``gpu`` (default) decodes JPEG and JPEG 2000 on the GPU, and other formats, such as PNG and WebP, which
            no GPU decoder knows, on the CPU. ``cpu`` decodes everything on the CPU and copies the pixels to the GPU:
            JPEG pixels are then the OpenCV backend's to the bit, and all of the GPU is left to the model. All that
            comes after decoding runs on the GPU either way.
        hw_decoder_load: Share of the JPEGs of a batch, 0..1, that go to the GPU's JPEG engines where it has them (A100,
            H100 and later); CUDA kernels and CPU threads decode the rest at the same time. The default, 0.65, is
            NVIDIA's advice for A100: more pays off with fewer CPU threads, less with more. It is rounded up to as many
            images as the engines decode at a time, so that they get all of a small batch. 0 leaves the engines alone.
            Progressive JPEGs never go to them.
        preallocate: Height and width of the largest JPEG that is expected: the engines' buffers are then made once, at
            the start, instead of anew for each larger image. None (default) makes them as they are needed.

    Raises:
        InputError: For a value out of range.
    """

    decoder: Decoder = "gpu"
    hw_decoder_load: float = 0.65
    preallocate: Size | None = None

    def __post_init__(self) -> None:
        if self.decoder not in ("gpu", "cpu"):
            raise InputError(f"DaliOptions: decoder must be gpu or cpu, got {self.decoder!r}")
        if not (_is_number(self.hw_decoder_load) and 0 <= self.hw_decoder_load <= 1):
            raise InputError(f"DaliOptions: hw_decoder_load must lie in 0..1, got {self.hw_decoder_load!r}")
        if self.preallocate is not None and not _is_size(self.preallocate):
            raise InputError(
                f"DaliOptions: preallocate must be a height and a width of at least 1, got {self.preallocate!r}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(edge, int) and not isinstance(edge, bool) and edge >= 1 for edge in value)
    )
