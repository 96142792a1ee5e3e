"""A trained model that finds objects in whatever images it is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from detect.config import Config, as_config
from detect.predicting.inputs import OnBad, Source, source_of
from detect.predicting.predictions import Predictions, check_score_thr
from detect.predicting.views import build_views, check_mergeable, detect_in_views
from detect.running.devices import Accelerator, make_fabric
from detect.trained import Trained, load_trained, say_nothing
from dpipe.backends.base import padded_size, share_of_cores
from dpipe.backends.opencv import OpenCVBackend
from dpipe.building.problems import shorten
from dpipe.errors import BadSampleError, InputError
from dpipe.images.memory import Scratch
from dpipe.plan import SamplePlan, Size
from dpipe.policy import Augment
from dpipe.polygons import Polygons
from dpipe.target import Target

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MOST_THREADS = 8
"""That decode and resize: a model is slower than that many."""


def load(
    config: Config | str | Path,
    checkpoint: str | Path,
    *,
    tta: bool = False,
    accelerator: Accelerator = "auto",
    say: Callable[[str], None] = say_nothing,
) -> Predictor:
    """Loads a model to find objects with.

    Args:
        config: The recipe, or its file, or the name of a shipped one.
        checkpoint: A ``.safetensors`` or ``.pth`` file, its URL, a checkpoint folder, or a work directory.
        tta: Whether images are looked at several times and the results merged, as ``evaluation.tta`` says.
        accelerator: ``auto`` takes a GPU where there is one.
        say: Gets notes on the checkpoint.

    Raises:
        InputError: For a recipe, a checkpoint or a device that cannot be used.
    """
    config = as_config(config)
    fabric = make_fabric(1, accelerator, config.train.precision)
    return Predictor(config, load_trained(config, checkpoint, say=say), fabric, tta=tta)


class Predictor:
    """A trained model that finds objects in images; ``load`` makes one.

    Args:
        config: The recipe; its ``test_transforms`` are applied.
        trained: The model and its classes. Proposals, of a model that only proposes, are all of the class ``object``.
        fabric: Tells device and precision.
        tta: See ``load``.

    Attributes:
        class_names: Names of the labels 0..C-1.
        category_ids: The data set's id of each label.

    Raises:
        InputError: If the recipe's transforms make no sense, or the model cannot do with several views.
    """

    def __init__(self, config: Config, trained: Trained, fabric: Fabric, *, tta: bool = False) -> None:
        if getattr(trained.model, "proposes", False):
            trained = replace(trained, class_names=("object",), category_ids=(1,))
        self.class_names = trained.class_names
        self.category_ids = trained.category_ids
        self.batch_size = config.data.batch_size
        self._views = [_View(augment) for augment in build_views(config, tta)]
        if len(self._views) > 1:
            check_mergeable(trained.model)
        self._threads = config.data.threads or min(share_of_cores(1), MOST_THREADS)
        self._fabric = fabric
        self._model = fabric.to_device(trained.model)

    @overload  # text is a sequence of texts as well; mypy takes the first that fits
    def predict(  # type: ignore[overload-overlap]
        self,
        images: str | Path | NDArray[np.uint8],
        *,
        score_thr: float = 0.0,
        batch_size: int | None = None,
    ) -> Predictions: ...

    @overload
    def predict(
        self,
        images: Sequence[str | Path | NDArray[np.uint8]],
        *,
        score_thr: float = 0.0,
        batch_size: int | None = None,
    ) -> list[Predictions]: ...

    def predict(self, images: Any, *, score_thr: float = 0.0, batch_size: int | None = None) -> Any:
        """Finds objects in images.

        Args:
            images: An image, or a list of images: paths of image files, or arrays (H, W, 3) uint8 in the order red,
                green, blue (OpenCV's ``imread`` gives blue, green, red).
            score_thr: Objects with a lower score are left out.
            batch_size: Images that the model sees at a time, if they are of one size; the recipe's where not given.

        Returns:
            The predictions of the image, or a list of those of each.

        Raises:
            InputError: For what is no image, a file that cannot be used, and a score or a number that makes no sense.
        """
        check_score_thr(score_thr)
        single = isinstance(images, str | Path | np.ndarray)
        if not single and not isinstance(images, Iterable):
            raise InputError(f"expected a path, an array or a list of those, got {shorten(images)}")
        sources = [source_of(image) for image in ([images] if single else images)]
        found = [
            replace(one.above(score_thr), source=source)  # of a file not the pixels, which may be many
            for source, one in zip(sources, self.stream(sources, batch_size=batch_size), strict=True)
        ]
        return found[0] if single else found

    def stream(
        self, sources: Iterable[Source], *, batch_size: int | None = None, on_bad: OnBad | None = None
    ) -> Iterator[Predictions]:
        """Finds objects in one image after another, with a few of them in memory at a time.

        Successive images that become equally large share a batch, so that no image is padded for the sake of another:
        what is found does not depend on its neighbours.

        Args:
            sources: Are read ahead, in threads.
            batch_size: See ``predict``.
            on_bad: Is told of an image that cannot be used, which is then left out; by default that is an error.

        Yields:
            The predictions of each image, with its pixels.

        Raises:
            InputError: For an image that cannot be used, without ``on_bad``, or a transform that does not suit it.
        """
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise InputError(f"batch_size must be at least 1, got {size}")
        batch: list[_Prepared] = []
        for prepared in self._prepared(sources, size, on_bad or _fail):
            if batch and (len(batch) == size or batch[0].sizes != prepared.sizes):
                yield from self._detect(batch)
                batch = []
            batch.append(prepared)
        if batch:
            yield from self._detect(batch)

    def _prepared(self, sources: Iterable[Source], batch_size: int, on_bad: OnBad) -> Iterator[_Prepared]:
        """Images, read and transformed ahead, in order."""
        ahead: deque[Future[_Prepared]] = deque()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="detect-image")
        waiting = iter(sources)
        try:
            while True:
                while len(ahead) < batch_size + self._threads and (source := next(waiting, None)) is not None:
                    ahead.append(pool.submit(_prepare, source, self._views))
                if not ahead:
                    return
                try:
                    prepared = ahead.popleft().result()
                except BadSampleError as error:
                    on_bad(error)
                    continue
                yield prepared
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @torch.inference_mode()
    def _detect(self, batch: Sequence[_Prepared]) -> list[Predictions]:
        """Runs the model on images of one size."""
        views = []
        for number in range(len(self._views)):
            images = torch.from_numpy(np.stack([one.inputs[number] for one in batch])).permute(0, 3, 1, 2)
            images = images.to(self._fabric.device)  # (N, 3, H, W), channels_last
            views.append((images, [one.targets[number].to(self._fabric.device) for one in batch]))
        with self._fabric.autocast():
            found = detect_in_views(self._model, views)
        return [
            Predictions(
                replace(one.source, pixels=one.pixels),
                one.targets[0].original_size,
                detections.to("cpu"),
                self.class_names,
                self.category_ids,
            )
            for one, detections in zip(batch, found, strict=True)
        ]


class _View:
    """One way to look at an image.

    Args:
        augment: Its transforms.
    """

    def __init__(self, augment: Augment) -> None:
        self.augment = augment
        self._backend = OpenCVBackend((), augment)

    def apply(self, pixels: NDArray[np.uint8], name: str) -> tuple[NDArray[np.float32], Target]:
        """The network's input (H, W, 3), padded, and the target that tells where it comes from."""
        plan = self.augment.draw(pixels.shape[:2], seed=0, epoch=0, sample=0)
        out = np.empty((*padded_size([plan], self.augment.size_divisor), 3), np.float32)
        try:
            self._backend.finish(pixels, plan, out, Scratch())
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        return out, _target(plan, name)


@dataclass(frozen=True)
class _Prepared:
    """An image, and what the model gets of it in each view."""

    source: Source
    pixels: NDArray[np.uint8]
    inputs: list[NDArray[np.float32]]
    targets: list[Target]

    @property
    def sizes(self) -> list[Size]:
        """What images must have in common to share a batch."""
        return [target.size for target in self.targets]


def _prepare(source: Source, views: Sequence[_View]) -> _Prepared:
    """Reads an image, and takes it through each view's transforms."""
    pixels = source.read()
    made = [view.apply(pixels, source.name) for view in views]
    return _Prepared(source, pixels, [image for image, _ in made], [target for _, target in made])


def _target(plan: SamplePlan, name: str) -> Target:
    """A target without objects."""
    nothing = partial(torch.zeros, dtype=torch.int64)
    return Target(
        image_id=0,
        sample=plan.sample,
        file_name=name,
        size=plan.size,
        original_size=plan.source_size,
        matrix=plan.matrix,
        boxes=torch.zeros((0, 4)),
        labels=nothing(0),
        masks=Polygons.empty(),
        annotation_ids=nothing(0),
        ignore_boxes=torch.zeros((0, 4)),
    )


def _fail(error: BadSampleError) -> None:
    raise error
