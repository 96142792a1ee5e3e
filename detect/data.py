"""A recipe's data sets as loaders."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from detect.config import Config, build_augment
from dpipe.backends.base import share_of_cores
from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.loader import DetectionLoader

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

    from dpipe.policy import Augment

MOST_SAMPLES = 10**9
"""Samples of an epoch; their order alone is 8 GB then."""


def train_index(config: Config) -> CocoIndex:
    """Reads the training set, of one or several data sets; its classes are the recipe's, where the recipe names any.

    Raises:
        InputError: Among others, if several have other classes than the first, or one of its image files.
    """
    train = config.data.train
    first = CocoIndex.load(train.annotations, classes=config.data.classes)
    if not train.further:
        return first
    further = [CocoIndex.load(each.annotations, classes=first.class_names) for each in train.further]
    root, folders = _image_folders(config)
    for folder in folders:
        if not (root / folder).is_dir():
            raise InputError(f"{root / folder}: no such folder of images")
    return CocoIndex.concatenate([first, *further], folders=folders)


def _image_folders(config: Config) -> tuple[Path, list[str]]:
    """The folder that all images of the training set lie in, and the folder of each data set relative to it.

    Raises:
        InputError: If there is none, as on two drives of Windows.
    """
    train = config.data.train
    images = [each.images for each in (train, *train.further)]
    if len(images) == 1:
        return Path(train.images), [""]
    paths = [os.path.abspath(folder) for folder in images]
    try:
        root = os.path.commonpath(paths)
    except ValueError:
        raise InputError(f"data.train: expected image folders on one drive, got {', '.join(images)}") from None
    return Path(root), ["" if path == root else os.path.relpath(path, root) for path in paths]


def val_index(config: Config, classes: Sequence[str] | None) -> CocoIndex:
    """Reads the validation set.

    Args:
        config: The recipe.
        classes: The names that its classes must have; ``None`` takes the recipe's.

    Raises:
        InputError: Among others, naming both lists, if the classes are others.
    """
    return CocoIndex.load(config.data.val.annotations, classes=config.data.classes if classes is None else classes)


def check_masks(index: CocoIndex, model: nn.Module) -> None:
    """Checks that a training set has masks where a model learns from them.

    Raises:
        InputError: If its objects are boxes only, and a part called ``mask_head`` is there.
    """
    if len(index.labels) and not index.has_masks:
        heads = ", ".join(name for name, _ in model.named_modules() if name.rpartition(".")[2] == "mask_head")
        if heads:
            raise InputError(
                f"{index.path}: its objects are boxes only, but the model has mask heads; leave out {heads} and "
                "roi_head.mask_roi_extractor"
            )


def check_val_images(config: Config, index: CocoIndex) -> None:
    """Checks that a validation set's files are there, which would else be told when the first epoch is over.

    Each folder is listed once, which is much less work than to ask for each file.

    Args:
        config: The recipe. Where it skips bad samples, one file that is there is enough.
        index: The annotations.

    Raises:
        InputError: With the first file that is missing and their number; or if there is no such folder.
    """
    root = config.data.val.images
    if not os.path.isdir(root):
        raise InputError(f"{root}: no such folder of images")
    by_folder: dict[str, list[str]] = defaultdict(list)
    for file_name in index.file_names:
        folder, name = os.path.split(file_name)
        by_folder[folder].append(name)
    missing = []
    for folder, names in by_folder.items():
        listed = _names_in(os.path.join(root, folder))
        # A name that is not listed may be one all the same, where a file system takes upper and lower case for equal.
        paths = (os.path.join(root, folder, name) for name in names if name not in listed)
        missing += [path for path in paths if not os.path.exists(path)]
    if missing and (config.data.on_bad_sample == "fail" or len(missing) == len(index)):
        raise InputError(
            f"{missing[0]}: no such image file; {len(missing)} of the {len(index)} images of {index.path} are missing"
        )


def _names_in(folder: str) -> set[str]:
    """What a folder holds; nothing where it cannot be listed."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def train_loader(config: Config, index: CocoIndex, fabric: Fabric) -> DetectionLoader:
    """This process's share of the training set: shuffled, augmented, the same number of batches for all.

    Raises:
        InputError: Among others, for more repeats than an epoch's order has room for, and for a batch of more images
            than an epoch has, which would be filled up with the same ones.
    """
    data = config.data
    if len(index) * data.train.repeat > MOST_SAMPLES:
        raise InputError(
            f"{config.recipe.where(('data', 'train', 'repeat'))}: data.train.repeat: {data.train.repeat} times "
            f"{len(index)} images are too many for an epoch: expected at most {MOST_SAMPLES} samples"
        )
    if data.batch_size * fabric.world_size > len(index) * data.train.repeat:
        raise InputError(
            f"{config.recipe.where(('data', 'batch_size'))}: data.batch_size: {data.batch_size} on "
            f"{fabric.world_size} device(s) is more than the {len(index) * data.train.repeat} images of an epoch: "
            "expected fewer, or a larger data.train.repeat"
        )
    return DetectionLoader(
        index,
        _image_folders(config)[0],
        augment=build_augment(config, train=True),
        batch_size=data.batch_size,
        backend=data.backend,
        device=str(fabric.device),
        shuffle=True,
        seed=config.train.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        repeat=data.train.repeat,
        group_by_aspect=data.group_by_aspect,
        filter_empty=data.train.filter_empty,
        pad_last=True,
        threads=data.threads,
        prefetch=data.prefetch,
        boxes_from=data.boxes_from,
        min_size=data.min_size,
        on_bad_sample=data.on_bad_sample,
    )


def val_loader(
    config: Config, index: CocoIndex, fabric: Fabric, augment: Augment | None = None, beside: int = 0
) -> DetectionLoader:
    """This process's share of the validation set: every image once over all processes.

    Args:
        config: The recipe.
        index: The annotations.
        fabric: Tells device and processes.
        augment: One of several views of the images; the recipe's ``test_transforms`` where not given.
        beside: How many other loaders are read at the same time, and share the threads.
    """
    data = config.data
    threads = data.threads
    if beside:
        threads = max(1, (threads or share_of_cores(fabric.world_size)) // (1 + beside))
    return DetectionLoader(
        index,
        data.val.images,
        augment=augment or build_augment(config, train=False),
        batch_size=data.batch_size,
        backend=data.backend,
        device=str(fabric.device),
        shuffle=False,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        group_by_aspect=False,
        pad_last=False,
        threads=threads,
        prefetch=data.prefetch,
        on_bad_sample=data.on_bad_sample,
    )


def skipped_anywhere(loader: DetectionLoader, fabric: Fabric) -> dict[str, str]:
    """The files that any process has skipped so far, with the reasons; all processes call it together."""
    shares: list[Any] = [loader.skipped]
    if fabric.world_size > 1:
        shares *= fabric.world_size
        torch.distributed.all_gather_object(shares, loader.skipped)
    return {name: reason for share in shares for name, reason in sorted(share.items())}


def usable_ids(index: CocoIndex, skipped: Mapping[str, str]) -> list[int] | None:
    """The ids of the images that were not skipped; None stands for all.

    Raises:
        InputError: If there is none.
    """
    if not skipped:
        return None
    if skipped.keys() >= set(index.file_names):
        file_name, reason = next(iter(skipped.items()))
        raise InputError(f"{index.path}: none of its images can be used, such as {file_name}: {reason}")
    return [id_ for id_, name in zip(index.image_ids.tolist(), index.file_names, strict=True) if name not in skipped]
