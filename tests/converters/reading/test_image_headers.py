"""The quick look at a header says what Pillow says, or nothing."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from converters.reading.image_headers import TAIL, quick_size, size_from_bytes


def encoded(size, image_format, **options):
    file = io.BytesIO()
    Image.new("RGB", size, (90, 110, 100)).save(file, image_format, **options)
    return file.getvalue()


def found(data):
    return size_from_bytes(data, data[-TAIL:])


@pytest.mark.parametrize("size", [(1, 1), (300, 7), (7, 300), (515, 770), (770, 515)])
@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        *(("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"comment": b"c" * 700})),
        ("JPEG", {"icc_profile": b"p" * 600, "subsampling": 0}),
    ],
)
def test_sizes_of_usual_files(tmp_path, size, image_format, options):
    data = encoded(size, image_format, **options)
    assert found(data) == size
    (tmp_path / "image").write_bytes(data)
    assert quick_size(str(tmp_path / "image")) == size


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "BMP"])
def test_what_is_cut_off_or_unusual_takes_a_closer_look(tmp_path, image_format):
    data = encoded((30, 20), image_format)
    assert found(data[:-3]) is None
    assert found(data + b"more") is None
    for end in range(1, 40):
        assert found(data[:end]) is None
        (tmp_path / "image").write_bytes(data[:end])
        assert quick_size(str(tmp_path / "image")) is None
    assert quick_size(str(tmp_path / "missing")) is None


def test_a_changed_header_of_a_png_takes_a_closer_look():
    data = encoded((30, 20), "PNG")
    for place in range(8, 33):
        assert found(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]) is None


def test_a_header_of_a_jpeg_that_is_cut_or_odd_takes_a_closer_look():
    data = encoded((30, 20), "JPEG")
    frame = data.index(b"\xff\xc0")
    ends = b"\xff\xd9"
    for end in range(3, frame + 9):
        assert size_from_bytes(data[:end], ends) is None
    assert size_from_bytes(data[: frame + 9], ends) == (30, 20)
    for size in ((0, 20), (30, 0)):
        numbers = size[1].to_bytes(2, "big") + size[0].to_bytes(2, "big")
        assert size_from_bytes(data[: frame + 5] + numbers, ends) is None
    for marker in (0x01, 0xC4, 0xD0, 0xD8, 0xDA, 0xFF):  # none of them begins a frame
        assert size_from_bytes(data[: frame + 1] + bytes([marker]) + data[frame + 2 : frame + 9], ends) is None
