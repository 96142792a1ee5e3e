"""Sample images of the validation set with what was found in them beside what is true."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detect.metrics.overlaps import Floats, corners
from detect.metrics.results import Results
from detect.predicting.predictions import SCORE_THR
from detect.reporting.keeping import best_of_each_image, select
from detect.reporting.matching import Matches, match
from dpipe.backends.base import BadSampleError
from dpipe.coco import CocoIndex, image_path
from dpipe.errors import InputError
from dpipe.images.decode import decode_image
from dpipe.looking.draw import class_colour
from dpipe.looking.page_parts import hex_colour, jpeg_base64, svg_paths
from dpipe.polygons import Polygons

LONGEST_EDGE = 800
"""Pixels of a picture in the page."""
JPEG_QUALITY = 80
MOST_SHOWN = 50
"""Detections of an image in the page, those of the best scores."""
TOLERANCE = 0.7
"""How far an outline in the page may be from the exact one, in pixels of the picture."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """An object or a detection, drawn over a picture.

    Attributes:
        name: Of the class.
        colour: ``#rrggbb``, of the class.
        box: x, y, width and height in pixels of the picture.
        paths: SVG paths, one for each part of the mask; none where there is no mask.
        kind: ``right``, ``wrong`` or ``ignored`` of a detection; ``true`` or ``crowd`` of an object.
        score: Of a detection; of an object that of the detection that finds it, None where there is none.
    """

    name: str
    colour: str
    box: Box
    paths: list[str]
    kind: str
    score: float | None


@dataclass(frozen=True)
class Sample:
    """A picture with what lies over it.

    Attributes:
        name: The file's, as in the data set.
        why: Why it was chosen.
        size: Width and height of the image, in pixels.
        shown: Width and height of the picture in the page.
        data: The JPEG file in base64; empty where the image cannot be read.
        problem: Why it cannot be read.
        detections: The largest first, as are the objects.
        truth: The objects.
    """

    name: str
    why: str
    size: tuple[int, int]
    shown: tuple[float, float]
    data: str
    problem: str
    detections: list[Shape] = field(default_factory=list)
    truth: list[Shape] = field(default_factory=list)


class Samples:
    """Chooses images of a validation set and draws them.

    Args:
        index: The validation set.
        images: Its folder of images.
        results: What was found.
        by_class: Whether a detection must be of an object's class to find it; proposals need not.
    """

    def __init__(self, index: CocoIndex, images: str | Path, results: Results, *, by_class: bool) -> None:
        self.index, self.images, self.by_class = index, images, by_class
        self.results = best_of_each_image(results, MOST_SHOWN)
        order = np.argsort(self.results.image_ids, kind="stable")
        bounds = np.searchsorted(self.results.image_ids[order], np.stack([index.image_ids, index.image_ids + 1]))
        self._rows = [order[begin:end] for begin, end in bounds.T.tolist()]
        label_of = {id_: label for label, id_ in enumerate(index.category_ids.tolist())}
        self._labels = np.array([label_of[id_] for id_ in self.results.category_ids.tolist()], np.int64)

    def choose(self, count: int, unusable: Collection[str]) -> list[tuple[int, str]]:
        """Chooses images: half of them those with the most mistakes, the others at random, the same every time.

        Args:
            count: How many at most.
            unusable: Names of files that are not to be chosen.

        Returns:
            Number of each image, and why it was chosen.
        """
        usable = [number for number, name in enumerate(self.index.file_names) if name not in unusable]
        mistakes = np.array([self._mistakes(number) for number in usable], np.int64)
        worst = [usable[place] for place in np.argsort(-mistakes, kind="stable").tolist() if mistakes[place]]
        worst = worst[: math.ceil(count / 2)]
        others = sorted(set(usable) - set(worst))
        drawn = np.random.default_rng(0).permutation(len(others))[: count - len(worst)]
        chosen = [(number, "most mistakes") for number in worst]
        return chosen + [(others[place], "at random") for place in sorted(drawn.tolist())]

    def draw(self, number: int, why: str) -> Sample:
        """Makes the sample of an image.

        Args:
            number: Of the image in the index.
            why: Why it was chosen.
        """
        index = self.index
        width, height = int(index.widths[number]), int(index.heights[number])
        scale = min(1.0, LONGEST_EDGE / max(width, height))
        data, problem = "", ""
        try:
            path = image_path(self.images, index.file_names[number])
            data = jpeg_base64(decode_image(path, (height, width)), LONGEST_EDGE, JPEG_QUALITY)
        except (BadSampleError, InputError) as error:
            problem = str(error)
        rows, truth = self._rows[number], self._truth(number)
        found, matches = select(self.results, rows), self._match(number)
        outlines = Polygons.empty(len(rows)) if found.masks is None else Polygons.from_coco(found.masks)
        true_scores = [None if math.isnan(score) else score for score in matches.found.tolist()]
        true_kinds = ["crowd" if crowd else "true" for crowd in index.crowd[truth].tolist()]
        return Sample(
            name=index.file_names[number],
            why=why,
            size=(width, height),
            shown=(round(width * scale, 1), round(height * scale, 1)),
            data=data,
            problem=problem,
            detections=self._shapes(
                corners(found.boxes), self._labels[rows], outlines, matches.verdicts, found.scores.tolist(), scale
            ),
            truth=self._shapes(
                index.boxes[truth].astype(np.float64),
                index.labels[truth],
                index.polygons.select(truth),
                true_kinds,
                true_scores,
                scale,
            ),
        )

    def _truth(self, number: int) -> slice:
        return slice(int(self.index.offsets[number]), int(self.index.offsets[number + 1]))

    def _match(self, number: int) -> Matches:
        rows, truth = self._rows[number], self._truth(number)
        labels, true_labels = self._labels[rows], self.index.labels[truth]
        if not self.by_class:
            labels, true_labels = np.zeros_like(labels), np.zeros_like(true_labels)
        return match(
            corners(self.results.boxes[rows]),
            labels,
            self.results.scores[rows],
            self.index.boxes[truth].astype(np.float64),
            true_labels,
            self.index.crowd[truth],
        )

    def _mistakes(self, number: int) -> int:
        counts = ~self.index.crowd[self._truth(number)]
        return self._match(number).mistakes(self.results.scores[self._rows[number]], counts, SCORE_THR)

    def _shapes(
        self,
        boxes: Floats,
        labels: NDArray[np.int64],
        outlines: Polygons,
        kinds: Sequence[str],
        scores: Sequence[float | None],
        scale: float,
    ) -> list[Shape]:
        sides = (boxes[:, 2:] - boxes[:, :2]) * scale
        scaled = outlines.transform(np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]]))
        shapes = []
        for row in np.argsort(-sides.prod(axis=1), kind="stable").tolist():  # what lies in front comes last
            label = int(labels[row])
            x, y, width, height = (round(float(value), 1) for value in (*boxes[row, :2] * scale, *sides[row]))
            score = scores[row]
            shapes.append(
                Shape(
                    name=self.index.class_names[label] if self.by_class or kinds[row] in ("true", "crowd") else "",
                    colour=hex_colour(class_colour(label)),
                    box=(x, y, width, height),
                    paths=svg_paths(scaled, row, TOLERANCE),
                    kind=kinds[row],
                    score=None if score is None else round(score, 4),
                )
            )
        return shapes
