import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dpipe.backends import opencv
from dpipe.backends.base import BatchImages, padded_size
from dpipe.backends.opencv import OpenCVBackend
from dpipe.errors import BadSampleError
from dpipe.images.decode import decode_image
from dpipe.operations.colours import Color, Equalize
from dpipe.operations.geometric import RandomFlip, Resize, Rotate
from dpipe.plan import SamplePlan
from dpipe.policy import Augment, Normalize, Pad

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def threads_of_the_backend() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dpipe")]


@pytest.fixture
def noise(tmp_path: Path) -> tuple[list[Path], list[np.ndarray]]:
    """Six images of different sizes, as files and as arrays."""
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (40 + 3 * n, 90 - 7 * n, 3)).astype(np.uint8) for n in range(6)]
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image[..., ::-1])
    return paths, images


def images_of(stream: Iterable[BatchImages]) -> list[torch.Tensor]:
    return [batch.images for batch in stream]


def plans_of(augment: Augment, images: list[np.ndarray]) -> list[SamplePlan]:
    return [augment.draw(image.shape[:2], seed=0, epoch=0, sample=n) for n, image in enumerate(images)]


def test_batches_are_normalised_and_padded(noise: tuple[list[Path], list[np.ndarray]]) -> None:
    paths, images = noise
    augment = Augment([RandomFlip(), Normalize(MEAN, STD), Pad(32)])
    plans = plans_of(augment, images)
    backend = OpenCVBackend(paths, augment)
    batches = images_of(backend.stream([plans[:4], plans[4:]]))
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 64, 96), (2, 3, 64, 64)]
    for batch in batches:
        assert batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)
    for number, (plan, image) in enumerate(zip(plans, images, strict=True)):
        result = batches[number // 4][number % 4].permute(1, 2, 0).numpy()
        height, width = plan.size
        flipped = image[:, ::-1] if plan.resize_flips == (True, False) else image
        expected = (flipped.astype(np.float64) - MEAN) / STD
        np.testing.assert_allclose(result[:height, :width], expected, atol=1e-5)
        assert (result[height:] == 0).all()
        assert (result[:, width:] == 0).all()


def test_channels_may_come_in_the_order_of_caffe(noise: tuple[list[Path], list[np.ndarray]]) -> None:
    paths, images = noise
    augment = Augment([Normalize((103.53, 116.28, 123.675), (1, 2, 4), bgr=True)])
    (batch,) = images_of(OpenCVBackend(paths, augment).stream([plans_of(augment, images)[:1]]))
    expected = (images[0][..., ::-1] - np.array((103.53, 116.28, 123.675))) / (1, 2, 4)
    np.testing.assert_allclose(batch[0].permute(1, 2, 0), expected, atol=1e-4)


def test_without_normalisation_images_stay_bytes(noise: tuple[list[Path], list[np.ndarray]]) -> None:
    paths, images = noise
    augment = Augment([Color(10, prob=1), Equalize(prob=1)])
    plans = plans_of(augment, images)
    (batch,) = images_of(OpenCVBackend(paths, augment).stream([plans[:2]]))
    assert batch.dtype == torch.uint8
    assert tuple(batch.shape) == (2, 3, *padded_size(plans[:2]))
    grey = cv2.cvtColor(cv2.cvtColor(images[0], cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    blended = np.clip(np.rint(1.9 * images[0] - 0.9 * grey), 0, 255).astype(np.uint8)
    expected = np.stack([cv2.equalizeHist(np.ascontiguousarray(blended[..., c])) for c in range(3)])
    result = batch[0, :, : images[0].shape[0], : images[0].shape[1]].numpy().astype(int)
    assert np.abs(result - expected).max() <= 4  # one grey level before the equalisation


def test_images_of_one_pixel(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full((1, 1, 3), 200, np.uint8))
    augment = Augment([RandomFlip(prob=1), Normalize((0, 0, 0), (1, 1, 1)), Pad(4)])
    plan = augment.draw((1, 1), seed=0, epoch=0, sample=0)
    (batch,) = images_of(OpenCVBackend([path], augment).stream([[plan]]))
    assert batch[0, :, 0, 0].tolist() == [200, 200, 200]
    assert batch.sum() == 600
    one_row = Augment([Resize((50, 1), keep_ratio=False), Normalize((0, 0, 0), (1, 1, 1)), Pad(64)])
    plan = one_row.draw((1, 1), seed=0, epoch=0, sample=0)
    (batch,) = images_of(OpenCVBackend([path], one_row).stream([[plan]]))
    assert (batch[0, :, 0, :50] == 200).all()
    assert batch.sum() == 200 * 150


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_it_reads_ahead_so_many_batches_and_no_more(noise: tuple[list[Path], list[np.ndarray]], prefetch: int) -> None:
    paths, images = noise
    augment = Augment([])
    asked: list[int] = []

    def batches() -> Iterator[list[SamplePlan]]:
        for number in range(10):
            asked.append(number)
            yield [augment.draw(images[number % 6].shape[:2], seed=0, epoch=0, sample=number, image=number % 6)]

    stream = OpenCVBackend(paths, augment, prefetch=prefetch).stream(batches())
    for handed_out in range(1, 6):
        next(stream)
        assert len(asked) == handed_out + prefetch
    assert len(list(stream)) == 5


def test_breaking_off_leaves_no_threads(noise: tuple[list[Path], list[np.ndarray]]) -> None:
    paths, images = noise
    plans = plans_of(Augment([]), images)
    stream = OpenCVBackend(paths, Augment([]), threads=3).stream([plans] * 50)
    next(stream)
    assert threads_of_the_backend()
    stream.close()
    assert not threads_of_the_backend()


def test_a_bad_image_fails_its_own_batch(noise: tuple[list[Path], list[np.ndarray]]) -> None:
    paths, images = noise
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    plans = plans_of(Augment([]), images)
    stream = OpenCVBackend(paths, Augment([]), prefetch=4).stream(
        [[plans[0]], [plans[1], plans[2]], [plans[3]], [plans[4]]]
    )
    assert [len(next(stream).images), len(next(stream).images)] == [1, 2]
    with pytest.raises(BadSampleError, match=r"3\.png \(sample 3\): truncated PNG"):
        next(stream)
    assert not threads_of_the_backend()


def test_breaking_off_never_begins_what_is_queued(
    noise: tuple[list[Path], list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, images = noise
    plans = plans_of(Augment([]), images)
    go_on = threading.Event()
    begun: list[Path] = []

    def decode(path: Path, *arguments: Any) -> np.ndarray:
        begun.append(path)
        if len(begun) > 1:
            go_on.wait(timeout=30)
        return decode_image(path, *arguments)

    monkeypatch.setattr(opencv, "decode_image", decode)
    stream = OpenCVBackend(paths, Augment([]), threads=1, prefetch=5).stream([[plan] for plan in plans])
    next(stream)
    threading.Timer(0.2, go_on.set).start()
    stream.close()
    assert len(begun) <= 2  # the one that was handed out, and the one that was in work


def test_opencv_starts_no_threads_of_its_own(noise: tuple[list[Path], list[np.ndarray]]) -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        OpenCVBackend(noise[0], Augment([]))
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bgr", [False, True])
def test_half_precision_is_the_float32_value_rounded(
    noise: tuple[list[Path], list[np.ndarray]], dtype: torch.dtype, bgr: bool
) -> None:
    paths, images = noise
    augment = Augment([RandomFlip(), Normalize(MEAN, STD, bgr=bgr), Pad(32)])
    plans = plans_of(augment, images)
    (exact,) = OpenCVBackend(paths, augment).stream([plans])
    (half,) = OpenCVBackend(paths, augment, dtype=dtype).stream([plans])
    assert half.images.dtype == dtype
    assert half.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(half.images, exact.images.to(dtype))


def test_bad_samples_are_left_out(noise: tuple[list[Path], list[np.ndarray]]) -> None:
    paths, images = noise
    augment = Augment([Normalize(MEAN, STD)])
    plans = plans_of(augment, images)
    batches = [plans[:3], plans[3:5], plans[5:], [plans[1], plans[0]]]
    whole = [batch.images for batch in OpenCVBackend(paths, augment).stream(batches)]
    for number in (1, 3, 5):
        paths[number].write_bytes(paths[number].read_bytes()[:200])
    first, second, third, fourth = OpenCVBackend(paths, augment, on_bad_sample="skip").stream(batches)

    assert torch.equal(first.images, whole[0][[0, 2]])  # padded to the size of all plans
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(second.images, whole[1][1:])
    assert tuple(third.images.shape) == (0, 3, *padded_size(plans[5:]))
    assert torch.equal(fourth.images, whole[3][1:])
    bad = [[place for place, _ in batch.bad] for batch in (first, second, third, fourth)]
    assert bad == [[1], [0], [0], [0]]
    ((_, error),) = second.bad
    assert (error.path, error.reason, error.sample) == (paths[3], "truncated PNG: its end chunk is missing", 3)


def test_a_bad_image_is_not_read_again(
    noise: tuple[list[Path], list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, images = noise
    paths[2].write_text("<html>")
    read: list[Path] = []

    def decode(path: Path, *arguments: Any) -> np.ndarray:
        read.append(path)
        return decode_image(path, *arguments)

    monkeypatch.setattr(opencv, "decode_image", decode)
    plan = replace(plans_of(Augment([]), images)[2], sample=8)
    backend = OpenCVBackend(paths, Augment([]), on_bad_sample="skip", prefetch=0)
    later = replace(plan, sample=20)
    found = [batch.bad for _ in range(2) for batch in backend.stream([[plan], [later, later]])]
    assert read == [paths[2]]
    assert [[(place, error.sample) for place, error in bad] for bad in found] == [[(0, 8)], [(0, 20), (1, 20)]] * 2
    assert {error.reason for bad in found for _, error in bad} == {"no image in a known format, or corrupt"}
    # Where it is an error, it may have been mended.
    backend = OpenCVBackend(paths, Augment([]))
    with pytest.raises(BadSampleError):
        next(backend.stream([[plan]]))
    cv2.imwrite(str(paths[2]), images[2])
    assert next(backend.stream([[plan]])).images.shape[0] == 1


def test_threads_decode_into_memory_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number}.jpg" for number in range(2)]
    images = [np.full((30, 40, 3), grey, np.uint8) for grey in (50, 200)]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image)
    both = threading.Barrier(2)

    def decode(*arguments: Any) -> np.ndarray:
        image = decode_image(*arguments)
        both.wait(timeout=30)  # for the other thread's image as well
        return image

    monkeypatch.setattr(opencv, "decode_image", decode)
    (batch,) = OpenCVBackend(paths, Augment([]), threads=2).stream([plans_of(Augment([]), images)])
    assert [int(image.float().mean()) for image in batch.images] == [50, 200]


@pytest.mark.parametrize("normalize", [[], [Normalize(MEAN, STD)]])
def test_batches_that_are_held_never_change(
    noise: tuple[list[Path], list[np.ndarray]], normalize: list[Normalize]
) -> None:
    """Memory is used again, but only that of batches nobody holds."""
    paths, images = noise
    augment = Augment([Rotate(5), Color(8), Resize((120, 80)), RandomFlip(), *normalize])
    rng = np.random.default_rng(0)
    batches = [
        [
            augment.draw(images[image].shape[:2], seed=0, epoch=0, sample=4 * number + place, image=int(image))
            for place, image in enumerate(rng.integers(0, 6, 4))
        ]
        for number in range(60)
    ]
    expected = [batch.images.clone() for batch in OpenCVBackend(paths, augment, threads=1).stream(batches)]
    held: dict[int, torch.Tensor] = {}
    addresses = []
    for number, batch in enumerate(OpenCVBackend(paths, augment, threads=3).stream(batches)):
        addresses.append(batch.images.data_ptr())
        if number % 3 == 0:
            held[number] = batch.images[1:]
        assert torch.equal(batch.images, expected[number])
    del batch
    for number, tensor in held.items():
        assert torch.equal(tensor, expected[number][1:])
    assert len(set(addresses)) < len(addresses)


def test_memory_is_used_again_in_the_next_epoch(noise: tuple[list[Path], list[np.ndarray]]) -> None:
    paths, images = noise
    plans = plans_of(Augment([Rotate(5)]), images)
    backend = OpenCVBackend(paths, Augment([]), threads=2, prefetch=1)
    seen: list[set[int]] = []
    for _ in range(2):
        seen.append({batch.images.data_ptr() for batch in backend.stream([plans[:2]] * 6)})
        assert len(backend._scratches) <= 2
    assert seen[0] & seen[1]
    backend.close()
    assert not backend._scratches
    assert not backend._memory._free


def test_errors_hold_no_batch(noise: tuple[list[Path], list[np.ndarray]]) -> None:
    paths, images = noise
    paths[0].write_bytes(b"")
    plans = plans_of(Augment([]), images)
    backend = OpenCVBackend(paths, Augment([]), on_bad_sample="skip", prefetch=0)
    errors, addresses = [], set()
    for batch in backend.stream([plans[:2]] * 20):
        errors.append(batch.bad[0][1])
        addresses.add(batch.images.data_ptr())
    assert len(addresses) < 6
