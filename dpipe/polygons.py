"""Instance masks as polygons in flat arrays: the one mask representation of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpipe.errors import InputError
from dpipe.geometry import Matrix, transform_points
from dpipe.outlines import polygon_clip, polygon_coco, polygon_fill, polygon_raster, polygon_write
from dpipe.outlines.ragged import group_numbers, offsets_of, ranges


@dataclass(frozen=True, eq=False, repr=False)
class Polygons:
    """The masks of I instances.

    An instance is the union of its parts. A part is an outer ring and the hole rings that follow it, by the even-odd
    rule, so the direction in which a ring runs means nothing and a mirrored matrix needs no care. An instance may have
    no ring: it is known by its box only, or it was clipped away.

    Attributes:
        vertices: (V, 2) float32 xy; rings are closed without repeating their first vertex, and have at least three.
        ring_offsets: (R+1,) int64: ring r owns vertices ``ring_offsets[r]:ring_offsets[r+1]``.
        instance_offsets: (I+1,) int64: instance i owns rings ``instance_offsets[i]:instance_offsets[i+1]``.
        holes: (R,) bool: the ring is a hole of the part that the nearest outer ring before it begins.
    """

    vertices: NDArray[np.float32]
    ring_offsets: NDArray[np.int64]
    instance_offsets: NDArray[np.int64]
    holes: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.instance_offsets) - 1

    def __repr__(self) -> str:
        return f"Polygons({len(self)} instances, {len(self.holes)} rings, {len(self.vertices)} vertices)"

    @classmethod
    def empty(cls, instances: int = 0) -> Polygons:
        """Instances without rings."""
        return cls(
            vertices=np.zeros((0, 2), dtype=np.float32),
            ring_offsets=np.zeros(1, dtype=np.int64),
            instance_offsets=np.zeros(instances + 1, dtype=np.int64),
            holes=np.zeros(0, dtype=np.bool_),
        )

    @classmethod
    def from_coco(
        cls,
        segmentations: Sequence[Any],
        sizes: ArrayLike | None = None,
        where: Callable[[int], str] | None = None,
    ) -> Polygons:
        """Reads the ``segmentation`` values of COCO annotations.

        A list of flat coordinate lists is a union of outer rings; rings of fewer than three points, or without any
        width or height, hold no area and are dropped. A run-length mask, compressed or not, is traced along its pixel
        edges: rasterising it again gives the same mask. ``None``, an empty list and an empty mask give no rings.

        Args:
            segmentations: One value for each instance.
            sizes: (I, 2) heights and widths of the images, to be checked against those of run-length masks.
            where: Names an instance, for messages; "segmentation 3" by default.

        Raises:
            InputError: A value is neither, has a ring with an odd number of coordinates or with something else than
                finite numbers, or run lengths that do not fit their size.
        """
        return cls(*polygon_coco.read_segmentations(segmentations, sizes, where))

    @classmethod
    def concatenate(cls, several: Sequence[Polygons]) -> Polygons:
        """The instances of all, one after another."""
        if not several:
            return cls.empty()
        return cls(
            vertices=np.concatenate([polygons.vertices for polygons in several]),
            ring_offsets=_join_offsets([polygons.ring_offsets for polygons in several]),
            instance_offsets=_join_offsets([polygons.instance_offsets for polygons in several]),
            holes=np.concatenate([polygons.holes for polygons in several]),
        )

    def select(self, instances: ArrayLike | slice) -> Polygons:
        """Some instances, in the order asked for.

        Args:
            instances: Numbers of instances (any integer array, repeats allowed), a boolean mask (I,), or a slice.

        Returns:
            Their polygons. Successive instances are a view, which costs next to nothing however many there are.
        """
        if isinstance(instances, slice):
            start, stop, step = instances.indices(len(self))
            if step == 1:
                return self._successive(start, max(start, stop))
        else:
            instances = np.asarray(instances)
            if instances.size == 0:
                instances = instances.astype(np.int64)
        chosen = np.arange(len(self), dtype=np.int64)[instances]
        if len(chosen) and (np.diff(chosen) == 1).all():
            return self._successive(int(chosen[0]), int(chosen[-1]) + 1)
        ring_counts = np.diff(self.instance_offsets)[chosen]
        rings = ranges(self.instance_offsets[chosen], ring_counts)
        vertex_counts = np.diff(self.ring_offsets)[rings]
        return Polygons(
            vertices=self.vertices[ranges(self.ring_offsets[rings], vertex_counts)],
            ring_offsets=offsets_of(vertex_counts),
            instance_offsets=offsets_of(ring_counts),
            holes=self.holes[rings],
        )

    def _successive(self, first: int, end: int) -> Polygons:
        """Instances ``first`` to ``end - 1``, without a copy of their vertices."""
        if end - first == len(self):
            return self
        rings = slice(int(self.instance_offsets[first]), int(self.instance_offsets[end]))
        vertices = slice(int(self.ring_offsets[rings.start]), int(self.ring_offsets[rings.stop]))
        return Polygons(
            vertices=self.vertices[vertices],
            ring_offsets=self.ring_offsets[rings.start : rings.stop + 1] - vertices.start,
            instance_offsets=self.instance_offsets[first : end + 1] - rings.start,
            holes=self.holes[rings],
        )

    def transform(self, matrix: Matrix) -> Polygons:
        """All vertices mapped by a (2, 3) matrix."""
        vertices = transform_points(self.vertices, matrix).astype(np.float32)
        return Polygons(vertices, self.ring_offsets, self.instance_offsets, self.holes)

    def clip(self, width: float, height: float) -> Polygons:
        """What lies in [0, width] x [0, height], exactly.

        A part that the border cuts in several places ends as several parts; no edge ever bridges them along the
        border, so boxes and areas are those of what is seen. What lies outside ends without rings. The number and order
        of instances stay.
        """
        arrays = polygon_clip.clip(
            self.vertices, self.ring_offsets, self.instance_offsets, self.holes, float(width), float(height)
        )
        return self if arrays is None else Polygons(*arrays)

    def boxes(self) -> NDArray[np.float32]:
        """(I, 4) float32 tight xyxy boxes; (0, 0, 0, 0) for an instance without rings."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        starts = self.ring_offsets[self.instance_offsets]
        seen = np.flatnonzero(starts[1:] > starts[:-1])
        if len(seen):
            boxes[seen, :2] = np.minimum.reduceat(self.vertices, starts[seen], axis=0)
            boxes[seen, 2:] = np.maximum.reduceat(self.vertices, starts[seen], axis=0)
        return boxes

    def areas(self) -> NDArray[np.float64]:
        """(I,) float64 areas in square pixels: outer rings less their holes, and never less than nothing.

        Parts of one instance that overlap count twice, and a ring that crosses itself counts by its winding, as in
        every tool that measures polygons by their vertices; count ``to_bitmaps`` where that matters.
        """
        if not len(self.holes):
            return np.zeros(len(self))
        outer = np.flatnonzero(~self.holes)
        parts = np.add.reduceat(np.where(self.holes, -1.0, 1.0) * self._ring_areas(), outer)
        instance = group_numbers(self.instance_offsets)[outer]
        # Rings that crossed each other where they were clipped are one part, whatever the size of its holes.
        sums = np.bincount(instance, weights=np.maximum(parts, 0.0), minlength=len(self))
        return np.asarray(sums, dtype=np.float64)

    def to_bitmaps(self, height: int, width: int) -> NDArray[np.uint8]:
        """Full-size masks: a pixel is 1 where its centre is inside.

        Returns:
            (I, height, width) uint8.
        """
        heights, widths = np.full((2, len(self)), [[height], [width]], dtype=np.int64)
        runs = polygon_fill.toggles(
            self.vertices, self.ring_offsets, self.instance_offsets, self.holes, heights, widths
        )
        return polygon_fill.bitmaps(runs, height, width)

    def to_grids(self, boxes: ArrayLike, instances: ArrayLike, size: int) -> NDArray[np.float32]:
        """The share of each cell that is inside, on a grid laid over each box; no full-size mask is made.

        Shares are exact areas, except in a cell where a ring crosses itself or two parts overlap.

        Args:
            boxes: (n, 4) xyxy boxes; one without width or height gives zeros.
            instances: (n,) which instance each box looks at.
            size: Cells along each side.

        Returns:
            (n, size, size) float32 in 0..1, rows first.

        Raises:
            InputError: If there is not one instance for each box, one of them is not there, or ``size`` is below 1.
        """
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        numbers = np.asarray(instances, dtype=np.int64).reshape(-1)
        check_grids(len(boxes), len(numbers), size)
        if ((numbers < 0) | (numbers >= len(self))).any():
            raise no_such_instance(len(self))
        return polygon_raster.grids(
            self.vertices, self.ring_offsets, self.instance_offsets, self.holes, boxes, numbers, size
        )

    def to_coco(self, sizes: ArrayLike | None = None) -> list[Any]:
        """``segmentation`` values of COCO annotations, from which ``from_coco`` reads the same polygons again.

        An instance becomes a list of flat coordinate lists, one for each part, with the fewest decimals that keep every
        coordinate; without rings it becomes an empty list. Such lists cannot tell of holes, and a hole written as a
        ring would be read as a part. So an instance with a hole becomes a compressed run-length mask of its pixels; of
        what was read from one this is the same mask again, while elsewhere its borders move to those of pixels.

        Args:
            sizes: Height and width of the image, or (I, 2) of each instance's; needed where there are holes.

        Raises:
            InputError: An instance has a hole, and there are no sizes.
        """
        return polygon_write.write_polygons(self, None if sizes is None else self._sizes(sizes))

    def to_rle(self, height: int, width: int, compressed: bool = True) -> list[dict[str, Any]]:
        """Run-length masks in COCO's form: those of ``to_bitmaps``, without making bitmaps.

        Of what was read from run lengths these are the same run lengths again. An instance without rings becomes an
        empty mask.

        Args:
            height: Of the image, in pixels.
            width: Of the image, in pixels.
            compressed: Whether ``counts`` is COCO's compressed text or a list of numbers, as COCO has it for crowds.

        Returns:
            I times ``size`` and ``counts``, ready for JSON and for ``pycocotools.mask``.
        """
        return polygon_write.write_run_lengths(self, self._sizes([height, width]), compressed)

    def _sizes(self, sizes: ArrayLike) -> NDArray[np.int64]:
        """(I, 2) heights and widths, of one size for all or of one for each."""
        return np.broadcast_to(np.asarray(sizes, dtype=np.int64), (len(self), 2))

    def _ring_areas(self) -> NDArray[np.float64]:
        """(R,) float64 unsigned areas by the shoelace formula."""
        return np.abs(polygon_raster.signed_ring_areas(self.vertices, self.ring_offsets))


def check_grids(boxes: int, instances: int, size: int) -> None:
    """Checks how many boxes and instances grids are asked for, and of which size.

    Raises:
        InputError: If they do not match, or the size is below 1.
    """
    if boxes != instances:
        raise InputError(f"grids: expected an instance for each of the {boxes} boxes, got {instances}")
    if size < 1:
        raise InputError(f"grids: expected a size of at least 1 cell, got {size}")


def no_such_instance(count: int) -> InputError:
    """What is wrong with grids of an instance that is not among so many."""
    return InputError(f"grids: expected the numbers of instances in 0..{count - 1}, as there are {count}")


def _join_offsets(several: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Offsets of concatenated groups."""
    return offsets_of(np.concatenate([np.diff(offsets) for offsets in several]))
