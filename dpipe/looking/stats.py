"""Numbers on a data set: what is in it, how often, how large and of what shape."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.looking.coco_records import Records, no_garbage_collection, read_records

SMALL, LARGE = 32**2, 96**2
"""Square pixels: objects below are small, objects from there on are large, as in COCO's evaluation."""

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs.

    Attributes:
        name: Of the category.
        id: Of the category.
        objects: Objects of the class.
        images: Images with at least one.
        ignored: Crowd regions and objects to ignore of the class.
    """

    name: str
    id: int
    objects: int
    images: int
    ignored: int


@dataclass(frozen=True, eq=False)
class Distribution:
    """How a number is spread.

    Attributes:
        name: What is counted or measured, with its unit.
        values: (n,) float64, all of them.
    """

    name: str
    values: NDArray[np.float64]

    def quantiles(self) -> list[float]:
        """At ``QUANTILES``; none where there are no values."""
        return np.quantile(self.values, QUANTILES).tolist() if len(self.values) else []

    def mean(self) -> float | None:
        """None where there are no values."""
        return float(self.values.mean()) if len(self.values) else None


@dataclass(frozen=True, eq=False)
class DatasetStats:
    """Numbers on a data set.

    Objects are the annotations that a detector is to find: no crowd, not to be ignored, with a box of a known image and
    category that has width and height.

    Attributes:
        path: The JSON file.
        images: Images.
        images_without_objects: Images without an object.
        annotations: Annotations.
        objects: Annotations that are objects.
        crowds: Crowd regions (``iscrowd``).
        ignored: Annotations that are marked ``ignore`` or ``difficult``.
        unusable: Annotations without a box that has width and height, or whose image or category is not there.
        small: Objects of an area below 32 squared.
        medium: Objects between.
        large: Objects of an area of 96 squared and more.
        with_polygons: Annotations whose mask is a list of polygons.
        with_run_lengths: Annotations whose mask is given by run lengths.
        without_mask: Annotations without a mask.
        vertices: Vertices of all polygons.
        classes: In the file's order.
        distributions: Of boxes, masks and images.
    """

    path: Path
    images: int
    images_without_objects: int
    annotations: int
    objects: int
    crowds: int
    ignored: int
    unusable: int
    small: int
    medium: int
    large: int
    with_polygons: int
    with_run_lengths: int
    without_mask: int
    vertices: int
    classes: tuple[ClassCount, ...]
    distributions: dict[str, Distribution]

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON values; distributions as their quantiles and means."""
        values = {key: value for key, value in vars(self).items() if key not in ("path", "classes", "distributions")}
        return {
            "path": str(self.path),
            **values,
            "classes": [asdict(each) for each in self.classes],
            "quantiles_at": list(QUANTILES),
            "distributions": {
                key: {"name": each.name, "count": len(each.values), "mean": each.mean(), "quantiles": each.quantiles()}
                for key, each in self.distributions.items()
            },
        }


def dataset_stats(path: str | Path) -> DatasetStats:
    """Reads a COCO JSON and counts; what is wrong in it is left out.

    Raises:
        InputError: If the file cannot be read or is no COCO JSON.
    """
    with no_garbage_collection():
        return count_records(read_records(Path(path)))


def count_records(records: Records) -> DatasetStats:
    """Counts what has been read."""
    with np.errstate(invalid="ignore"):  # a box that is not there has sides of nan
        usable = (records.image >= 0) & (records.label >= 0) & (records.boxes[:, 2:] > 0).all(axis=1)
    spared = records.crowd | records.ignored
    objects = np.flatnonzero(usable & ~spared)
    sides = records.boxes[objects, 2:]
    areas = np.where(np.isfinite(records.areas[objects]), records.areas[objects], sides.prod(axis=1))
    an_image = np.bincount(records.image[objects], minlength=len(records.images))
    polygons, run_lengths, vertices = _masks(records)
    known = (records.widths > 0) & (records.heights > 0)
    distributions = {
        "box_width": ("box width (pixels)", sides[:, 0]),
        "box_height": ("box height (pixels)", sides[:, 1]),
        "object_size": ("square root of the area (pixels)", np.sqrt(np.maximum(areas, 0))),
        "aspect_ratio": ("box width / height", sides[:, 0] / sides[:, 1]),
        "objects_per_image": ("objects an image", an_image.astype(np.float64)),
        "vertices_per_mask": ("polygon corners a mask", vertices[polygons].astype(np.float64)),
        "image_width": ("image width (pixels)", records.widths[known].astype(np.float64)),
        "image_height": ("image height (pixels)", records.heights[known].astype(np.float64)),
    }
    return DatasetStats(
        path=records.path,
        images=len(records.images),
        images_without_objects=int((an_image == 0).sum()),
        annotations=len(records.annotations),
        objects=len(objects),
        crowds=int(records.crowd.sum()),
        ignored=int(records.ignored.sum()),
        unusable=int((~usable).sum()),
        small=int((areas < SMALL).sum()),
        medium=int(((areas >= SMALL) & (areas < LARGE)).sum()),
        large=int((areas >= LARGE).sum()),
        with_polygons=int(polygons.sum()),
        with_run_lengths=int(run_lengths.sum()),
        without_mask=int((~polygons & ~run_lengths).sum()),
        vertices=int(vertices.sum()),
        classes=_classes(records, objects, np.flatnonzero(usable & spared)),
        distributions={key: Distribution(name, values) for key, (name, values) in distributions.items()},
    )


def _masks(records: Records) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """(M,) whether an annotation has polygons, whether it has run lengths, and how many vertices."""
    values = list(records.segmentations())
    run_lengths = np.array([isinstance(value, dict) for value in values], dtype=np.bool_)
    polygons = np.array([isinstance(value, list) for value in values], dtype=np.bool_)
    vertices = [
        sum(len(ring) for ring in value if isinstance(ring, list)) // 2 if isinstance(value, list) else 0
        for value in values
    ]
    return polygons, run_lengths, np.array(vertices, dtype=np.int64)


def _classes(records: Records, objects: NDArray[np.int64], spared: NDArray[np.int64]) -> tuple[ClassCount, ...]:
    labels, count = records.label[objects], len(records.categories)
    # An image counts once for a class.
    in_images = np.unique(labels * max(len(records.images), 1) + records.image[objects]) // max(len(records.images), 1)
    of_objects, of_images, of_spared = (
        np.bincount(column, minlength=count).tolist() for column in (labels, in_images, records.label[spared])
    )
    return tuple(
        ClassCount(
            records.class_name(label),
            int(records.category_ids[label]),
            of_objects[label],
            of_images[label],
            of_spared[label],
        )
        for label in range(count)
    )
