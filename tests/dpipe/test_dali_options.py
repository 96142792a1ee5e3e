from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpipe.backends.dali_notice import cpu_format_notice
from dpipe.backends.dali_options import DaliOptions
from dpipe.errors import InputError
from dpipe.operations.geometric import Resize
from dpipe.policy import Augment, Normalize, Pad

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

from dpipe.backends.dali import DaliBackend
from dpipe.backends.opencv import OpenCVBackend

IMAGENET = Normalize((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """Three smooth JPEGs of 80x60 pixels."""
    rng = np.random.default_rng(4)
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path in paths:
        small = Image.fromarray(rng.integers(0, 256, (8, 10, 3)).astype(np.uint8))
        small.resize((80, 60), Image.Resampling.BICUBIC).save(path, quality=95)
    return paths


def batch_of(paths: list[Path], transforms: list, **options: object) -> torch.Tensor:
    augment = Augment(transforms)
    plans = [augment.draw((60, 80), seed=0, epoch=0, sample=number) for number in range(len(paths))]
    (batch,) = DaliBackend(paths, augment, max_batch_size=len(paths), **options).stream([plans])
    return batch.images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "hardware"}, "decoder must be gpu or cpu, got 'hardware'"),
        ({"hw_decoder_load": 1.5}, r"hw_decoder_load must lie in 0\.\.1, got 1\.5"),
        ({"hw_decoder_load": float("nan")}, r"hw_decoder_load must lie in 0\.\.1, got nan"),
        ({"hw_decoder_load": True}, r"hw_decoder_load must lie in 0\.\.1, got True"),
        ({"preallocate": 1080}, "preallocate must be a height and a width of at least 1, got 1080"),
        ({"preallocate": (0, 80)}, r"preallocate must be a height and a width of at least 1, got \(0, 80\)"),
    ],
)
def test_options_out_of_range_are_told(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DaliOptions(**options)


def test_options_need_no_dali() -> None:
    code = "import sys, dpipe.backends.dali_options; sys.exit('nvidia.dali' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_options_reach_the_decoder() -> None:
    from dpipe.backends.dali_graph import decoder_arguments

    options = DaliOptions(hw_decoder_load=0.25, preallocate=(1080, 1920))
    arguments = decoder_arguments(options, on_gpu=True, turn=False)
    assert arguments["device"] == "mixed"
    assert arguments["hw_decoder_load"] == 0.25
    assert (arguments["preallocate_height_hint"], arguments["preallocate_width_hint"]) == (1080, 1920)
    assert "preallocate_height_hint" not in decoder_arguments(options, on_gpu=True, turn=True)
    for on_cpu in (
        decoder_arguments(options, on_gpu=False, turn=False),
        decoder_arguments(DaliOptions(decoder="cpu"), on_gpu=True, turn=False),
    ):
        assert on_cpu["device"] == "cpu"
        assert "hw_decoder_load" not in on_cpu


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "options",
    [
        DaliOptions(decoder="cpu"),
        DaliOptions(hw_decoder_load=0.0),
        DaliOptions(hw_decoder_load=1, preallocate=(60, 80)),
    ],
    ids=["cpu", "no engine", "engine"],
)
def test_every_choice_decodes_alike(photographs: list[Path], options: DaliOptions, device: str) -> None:
    transforms = [Resize((64, 48)), Pad(32)]
    images = batch_of(photographs, transforms, device=device, options=options)
    augment = Augment(transforms)
    plans = [augment.draw((60, 80), seed=0, epoch=0, sample=number) for number in range(3)]
    (expected,) = OpenCVBackend(photographs, augment).stream([plans])
    same_decoder = device == "cpu" or options.decoder == "cpu"
    assert images.device.type == device
    apart = (images.cpu().int() - expected.images.int()).abs().float()
    # GPUs have their own arithmetic, which may differ by more where colours change from pixel to pixel.
    assert apart.max() <= 1 if same_decoder else (apart.mean() <= 1 and apart.quantile(0.98) <= 5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_float32_rounded_to_nearest(photographs: list[Path], dtype: torch.dtype, device: str) -> None:
    transforms = [Resize((64, 48)), IMAGENET, Pad(32)]
    images = batch_of(photographs, transforms, device=device, dtype=dtype)
    assert images.dtype == dtype
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, batch_of(photographs, transforms, device=device).to(dtype))


def test_dtype_leaves_grey_levels_alone(photographs: list[Path]) -> None:
    assert batch_of(photographs, [Resize((64, 48))], dtype=torch.float16).dtype == torch.uint8


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_batches_on_the_gpu_are_handed_over_without_a_copy(
    photographs: list[Path], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    pointers = []
    from_dlpack = torch.from_dlpack

    def watched(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = from_dlpack(*args, **kwargs)
        pointers.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(torch, "from_dlpack", watched)
    transforms = [Resize((64, 48))] if dtype == torch.uint8 else [Resize((64, 48)), IMAGENET]
    images = batch_of(photographs, transforms, device="cuda", dtype=dtype)
    assert images.is_cuda
    assert images.dtype == dtype
    assert images.data_ptr() in pointers


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.png"] * 3, "PNG"),
        (["a.PNG", "b.png", "c.jpg"], "PNG"),
        (["a.webp"], "WebP"),
        (["a.png", "b.jpg"], None),
        (["a.jpg", "b.jp2", "c.png"], None),
        (["a.jpg"] * 900 + ["b.png"] * 100, None),
        (["a.png"] * 600 + ["b.jpg"] * 400, "PNG"),
        ([], None),
    ],
)
def test_formats_that_no_gpu_decodes_are_told(names: list[str], said: str | None) -> None:
    notice = cpu_format_notice([Path(name) for name in names])
    if said is None:
        assert notice is None
    else:
        assert notice is not None
        assert notice.startswith(f"the images are {said} files")
        assert "dpipe transcode" in notice
        assert "\n" not in notice


def test_the_notice_looks_at_few_names_of_a_large_data_set() -> None:
    class Paths(list):
        asked = 0

        def __getitem__(self, number: int) -> Path:
            self.asked += 1
            return super().__getitem__(number)

    paths = Paths([Path("a.png")] * 12345)
    assert cpu_format_notice(paths) is not None
    assert paths.asked <= 100


def test_the_notice_leaves_a_forbidden_name_to_its_batch() -> None:
    class Paths(list):
        def __getitem__(self, number: int) -> Path:
            raise InputError("outside of the folder")

    assert cpu_format_notice(Paths([Path("a.png")])) is None


def test_it_says_nothing_where_the_cpu_decodes_anyway(
    photographs: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    names = [path.with_suffix(".png") for path in photographs]
    with caplog.at_level(logging.INFO, logger="dpipe"):
        DaliBackend(names, Augment([]), device="cpu")
    assert not caplog.records


@pytest.mark.gpu
def test_it_says_once_that_png_is_decoded_on_the_cpu(photographs: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    paths = []
    for path in photographs:
        paths.append(path.with_suffix(".png"))
        Image.open(path).save(paths[-1])
    with caplog.at_level(logging.INFO, logger="dpipe"):
        augment = Augment([])
        backend = DaliBackend(paths, augment, device="cuda")
        plans = [augment.draw((60, 80), seed=0, epoch=0, sample=number) for number in range(3)]
        assert len(list(backend.stream([[plan] for plan in plans]))) == 3
        DaliBackend(paths, augment, device="cuda", options=DaliOptions(decoder="cpu"))
    assert [record.getMessage() for record in caplog.records] == [cpu_format_notice(paths)]
