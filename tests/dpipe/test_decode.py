from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from dpipe.errors import BadSampleError, InputError
from dpipe.images.decode import EXIF_ORIENTATION, check_image, decode_image

HEIGHT, WIDTH = 24, 40


@pytest.fixture
def pixels() -> np.ndarray:
    """Red grows to the right, green downwards."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, WIDTH)[None]
    image[..., 1] = np.linspace(0, 255, HEIGHT)[:, None]
    return image


def save(image: np.ndarray, path: Path, orientation: int | None = None) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(image).save(path, exif=exif, quality=95)
    return path


def assert_bad(path: Path, reason: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    """Both ways to look at a file refuse it, with one line that names the file and the sample."""
    for look in (decode_image, check_image):
        with pytest.raises(BadSampleError) as caught:
            look(path, size, 17)
        assert reason in caught.value.reason  # the path holds the test's name
        assert (caught.value.path, caught.value.sample) == (path, 17)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".jp2", ".bmp"])
def test_images_are_rgb(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    path = save(pixels, tmp_path / f"a{suffix}")
    image = decode_image(path, (HEIGHT, WIDTH))
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - pixels).mean() < (6 if suffix in (".jpg", ".webp") else 1e-9)
    assert check_image(path, (HEIGHT, WIDTH)) == 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_pixel_formats_become_rgb(tmp_path: Path, pixels: np.ndarray, mode: str) -> None:
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(pixels).convert(mode).save(path)
    image = decode_image(path, (HEIGHT, WIDTH))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    if mode == "I;16":
        np.testing.assert_array_equal(image[..., 1], pixels[..., 0])


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_exif_turns_an_image_when_that_gives_the_size_of_the_index(
    tmp_path: Path, pixels: np.ndarray, orientation: int
) -> None:
    path = save(pixels, tmp_path / "a.jpg", orientation)
    turned = {
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels.transpose(1, 0, 2), 2),
        8: np.rot90(pixels),
    }[orientation]
    image = decode_image(path, (WIDTH, HEIGHT))
    assert np.abs(image.astype(int) - turned).mean() < 6
    assert check_image(path, (WIDTH, HEIGHT)) == orientation


@pytest.mark.parametrize("orientation", [2, 3, 4, 6])
def test_exif_is_ignored_when_the_stored_size_is_that_of_the_index(
    tmp_path: Path, pixels: np.ndarray, orientation: int
) -> None:
    path = save(pixels, tmp_path / "a.jpg", orientation)
    assert np.abs(decode_image(path, (HEIGHT, WIDTH)).astype(int) - pixels).mean() < 6
    assert check_image(path, (HEIGHT, WIDTH)) == 1


def test_another_size_is_a_bad_sample(tmp_path: Path, pixels: np.ndarray) -> None:
    assert_bad(save(pixels, tmp_path / "a.png"), "it is 40x24 pixels, the annotations say 41x24", (24, 41))
    # Turned by 90 degrees, but no EXIF says so; turned upside down, which changes no size.
    assert_bad(save(pixels, tmp_path / "b.jpg"), "it is 40x24 pixels, the annotations say 24x40", (40, 24))
    assert_bad(save(pixels, tmp_path / "c.jpg", 3), "it is 40x24 pixels, the annotations say 24x40", (40, 24))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".gif"])
def test_an_image_of_another_size_is_not_decoded(
    tmp_path: Path, pixels: np.ndarray, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a megabyte may hold an image of gigabytes."""
    path = save(pixels, tmp_path / f"a{suffix}", 6 if suffix == ".jpg" else None)
    calls: list[Any] = []

    def imdecode(data: np.ndarray, flags: int) -> np.ndarray:
        calls.append(flags)
        return by_opencv(data, flags)

    def decode_jpeg(*arguments: Any, **options: Any) -> np.ndarray:
        calls.append("simplejpeg")
        return by_simplejpeg(*arguments, **options)

    by_opencv, by_simplejpeg = cv2.imdecode, simplejpeg.decode_jpeg
    monkeypatch.setattr(cv2, "imdecode", imdecode)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_jpeg)
    assert_bad(path, "it is 40x24 pixels, the annotations say 24x24", (24, 24))
    assert calls == []
    decode_image(path, (HEIGHT, WIDTH))
    assert calls == ["simplejpeg" if suffix == ".jpg" else cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION]
    if suffix == ".jpg":
        decode_image(path, (WIDTH, HEIGHT))
        assert calls[1:] == [cv2.IMREAD_COLOR_RGB]


def test_images_that_pillow_finds_too_large(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(pixels, tmp_path / "a.bmp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    assert_bad(path, "it has more than 600 pixels, the annotations say 20x20", (20, 20))
    np.testing.assert_array_equal(decode_image(path, (HEIGHT, WIDTH)), pixels)


def test_formats_that_only_opencv_knows(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.hdr"
    cv2.imwrite(str(path), pixels[..., ::-1].astype(np.float32) / 255)
    assert decode_image(path, (HEIGHT, WIDTH)).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(BadSampleError, match="it is 40x24 pixels, the annotations say 24x24"):
        decode_image(path, (24, 24))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".jp2"])
@pytest.mark.parametrize("share", [0.5, 0.98])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    path = save(noise, tmp_path / f"a{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert_bad(path, "truncated")


def test_the_end_marker_of_a_thumbnail_is_not_that_of_the_image(tmp_path: Path, pixels: np.ndarray) -> None:
    data = save(pixels, tmp_path / "a.jpg").read_bytes()
    thumbnail = b"\xff\xd8 a small picture \xff\xd9"
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path = tmp_path / "b.jpg"
    path.write_bytes(data[:2] + segment + data[2:])
    assert decode_image(path, (HEIGHT, WIDTH)).shape == (HEIGHT, WIDTH, 3)
    path.write_bytes(data[:2] + segment + data[2:-20])
    assert_bad(path, "truncated JPEG")


def test_what_follows_the_end_of_an_image_does_no_harm(tmp_path: Path, pixels: np.ndarray) -> None:
    for suffix in (".jpg", ".png"):
        path = save(pixels, tmp_path / f"a{suffix}")
        path.write_bytes(path.read_bytes() + b"\0" * 1000)
        assert decode_image(path, (HEIGHT, WIDTH)).shape == (HEIGHT, WIDTH, 3)
        assert check_image(path, (HEIGHT, WIDTH)) == 1


def test_whatever_pillow_raises_is_a_bad_sample(tmp_path: Path, pixels: np.ndarray) -> None:
    path = save(pixels, tmp_path / "a.dds")
    data = bytearray(path.read_bytes())
    data[80:84] = bytes(4)  # flags of its pixel format: Pillow raises NotImplementedError
    path.write_bytes(data)
    assert_bad(path, "no image in a known format, or corrupt")


def test_files_that_are_no_images(tmp_path: Path) -> None:
    assert_bad(tmp_path / "missing.jpg", "no such image file")
    assert_bad(tmp_path, "cannot be read: Is a directory")
    empty, text = tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.touch()
    text.write_text("<html>404</html>")
    assert_bad(empty, "the file is empty")
    assert_bad(text, "no image in a known format")
    assert_bad(tmp_path / "\ud800.jpg", "cannot be read: its name is no valid text")
    assert issubclass(BadSampleError, InputError)


def test_no_flipped_bit_of_a_png_goes_unnoticed(tmp_path: Path, pixels: np.ndarray) -> None:
    whole = save(pixels, tmp_path / "image.png").read_bytes()
    for bit in range(8 * 41, 8 * (len(whole) - 16), 23):  # within the compressed pixels and their checksum
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "image.png").write_bytes(damaged)
        with pytest.raises(BadSampleError):
            decode_image(tmp_path / "image.png", (HEIGHT, WIDTH))


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".gif"])
def test_decoding_finds_cut_files_of_formats_without_an_end(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    path = save(pixels, tmp_path / f"image{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadSampleError):
        decode_image(path, (HEIGHT, WIDTH))
