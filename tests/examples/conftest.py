"""The data that the examples are tried on: a few drawn streets as a COCO data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from street_scenes import write_streets

from converters import convert_cityscapes


@dataclass(frozen=True)
class Streets:
    """Where the splits ``train`` (7 pictures of 160x80) and ``val`` (3) are."""

    root: Path

    def annotations(self, split: str) -> Path:
        return self.root / "annotations" / f"instancesonly_filtered_gtFine_{split}.json"

    def images(self, split: str) -> Path:
        return self.root / "leftImg8bit" / split

    def arguments(self, *splits: str) -> list[str]:
        """What the examples' command lines begin with."""
        return [str(path) for split in splits for path in (self.annotations(split), self.images(split))]


@pytest.fixture(scope="session")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Streets:
    root = tmp_path_factory.mktemp("streets")
    write_streets(root, {"train": 7, "val": 3}, width=160, height=80)
    convert_cityscapes(root, nproc=1)
    return Streets(root)


@pytest.fixture(autouse=True)
def one_thread():
    """Cores are few and shared, and small models gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
