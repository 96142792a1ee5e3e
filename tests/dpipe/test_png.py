import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dpipe.errors import BadSampleError
from dpipe.images import png
from dpipe.images.decode import decode_image
from dpipe.images.memory import Scratch
from dpipe.images.png import decode_png

SIZE = (301, 333)
STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

pytest.importorskip("rasterio", reason="rasterio is not installed: the extra fast is not tested")


@pytest.fixture
def photo() -> np.ndarray:
    """Smooth colours with some noise, so that a writer takes several filters."""
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    image = cv2.addWeighted(cv2.GaussianBlur(noise, (0, 0), 6), 0.9, noise, 0.1, 0)
    image[:40] = 7
    return image


def by_opencv(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), STORED)


def saved(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("strategy", [cv2.IMWRITE_PNG_STRATEGY_DEFAULT, cv2.IMWRITE_PNG_STRATEGY_RLE])
def test_pixels_are_those_that_were_written(photo: np.ndarray, level: int, strategy: int) -> None:
    options = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_STRATEGY, strategy]
    data = cv2.imencode(".png", photo[..., ::-1], options)[1].tobytes()
    np.testing.assert_array_equal(decode_png(data, SIZE, Scratch()), photo)


@pytest.mark.parametrize("row_filter", range(5))
def test_all_filters(photo: np.ndarray, row_filter: int) -> None:
    filters = [cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_FILTER_SUB, cv2.IMWRITE_PNG_FILTER_UP]
    filters += [cv2.IMWRITE_PNG_FILTER_AVG, cv2.IMWRITE_PNG_FILTER_PAETH]
    data = cv2.imencode(".png", photo[..., ::-1], [cv2.IMWRITE_PNG_FILTER, filters[row_filter]])[1].tobytes()
    np.testing.assert_array_equal(decode_png(data, SIZE, Scratch()), photo)


def test_what_else_a_file_says_changes_no_pixel(photo: np.ndarray) -> None:
    text = PngInfo()
    text.add_text("Comment", "a street", zip=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(photo), pnginfo=text, exif=exif, dpi=(300, 300), icc_profile=b"profile")
    np.testing.assert_array_equal(decode_png(data, SIZE, Scratch()), photo)


def interlaced(image: Image.Image) -> bytes:
    data = bytearray(saved(image))
    data[28] = 1
    return bytes(data)


@pytest.mark.parametrize(
    "write",
    [
        lambda image: saved(image.convert("L")),
        lambda image: saved(image.convert("P")),
        lambda image: saved(image.convert("RGBA")),
        lambda image: saved(image.convert("1")),
        lambda image: saved(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)),
        lambda image: saved(image, transparency=(7, 7, 7)),
        lambda image: saved(image, save_all=True, append_images=[image.rotate(180)]),
        lambda image: saved(image.crop((0, 0, 100, 100))),
        interlaced,
    ],
    ids=["grey", "palette", "alpha", "bits", "16 bits", "transparent", "animation", "small", "interlaced"],
)
def test_other_files_are_left_to_opencv(photo: np.ndarray, write: Callable[[Image.Image], bytes]) -> None:
    data = write(Image.fromarray(photo))
    size = int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    assert decode_png(data, size, Scratch()) is None


@pytest.mark.parametrize("place", ["start", "middle", "checksum", "tail"])
def test_damage_is_left_to_opencv(tmp_path: Path, photo: np.ndarray, place: str) -> None:
    data = bytearray(saved(Image.fromarray(photo)))
    pixels = data.find(b"IDAT")
    length = int.from_bytes(data[pixels - 4 : pixels], "big")
    checksum = pixels + 4 + length
    places = {"start": pixels + 5, "middle": len(data) // 2, "checksum": checksum, "tail": len(data) - 20}
    data[places[place]] ^= 16
    assert decode_png(bytes(data), SIZE, Scratch()) is None
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(BadSampleError, match=r"a\.png: no image in a known format, or corrupt"):
        decode_image(path, SIZE)


def test_images_are_decoded_into_scratch_memory(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.fromarray(photo)))
    scratch = Scratch()
    image = decode_image(path, SIZE, scratch=scratch)
    np.testing.assert_array_equal(image, photo)
    assert np.shares_memory(image, scratch.array("decoded", (*SIZE, 3)))


def test_without_gdal_opencv_decodes(photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.fromarray(photo)))
    monkeypatch.setattr(png, "rasterio", None)
    assert decode_png(path.read_bytes(), SIZE, Scratch()) is None
    np.testing.assert_array_equal(decode_image(path, SIZE), photo)


def test_errors_of_warnings_do_no_harm(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.fromarray(photo)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also as filters that are set back while images are read
        decoded = decode_png(path.read_bytes(), SIZE, Scratch())
    assert decoded is not None
    np.testing.assert_array_equal(decoded, photo)


@pytest.mark.realdata
def test_real_images_decode_as_by_opencv(data_root: Path) -> None:
    paths = sorted(data_root.rglob("*_leftImg8bit.png"))[::9]
    assert len(paths) >= 10
    for path in paths:
        data = path.read_bytes()
        expected = by_opencv(data)
        np.testing.assert_array_equal(decode_png(data, expected.shape[:2], Scratch()), expected)
