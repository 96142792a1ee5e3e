"""Epochs that are interrupted anywhere, and go on with other batch sizes on another number of ranks."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dpipe.errors import InputError
from dpipe.sampler import BatchSampler

EPOCH = 2


def go_on(state: dict[str, Any], batch_size: int, world_size: int, **arguments: Any) -> list[BatchSampler]:
    """The samplers of all ranks, from a state that has been through JSON."""
    ranks = range(world_size)
    samplers = [BatchSampler(batch_size=batch_size, rank=rank, world_size=world_size, **arguments) for rank in ranks]
    for sampler in samplers:
        sampler.load_state_dict(json.loads(json.dumps(state)))
    return samplers


def take(samplers: list[BatchSampler], count: int) -> list[list[int]]:
    """The next global batches of the current epoch; ranks without a share of the last one have none."""
    iterators = [iter(sampler) for sampler in samplers]
    batches = []
    while len(batches) < count:
        shares = [share for iterator in iterators if (share := next(iterator, None)) is not None]
        if not shares:
            break
        batches.append(np.concatenate(shares).tolist())
    return batches


@st.composite
def settings_of_an_epoch(draw: st.DrawFn) -> dict[str, Any]:
    num_images = draw(st.integers(1, 40))
    return {
        "num_images": num_images,
        "repeat": draw(st.integers(1, 2)),
        "seed": draw(st.integers(0, 3)),
        "shuffle": draw(st.booleans()),
        "pad": draw(st.booleans()),
        "groups": draw(st.none() | arrays(np.int64, num_images, elements=st.integers(0, 2))),
    }


# Batch size, ranks, and global batches until the interruption.
PARTS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 5)), max_size=4)


@settings(deadline=None)
@given(settings_of_an_epoch(), PARTS, st.integers(1, 5), st.integers(1, 3))
def test_the_parts_of_an_epoch_are_a_permutation(
    arguments: dict[str, Any], parts: list[tuple[int, int, int]], batch_size: int, world_size: int
) -> None:
    state = {**BatchSampler(batch_size=1, **arguments).state_dict(), "epoch": EPOCH}
    seen: list[int] = []
    batches_before = 0
    total = arguments["num_images"] * arguments["repeat"]
    for size, ranks, count in [*parts, (batch_size, world_size, 10**6)]:
        samplers = go_on(state, size, ranks, **arguments)
        assert samplers[0].batches_left == -(-max(total - len(seen), 0) // (size * ranks))
        batches = take(samplers, count)
        batches_before += len(batches)
        seen += [sample for batch in batches for sample in batch]
        if samplers[0].epoch != EPOCH:
            break
        state = samplers[0].state_dict()
        assert len(seen) >= total or all(sampler.state_dict() == state for sampler in samplers)
        assert samplers[0].position == len(samplers[0]) - samplers[0].batches_left == batches_before
    assert sorted(seen[:total]) == list(range(total))
    if not arguments["pad"]:
        assert len(seen) == total
    # Later epochs know nothing of it.
    assert [(sampler.epoch, sampler.position, sampler.earlier) for sampler in samplers] == [(EPOCH + 1, 0, ())] * len(
        samplers
    )
    fresh = BatchSampler(batch_size=samplers[0].global_batch_size, **arguments)
    fresh.set_epoch(EPOCH + 1)
    assert take(samplers, 10**6) == [batch.tolist() for batch in fresh]


def test_an_equal_global_batch_goes_on_with_the_very_batches() -> None:
    groups = np.arange(40) % 3
    one = BatchSampler(40, 6, groups=groups)
    expected = [batch.tolist() for batch in one.batches()]
    take([one], 2)
    three = go_on(one.state_dict(), 2, 3, num_images=40, groups=groups)
    assert take(three, 2) == expected[2:4]
    # Another size that takes nothing leaves no trace.
    other = go_on(three[0].state_dict(), 5, 1, num_images=40, groups=groups)
    assert take(go_on(other[0].state_dict(), 6, 1, num_images=40, groups=groups), 99) == expected[4:]


def test_what_is_left_is_grouped_anew() -> None:
    groups = np.random.default_rng(0).integers(0, 3, 300)
    arguments: dict[str, Any] = {"num_images": 300, "groups": groups, "pad": False}
    sampler = BatchSampler(batch_size=4, **arguments)
    take([sampler], 20)
    batches = take(go_on(sampler.state_dict(), 3, 2, **arguments), 99)
    mixed = [number for number, batch in enumerate(batches) if len(set(groups[batch])) > 1]
    assert all(number >= len(batches) - 3 for number in mixed)


def test_padding_wraps_to_the_start_of_the_epoch() -> None:
    sampler = BatchSampler(10, 2)
    first = take([sampler], 2)
    (resumed,) = go_on(sampler.state_dict(), 4, 1, num_images=10)
    last = take([resumed], 99)[-1]
    assert last[2:] == first[0]


def test_an_epoch_is_as_long_as_its_parts() -> None:
    sampler = BatchSampler(20, 2)
    take([sampler], 4)
    (resumed,) = go_on(sampler.state_dict(), 5, 1, num_images=20)
    assert (resumed.position, resumed.batches_left, len(resumed), resumed.batches_of_an_epoch()) == (4, 3, 7, 4)
    assert len(take([resumed], 99)) == 3
    assert (len(resumed), resumed.batches_left) == (4, 4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", -1),
        ("epoch", "1"),
        ("epoch", 2**64),
        ("consumed", 10),
        ("consumed", [[2]]),
        ("consumed", [[2, 0]]),
        ("consumed", [[0, 3]]),
        ("consumed", [[2, 1.5]]),
        ("consumed", [[2, 2**70]]),
    ],
)
def test_a_damaged_state_is_refused(key: str, value: object) -> None:
    sampler = BatchSampler(10, 2)
    with pytest.raises(InputError, match="sampler state is damaged: epoch"):
        sampler.load_state_dict({**sampler.state_dict(), key: value})
    assert (sampler.epoch, sampler.position) == (0, 0)


def test_a_padded_epoch_that_has_ended_has_no_more_batches_of_another_size() -> None:
    sampler = BatchSampler(3, 8)
    next(iter(sampler))
    (smaller,) = go_on(sampler.state_dict(), 2, 1, num_images=3)
    assert (len(smaller), smaller.batches_left) == (1, 0)
    assert list(smaller) == []


def test_a_batch_size_may_come_back() -> None:
    """What had that size before another one is not what had it last."""
    state = BatchSampler(20, 1, pad=False).state_dict()
    seen: list[int] = []
    for batch_size, count in ((3, 1), (2, 2), (3, 2), (2, 9)):
        samplers = go_on(state, batch_size, 1, num_images=20, pad=False)
        seen += [sample for batch in take(samplers, count) for sample in batch]
        state = samplers[0].state_dict()
    assert sorted(seen) == list(range(20))
