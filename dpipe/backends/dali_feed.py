"""From batches of plans to the arrays that the DALI graph asks for, without the images that cannot be used."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpipe.backends.base import OnBadSample, padded_size
from dpipe.backends.dali_steps import photometric_step
from dpipe.errors import BadSampleError
from dpipe.geometry import invert
from dpipe.images.decode import PNG_END, PNG_START, check_image, header_size
from dpipe.images.jpeg import JPEG_END, JPEG_START
from dpipe.plan import SamplePlan, Size

Plans = Sequence[SamplePlan]
Bad = tuple[tuple[int, BadSampleError], ...]
"""Places in a batch of plans, and what is wrong with the images there."""

_HEAD = 1 << 12  # bytes at the start of a file that nearly always tell the image's size
_TAIL = 8  # bytes at its end that tell whether it is whole


class Samples:
    """The image files, and what is known about them.

    Args:
        paths: Image files by image number; indexed only when an image is read.
        on_bad_sample: Whether a bad one raises, or is remembered and left out from then on.
    """

    def __init__(self, paths: Sequence[Path], on_bad_sample: OnBadSample) -> None:
        self.paths = paths
        self.skip = on_bad_sample == "skip"
        self._looked_at = np.zeros(len(paths), dtype=bool)
        self._reasons: dict[int, str] = {}

    def quarantine(self, plan: SamplePlan, error: BadSampleError) -> None:
        """Remembers that an image cannot be used.

        Raises:
            BadSampleError: The error itself, where bad samples are not to be skipped.
        """
        if not self.skip:
            raise error
        self._reasons[plan.image] = error.reason

    def find_bad(self, plans: Plans) -> Bad:
        """Looks at the files of a batch, at each once.

        Raises:
            BadSampleError: For a bad one, unless they are to be skipped.
        """
        bad = []
        for place, plan in enumerate(plans):
            if plan.image not in self._reasons and not self._looked_at[plan.image]:
                try:
                    _look_at(self.paths[plan.image], plan)
                except BadSampleError as error:
                    self.quarantine(plan, error)
                self._looked_at[plan.image] = True
            if plan.image in self._reasons:
                bad.append((place, BadSampleError(self.paths[plan.image], self._reasons[plan.image], plan.sample)))
        return tuple(bad)


@dataclass(frozen=True)
class Flight:
    """A batch on its way through the graph.

    Attributes:
        plans: All of the batch.
        bad: Those that are left out.
    """

    plans: Plans
    bad: Bad

    @property
    def numbered(self) -> list[tuple[int, SamplePlan]]:
        """The plans that go through the graph, with their places in the batch, in their order."""
        left_out = {place for place, _ in self.bad}
        return [(place, plan) for place, plan in enumerate(self.plans) if place not in left_out]

    @property
    def usable(self) -> list[SamplePlan]:
        """The plans that go through the graph, in their order."""
        return [plan for _, plan in self.numbered]


class Source:
    """What the pipeline asks for each batch's arrays; it outlives the streams."""

    def __init__(self) -> None:
        self.feed: Feed | None = None

    def __call__(self) -> list[Any]:
        """Returns the inputs of the graph for the next batch; raises StopIteration where none is left."""
        if self.feed is None:
            raise StopIteration
        return self.feed.arrays()


class Feed:
    """Turns the batches of one stream into arrays.

    Args:
        batches: The plans.
        samples: Their files.
        size_divisor: Of the padded size.

    Attributes:
        slots: Photometric steps in the graph.
        halvings: Halvings in the graph.
        in_flight: Batches that were handed to the pipeline, and not yet taken from it.
        waiting: Batches that come before any other from ``batches``: one that the graph has too few steps for or that
            has no usable image, and what has to run again. The stream sees to the first of them once nothing is in
            flight.
        error: What ended ``batches``, to be raised after all batches before it.
    """

    def __init__(self, batches: Iterator[Plans], samples: Samples, size_divisor: int) -> None:
        self.batches = batches
        self.samples = samples
        self.size_divisor = size_divisor
        self.slots = 0
        self.halvings = 0
        self.in_flight: deque[Flight] = deque()
        self.waiting: deque[Plans] = deque()
        self.error: Exception | None = None

    def arrays(self) -> list[Any]:
        """Returns the inputs of the graph for the next batch.

        Raises:
            StopIteration: Where no batch is left, or none that this graph can make.
        """
        if not self.waiting:
            self._ask_for_more()
        try:
            flight = self.prepare()
            arrays = self._arrays(flight) if flight.usable and self.fits(flight.usable) else None
        except Exception as error:
            self.waiting.clear()
            self.error = error
            raise StopIteration from None
        if arrays is None:
            raise StopIteration
        self.waiting.popleft()
        self.in_flight.append(flight)
        return arrays

    def prepare(self) -> Flight:
        """Sorts out the first of the batches that wait.

        Raises:
            BadSampleError: For a bad sample, unless it is to be skipped.
        """
        return Flight(self.waiting[0], self.samples.find_bad(self.waiting[0]))

    def fits(self, plans: Plans) -> bool:
        """Whether the graph has steps enough for these plans."""
        return most_steps(plans) <= self.slots and most_halvings(plans) <= self.halvings

    def run_again(self) -> None:
        """Puts what is in flight back to the front of what waits."""
        self.waiting.extendleft(flight.plans for flight in reversed(self.in_flight))
        self.in_flight.clear()

    def _arrays(self, flight: Flight) -> list[Any]:
        canvas = padded_size(flight.plans, self.size_divisor)
        return graph_inputs(flight.usable, self.samples.paths, canvas, self.slots, self.halvings)

    def _ask_for_more(self) -> None:
        if self.error is not None:
            raise StopIteration
        try:
            self.waiting.append(next(self.batches))
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise StopIteration from None


def most_steps(plans: Plans) -> int:
    """Returns the largest number of photometric operations that a plan has."""
    return max(len(plan.photometric) for plan in plans)


def most_halvings(plans: Plans) -> int:
    """Returns the largest number of halvings, of either axis, that a plan has."""
    return max(max(plan.halvings) for plan in plans)


def graph_inputs(plans: Plans, paths: Sequence[Path], canvas: Size, slots: int, halvings: int) -> list[Any]:
    """Returns the arrays of ``dali_graph``'s inputs, the batch in the first dimension.

    Args:
        plans: At least one.
        paths: Image files by image number.
        canvas: Height and width of the batch.
        slots: Photometric steps in the graph.
        halvings: Halvings in the graph.
    """
    inverses = np.array([invert(plan.halved_matrix) for plan in plans])
    arrays: list[Any] = [
        [np.frombuffer(os.fsencode(paths[plan.image]), dtype=np.uint8) for plan in plans],
        np.array([plan.source_size for plan in plans], dtype=np.int32),
        inverses.astype(np.float32),
        np.array([plan.size for plan in plans], dtype=np.float32),
        np.array([plan.resize_flips is None for plan in plans], dtype=np.int32),
        np.array([output_corners(*each) for each in zip(inverses, plans, strict=True)], dtype=np.float32),
        np.array([plan.fill for plan in plans], dtype=np.int16)[:, None, None],
        np.array([canvas] * len(plans), dtype=np.float32),
    ]
    if halvings:
        arrays += [
            np.array([max(plan.halvings) for plan in plans], dtype=np.int32),
            np.array([halved_sizes(plan, halvings) for plan in plans], dtype=np.float32),
        ]
    if slots:
        steps = np.zeros((len(plans), slots), dtype=np.int32)
        weights = np.zeros((len(plans), slots, 3), dtype=np.float32)
        for sample, plan in enumerate(plans):
            for slot, operation in enumerate(plan.photometric):
                steps[sample, slot], weights[sample, slot] = photometric_step(operation)
        arrays += [steps, weights]
    return arrays


def output_corners(inverse: np.ndarray, plan: SamplePlan) -> np.ndarray:
    """Returns where the first and the last corner of the output lie, (2, 2), rows of (y, x).

    Args:
        inverse: Output to halved source. Shape (2, 3).
        plan: Tells the size of the output.
    """
    height, width = plan.size
    return (inverse @ [[0, width], [0, height], [1, 1]])[::-1].T


def halved_sizes(plan: SamplePlan, count: int) -> np.ndarray:
    """Returns what each halving makes of the source, (count, 2, 2): the size that it reads, then the size it makes.

    An odd edge is read one pixel further than the image goes, where DALI repeats its last pixel. An axis that has had
    its halvings stays as it is.
    """
    sizes = np.zeros((count, 2, 2))
    edges = list(plan.source_size)
    for step in range(max(plan.halvings)):
        for axis in range(2):
            halve = step < plan.halvings[axis]
            made = -(-edges[axis] // 2) if halve else edges[axis]
            sizes[step, :, axis] = (2 * made if halve else made), made
            edges[axis] = made
    return sizes


def _look_at(path: Path, plan: SamplePlan) -> None:
    """Reads the ends of a file.

    It must be whole, since a GPU decoder may take a truncated JPEG for a whole one, and of the size in the index, since
    a small file may hold an image that fills the memory.

    Raises:
        BadSampleError: If it cannot be used, as far as that can be seen without decoding it.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(_HEAD)
            file.seek(-_TAIL, os.SEEK_END)
            end = file.read(_TAIL)
        whole = (start.startswith(JPEG_START) and end.endswith(JPEG_END)) or (
            start.startswith(PNG_START) and end.endswith(PNG_END)
        )
    except OSError:
        whole = False
    if not whole or header_size(start) != tuple(plan.source_size):
        # Turned by EXIF data, in another format, with a long header: a longer look, which raises what is wrong.
        check_image(path, plan.source_size, plan.sample)
