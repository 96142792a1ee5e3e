from __future__ import annotations

import dataclasses
import gc
import itertools
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dpipe import geometry
from dpipe.errors import InputError
from dpipe.operations.albumentations_op import Albumentations
from dpipe.operations.colours import Brightness, Color, Contrast, Equalize
from dpipe.operations.geometric import RandomFlip, Resize, Rotate, Shear, Translate
from dpipe.plan import SamplePlan
from dpipe.policy import Augment, AutoAugment, Normalize, Pad

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

from dpipe.backends.base import BatchImages, padded_size
from dpipe.backends.dali import DaliBackend
from dpipe.backends.opencv import OpenCVBackend
from dpipe.loader import Batch, DetectionLoader

FILL = (124, 116, 104)
IMAGENET = Normalize((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
GEOMETRY = [
    AutoAugment(
        [
            [Rotate(5, prob=0.5, img_fill_val=FILL)],
            [Rotate(7, prob=1.0, img_fill_val=FILL), Translate(3, prob=0.5, img_fill_val=FILL)],
            [Shear(5, prob=1.0, direction="vertical")],
        ]
    ),
    Resize(((640, 200), (640, 260))),
    RandomFlip(0.5),
]

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eleven PNGs of several sizes: blurred noise, so that every interpolation matters and every shift shows."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    sizes = [(120, 160), (160, 120), (97, 201), (64, 64), (131, 77)]
    paths = []
    for number in range(11):
        height, width = sizes[number % len(sizes)]
        noise = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        path = root / f"bild {number} é.png"
        Image.fromarray(cv2.GaussianBlur(noise, (5, 5), 1.5)).save(path)
        paths.append(path)
    return paths


def draw(paths: Sequence[Path], augment: Augment, epoch: int = 0) -> list[SamplePlan]:
    plans = []
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            width, height = image.size
        plans.append(augment.draw((height, width), seed=3, epoch=epoch, sample=number))
    return plans


def split(plans: Sequence[SamplePlan], size: int) -> list[Sequence[SamplePlan]]:
    return [plans[start : start + size] for start in range(0, len(plans), size)]


def images_of(stream: Iterable[BatchImages]) -> list[torch.Tensor]:
    return [batch.images for batch in stream]


def grey_levels_apart(ours: torch.Tensor, reference: torch.Tensor, augment: Augment) -> torch.Tensor:
    """Absolute difference in grey levels, (N, 3, H, W), whether normalised or not."""
    scale = 1.0 if augment.normalize is None else torch.tensor(augment.normalize.std)[:, None, None]
    return (ours.cpu().float() - reference.float()).abs() * scale


def compare(paths: Sequence[Path], transforms: list, batch_size: int, device: str, epochs: int = 1) -> torch.Tensor:
    """Runs both backends; returns how many grey levels apart all their pixels are."""
    augment = Augment(transforms)
    reference = OpenCVBackend(paths, augment)
    backend = DaliBackend(paths, augment, device=device, max_batch_size=batch_size)
    apart = []
    for epoch in range(epochs):
        batches = split(draw(paths, augment, epoch), batch_size)
        made = images_of(backend.stream(batches))
        expected = images_of(reference.stream(batches))
        assert len(made) == len(expected) == len(batches)
        for plans, images, reference_images in zip(batches, made, expected, strict=True):
            assert images.shape == (len(plans), 3, *padded_size(plans, augment.size_divisor))
            assert images.dtype == reference_images.dtype
            assert images.device.type == device
            assert images.is_contiguous(memory_format=torch.channels_last)
            apart.append(grey_levels_apart(images, reference_images, augment).flatten())
    return torch.cat(apart)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_geometry_is_opencvs_within_rounding(pictures: list[Path], device: str, batch_size: int) -> None:
    # Ragged sizes, a last batch of three, two epochs, normalised and padded.
    apart = compare(pictures, [*GEOMETRY, IMAGENET, Pad(32)], batch_size, device, epochs=2)
    assert apart.max() < 1.001
    assert apart.mean() < 0.1


@pytest.mark.parametrize("device", DEVICES)
def test_pixels_stay_uint8_without_normalize_and_caffe_order_is_bgr(pictures: list[Path], device: str) -> None:
    assert compare(pictures[:4], [RandomFlip(0.5)], 4, device).max() == 0
    caffe = Normalize((103.53, 116.28, 123.675), (1.0, 2.0, 3.0), bgr=True)
    assert compare(pictures[:4], [RandomFlip(0.5), caffe, Pad(32)], 4, device).max() < 1e-4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(100, 80), (67, 50), (66, 81), (30, 201), (13, 10), (3, 2)])
@pytest.mark.parametrize("turned", [False, True])
def test_shrinking_by_more_than_two_is_opencvs(
    pictures: list[Path], size: tuple[int, int], turned: bool, device: str
) -> None:
    turn = [Rotate(5, prob=1.0, img_fill_val=FILL)] if turned else []
    # From one epoch to the next, and within a batch, images need different numbers of halvings.
    apart = compare(pictures, [*turn, Resize(size, keep_ratio=False), RandomFlip(0.5)], 4, device, epochs=2)
    assert apart.max() <= 1


def test_halving_rounds_as_opencv_does(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    for width, height in ((48, 32), (24, 16)):  # nothing but halvings
        assert compare([tmp_path / "noise.png"], [Resize((width, height), keep_ratio=False)], 1, "cpu").max() == 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_shrunk_image_is_made_of_all_pixels(tmp_path: Path, device: str) -> None:
    stripes = np.zeros((64, 96, 3), dtype=np.uint8)
    stripes[:, ::2] = 200  # a bilinear interpolation alone would show some stripes, and others not
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    paths = [tmp_path / "stripes.png", tmp_path / "noise.png"]
    for path, image in zip(paths, (stripes, noise), strict=True):
        Image.fromarray(image).save(path)
    for width, height in ((40, 27), (31, 20), (10, 7)):
        augment = Augment([Resize((width, height), keep_ratio=False)])
        plans = draw(paths, augment)
        (made,) = DaliBackend(paths, augment, device=device, max_batch_size=2).stream([plans])
        assert made.images.shape[2:] == (height, width)
        assert (made.images[0].int() - 100).abs().max() <= 2
    augment = Augment([Resize((24, 16), keep_ratio=False)])
    (made,) = DaliBackend(paths, augment, device=device, max_batch_size=2).stream([draw(paths, augment)])
    blocks = noise.reshape(16, 4, 24, 4, 3).mean((1, 3))
    assert np.abs(made.images[1].permute(1, 2, 0).cpu().numpy() - blocks).max() <= 1.25  # rounded twice


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "operations",
    [
        [Color(9, prob=1.0)],
        [Color(0, prob=1.0)],
        [Brightness(8, prob=1.0)],
        [Contrast(9, prob=1.0)],
        [Contrast(1, prob=1.0)],
        [Equalize(prob=1.0)],
        [AutoAugment([[Color(7, prob=0.7), Contrast(2, prob=0.7), Brightness(8, prob=0.7)], [Equalize(prob=0.5)], []])],
    ],
    ids=["color", "grey", "brightness", "contrast", "flat", "equalize", "policies"],
)
def test_photometric_operations_are_opencvs(tmp_path: Path, operations: list, device: str) -> None:
    rng = np.random.default_rng(5)
    paths = []
    for number in range(6):
        # Smooth, with a bias of colour and large even areas, as photographs have.
        image = cv2.resize(
            rng.integers(0, 256, (9, 12, 3)).astype(np.float32), (400, 300), interpolation=cv2.INTER_CUBIC
        )
        image = np.clip(image * (0.5, 0.9, 1.2) + 10, 0, 255).astype(np.uint8)
        image[200:, :150] = 40 * number
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
    apart = compare(paths, operations, 4, device)
    assert (apart > 2).float().mean() < 0.001


@pytest.mark.realdata
@pytest.mark.parametrize("device", DEVICES)
def test_photographs_come_out_alike(data_root: Path, device: str) -> None:
    paths = sorted((data_root / "coco_mini" / "val").glob("*.jpg"))[:12]
    paths += sorted((data_root / "pennfudan_voc" / "VOC2012" / "JPEGImages").glob("*.jpg"))[:4]
    paths += sorted((data_root / "coco_streets" / "leftImg8bit").glob("*/*/*.png"))[:4]
    assert len(paths) == 20
    apart = compare(paths, [*GEOMETRY, IMAGENET, Pad(32)], 4, device)
    # On the CPU both decode JPEG by the same arithmetic; a GPU's differs by a few levels at sharp edges of colour.
    assert apart.mean() < (0.1 if device == "cpu" else 1.0)
    assert (apart > 2.001).float().mean() < (1e-6 if device == "cpu" else 0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_stay_valid_while_the_pipeline_goes_on(pictures: list[Path], device: str) -> None:
    augment = Augment([*GEOMETRY, IMAGENET])
    backend = DaliBackend(pictures, augment, device=device, max_batch_size=2)
    held, copies = [], []
    for epoch in range(3):
        for made in backend.stream(split(draw(pictures, augment, epoch), 2)):
            held.append(made.images)
            copies.append(made.images.clone())
    backend.close()
    del backend
    for images, copy in zip(held, copies, strict=True):
        assert torch.equal(images, copy)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_it_reads_ahead_as_far_as_it_was_told(pictures: list[Path], prefetch: int) -> None:
    augment = Augment([Resize((64, 48))])
    plans = draw(pictures, augment)
    pulled = 0

    def batches():
        nonlocal pulled
        for plan in plans:
            pulled += 1
            yield [plan]

    backend = DaliBackend(pictures, augment, prefetch=prefetch)
    for handed_out, _ in enumerate(backend.stream(batches()), start=1):
        assert pulled == min(handed_out + prefetch, len(plans))
    assert handed_out == len(plans)


def test_a_new_stream_ends_the_one_before(pictures: list[Path]) -> None:
    augment = Augment([Resize((64, 48))])
    batches = split(draw(pictures, augment), 2)
    backend = DaliBackend(pictures, augment, max_batch_size=2)
    expected = images_of(backend.stream(batches))
    abandoned = backend.stream(batches)
    next(abandoned)
    stream = backend.stream(batches)
    assert torch.equal(next(stream).images, expected[0])
    assert next(abandoned, None) is None
    assert all(torch.equal(made.images, wanted) for made, wanted in zip(stream, expected[1:], strict=True))
    stream = backend.stream(batches)
    next(stream)
    backend.close()
    assert next(stream, None) is None
    assert len(list(backend.stream(batches))) == len(batches)


def test_operations_that_first_appear_late_are_not_lost(pictures: list[Path]) -> None:
    # The graph grows by photometric steps as plans ask for them.
    augment = Augment([])
    sizes = [plan.source_size for plan in draw(pictures, augment)]
    chains = [(), (), (("color", 0.5),), (), (("contrast", 1.5), ("color", 0.2), ("brightness", 0.8)), ()]
    plans = [
        SamplePlan(number, number, 0, size, size, geometry.identity(), photometric=chain)
        for number, (size, chain) in enumerate(zip(sizes, chains, strict=False))
    ]
    backend = DaliBackend(pictures, augment)
    made = images_of(backend.stream([[plan] for plan in plans]))
    expected = images_of(OpenCVBackend(pictures, augment).stream([[plan] for plan in plans]))
    for images, reference in zip(made, expected, strict=True):
        assert (images.int() - reference.int()).abs().max() <= 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_exif_orientation_is_applied_only_where_the_annotations_want_it(
    tmp_path: Path, orientation: int, device: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(1).integers(0, 256, (48, 80, 3)).astype(np.uint8)
    paths = [tmp_path / "camera.jpg"] * 2
    Image.fromarray(noise).save(paths[0], exif=exif, quality=95, subsampling=0)
    augment = Augment([RandomFlip(1.0)])
    turned = orientation >= 5
    sizes = [(48, 80), (80, 48) if turned else (48, 80)]
    plans = [augment.draw(size, seed=0, epoch=0, sample=number) for number, size in enumerate(sizes)]
    (made,) = images_of(DaliBackend(paths, augment, device=device, max_batch_size=2).stream([plans]))
    (expected,) = images_of(OpenCVBackend(paths, augment).stream([plans]))
    # Turned wrongly, the noise is 85 levels apart.
    assert (made.cpu().int() - expected.int()).abs().float().mean() <= (0 if device == "cpu" else 2)


def test_errors_of_the_plans_come_through_in_turn(pictures: list[Path]) -> None:
    augment = Augment([])
    plans = draw(pictures, augment)

    def batches():
        yield plans[:1]
        raise InputError("out of plans")

    stream = DaliBackend(pictures, augment).stream(batches())
    next(stream)
    with pytest.raises(InputError, match="out of plans"):
        next(stream)


@pytest.mark.parametrize("policy", [False, True])
def test_albumentations_are_refused_at_once(pictures: list[Path], policy: bool) -> None:
    blur = Albumentations([{"type": "Blur", "p": 1.0}])
    augment = Augment([Resize((64, 48)), AutoAugment([[], [Color(3), blur]]) if policy else blur])
    with pytest.raises(InputError, match="Albumentations runs in the opencv backend alone"):
        DaliBackend(pictures, augment)


def test_operations_that_dali_lacks_are_told_at_their_batch(pictures: list[Path]) -> None:
    augment = Augment([])
    plans = draw(pictures, augment)
    plans[1] = dataclasses.replace(plans[1], photometric=(np.flipud,))
    stream = DaliBackend(pictures, augment).stream([[plan] for plan in plans])
    next(stream)
    with pytest.raises(InputError, match="DALI has no such operation on colours as <function flipud"):
        next(stream)


def test_missing_dali_is_told(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    augment = Augment([])
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(InputError, match="install nvidia-dali-cuda120"):
        DaliBackend(pictures, augment)


def test_the_loader_gives_the_same_batches_through_both_backends(write_dataset: Callable) -> None:
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (60 + 7 * number, 80, 3)).astype(np.uint8) for number in range(7)]
    index, folder = write_dataset(images, [{"image_id": number, "bbox": [10, 10, 30, 20]} for number in range(7)])
    options = {"augment": [*GEOMETRY, IMAGENET, Pad(32)], "batch_size": 2, "repeat": 2, "seed": 5}
    dali = DetectionLoader(index, folder, backend="dali", **options)
    opencv = DetectionLoader(index, folder, backend="opencv", **options)

    def same(batch: Batch, reference: Batch) -> bool:
        assert [target.sample for target in batch.targets] == [target.sample for target in reference.targets]
        assert all(
            torch.equal(ours.boxes, theirs.boxes) for ours, theirs in zip(batch.targets, reference.targets, strict=True)
        )
        return bool((batch.images - reference.images).abs().max() < 1 / 57)

    assert all(same(*pair) for pair in zip(dali, opencv, strict=True))
    # The second epoch is broken off, and another loader goes on.
    expected = list(opencv)
    begun = list(itertools.islice(dali, 3))
    resumed = DetectionLoader(index, folder, backend="dali", **options)
    resumed.load_state_dict(dali.state_dict())
    rest = list(resumed)
    assert len(begun) == 3
    assert rest
    assert all(same(*pair) for pair in zip([*begun, *rest], expected, strict=True))
    # The same one begins it anew.
    assert all(same(*pair) for pair in zip(dali, expected, strict=True))


@pytest.mark.parametrize(
    ("batch_size", "threads", "prefetch", "pad_last"), [(1, 1, 0, True), (3, 3, 1, False), (4, 2, 4, True)]
)
def test_ranks_share_each_epoch_through_both_backends(
    write_dataset: Callable, batch_size: int, threads: int, prefetch: int, pad_last: bool
) -> None:
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (40 + 5 * number, 60, 3)).astype(np.uint8) for number in range(7)]
    index, folder = write_dataset(images, [{"image_id": number, "bbox": [10, 10, 30, 20]} for number in range(7)])
    seen: list[list[int]] = [[], []]
    for rank in range(2):
        options = {
            "augment": [RandomFlip(0.5), Resize(((60, 30), (90, 40))), Pad(16)],
            "batch_size": batch_size,
            "rank": rank,
            "world_size": 2,
            "threads": threads,
            "prefetch": prefetch,
            "pad_last": pad_last,
        }
        dali = DetectionLoader(index, folder, backend="dali", **options)
        opencv = DetectionLoader(index, folder, backend="opencv", **options)
        for epoch in range(2):
            for ours, reference in zip(dali, opencv, strict=True):
                numbers = [target.sample for target in ours.targets]
                assert numbers == [target.sample for target in reference.targets]
                assert ours.images.shape == reference.images.shape
                assert (ours.images.int() - reference.images.int()).abs().max() <= 1
                seen[epoch] += numbers
    for numbers in seen:
        assert set(numbers) == set(range(7))
        assert pad_last or len(numbers) == 7


@pytest.mark.parametrize(
    ("threads", "prefetch", "batch_size", "device", "expected"),
    [
        (16, 2, 1, "cpu", 3),
        (16, 0, 2, "cpu", 2),
        (2, 2, 4, "cpu", 2),
        (16, 2, 4, "cuda:0", 4),
        (2, 2, 4, "cuda:0", 2),
    ],
)
def test_it_has_no_more_threads_than_images_in_work(
    pictures: list[Path], threads: int, prefetch: int, batch_size: int, device: str, expected: int
) -> None:
    options = {"threads": threads, "prefetch": prefetch, "max_batch_size": batch_size, "device": device}
    assert DaliBackend(pictures, Augment([]), **options).threads == expected


def test_a_stream_that_is_broken_off_lets_go_of_its_pipeline(pictures: list[Path]) -> None:
    augment = Augment([])
    backend = DaliBackend(pictures, augment)
    stream = backend.stream([[plan] for plan in draw(pictures, augment)])
    next(stream)
    pipeline = weakref.ref(backend._pipeline)
    assert pipeline() is not None
    stream.close()
    gc.collect()
    assert pipeline() is None
