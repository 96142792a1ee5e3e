"""Small data sets in the layouts that the converters read, drawn by the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import Image

# One encoded instance: id, counts, area, box.
Encoded = tuple[int, str, int, list[float]]


@pytest.fixture(scope="session")
def encode_one_by_one() -> Callable[[np.ndarray, Sequence[int]], list[Encoded]]:
    """The independent reference: every instance drawn as a mask of its own and given to pycocotools."""

    def encode(labels: np.ndarray, ids: Sequence[int]) -> list[Encoded]:
        encoded = []
        for value in ids:
            rle = coco_mask.encode(np.asfortranarray((labels == value).astype(np.uint8)))
            area = int(coco_mask.area(rle))
            encoded.append((int(value), rle["counts"].decode(), area, coco_mask.toBbox(rle).tolist()))
        return encoded

    return encode


@pytest.fixture
def write_cityscapes(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Cityscapes tree; each split maps city/name to its label image, or to None for an image without one."""

    def write(splits: dict[str, dict[str, np.ndarray | None]], root: Path = tmp_path / "cityscapes") -> Path:
        (root / "gtFine").mkdir(parents=True, exist_ok=True)
        for split, images in splits.items():
            for key, labels in images.items():
                image = root / "leftImg8bit" / split / f"{key}_leftImg8bit.png"
                image.parent.mkdir(parents=True, exist_ok=True)
                height, width = (8, 8) if labels is None else labels.shape
                Image.new("RGB", (width, height), (90, 120, 60)).save(image)
                if labels is not None:
                    instances = root / "gtFine" / split / f"{key}_gtFine_instanceIds.png"
                    instances.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(labels.astype(np.uint16)).save(instances)
        return root

    return write


@pytest.fixture
def street() -> Callable[..., np.ndarray]:
    """Draws a label image: people and cars, crowds, labels without instances and without evaluation."""

    def draw(seed: int = 0, height: int = 60, width: int = 90) -> np.ndarray:
        rng = np.random.default_rng(seed)
        labels = np.full((height, width), 7)
        labels[: height // 3] = 23
        rows, columns = np.mgrid[:height, :width]
        for value in (24000, 24001, 26000, 26001, 26002, 33000, 24, 26, 29000, 30, 5000, 21):
            row, column = rng.uniform(0, height), rng.uniform(0, width)
            radii = rng.uniform(2, height / 3, 2)
            labels[((rows - row) / radii[0]) ** 2 + ((columns - column) / radii[1]) ** 2 < 1] = value
        return labels

    return draw


def voc_object(name: str, box: Sequence[object], extra: str = "") -> str:
    tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{tags}</bndbox></object>"


@pytest.fixture(scope="session")
def voc_object_xml() -> Callable[..., str]:
    """Writes one ``<object>``."""
    return voc_object


@pytest.fixture
def write_voc(tmp_path: Path) -> Callable[..., Path]:
    """Adds a year to a VOCdevkit tree.

    ``images`` maps a name to its objects' XML; ``splits`` maps a split to image names; ``masks`` maps a name to a label
    image. All images are 40 wide and 30 high.
    """

    def write(
        images: dict[str, str],
        splits: dict[str, Sequence[str]],
        masks: dict[str, np.ndarray] | None = None,
        year: str = "VOC2012",
        root: Path = tmp_path / "VOCdevkit",
    ) -> Path:
        folder = root / year
        for name in ("Annotations", "JPEGImages", "ImageSets/Main", "SegmentationObject"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, objects in images.items():
            Image.new("RGB", (40, 30), (200, 180, 90)).save(folder / "JPEGImages" / f"{name}.jpg")
            size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
            xml = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
            (folder / "Annotations" / f"{name}.xml").write_text(xml)
        for split, names in splits.items():
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name, labels in (masks or {}).items():
            mask = Image.frombytes("P", labels.shape[::-1], labels.astype(np.uint8).tobytes())
            mask.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
            mask.save(folder / "SegmentationObject" / f"{name}.png")
        return root

    return write
