"""What was found in one image, as a notebook wants it: arrays, names, a picture, COCO's and LabelMe's forms."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from detect.metrics.results import Results
from detect.models.detections import Detections, RunLengths
from detect.predicting.inputs import Source
from detect.predicting.labelme import labelme_file
from dpipe.building.problems import shorten
from dpipe.errors import InputError
from dpipe.files import write_whole
from dpipe.looking.draw import draw_instances
from dpipe.plan import Size

SCORE_THR = 0.3
"""Detections with a lower score are not drawn, where nothing else is asked for."""


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """The n objects found in one image, best score first. A notebook shows it as the picture with them drawn.

    Attributes:
        source: The image: a file that is read when its pixels are asked for, or the pixels.
        size: Height and width of the image, upright.
        detections: The same objects as tensors on the CPU.
        class_names: Names of all classes of the model, by label.
        category_ids: The data set's id of each class.
    """

    source: Source
    size: Size
    detections: Detections
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.detections)

    def __repr__(self) -> str:
        return f"Predictions({self.source.name}, {self.size[1]}x{self.size[0]}: {self.told()})"

    @property
    def path(self) -> Path | None:
        """The image's file, or the video that it is a frame of; None for an array."""
        return self.source.path

    @property
    def image(self) -> NDArray[np.uint8]:
        """The pixels, (H, W, 3) uint8 RGB, upright.

        Raises:
            BadSampleError: If the file is no longer there, or another.
        """
        return self.source.read()

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(n, 4) float32: x1, y1, x2, y2 in pixels of the image, continuous coordinates."""
        boxes: NDArray[np.float32] = self.detections.boxes.numpy()
        return boxes

    @property
    def scores(self) -> NDArray[np.float32]:
        """(n,) float32, 0..1."""
        scores: NDArray[np.float32] = self.detections.scores.numpy()
        return scores

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) int64: numbers of classes, 0..C-1."""
        labels: NDArray[np.int64] = self.detections.labels.numpy()
        return labels

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.class_names[label] for label in self.detections.labels.tolist()]

    @property
    def masks(self) -> list[RunLengths] | None:
        """The masks as COCO's run lengths, n of them; None of a model without masks."""
        return self.detections.masks

    def bitmaps(self) -> NDArray[np.bool_]:
        """The masks decoded: (n, H, W) bool.

        Raises:
            InputError: If the model predicts no masks.
        """
        if self.masks is None:
            raise InputError("these predictions have no masks: the model predicts boxes only")
        return self.detections.bitmaps() if self.masks else np.zeros((0, *self.size), dtype=np.bool_)

    def select(self, chosen: Any) -> Predictions:
        """Some of the objects.

        Args:
            chosen: Indices (k,), booleans (n,) such as ``predictions.scores > 0.5``, or a slice.

        Raises:
            InputError: For anything else, and for indices that are not there.
        """
        if not isinstance(chosen, slice):
            rows = np.asarray(chosen)
            rows = rows if rows.size else rows.astype(np.int64)  # of an empty list they would be floats
            if not _fit(rows, len(self)):
                wanted = f"indices of {len(self)} objects, as many booleans, or a slice"
                raise InputError(f"expected {wanted}, got {shorten(repr(chosen))}")
            chosen = torch.from_numpy(np.arange(len(self))[rows])
        return replace(self, detections=self.detections.select(chosen))

    def above(self, score_thr: float) -> Predictions:
        """Those whose score is at least ``score_thr``.

        Raises:
            InputError: If ``score_thr`` is no number from 0 to 1.
        """
        check_score_thr(score_thr)
        return self.select(self.scores >= np.float32(score_thr))

    def told(self) -> str:
        """How many there are of each class, in words."""
        counts = Counter(self.names)
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"

    def draw(self, score_thr: float = SCORE_THR) -> NDArray[np.uint8]:
        """The image with boxes, masks, names and scores drawn on it: (H, W, 3) uint8 RGB.

        Args:
            score_thr: Objects with a lower score are left out.
        """
        shown = self.above(score_thr)
        return draw_instances(
            self.image, shown.boxes, shown.labels, self.class_names, scores=shown.scores, masks=shown.masks
        )

    def save(self, path: str | Path, score_thr: float = SCORE_THR) -> None:
        """Writes what ``draw`` gives, whole or not at all.

        Args:
            path: The picture; its ending tells the format.
            score_thr: See ``draw``.

        Raises:
            InputError: For an ending of no format that pictures are written in.
        """
        path = Path(path)
        write_whole(path, encoded(self.draw(score_thr), path))

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """The objects in COCO's results format.

        Args:
            image_id: What the results call the image.

        Returns:
            For each: ``image_id``, ``category_id``, ``category_name``, ``bbox`` (x, y, width, height), ``score``, and
            with masks ``segmentation`` (compressed run lengths); ``file_name`` where there is one, and ``frame`` (from
            0) of a video.
        """
        rows = Results.of_image(self.detections, image_id, self.category_ids).to_coco()
        told: dict[str, Any] = {} if self.path is None else {"file_name": str(self.path)}
        if self.source.frame is not None:
            told["frame"] = self.source.frame
        return [{**row, "category_name": name, **told} for row, name in zip(rows, self.names, strict=True)]

    def to_labelme(self, folder: str | Path = ".", score_thr: float = SCORE_THR) -> dict[str, Any]:
        """The objects as the content of a LabelMe file, to be corrected by hand: see ``detect.predicting.labelme``.

        Args:
            folder: Where the file will be; the path of the image is relative to it.
            score_thr: Objects with a lower score are left out.
        """
        shown = self.above(score_thr)
        return labelme_file(self.source, self.size, shown.detections, shown.names, Path(folder))

    def _repr_png_(self) -> bytes:
        """The picture that notebooks show."""
        return encoded(self.draw(), Path("shown.png"))


def check_score_thr(score_thr: Any) -> None:
    """Checks the score from which on objects are wanted.

    Raises:
        InputError: If it is no number from 0 to 1.
    """
    if not isinstance(score_thr, int | float | np.number) or not 0 <= score_thr <= 1:
        raise InputError(f"score_thr is {score_thr!r}; expected a number from 0 to 1")


def _fit(rows: NDArray[Any], count: int) -> bool:
    """Whether an array chooses among so many."""
    if rows.ndim != 1:
        return False
    if rows.dtype == np.bool_:
        return len(rows) == count
    return bool(np.issubdtype(rows.dtype, np.integer) and ((rows >= -count) & (rows < count)).all())


def encoded(pixels: NDArray[np.uint8], path: Path) -> bytes:
    """The bytes of a picture, (H, W, 3) uint8 RGB, in the format that the path's ending tells.

    Raises:
        InputError: For an ending of no format that pictures are written in.
    """
    try:
        done, data = cv2.imencode(path.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    except cv2.error:
        done = False
    if not done:
        raise InputError(f"{path}: cannot be written as a picture; take .png or .jpg")
    return bytes(data.tobytes())
