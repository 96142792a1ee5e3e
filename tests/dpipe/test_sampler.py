import itertools

import numpy as np
import pytest

from dpipe.errors import InputError
from dpipe.rng import AUGMENT, ORDER, random_stream
from dpipe.sampler import BatchSampler


def test_an_epoch_has_every_sample_once() -> None:
    sampler = BatchSampler(23, 4, repeat=3, pad=False)
    batches = list(sampler)
    assert sorted(np.concatenate(batches)) == list(range(69))
    assert [len(batch) for batch in batches] == [4] * 17 + [1]
    assert len(batches) == 18


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = BatchSampler(50, 5, seed=3)
    first = np.concatenate(list(sampler))
    second = np.concatenate(list(sampler))
    assert not np.array_equal(first, second)
    again = BatchSampler(50, 5, seed=3)
    again.set_epoch(1)
    np.testing.assert_array_equal(np.concatenate(list(again)), second)
    assert not np.array_equal(np.concatenate(list(BatchSampler(50, 5, seed=4))), first)
    assert not np.array_equal(first, np.arange(50))


def test_without_shuffle_samples_come_in_order() -> None:
    np.testing.assert_array_equal(np.concatenate(list(BatchSampler(10, 3, shuffle=False, pad=False))), np.arange(10))


def test_samples_of_a_repeated_set_are_images_again_and_again() -> None:
    sampler = BatchSampler(5, 1, repeat=4)
    images = [sampler.image_of(int(batch[0])) for batch in sampler]
    assert np.bincount(images).tolist() == [4] * 5


def test_streams_of_random_numbers_have_nothing_in_common() -> None:
    numbers = itertools.product((ORDER, AUGMENT), (0, 1), (0, 1), (0, 1))  # purpose, seed, epoch, sample
    drawn = np.stack([random_stream(*each).integers(2**63, size=100) for each in numbers])
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.parametrize("shuffle", [True, False])
def test_padding_takes_samples_from_the_start_of_the_epoch(shuffle: bool) -> None:
    order = np.concatenate(list(BatchSampler(10, 4, shuffle=shuffle)))
    assert len(order) == 12
    assert sorted(order[:10]) == list(range(10))
    np.testing.assert_array_equal(order[10:], order[:2])


def test_padding_of_fewer_samples_than_a_batch_wraps_again() -> None:
    batches = [list(BatchSampler(2, 3, shuffle=False, rank=rank, world_size=2)) for rank in range(2)]
    assert [[batch.tolist() for batch in rank] for rank in batches] == [[[0, 1, 0]], [[1, 0, 1]]]


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("num_images", [1, 7, 16, 29, 33])
def test_ranks_cut_the_global_batches(num_images: int, pad: bool) -> None:
    groups = np.arange(num_images) % 3 == 0
    whole = list(BatchSampler(num_images, 12, groups=groups, pad=pad))
    samplers = [BatchSampler(num_images, 4, groups=groups, pad=pad, rank=rank, world_size=3) for rank in range(3)]
    parts = [list(sampler) for sampler in samplers]
    assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
    assert all(len(batch) for part in parts for batch in part)
    for number, batch in enumerate(whole):
        joined = np.concatenate([part[number] for part in parts if number < len(part)])
        np.testing.assert_array_equal(joined, batch)


def test_groups_meet_only_in_what_is_left_over() -> None:
    groups = np.random.default_rng(0).integers(0, 3, 200)
    sampler = BatchSampler(200, 8, groups=groups, pad=False, repeat=2)
    batches = list(sampler)
    assert sorted(np.concatenate(batches)) == list(range(400))
    mixed = [number for number, batch in enumerate(batches) if len(set(groups[batch % 200])) > 1]
    # Three groups leave less than one batch each.
    assert all(number >= len(batches) - 3 for number in mixed)
    # Groups follow one another as the shuffle has it, not one group after the other.
    firsts = [int(groups[batch[0] % 200]) for batch in batches]
    assert sum(a != b for a, b in itertools.pairwise(firsts)) > 10


def test_a_batch_of_a_group_comes_when_it_is_full() -> None:
    sampler = BatchSampler(7, 2, shuffle=False, groups=np.array([0, 1, 1, 0, 1, 1, 1]))
    assert [batch.tolist() for batch in sampler] == [[1, 2], [0, 3], [4, 5], [6, 1]]


def test_a_rank_without_a_batch_counts_epochs_like_the_others() -> None:
    ranks = [BatchSampler(1, 1, rank=rank, world_size=2, pad=False) for rank in (0, 1)]
    for epoch in range(3):
        assert [sampler.epoch for sampler in ranks] == [epoch, epoch]
        assert [len(list(sampler)) for sampler in ranks] == [1, 0]


def test_it_goes_on_where_the_state_was_saved() -> None:
    groups = np.arange(31) % 2
    sampler = BatchSampler(31, 2, groups=groups, seed=9)
    iterator = iter(sampler)
    for _ in range(5):
        next(iterator)
    state = sampler.state_dict()
    rest = [batch.tolist() for batch in iterator]
    assert sampler.state_dict()["epoch"] == 1

    other = BatchSampler(31, 2, groups=groups, seed=9)
    other.load_state_dict(state)
    assert state["consumed"] == [[2, 5]]
    assert [batch.tolist() for batch in other] == rest
    assert [batch.tolist() for batch in other] == [batch.tolist() for batch in sampler]


def test_a_state_may_go_to_other_ranks_of_the_same_global_batch() -> None:
    one = BatchSampler(40, 4)
    iterator = iter(one)
    next(iterator)
    two = [BatchSampler(40, 2, rank=rank, world_size=2) for rank in range(2)]
    for sampler in two:
        sampler.load_state_dict(one.state_dict())
    expected = next(iterator).tolist()
    assert [sample for sampler in two for sample in next(iter(sampler)).tolist()] == expected


def test_a_new_iteration_begins_the_epoch_anew_but_for_a_loaded_position() -> None:
    sampler = BatchSampler(10, 2)
    expected = [batch.tolist() for batch in sampler.batches()]
    for _ in range(2):
        iterator = iter(sampler)
        assert [next(iterator).tolist() for _ in range(3)] == expected[:3]
    sampler.load_state_dict(sampler.state_dict())
    assert sampler.position == 3
    iterator = iter(sampler)
    assert [next(iterator).tolist() for _ in range(2)] == expected[3:]
    assert (sampler.epoch, sampler.batches_left) == (0, 0)
    next(iter(sampler))
    assert (sampler.epoch, sampler.position) == (1, 1)


def test_setting_the_current_epoch_keeps_the_position() -> None:
    sampler = BatchSampler(10, 2)
    next(iter(sampler))
    sampler.set_epoch(0)
    assert sampler.position == 1
    sampler.set_epoch(4)
    assert (sampler.epoch, sampler.position) == (4, 0)


def test_a_state_of_another_run_is_refused() -> None:
    state = BatchSampler(10, 2, seed=1).state_dict()
    with pytest.raises(InputError, match="saved with seed 1, here it is 2"):
        BatchSampler(10, 2, seed=2).load_state_dict(state)
    with pytest.raises(InputError, match="saved with pad True, here it is False"):
        BatchSampler(10, 2, seed=1, pad=False).load_state_dict(state)
    groups = np.arange(10) % 2
    grouped = BatchSampler(10, 2, groups=groups).state_dict()
    BatchSampler(10, 2, groups=groups.copy()).load_state_dict(grouped)
    for other in (None, groups[::-1], 1 - groups):
        with pytest.raises(InputError, match="saved with other groups of images than these: it cannot go on"):
            BatchSampler(10, 2, groups=other).load_state_dict(grouped)
    with pytest.raises(InputError, match="lacks consumed, epoch"):
        BatchSampler(10, 2).load_state_dict({k: v for k, v in state.items() if k not in ("epoch", "consumed")})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images must be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        ({"repeat": 0}, "repeat must be an integer of at least 1"),
        ({"rank": 2, "world_size": 2}, r"rank 2 is out of range: expected 0\.\.1"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"groups": np.zeros(4)}, r"groups must have one number for each of the 10 images, got shape \(4,\)"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchSampler(**{"num_images": 10, "batch_size": 2, **arguments})  # type: ignore[arg-type]
