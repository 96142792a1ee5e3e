import numpy as np
import pytest
import torch

from dpipe.images.memory import BatchMemory, Scratch


def test_scratch_is_used_again_and_grows() -> None:
    scratch = Scratch()
    first = scratch.array("a", (10, 20, 3))
    assert (first.shape, first.dtype) == ((10, 20, 3), np.uint8)
    assert np.shares_memory(first, scratch.array("a", (5, 7, 3)))
    assert not np.shares_memory(first, scratch.array("b", (10, 20, 3)))
    assert scratch.array("a", (100, 20, 3)).shape == (100, 20, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_the_memory_of_a_batch_that_was_dropped_is_used_again(dtype: type) -> None:
    memory = BatchMemory(spare=2)
    batch = torch.from_numpy(memory.array((2, 30, 40, 3), dtype))
    address = batch.data_ptr()
    assert torch.from_numpy(memory.array((2, 30, 40, 3), dtype)).data_ptr() != address
    del batch
    assert torch.from_numpy(memory.array((1, 30, 40, 3), dtype)).data_ptr() == address


@pytest.mark.parametrize(
    "keep",
    [
        lambda batch: batch,
        lambda batch: batch[1:],
        lambda batch: batch.permute(0, 3, 1, 2)[0, 0],
        lambda batch: batch.view(torch.int16),
        lambda batch: batch.numpy(),
        lambda batch: batch.numpy()[0, 1:].T,
        lambda batch: batch.untyped_storage(),
        lambda batch: np.from_dlpack(batch),
        lambda batch: memoryview(batch.numpy()),
    ],
    ids=["batch", "images", "channel", "bits", "array", "part", "storage", "dlpack", "buffer"],
)
def test_memory_stays_with_whoever_holds_a_part_of_it(keep) -> None:  # type: ignore[no-untyped-def]
    memory = BatchMemory(spare=2)
    batch = torch.from_numpy(memory.array((2, 8, 8, 3), np.float32)).fill_(1)
    address = batch.data_ptr()
    held = keep(batch)
    del batch
    others = [torch.from_numpy(memory.array((2, 8, 8, 3), np.float32)).fill_(5) for _ in range(4)]
    assert address not in [other.data_ptr() for other in others]
    del held
    assert torch.from_numpy(memory.array((2, 8, 8, 3), np.float32)).data_ptr() == address


def test_no_more_than_the_spare_blocks_are_kept() -> None:
    memory = BatchMemory(spare=2)
    batches = [memory.array((100,), np.uint8) for _ in range(5)]
    addresses = {batch.ctypes.data for batch in batches}
    batches.clear()
    assert len(memory._free) == 2
    assert {memory.array((100,), np.uint8).ctypes.data} <= addresses


def test_blocks_grow_to_the_largest_batch() -> None:
    memory = BatchMemory(spare=3)
    for size in (50, 200, 80, 200, 120):
        assert memory.array((size,), np.uint8).shape == (size,)
    address = memory.array((200,), np.uint8).ctypes.data
    assert memory.array((10,), np.uint8).ctypes.data == address


def test_a_small_batch_leaves_a_block_for_a_large_one() -> None:
    memory = BatchMemory(spare=3)
    large = memory.array((200,), np.uint8)
    small = memory.array((10,), np.uint8)
    address = small.ctypes.data
    del small
    assert memory.array((200,), np.uint8).ctypes.data == address
    assert large.ctypes.data != address
