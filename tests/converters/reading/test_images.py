from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image

from converters.errors import ConversionError
from converters.reading.archives import open_place
from converters.reading.images import image_size, is_shown_transposed, memory_kept, read_label_image


@pytest.mark.parametrize(
    ("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.int32, 70000)], ids=["8 bit", "16 bit", "32 bit"]
)
def test_label_image_keeps_its_numbers(tmp_path, dtype, top):
    labels = np.array([[0, 7, top], [33, 1, 0]], dtype)
    path = tmp_path / "labels.tiff"
    Image.fromarray(labels).save(path)
    np.testing.assert_array_equal(read_label_image(path), labels)


def test_label_image_of_a_palette_gives_indices(tmp_path):
    image = Image.frombytes("P", (3, 1), bytes([0, 2, 255]))
    image.putpalette([9] * 768)
    image.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_label_image(tmp_path / "labels.png"), [[0, 2, 255]])


def test_one_bit_label_image(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "labels.png")
    labels = read_label_image(tmp_path / "labels.png")
    np.testing.assert_array_equal(labels, [[1, 0]])
    assert labels.dtype == np.uint8


def test_label_image_with_colours_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "labels.png")
    with pytest.raises(ConversionError, match=r"labels\.png: has colour channels \(mode RGB\)"):
        read_label_image(tmp_path / "labels.png")


def noise(path, **options):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["image.png", "image.jpg", "image.bmp"])
def test_size_of_a_whole_image(tmp_path, name):
    assert image_size(noise(tmp_path / name)) == (48, 64)


@pytest.mark.parametrize("name", ["image.png", "image.jpg", "image.bmp"])
@pytest.mark.parametrize("share", [0.98, 0.6])
def test_truncated_image_is_an_error(tmp_path, name, share):
    path = noise(tmp_path / name)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ConversionError, match=rf"{name}: cannot be read as an image \("):
        image_size(path)


def test_bytes_after_the_end_are_harmless(tmp_path):
    path = noise(tmp_path / "image.jpg")
    path.write_bytes(path.read_bytes() + b"\0\0\0 padding")
    assert image_size(path) == (48, 64)


def test_exif_orientation_is_told(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = noise(tmp_path / "image.jpg", exif=exif)
    assert image_size(path) == (48, 64)
    assert is_shown_transposed(path)
    assert not is_shown_transposed(noise(tmp_path / "plain.jpg"))


def test_size_of_a_whole_png_needs_no_decoding(tmp_path, monkeypatch):
    path = noise(tmp_path / "image.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("the pixels were decoded"))
    assert image_size(path) == (48, 64)


@pytest.mark.parametrize(
    ("content", "line"), [(None, "is missing"), (b"", "is not an image"), (b"\x89PNG\r\n", "is not an image")]
)
@pytest.mark.parametrize("read", [image_size, read_label_image])
def test_unreadable_files(tmp_path, content, line, read):
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConversionError, match=rf"image\.png: {line}"):
        read(path)


@pytest.mark.parametrize("height", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, bool])
def test_tall_label_images_are_whole(tmp_path, height, dtype):
    labels = np.random.default_rng(0).integers(0, 2 if dtype is bool else 200, (height, 5)).astype(dtype)
    Image.fromarray(labels).save(tmp_path / "labels.tiff")
    np.testing.assert_array_equal(read_label_image(tmp_path / "labels.tiff"), labels)


@pytest.mark.parametrize("name", ["image.png", "image.jpg", "image.bmp"])
def test_images_in_archives(tmp_path, name):
    whole = noise(tmp_path / name).read_bytes()
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("whole/" + name, whole)
        file.writestr("cut/" + name, whole[:20])
    archive = open_place(tmp_path / "x.zip")
    assert image_size(archive / "whole" / name) == (48, 64)
    with pytest.raises(ConversionError, match=rf"x\.zip/cut/{name}: (cannot be read as an image|is not an image)"):
        image_size(archive / "cut" / name)
    with pytest.raises(ConversionError, match=rf"x\.zip/none/{name}: is missing"):
        image_size(archive / "none" / name)


def test_label_images_in_archives(tmp_path):
    labels = np.array([[0, 7], [33, 65535]], np.uint16)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.write(tmp_path / "labels.png", "labels.png")
    np.testing.assert_array_equal(read_label_image(open_place(tmp_path / "x.zip") / "labels.png"), labels)


def test_a_label_image_whose_checksum_is_wrong_is_refused(tmp_path):
    path = tmp_path / "labels.png"
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT")
    data[data.index(b"IEND") - 5] ^= 1  # the last byte of the pixels' checksum
    path.write_bytes(data)
    with pytest.raises(ConversionError, match=rf"\(the checksum of a chunk is wrong, at byte {at - 4}\)"):
        read_label_image(path)


def test_pillow_is_left_as_it_was():
    before = Image.core.get_blocks_max()
    with memory_kept(), memory_kept():
        assert Image.core.get_blocks_max() >= 1
    assert Image.core.get_blocks_max() == before
