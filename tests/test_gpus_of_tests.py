"""Tests see a GPU only where they are marked so: the others would compute on it, and not give the same bits."""

from __future__ import annotations

import os

import pytest
import torch


def look() -> list[bool]:
    return [torch.cuda.is_available(), torch.cuda.device_count() > 0, os.environ.get("CUDA_VISIBLE_DEVICES") != ""]


@pytest.fixture(scope="module")
def seen() -> list[bool]:
    """Whether there is a GPU, here and for other processes, where something is made for several tests."""
    return look()


def test_most_tests_see_no_gpu(seen: list[bool]) -> None:
    assert look() == seen == [False] * 3


@pytest.mark.gpu
def test_those_that_are_marked_see_them() -> None:
    assert look() == [True] * 3
