from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpipe.errors import BadSampleError
from dpipe.operations.geometric import Resize
from dpipe.policy import Augment

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

from dpipe.backends.dali import DaliBackend
from dpipe.backends.dali_errors import file_trouble

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def spoil(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def jpeg(path: Path, size: tuple[int, int] = (80, 60), **options: object) -> Path:
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)).save(path, **options)
    return path


def corrupt(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    return bytes(data)


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda root: root / "gone.jpg", "no such image file"),
    "empty": (lambda root: spoil(root / "empty.png", b""), "empty"),
    "text": (lambda root: spoil(root / "text.jpg", b"hello, world"), "no image in a known format"),
    "truncated JPEG": (lambda root: spoil(root / "half.jpg", jpeg(root / "a.jpg").read_bytes()[:-500]), "truncated"),
    "truncated PNG": (lambda root: spoil(root / "half.png", jpeg(root / "a.png").read_bytes()[:-500]), "truncated"),
    "corrupt PNG": (lambda root: spoil(root / "corrupt.png", corrupt(jpeg(root / "a.png"))), "corrupt"),
    "other size": (lambda root: jpeg(root / "small.jpg", (60, 40)), "60x40 pixels, the annotations say 80x60"),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named_at_its_batch(tmp_path: Path, kind: str, device: str) -> None:
    make, reason = BAD_FILES[kind]
    good = jpeg(tmp_path / "good.jpg")
    paths = [good, make(tmp_path), good]
    augment = Augment([Resize((64, 48))])
    plans = [augment.draw((60, 80), seed=0, epoch=0, sample=sample, image=sample % 3) for sample in (0, 3, 2, 4, 5)]
    backend = DaliBackend(paths, augment, device=device, max_batch_size=2)
    stream = backend.stream([plans[:1], plans[1:2], plans[2:4], plans[4:]])
    next(stream)
    next(stream)
    with pytest.raises(BadSampleError, match=reason) as caught:
        next(stream)
    assert caught.value.path == paths[1]
    assert caught.value.sample == 4
    assert "\n" not in str(caught.value)
    # The backend is not spoilt by it.
    assert len(list(backend.stream([plans[:1], plans[4:]]))) == 2


def test_a_file_that_only_opencv_reads_is_told_with_dalis_error(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "picture.gif")
    augment = Augment([])
    plan = augment.draw((60, 80), seed=0, epoch=0, sample=7, image=0)
    for plans in ([plan], [plan, plan]):
        with pytest.raises(BadSampleError, match=r"picture\.gif") as caught:
            list(DaliBackend([path], augment, max_batch_size=2).stream([plans]))
        assert "DALI cannot read images of this format, the opencv backend can (nvImageCodec" in str(caught.value)
        assert "peek_image_shape" in str(caught.value.__cause__)


TROUBLE = "Error in {} operator `nvidia.dali.fn.{}`,\nwhich was used ...\n\nencountered:\n\n{}\nIn a file ..."


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(TROUBLE.format("GPU", "warp_affine", "CUDA allocation failed")),
        RuntimeError(TROUBLE.format("mixed", "decoders.image", "CUDA allocation failed")),
        RuntimeError(TROUBLE.format("mixed", "decoders.image", "CUDA runtime API error cudaErrorMemoryAllocation (2)")),
        RuntimeError(TROUBLE.format("CPU", "equalize", "Assert on 'x' failed")),
        MemoryError("std::bad_alloc"),
        RuntimeError("CUDA driver API error CUDA_ERROR_ILLEGAL_ADDRESS (700)"),
    ],
    ids=lambda error: str(error).replace("\n", " ")[-45:],
)
def test_trouble_of_the_machine_is_no_fault_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    augment = Augment([])
    plans = [augment.draw((60, 80), seed=0, epoch=0, sample=sample, image=0) for sample in range(4)]
    stream = DaliBackend([jpeg(tmp_path / "good.jpg")], augment).stream([[plan] for plan in plans])
    next(stream)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("nvidia.dali.Pipeline.share_outputs", fail)
    with pytest.raises(type(error)) as caught:
        next(stream)
    assert caught.value is error


def test_a_reason_has_no_gap_where_dali_knows_no_name() -> None:
    error = RuntimeError(TROUBLE.format("mixed", "decoders.image", "Failed to decode sample #0 : "))
    assert file_trouble(error) == "Failed to decode sample #0"
