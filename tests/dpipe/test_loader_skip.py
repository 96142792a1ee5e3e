"""Bad samples that are skipped: nothing else is lost or repeated, and ranks stay in step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpipe.batch import Batch
from dpipe.coco import CocoIndex
from dpipe.errors import BadSampleError, InputError
from dpipe.loader import DetectionLoader

WriteDataset = Callable[..., tuple[CocoIndex, Path]]
Dataset = tuple[CocoIndex, Path]

NORMALIZE = {"type": "Normalize", "mean": [0, 0, 0], "std": [1, 1, 1]}


def _backends() -> list[str]:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return ["opencv"]
    return ["opencv", "dali"]


@pytest.fixture(params=_backends())
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dataset(write_dataset: WriteDataset, noise_images: list[np.ndarray]) -> Dataset:
    """Eleven images, each with a box, each told by its red level."""
    return write_dataset(noise_images, [{"image_id": number, "bbox": [5, 6, 20, 16]} for number in range(11)])


def spoil(folder: Path, *numbers: int) -> None:
    """Cuts some files, and removes every second of them."""
    for count, number in enumerate(numbers):
        path = folder / f"{number:03d}.png"
        if count % 2:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-30])


def samples(batches: Sequence[Batch]) -> list[list[int]]:
    return [[target.sample for target in batch.targets] for batch in batches]


def red_levels(batches: Sequence[Batch]) -> list[list[int]]:
    return [[int(image[0, 0, 0]) for image in batch.images] for batch in batches]


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_skipped_sample_is_missing_and_nothing_else(
    dataset: Dataset, backend: Any, prefetch: int, caplog: pytest.LogCaptureFixture
) -> None:
    index, folder = dataset
    spoil(folder, 4, 9)
    loader = DetectionLoader(
        index,
        folder,
        augment=[NORMALIZE],
        batch_size=4,
        shuffle=False,
        pad_last=False,
        on_bad_sample="skip",
        backend=backend,
        prefetch=prefetch,
    )
    with caplog.at_level(logging.WARNING, logger="dpipe"):
        for _ in range(2):
            batches = list(loader)
            assert samples(batches) == red_levels(batches) == [[0, 1, 2, 3], [5, 6, 7], [8, 10]]
    assert [len(batch.images) for batch in batches] == [4, 3, 2]
    assert {"004.png": "truncated", "009.png": "no such image file"}.keys() == loader.skipped.keys()
    assert "truncated" in loader.skipped["004.png"]
    assert "no such image file" in loader.skipped["009.png"]
    assert [record.message.partition(":")[0] for record in caplog.records] == ["skipped 004.png", "skipped 009.png"]


def test_a_skipped_file_is_not_read_again(dataset: Dataset, backend: Any) -> None:
    index, folder = dataset
    whole = (folder / "003.png").read_bytes()
    spoil(folder, 3)
    loader = DetectionLoader(index, folder, augment=[], on_bad_sample="skip", backend=backend)
    assert len(list(loader)) == 10
    (folder / "003.png").write_bytes(whole)
    assert len(list(loader)) == 10
    assert list(loader.skipped) == ["003.png"]


def test_a_batch_without_usable_samples_is_left_out_on_one_rank(dataset: Dataset, backend: Any) -> None:
    index, folder = dataset
    spoil(folder, 2, 3, 10)
    options: dict[str, Any] = {
        "augment": [],
        "batch_size": 2,
        "shuffle": False,
        "on_bad_sample": "skip",
        "backend": backend,
    }
    loader = DetectionLoader(index, folder, **options)
    # The last batch is filled from the start of the epoch.
    assert samples(list(loader)) == [[0, 1], [4, 5], [6, 7], [8, 9], [0]]
    # The position counts it: before it is looked at, and after.
    for taken, left in ((1, [[4, 5], [6, 7], [8, 9], [0]]), (2, [[6, 7], [8, 9], [0]])):
        iterator = iter(loader)
        for _ in range(taken):
            next(iterator)
        resumed = DetectionLoader(index, folder, **options)
        resumed.load_state_dict(loader.state_dict())
        assert samples(list(resumed)) == left
        iterator.close()  # type: ignore[attr-defined]


def test_ranks_that_train_get_a_batch_that_teaches_nothing(dataset: Dataset, backend: Any) -> None:
    index, folder = dataset
    spoil(folder, 4, 5, 6)

    def rank(number: int, **options: Any) -> DetectionLoader:
        shared: dict[str, Any] = {"augment": [NORMALIZE], "batch_size": 2, "shuffle": False, "world_size": 2}
        return DetectionLoader(
            index, folder, rank=number, on_bad_sample="skip", backend=backend, **{**shared, **options}
        )

    first, second = list(rank(0)), list(rank(1))
    assert len(first) == len(second) == 3
    assert samples(second) == [[2, 3], [7], [10, 0]]
    assert [batch.stand_in for batch in first] == [False, True, False]
    stand_in = first[1]
    (target,) = stand_in.targets
    assert stand_in.images.shape == (1, 3, 64, 64)  # as large as the batch that it stands for
    assert stand_in.images.is_contiguous(memory_format=torch.channels_last)
    assert stand_in.images.dtype == torch.float32
    assert not stand_in.images.any()
    assert len(target.boxes) == len(target.labels) == len(target.annotation_ids) == 0
    assert target.size == (48, 64)
    assert target.ignore_boxes.tolist() == [[0, 0, 64, 48]]
    assert stand_in.to("cpu").stand_in
    # In evaluation each image counts once, so there is none.
    assert samples(list(rank(0, pad_last=False))) == [[0, 1], [8, 9]]


def test_where_no_image_can_be_used_it_is_an_error(dataset: Dataset, backend: Any) -> None:
    index, folder = dataset
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    loader = DetectionLoader(index, folder, augment=[], on_bad_sample="skip", backend=backend)
    with pytest.raises(InputError, match=r"instances\.json: none of its images can be used, such as \d+\.png: "):
        list(loader)


def test_images_that_are_left_out_anyway_do_not_count(write_dataset: WriteDataset, backend: Any) -> None:
    index, folder = write_dataset([np.zeros((8, 8, 3), np.uint8)] * 3, [{"image_id": 1, "bbox": [1, 1, 5, 5]}])
    spoil(folder, 1)
    loader = DetectionLoader(index, folder, augment=[], on_bad_sample="skip", filter_empty=True, backend=backend)
    with pytest.raises(InputError, match=r"instances\.json: none of its images can be used, such as 001\.png: "):
        list(loader)


def test_each_of_several_ranks_ends_an_epoch_of_stand_ins(dataset: Dataset, backend: Any) -> None:
    index, folder = dataset
    for path in folder.iterdir():
        path.unlink()
    for rank in range(2):
        loader = DetectionLoader(
            index, folder, augment=[], rank=rank, world_size=2, on_bad_sample="skip", backend=backend
        )
        match = rf"none of the images that rank {rank} of 2 saw in epoch 0 can be used, such as \d+\.png: no such image"
        with pytest.raises(InputError, match=match):
            list(loader)


@pytest.mark.parametrize("pad_last", [True, False])
def test_the_only_image_of_a_rank_may_be_bad(dataset: Dataset, backend: Any, pad_last: bool) -> None:
    index, folder = dataset
    spoil(folder, 3)
    options: dict[str, Any] = {"augment": [], "shuffle": False, "pad_last": pad_last, "backend": backend}
    loader = DetectionLoader(index, folder, rank=3, world_size=len(index), on_bad_sample="skip", **options)
    assert [batch.stand_in for batch in loader] == [True] * pad_last


def test_the_rest_of_an_epoch_may_be_bad_as_a_whole(dataset: Dataset, backend: Any) -> None:
    index, folder = dataset
    spoil(folder, 8, 9, 10)
    options: dict[str, Any] = {"augment": [], "batch_size": 2, "shuffle": False, "world_size": 2, "backend": backend}
    loader = DetectionLoader(index, folder, **options)
    batches = iter(loader)
    assert samples([next(batches), next(batches)]) == [[0, 1], [4, 5]]
    resumed = DetectionLoader(index, folder, on_bad_sample="skip", **options)
    resumed.load_state_dict(loader.state_dict())
    assert [batch.stand_in for batch in resumed] == [True]
    assert resumed.sampler.epoch == 1


def test_failing_is_the_default(dataset: Dataset, backend: Any) -> None:
    index, folder = dataset
    spoil(folder, 3)
    loader = DetectionLoader(index, folder, augment=[], shuffle=False, backend=backend)
    with pytest.raises(BadSampleError, match=r"003\.png \(sample 3\)"):
        list(loader)
    assert loader.skipped == {}
    assert loader.sampler.position == 3


def test_an_interrupted_epoch_with_skipped_samples_loses_no_other(dataset: Dataset, backend: Any) -> None:
    index, folder = dataset
    spoil(folder, 1, 6)
    options: dict[str, Any] = {
        "augment": [],
        "on_bad_sample": "skip",
        "pad_last": False,
        "prefetch": 3,
        "backend": backend,
    }
    loader = DetectionLoader(index, folder, batch_size=3, **options)
    iterator = iter(loader)
    seen = [next(iterator), next(iterator)]
    for rank in range(2):
        resumed = DetectionLoader(index, folder, batch_size=2, rank=rank, world_size=2, **options)
        resumed.load_state_dict(loader.state_dict())
        seen += resumed
    assert sorted(sample for batch in samples(seen) for sample in batch) == [0, 2, 3, 4, 5, 7, 8, 9, 10]
