"""Prediction on files: pictures, videos, COCO's results format, and LabelMe files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from detect.config import Config, as_config
from detect.evaluation import image_progress
from detect.predicting.files import (
    FORMS,
    LABELME_FOLDER,
    RESULTS_NAME,
    USUAL_FORMS,
    Form,
    Writer,
    coco_files,
    picture_paths,
    unique_names,
)
from detect.predicting.inputs import check_files, find_files, sources_of
from detect.predicting.predictions import SCORE_THR, check_score_thr
from detect.predicting.predictor import load
from detect.predicting.videos import is_video, video_info
from detect.running.devices import Accelerator
from detect.trained import say_nothing
from dpipe.backends.base import OnBadSample
from dpipe.errors import BadSampleError, InputError
from dpipe.files import check_writable, named_folder


@dataclass
class Predicted:
    """What a prediction on files came to.

    Attributes:
        out: The output folder.
        images: How many images and frames were looked at.
        skipped: Files that could not be used, and why.
    """

    out: Path
    images: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def results(self) -> list[dict[str, Any]]:
        """The content of ``predictions.json``.

        Raises:
            InputError: If it is not there, as ``save`` was without ``coco``.
        """
        path = self.out / RESULTS_NAME
        if not path.is_file():
            raise InputError(f"{path}: is not there; save=['coco'] writes it")
        results: list[dict[str, Any]] = orjson.loads(path.read_bytes())
        return results


def predict(
    config: Config | str | Path,
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
) -> Predicted:
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
        config: The recipe, or its file, or the name of a shipped one; its ``test_transforms`` are applied.
        checkpoint: A ``.safetensors`` or ``.pth`` file, its URL, a checkpoint folder, or a work directory.
        images: Files, folders and patterns, images and videos, see ``detect.predicting.inputs.find_files``.
        out: The output folder.
        score_thr: Objects with a lower score are not drawn and not in LabelMe files; COCO results hold them.
        save: What is written.
        batch_size: Images that the model sees at a time, if they are of one size; the recipe's where not given.
        on_bad_sample: ``fail`` looks at all files first, and writes nothing if one cannot be used; ``skip`` leaves such
            files out and names them. The recipe's ``data.on_bad_sample`` where not given.
        tta: Whether images are looked at several times and the results merged, as ``evaluation.tta`` says.
        accelerator: ``auto`` takes a GPU where there is one.
        console: Gets a line for each file, notes, and a progress bar if it is a terminal.

    Returns:
        How many images there were and which could not be used; its ``results()`` reads ``predictions.json``.

    Raises:
        InputError: For a checkpoint, an input or an output folder that cannot be used, one line for each; and where
            every input was skipped, and for a score or a form that makes no sense.
    """
    config, out = as_config(config), named_folder(out)
    check_score_thr(score_thr)
    unknown = [name for name in save if name not in FORMS]
    if unknown or not save:
        raise InputError(f"save: expected some of {', '.join(FORMS)}, got {', '.join(map(str, unknown)) or 'none'}")
    say = say_nothing if console is None else console.print
    paths = find_files(images)
    pictures = picture_paths(paths, out)
    skip = (on_bad_sample or config.data.on_bad_sample) == "skip"
    if not skip:
        check_files(paths)
    check_writable(out)
    predictor = load(config, checkpoint, tta=tta, accelerator=accelerator, say=say)
    done = Predicted(out)

    def on_bad(error: BadSampleError) -> None:
        if not skip:
            raise error
        done.skipped[str(error.path)] = error.reason
        say(f"skipped: {error}")

    labels = [out / LABELME_FOLDER / name for name in unique_names([f"{path.stem}.json" for path in paths])]
    writers = {
        path: Writer(path, picture, label, score_thr, save)
        for path, picture, label in zip(paths, pictures, labels, strict=True)
    }
    with ExitStack() as stack:
        coco = stack.enter_context(coco_files(out, predictor)) if "coco" in save else None
        advance = stack.enter_context(image_progress(sum(map(_how_many, paths)), console, True))
        found = predictor.stream(sources_of(paths, on_bad), batch_size=batch_size, on_bad=on_bad)
        for path, several in groupby(found, key=lambda one: one.path):
            assert path is not None
            with writers[path].opened() as write:
                for one in several:
                    done.images += 1
                    if coco is not None:
                        coco(one)
                    write(one)
                    advance(1)
            say(writers[path].line())
        if not done.images:
            raise InputError(f"none of the {len(paths)} inputs can be used, such as {next(iter(done.skipped))}")
    if done.skipped:
        say(f"left out, as they cannot be used: {len(done.skipped)} of {len(paths)} inputs")
    return done


def _how_many(path: Path) -> int:
    """How many pictures there are to come: of a video its frames, as far as it tells."""
    try:
        return video_info(path).frames if is_video(path) else 1
    except BadSampleError:
        return 0
