"""What a prediction writes: pictures, videos, COCO's results format, and LabelMe files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import orjson

from detect.predicting.predictions import Predictions, encoded
from detect.predicting.predictor import Predictor
from detect.predicting.videos import is_video, video_info, whole_video
from dpipe.errors import InputError
from dpipe.files import whole_file, write_whole

Form = Literal["pictures", "coco", "labelme"]
FORMS: tuple[Form, ...] = get_args(Form)
USUAL_FORMS: tuple[Form, ...] = ("pictures", "coco")

RESULTS_NAME = "predictions.json"
IMAGES_NAME = "images.json"
LABELME_FOLDER = "labelme"


def picture_paths(paths: Sequence[Path], out: Path) -> list[Path]:
    """A name in the output folder for each file's picture: its own, with a number where that is taken.

    Raises:
        InputError: If a picture would replace what it is a picture of.
    """
    pictures = [out / name for name in unique_names([_picture_name(path) for path in paths])]
    given = {os.path.realpath(path) for path in paths}
    for picture in pictures:
        if os.path.realpath(picture) in given:
            raise InputError(f"{picture}: the picture would replace the image; give another output folder")
    return pictures


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, with a number before the ending where one is taken, also if only in other letters' case."""
    taken: set[str] = set()
    unique = []
    for name in names:
        stem, suffix = os.path.splitext(name)
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}{suffix}"
        taken.add(name.lower())
        unique.append(name)
    return unique


def _picture_name(path: Path) -> str:
    if is_video(path):
        return path.stem + ".mp4"
    return path.stem + (path.suffix if path.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png")


class Writer:
    """Writes what was found in one file.

    Args:
        path: The image or video.
        picture: The picture or video to write.
        label: The LabelMe file to write; of a video, without its ending, the folder of its frames' files.
        score_thr: Objects with a lower score are not drawn.
        save: What is written.
    """

    def __init__(self, path: Path, picture: Path, label: Path, score_thr: float, save: Sequence[Form]) -> None:
        self.path = path
        self.picture = picture
        self.label = label
        self.score_thr = score_thr
        self.save = save
        self.frames = 0
        self.counts: Counter[str] = Counter()

    @contextmanager
    def opened(self) -> Iterator[Callable[[Predictions], None]]:
        """A function that writes the image, or the next frame."""
        if not is_video(self.path):
            yield self._write_image
        elif "pictures" not in self.save:
            yield self._write_frame
        else:
            with whole_video(self.picture, video_info(self.path).fps) as write:

                def write_frame(one: Predictions) -> None:
                    self._write_frame(one)
                    write(one.draw(self.score_thr))

                yield write_frame

    def line(self) -> str:
        """What was found and where it is, for the user."""
        told = ", ".join(f"{count} {name}" for name, count in self.counts.most_common()) or "nothing"
        frames = f"{self.frames} frames, " if is_video(self.path) else ""
        return f"{self.path}: {frames}{told}" + (f" -> {self.picture}" if "pictures" in self.save else "")

    def _write_image(self, one: Predictions) -> None:
        self._count(one)
        if "pictures" in self.save:
            write_whole(self.picture, encoded(one.draw(self.score_thr), self.picture))
        if "labelme" in self.save:
            self._write_labelme(one, self.label)

    def _write_frame(self, one: Predictions) -> None:
        self._count(one)
        if "labelme" in self.save:
            self._write_labelme(one, self.label.with_suffix("") / f"{one.source.frame:06d}.json")

    def _write_labelme(self, one: Predictions, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, orjson.dumps(one.to_labelme(path.parent, self.score_thr), option=orjson.OPT_INDENT_2))

    def _count(self, one: Predictions) -> None:
        self.frames += 1
        self.counts.update(one.above(self.score_thr).names)


@contextmanager
def coco_files(out: Path, predictor: Predictor) -> Iterator[Callable[[Predictions], None]]:
    """The two files of COCO's form, written as predictions come.

    Yields:
        A function that adds those of the next image.
    """
    categories = [
        {"id": id_, "name": name} for id_, name in zip(predictor.category_ids, predictor.class_names, strict=True)
    ]
    with whole_file(out / IMAGES_NAME) as images, whole_file(out / RESULTS_NAME) as results:
        add_image, add_result = _list_into(images), _list_into(results)
        images.write(b'{"images":[')
        results.write(b"[")
        number = 0

        def add(one: Predictions) -> None:
            nonlocal number
            number += 1
            row: dict[str, Any] = {"id": number, "file_name": str(one.path)}
            row |= {"width": one.size[1], "height": one.size[0]}
            if one.source.frame is not None:
                row["frame"] = one.source.frame
            add_image(row)
            for result in one.to_coco(number):
                add_result(result)

        yield add
        images.write(b'],"categories":' + orjson.dumps(categories) + b',"annotations":[]}')
        results.write(b"]")


def _list_into(file: BinaryIO) -> Callable[[Any], None]:
    """A function that writes the next element of a JSON list."""
    started = False

    def add(element: Any) -> None:
        nonlocal started
        file.write(b"," if started else b"")
        file.write(orjson.dumps(element))
        started = True

    return add
