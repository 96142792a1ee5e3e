"""Pascal VOC: 5,000 annotation files of the shape of VOC2007's, against OpenMMLab's way and expat alone."""

from __future__ import annotations

import functools
import json
import os
import pty
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TextIO
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from PIL import Image

from converters import convert_voc
from converters.voc.classes import VOC_CLASSES

COUNT = 5000
LISTS = ("train", "val", "trainval")
OBJECT = """	<object>
		<name>{}</name>
		<pose>Unspecified</pose>
		<truncated>{}</truncated>
		<difficult>{}</difficult>
		<bndbox>
			<xmin>{}</xmin>
			<ymin>{}</ymin>
			<xmax>{}</xmax>
			<ymax>{}</ymax>
		</bndbox>
	</object>
"""
FILE = """<annotation>
	<folder>VOC2007</folder>
	<filename>{0}.jpg</filename>
	<source>
		<database>The VOC2007 Database</database>
		<annotation>PASCAL VOC2007</annotation>
		<image>flickr</image>
		<flickrid>3336267{0}</flickrid>
	</source>
	<owner>
		<flickrid>somebody {0}</flickrid>
		<name>Some Body</name>
	</owner>
	<size>
		<width>500</width>
		<height>375</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>
{1}</annotation>
"""


def make_set(folder: Path) -> Path:
    """Writes a VOCdevkit with 2.5 objects an image, or finds it where an earlier run has left it.

    The images are links to one JPEG file; train and val are halves of trainval, as published.
    """
    root = folder / "voc" / "VOCdevkit"
    year = root / "VOC2007"
    if (year / "ImageSets/Main/trainval.txt").is_file():
        return root
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (year / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    picture = folder / "voc" / "picture.jpg"
    Image.fromarray(rng.integers(0, 256, (375, 500, 3), np.uint8)).save(picture, quality=30)
    names = [f"{number:06d}" for number in range(1, COUNT + 1)]
    for name in names:
        objects = []
        for _ in range(1 + rng.poisson(1.5)):
            left, top = rng.integers(1, 300), rng.integers(1, 200)
            box = (left, top, left + rng.integers(1, 200), top + rng.integers(1, 170))
            flags = (int(rng.random() < 0.4), int(rng.random() < 0.15))
            objects.append(OBJECT.format(VOC_CLASSES[rng.integers(20)], *flags, *box))
        (year / f"Annotations/{name}.xml").write_text(FILE.format(name, "".join(objects)))
        image = year / f"JPEGImages/{name}.jpg"
        image.unlink(missing_ok=True)
        os.link(picture, image)
    for split, of_split in (("train", names[::2]), ("val", names[1::2]), ("trainval", names)):
        (year / f"ImageSets/Main/{split}.txt").write_text("\n".join(of_split) + "\n")
    return root


@contextmanager
def terminal() -> Iterator[TextIO]:
    """A terminal, read by a process of its own."""
    controller, end = pty.openpty()
    with subprocess.Popen(["cat"], stdin=controller, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reader:
        os.close(controller)
        with os.fdopen(end, "w") as file:
            yield file
        reader.wait()


def ours(root: Path, output: Path, splits: Sequence[str], screen: TextIO | None = None, nproc: int = 1) -> None:
    """Converts by dpipe, which also opens every image; with its bar if there is a terminal."""
    if screen is None:
        convert_voc(root, output, splits=splits, nproc=nproc)
        return
    with redirect_stderr(screen):
        convert_voc(root, output, splits=splits, nproc=nproc, show_progress=True)


def show_as_openmmlab(screen: TextIO, done: int, total: int, began: float) -> None:
    """Writes what mmengine's bar writes for each item: how many are done, how fast, for how long, and how far it is."""
    passed = time.perf_counter() - began
    left = int(passed * (total - done) / done + 0.5)
    line = f"\r[{{}}] {done}/{total}, {done / passed:.1f} task/s, elapsed: {int(passed + 0.5)}s, ETA: {left:5}s"
    room = int(shutil.get_terminal_size().columns - len(line)) + 2
    width = max(2, min(50, room, int(shutil.get_terminal_size().columns * 0.6)))
    marks = int(width * done / total)
    screen.write(line.format(">" * marks + " " * (width - marks)))
    screen.flush()


def openmmlab_way(root: Path, output: Path, splits: Sequence[str], screen: TextIO | None = None) -> None:
    """Does what mmdet 3.3's converter does: one split after the other, each read from the start; no image is opened.

    Its mistake of one pixel in widths is left out. Its bar is shown if there is a terminal.
    """
    ids = {name: number for number, name in enumerate(VOC_CLASSES)}
    output.mkdir(exist_ok=True)
    for split in splits:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        names = (root / f"VOC2007/ImageSets/Main/{split}.txt").read_text().split()
        began = time.perf_counter()
        for name in names:
            tree = ElementTree.parse(f"{root}/VOC2007/Annotations/{name}.xml").getroot()
            size = tree.find("size")
            boxes, labels, difficult = [], [], []
            for item in tree.findall("object"):
                box = item.find("bndbox")
                labels.append(ids[item.find("name").text])  # type: ignore[union-attr,index]
                difficult.append(int(item.find("difficult").text))  # type: ignore[union-attr,arg-type]
                boxes.append([int(box.find(tag).text) for tag in ("xmin", "ymin", "xmax", "ymax")])  # type: ignore[union-attr,arg-type]
            corners = (np.array(boxes, ndmin=2) - 1).astype(np.float32)
            classes = np.array(labels).astype(np.int64)
            width, height = (int(size.find(tag).text) for tag in ("width", "height"))  # type: ignore[union-attr,arg-type]
            for corner, label, hard in zip(corners, classes, difficult, strict=True):
                left, top, right, bottom = (int(value) for value in corner)
                around = np.array([corner[0], corner[1], corner[2] - corner[0] + 1, corner[3] - corner[1] + 1])
                annotations.append(
                    {
                        "segmentation": [[left, top, left, bottom, right, bottom, right, top]],
                        "area": int(around[2] * around[3]),
                        "ignore": 0,
                        "iscrowd": hard,
                        "image_id": len(images),
                        "bbox": around.astype(int).tolist(),
                        "category_id": int(label),
                        "id": len(annotations),
                    }
                )
            images.append(
                {"id": len(images), "file_name": f"VOC2007/JPEGImages/{name}.jpg", "height": height, "width": width}
            )
            if screen is not None:
                show_as_openmmlab(screen, len(images), len(names), began)
        categories = [{"supercategory": "none", "id": number, "name": name} for name, number in ids.items()]
        document = {"images": images, "type": "instance", "categories": categories, "annotations": annotations}
        with (output / f"theirs_{split}.json").open("w") as file:
            json.dump(document, file)


def parser_alone(root: Path) -> None:
    """Reads and parses all files, and keeps nothing."""
    for path in sorted((root / "VOC2007/Annotations").iterdir()):
        expat.ParserCreate().Parse(path.read_bytes(), True)


def contenders(root: Path, output: Path, screen: TextIO) -> dict[str, tuple[Callable[[], object], int, str]]:
    """Returns what is measured, by name: how, on how many cores, and what it is compared with.

    Args:
        root: The data set.
        output: A folder for what they write.
        screen: The terminal for their bars.
    """
    found: dict[str, tuple[Callable[[], object], int, str]] = {}
    for lists, splits in (("one list", ("trainval",)), ("three lists", LISTS)):
        for bar, on in ((", with bar", screen), ("", None)):
            theirs = f"OpenMMLab's way, {lists}{bar}"

            def convert(splits: Sequence[str] = splits, on: TextIO | None = on, nproc: int = 1) -> None:
                ours(root, output / "ours", splits, on, nproc)

            def convert_as_openmmlab(splits: Sequence[str] = splits, on: TextIO | None = on) -> None:
                openmmlab_way(root, output / "theirs", splits, on)

            found[f"dpipe, {lists}{bar}"] = (convert, 1, theirs)
            found[f"dpipe, {lists}{bar}, --nproc 2"] = (functools.partial(convert, nproc=2), 2, theirs)
            found[theirs] = (convert_as_openmmlab, 1, theirs)
    found["expat alone"] = (lambda: parser_alone(root), 1, "OpenMMLab's way, one list")
    return found


def check_equal(output: Path) -> int:
    """Compares the boxes of both.

    Returns:
        Their number.

    Raises:
        SystemExit: They differ.
    """
    mine = json.loads((output / "ours/voc_2007_trainval.json").read_text())["annotations"]
    theirs = json.loads((output / "theirs/theirs_trainval.json").read_text())["annotations"]
    if [a["bbox"] for a in mine] != [a["bbox"] for a in theirs]:
        raise SystemExit("the boxes differ")
    return len(mine)
