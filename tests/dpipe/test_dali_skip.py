from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpipe.errors import BadSampleError
from dpipe.images.decode import check_image
from dpipe.operations.colours import Color
from dpipe.operations.geometric import Resize
from dpipe.plan import SamplePlan
from dpipe.policy import Augment, Normalize, Pad

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

from dpipe.backends.base import BatchImages
from dpipe.backends.dali import DaliBackend

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
AUGMENT = Augment([Resize((40, 30)), Color(5, prob=0.3), Normalize((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), Pad(32)])


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Twelve PNGs of noise, 80x60 pixels."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)).save(path)
    return paths


def batches_of(numbers: Sequence[int], size: int = 3) -> list[list[SamplePlan]]:
    plans = [
        AUGMENT.draw((60, 80), seed=0, epoch=0, sample=sample, image=image) for sample, image in enumerate(numbers)
    ]
    return [plans[start : start + size] for start in range(0, len(plans), size)]


def corrupt(path: Path) -> None:
    """Spoils the compressed pixels: only decoding tells."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)


def bomb(path: Path) -> None:
    """Writes a small PNG that says it has 60000x60000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    packed = (struct.pack(">I", len(data)) + name + data for name, data in chunks)
    checked = (chunk + struct.pack(">I", zlib.crc32(chunk[4:])) for chunk in packed)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(checked))


def check(made: BatchImages, plans: list[SamplePlan], whole: torch.Tensor, bad_images: set[int]) -> None:
    """Compares a batch to the one that the files gave when they were all good."""
    bad = [place for place, plan in enumerate(plans) if plan.image in bad_images]
    kept = [place for place in range(len(plans)) if place not in bad]
    assert [place for place, _ in made.bad] == bad
    assert [error.sample for _, error in made.bad] == [plans[place].sample for place in bad]
    assert made.images.shape == (len(kept), *whole.shape[1:])
    assert made.images.dtype == whole.dtype
    assert made.images.device == whole.device
    assert torch.equal(made.images, whole[kept])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_bad_files_are_left_out_and_nothing_else(pictures: list[Path], prefetch: int, device: str) -> None:
    # Some bad at the first look, some only in the decoder, twice in a batch, and all of batches 2 and 6.
    batches = batches_of([*range(12), 4, 1, 4, *range(11, -1, -1), 3])
    whole = [made.images for made in DaliBackend(pictures, AUGMENT, max_batch_size=3, device=device).stream(batches)]
    for number in (1, 4, 6, 8):
        corrupt(pictures[number])
    pictures[7].unlink()
    pictures[11].write_bytes(pictures[11].read_bytes()[:-100])
    bad = {1, 4, 6, 7, 8, 11}
    backend = DaliBackend(pictures, AUGMENT, max_batch_size=3, device=device, prefetch=prefetch, on_bad_sample="skip")
    for _ in range(2):
        made = list(backend.stream(batches))
        assert len(made) == len(batches) == 10
        for batch, plans, images in zip(made, batches, whole, strict=True):
            check(batch, plans, images, bad)
        assert len(made[2].images) == 0
        assert made[2].images.is_contiguous(memory_format=torch.channels_last)
    reasons = {error.path.name: error.reason for batch in made for _, error in batch.bad}
    assert reasons == {
        "1.png": "no image in a known format, or corrupt",
        "4.png": "no image in a known format, or corrupt",
        "6.png": "no image in a known format, or corrupt",
        "7.png": "no such image file",
        "8.png": "no image in a known format, or corrupt",
        "11.png": "truncated PNG: its end chunk is missing",
    }


@pytest.mark.parametrize("prefetch", [0, 2])
def test_plans_are_drawn_once_and_read_ahead_as_told(pictures: list[Path], prefetch: int) -> None:
    batches = batches_of(range(12), size=1)
    for number in (0, 3, 4):
        corrupt(pictures[number])
    pictures[8].unlink()
    pulled = 0

    def counted():
        nonlocal pulled
        for batch in batches:
            pulled += 1
            yield batch

    backend = DaliBackend(pictures, AUGMENT, prefetch=prefetch, on_bad_sample="skip")
    for handed_out, made in enumerate(backend.stream(counted()), start=1):
        assert pulled <= min(handed_out + prefetch, len(batches))
        assert len(made.images) == (0 if handed_out - 1 in (0, 3, 4, 8) else 1)
    assert handed_out == pulled == len(batches)


@pytest.mark.parametrize("spoil", [corrupt, Path.unlink], ids=["corrupt", "missing"])
def test_a_file_in_quarantine_is_not_read_again(pictures: list[Path], spoil: Callable[[Path], None]) -> None:
    batches = batches_of(range(3))
    backend = DaliBackend(pictures, AUGMENT, max_batch_size=3, on_bad_sample="skip")
    good = pictures[1].read_bytes()
    spoil(pictures[1])
    (first,) = backend.stream(batches)
    pictures[1].write_bytes(good)
    (second,) = backend.stream(batches)
    assert [place for place, _ in first.bad] == [place for place, _ in second.bad] == [1]
    # Where a bad sample is an error, mending the file is enough.
    backend = DaliBackend(pictures, AUGMENT, max_batch_size=3)
    spoil(pictures[1])
    with pytest.raises(BadSampleError, match=r"1\.png"):
        list(backend.stream(batches))
    pictures[1].write_bytes(good)
    assert [len(made.images) for made in backend.stream(batches)] == [3]


@pytest.mark.parametrize("device", DEVICES)
def test_a_file_that_says_it_is_huge_is_not_decoded(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    bomb(pictures[1])
    # Not even asked for by the longer search for what is wrong.
    monkeypatch.setattr("dpipe.backends.dali.find_culprits", lambda *_: pytest.fail("DALI was given the file"))
    with pytest.raises(BadSampleError, match="it is 60000x60000 pixels, the annotations say 80x60"):
        list(DaliBackend(pictures, AUGMENT, max_batch_size=3, device=device).stream(batches_of(range(3))))
    backend = DaliBackend(pictures, AUGMENT, max_batch_size=3, device=device, on_bad_sample="skip")
    (made,) = backend.stream(batches_of(range(3)))
    assert [place for place, _ in made.bad] == [1]


def test_a_look_at_a_good_file_reads_little_of_it(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looks = []

    def watched(path: Path, *rest: object) -> int:
        looks.append(path)
        return check_image(path, *rest)

    monkeypatch.setattr("dpipe.backends.dali_feed.check_image", watched)
    photograph = tmp_path / "photograph.jpg"
    Image.open(pictures[0]).save(photograph)
    long_header = tmp_path / "long header.jpg"
    Image.open(pictures[0]).save(long_header, icc_profile=bytes(70_000))
    paths = [photograph, pictures[0], long_header]
    backend = DaliBackend(paths, AUGMENT, max_batch_size=3)
    for _ in range(2):
        assert [len(made.images) for made in backend.stream(batches_of(range(3)))] == [3]
    assert looks == [long_header]


@pytest.mark.parametrize("device", DEVICES)
def test_a_file_that_dali_alone_cannot_read_is_found(pictures: list[Path], tmp_path: Path, device: str) -> None:
    picture = tmp_path / "picture.gif"
    Image.open(pictures[0]).save(picture)
    paths = [pictures[0], picture, pictures[2]]
    backend = DaliBackend(paths, AUGMENT, max_batch_size=3, device=device, on_bad_sample="skip")
    (made,) = backend.stream(batches_of(range(3)))
    assert len(made.images) == 2
    ((place, error),) = made.bad
    assert (place, error.path) == (1, picture)
    assert error.reason.startswith("DALI cannot read images of this format, the opencv backend can")
    assert "\n" not in str(error)


def test_images_that_dali_decodes_to_another_size_are_left_out(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where a file is replaced after the first look at it.
    batches = batches_of([0, 1, 2, 1])
    whole = [made.images for made in DaliBackend(pictures, AUGMENT, max_batch_size=3).stream(batches)]
    monkeypatch.setattr("dpipe.backends.dali_feed._look_at", lambda *_: None)
    Image.new("RGB", (60, 40)).save(pictures[1])
    with pytest.raises(BadSampleError, match="it is 60x40 pixels, the annotations say 80x60"):
        list(DaliBackend(pictures, AUGMENT, max_batch_size=3).stream(batches))
    backend = DaliBackend(pictures, AUGMENT, max_batch_size=3, on_bad_sample="skip")
    for made, plans, images in zip(backend.stream(batches), batches, whole, strict=True):
        check(made, plans, images, {1})


def test_bad_samples_of_a_batch_are_told_in_order_however_they_were_found(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = batches_of([0, 1, 3, 2, 1, 0])
    whole = [made.images for made in DaliBackend(pictures, AUGMENT, max_batch_size=3).stream(batches)]
    monkeypatch.setattr("dpipe.backends.dali_feed._look_at", lambda *_: None)
    for number in (1, 2):
        Image.new("RGB", (60, 40)).save(pictures[number])
    # In the second batch image 1 is known to be bad, and image 2, before it, is found to be.
    backend = DaliBackend(pictures, AUGMENT, max_batch_size=3, prefetch=0, on_bad_sample="skip")
    for made, plans, images in zip(backend.stream(batches), batches, whole, strict=True):
        check(made, plans, images, {1, 2})


def test_trouble_of_the_machine_is_not_skipped(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("std::bad_alloc")

    stream = DaliBackend(pictures, AUGMENT, max_batch_size=3, on_bad_sample="skip").stream(batches_of(range(12)))
    next(stream)
    monkeypatch.setattr("nvidia.dali.Pipeline.share_outputs", fail)
    with pytest.raises(MemoryError):
        next(stream)
