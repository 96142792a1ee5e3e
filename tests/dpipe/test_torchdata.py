"""The loader keeps torchdata's convention: what its StatefulDataLoader does, ours does."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpipe.coco import CocoIndex
from dpipe.loader import DetectionLoader

stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

# torchdata 0.11 calls what PyTorch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

WriteDataset = Callable[..., tuple[CocoIndex, Path]]
IMAGES, BATCH = 10, 2


@pytest.fixture
def make_loaders(write_dataset: WriteDataset) -> Callable[[], tuple[Any, Any]]:
    """Makes a pair of loaders of ten samples in order: torchdata's and ours."""
    index, folder = write_dataset([np.full((8, 8, 3), n, np.uint8) for n in range(IMAGES)])

    def make() -> tuple[Any, Any]:
        theirs = stateful_dataloader.StatefulDataLoader(list(range(IMAGES)), batch_size=BATCH, collate_fn=list)
        return theirs, DetectionLoader(index, folder, augment=[], batch_size=BATCH, shuffle=False)

    return make


def numbers(batches: Any) -> list[list[int]]:
    return [batch if isinstance(batch, list) else [int(image[0, 0, 0]) for image in batch.images] for batch in batches]


def interrupted(loader: Any, fresh: Any, taken: int) -> list[list[list[int]]]:
    iterator = iter(loader)
    first = numbers(islice(iterator, taken))
    fresh.load_state_dict(loader.state_dict())
    return [first, numbers(fresh), numbers(fresh), numbers(iterator), numbers(loader)]


def broken_off(loader: Any, _: Any, taken: int) -> list[list[list[int]]]:
    return [numbers(islice(loader, taken)), numbers(loader), numbers(loader)]


def interrupted_twice(loader: Any, fresh: Any, taken: int) -> list[list[list[int]]]:
    parts = [numbers(islice(loader, taken))]
    fresh.load_state_dict(loader.state_dict())
    iterator = iter(fresh)
    parts.append(numbers(islice(iterator, 1)))
    loader.load_state_dict(fresh.state_dict())
    return [*parts, numbers(loader)]


@pytest.mark.parametrize("taken", [1, 3, 5])
@pytest.mark.parametrize("scenario", [interrupted, broken_off, interrupted_twice])
def test_both_do_the_same(make_loaders: Callable[[], tuple[Any, Any]], scenario: Any, taken: int) -> None:
    (theirs, ours), (theirs_fresh, ours_fresh) = make_loaders(), make_loaders()
    assert scenario(ours, ours_fresh, taken) == scenario(theirs, theirs_fresh, taken)
    json.dumps(ours.state_dict())


def test_the_loader_is_what_torchdata_calls_stateful(make_loaders: Callable[[], tuple[Any, Any]]) -> None:
    assert isinstance(make_loaders()[1], stateful_dataloader.Stateful)
