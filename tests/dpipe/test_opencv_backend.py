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
from dpipe.colours import Color, Equalize
from dpipe.decode import decode_image
from dpipe.errors import BadSampleError
from dpipe.geometric import RandomFlip, Resize, Rotate, Shear, Translate
from dpipe.geometry import pixel_centre_matrix, transform_points
from dpipe.operation import Operation
from dpipe.plan import SamplePlan
from dpipe.policy import Augment, Normalize, Pad
from dpipe.resample import resample

SIZE = (180, 260)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def draw(*operations: Operation, size: tuple[int, int] = SIZE, sample: int = 0) -> SamplePlan:
    return Augment(operations).draw(size, seed=1, epoch=0, sample=sample)


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


@pytest.mark.parametrize(
    "operations",
    [
        [RandomFlip(prob=1)],
        [RandomFlip(prob=1, direction="vertical")],
        [Resize((400, 300))],
        [Resize((131, 300), keep_ratio=False), RandomFlip(prob=1)],
        [Rotate(10, prob=1)],
        [Translate(1, prob=1), Shear(5, prob=1)],
        [Rotate(5, prob=1, scale=1.2), Translate(1, prob=1), Resize((400, 300)), RandomFlip(prob=1)],
        [Shear(8, prob=1, direction="vertical"), Resize((200, 110)), RandomFlip(prob=1)],
        [Rotate(10, prob=1, max_rotate_angle=90), Resize((290, 310), keep_ratio=False)],
    ],
)
def test_dots_come_out_where_the_matrix_says(operations: list[Operation]) -> None:
    plan = draw(*operations)
    rows, columns = np.indices(SIZE) + 0.5
    found = 0
    for x, y in [(70.5, 60), (180, 70.2), (95, 120), (170, 118), (120, 90)]:
        # Smooth dots, so that the centre of mass survives shrinking.
        dot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
        ((expected_x, expected_y),) = transform_points([(x, y)], plan.matrix)
        if not (18 < expected_x < plan.size[1] - 18 and 18 < expected_y < plan.size[0] - 18):
            continue
        image = np.repeat(np.rint(dot).astype(np.uint8)[..., None], 3, axis=2)
        weights = resample(image, replace(plan, fill=(0, 0, 0)))[..., 0].astype(float)
        out_rows, out_columns = np.indices(weights.shape) + 0.5
        assert (out_columns * weights).sum() / weights.sum() == pytest.approx(expected_x, abs=0.06)
        assert (out_rows * weights).sum() / weights.sum() == pytest.approx(expected_y, abs=0.06)
        found += 1
    assert found >= 2


@pytest.mark.parametrize("scale", [(400, 300), (200, 170), (171, 333)])
@pytest.mark.parametrize("flips", [[], ["horizontal"], ["vertical"], ["horizontal", "vertical"]])
def test_a_resize_gives_the_pixels_of_the_warp(scale: tuple[int, int], flips: list[str]) -> None:
    plan = draw(Resize(scale, keep_ratio=False), *(RandomFlip(prob=1, direction=d) for d in flips))  # type: ignore[arg-type]
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8), (0, 0), 1.5)
    size = (plan.size[1], plan.size[0])
    warped = cv2.warpAffine(image, pixel_centre_matrix(plan.matrix), size, flags=cv2.INTER_LINEAR)
    inside = np.s_[4:-4, 4:-4]
    assert np.abs(resample(image, plan)[inside].astype(int) - warped[inside]).max() <= 2


def test_nothing_is_interpolated_where_nothing_moves() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resample(image, draw()), image)
    np.testing.assert_array_equal(resample(image, draw(RandomFlip(prob=1))), image[:, ::-1])
    moved = resample(image, draw(Translate(1, prob=1, random_negative_prob=0, img_fill_val=(9, 8, 7))))
    np.testing.assert_array_equal(moved[:, 25:], image[:, :-25])
    assert (moved[:, :25] == (9, 8, 7)).all()


def test_a_quarter_turn_is_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    plan = draw(Rotate(10, prob=1, random_negative_prob=0, max_rotate_angle=90), size=(64, 64))
    np.testing.assert_array_equal(resample(image, plan), np.rot90(image, -1))


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
