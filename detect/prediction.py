"""Prediction on files: pictures, videos, COCO's results format, and LabelMe files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import orjson
from rich.console import Console

from detect.config import Config
from detect.devices import Accelerator
from detect.evaluation import image_progress
from detect.inputs import check_files, find_files, sources_of
from detect.predictions import SCORE_THR, Predictions, encoded
from detect.predictor import Predictor, load
from detect.trained import say_nothing
from detect.videos import is_video, video_info, whole_video
from dpipe.backends.base import OnBadSample
from dpipe.errors import BadSampleError, InputError
from dpipe.files import check_writable, whole_file, write_whole

Form = Literal["pictures", "coco", "labelme"]
FORMS: tuple[Form, ...] = get_args(Form)
USUAL_FORMS: tuple[Form, ...] = ("pictures", "coco")

RESULTS_NAME = "predictions.json"
IMAGES_NAME = "images.json"
LABELME_FOLDER = "labelme"


@dataclass
class Summary:
    """What a prediction on files came to.

    Attributes:
        images: How many images and frames were looked at.
        skipped: Files that could not be used, and why.
    """

    images: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


def predict(
    config: Config,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    score_thr: float = SCORE_THR,
    save: Sequence[Form] = USUAL_FORMS,
    batch_size: int | None = None,
    on_bad_sample: OnBadSample | None = None,
    tta: bool = False,
    accelerator: Accelerator = "auto",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Finds objects in images and videos, as :func:`predict_files` does, and gives the results that it wrote.

    Returns:
        The content of ``predictions.json``; an empty list where ``save`` does without.

    Raises:
        InputError: See :func:`predict_files`.
    """
    predict_files(
        config,
        checkpoint,
        images,
        out,
        score_thr=score_thr,
        save=save,
        batch_size=batch_size,
        on_bad_sample=on_bad_sample,
        tta=tta,
        accelerator=accelerator,
        console=console,
    )
    results: list[dict[str, Any]] = []
    if "coco" in save:
        results = orjson.loads(Path(out, RESULTS_NAME).read_bytes())
    return results


def predict_files(
    config: Config,
    checkpoint: str | Path,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    score_thr: float = SCORE_THR,
    save: Sequence[Form] = USUAL_FORMS,
    batch_size: int | None = None,
    on_bad_sample: OnBadSample | None = None,
    tta: bool = False,
    accelerator: Accelerator = "auto",
    console: Console | None = None,
) -> Summary:
    """Finds objects in images and videos, however many, and writes what was found.

    The output folder gets

    - ``pictures``: a picture of each image, a video (MPEG-4, without sound) of each video;
    - ``coco``: ``predictions.json`` in COCO's results format, with the file and class names beside the ids, and
      ``images.json``, a COCO data set of these images that the results belong to. Images and frames are numbered from 1
      in order;
    - ``labelme``: in ``labelme/`` a LabelMe file for each image, and a folder of them for each video.

    Each file is there whole or not at all, and those of ``coco`` only when all is done. Proposals, of a model that only
    proposes, are all of the one class ``object``.

    Args:
        config: The recipe; its ``test_transforms`` are applied.
        checkpoint: A ``.safetensors`` or ``.pth`` file, its URL, a checkpoint folder, or a work directory.
        inputs: Files, folders and patterns, see ``detect.inputs.find_files``.
        out: The output folder.
        score_thr: Objects with a lower score are not drawn and not in LabelMe files; COCO results hold them.
        save: What is written.
        batch_size: Images that the model sees at a time, if they are of one size; the recipe's where not given.
        on_bad_sample: ``fail`` looks at all files first, and writes nothing if one cannot be used; ``skip`` leaves such
            files out and names them. The recipe's ``data.on_bad_sample`` where not given.
        tta: Whether images are looked at several times and the results merged, as ``evaluation.tta`` says.
        accelerator: ``auto`` takes a GPU where there is one.
        console: Gets a line for each file, notes, and a progress bar if it is a terminal.

    Raises:
        InputError: For a checkpoint, an input or an output folder that cannot be used, one line for each; and where
            every input was skipped.
    """
    out = Path(out)
    unknown = [name for name in save if name not in FORMS]
    if unknown or not save:
        raise InputError(f"save: expected some of {', '.join(FORMS)}, got {', '.join(map(str, unknown)) or 'none'}")
    say = say_nothing if console is None else console.print
    paths = find_files(inputs)
    pictures = picture_paths(paths, out)
    skip = (on_bad_sample or config.data.on_bad_sample) == "skip"
    if not skip:
        check_files(paths)
    check_writable(out)
    predictor = load(config, checkpoint, tta=tta, accelerator=accelerator, say=say)
    summary = Summary()

    def on_bad(error: BadSampleError) -> None:
        if not skip:
            raise error
        summary.skipped[str(error.path)] = error.reason
        say(f"skipped: {error}")

    labels = [out / LABELME_FOLDER / name for name in unique_names([f"{path.stem}.json" for path in paths])]
    writers = {
        path: _Writer(path, picture, label, score_thr, save)
        for path, picture, label in zip(paths, pictures, labels, strict=True)
    }
    with ExitStack() as stack:
        coco = stack.enter_context(_coco_files(out, predictor)) if "coco" in save else None
        advance = stack.enter_context(image_progress(sum(map(_how_many, paths)), console, True))
        found = predictor.stream(sources_of(paths, on_bad), batch_size=batch_size, on_bad=on_bad)
        for path, several in groupby(found, key=lambda one: one.path):
            assert path is not None
            with writers[path].opened() as write:
                for one in several:
                    summary.images += 1
                    if coco is not None:
                        coco(one)
                    write(one)
                    advance(1)
            say(writers[path].line())
        if not summary.images:
            raise InputError(f"none of the {len(paths)} inputs can be used, such as {next(iter(summary.skipped))}")
    if summary.skipped:
        say(f"left out, as they cannot be used: {len(summary.skipped)} of {len(paths)} inputs")
    return summary


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


class _Writer:
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
def _coco_files(out: Path, predictor: Predictor) -> Iterator[Callable[[Predictions], None]]:
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


def _how_many(path: Path) -> int:
    """How many pictures there are to come: of a video its frames, as far as it tells."""
    try:
        return video_info(path).frames if is_video(path) else 1
    except BadSampleError:
        return 0
