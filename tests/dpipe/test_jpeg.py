from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from dpipe.errors import BadSampleError
from dpipe.images.decode import decode_image
from dpipe.images.jpeg import decode_jpeg, jpeg_size
from dpipe.images.memory import Scratch

SIZE = (61, 87)  # no multiples of a block
STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
SAMPLING = cv2.IMWRITE_JPEG_SAMPLING_FACTOR


@pytest.fixture
def photo() -> np.ndarray:
    """Smooth colours with some noise."""
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    return cv2.addWeighted(cv2.GaussianBlur(noise, (0, 0), 6), 0.9, noise, 0.1, 0)


def encode(image: np.ndarray, path: Path, *options: int) -> bytes:
    cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92, *options])
    return path.read_bytes()


def decode(path: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    return decode_image(path, size, scratch=Scratch())


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lists the decoders that are called from now on."""
    calls: list[str] = []

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    counted(cv2, "imdecode")
    counted(simplejpeg, "decode_jpeg")
    return calls


@pytest.mark.parametrize(
    "options",
    [
        (),
        (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        (cv2.IMWRITE_JPEG_OPTIMIZE, 1),
        (cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
        (SAMPLING, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411),
        (SAMPLING, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
        (SAMPLING, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422),
        (SAMPLING, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        (SAMPLING, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440),
        (SAMPLING, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ],
)
def test_pixels_are_those_of_opencv(
    tmp_path: Path, photo: np.ndarray, options: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    expected = cv2.imdecode(np.frombuffer(encode(photo, path, *options), np.uint8), STORED)
    calls = count_calls(monkeypatch)
    np.testing.assert_array_equal(decode(path), expected)
    assert calls == ["decode_jpeg"]


@pytest.mark.parametrize(("mode", "decoder"), [("L", "decode_jpeg"), ("CMYK", "imdecode"), ("RGB", "decode_jpeg")])
def test_other_colour_spaces(
    tmp_path: Path, photo: np.ndarray, mode: str, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photo).convert(mode).save(path, quality=92, **({"keep_rgb": True} if mode == "RGB" else {}))
    expected = cv2.imdecode(np.fromfile(path, np.uint8), STORED)
    calls = count_calls(monkeypatch)
    np.testing.assert_array_equal(decode(path), expected)
    assert calls == [decoder]


@pytest.mark.realdata
def test_real_images_decode_as_by_opencv(data_root: Path) -> None:
    paths = sorted(data_root.rglob("*.jpg"))[::4]
    assert len(paths) > 100
    scratch = Scratch()
    for path in paths:
        data = path.read_bytes()
        size = jpeg_size(data)
        assert size is not None
        image = decode_jpeg(data, size, scratch)
        assert image is not None
        np.testing.assert_array_equal(image, cv2.imdecode(np.frombuffer(data, np.uint8), STORED))


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
@pytest.mark.parametrize("kind", ["lost", "overwritten", "marker"])
def test_damaged_pixels_are_a_bad_sample(
    tmp_path: Path, photo: np.ndarray, options: tuple[int, ...], kind: str
) -> None:
    path = tmp_path / "a.jpg"
    data = encode(cv2.resize(photo, (400, 300), interpolation=cv2.INTER_CUBIC), path, *options)
    place = (data.find(b"\xff\xda") + len(data)) // 2
    middle = {"lost": b"", "overwritten": np.random.default_rng(3).bytes(300), "marker": b"\xff\x05" + bytes(298)}[kind]
    path.write_bytes(data[:place] + middle + data[place + 300 :])
    with pytest.raises(BadSampleError, match=r"a\.jpg \(sample 4\): damaged JPEG: \w") as caught:
        decode_image(path, (300, 400), 4)
    assert "\n" not in str(caught.value)
    if not options:
        assert cv2.imread(str(path)) is not None  # OpenCV hides it


def test_most_overwritten_runs_of_bytes_are_found(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "a.jpg"
    image = cv2.resize(photo, (400, 300), interpolation=cv2.INTER_CUBIC)
    data = encode(image, path)
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(60):
        place = int(rng.integers(data.find(b"\xff\xda") + 20, len(data) - 300))
        path.write_bytes(data[:place] + rng.bytes(200) + data[place + 200 :])
        try:
            decode(path, (300, 400))
        except BadSampleError:
            found += 1
    assert found >= 48


def test_padding_before_the_end_marker_is_no_damage(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "a.jpg"
    data = encode(photo, path)
    expected = decode(path).copy()
    path.write_bytes(data[:-2] + bytes(3) + data[-2:])
    np.testing.assert_array_equal(decode(path), expected)
    path.write_bytes(data[:-2] + bytes(300) + data[-2:])
    with pytest.raises(BadSampleError, match=r"damaged JPEG: 29\d extraneous bytes before marker 0xd9"):
        decode(path)


@pytest.mark.parametrize("what", ["revision", "transform"])
def test_a_header_of_unknown_wording_is_no_damage(tmp_path: Path, photo: np.ndarray, what: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photo).save(path, quality=92, **({"keep_rgb": True} if what == "transform" else {}))
    data = bytearray(path.read_bytes())
    if what == "revision":
        data[data.find(b"JFIF\0") + 5] = 9
    else:
        data[data.find(b"Adobe") + 11] = 5
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"Warning: unknown JFIF|Unknown Adobe"):
        simplejpeg.decode_jpeg(bytes(data))
    np.testing.assert_array_equal(decode(path), cv2.imdecode(np.frombuffer(data, np.uint8), STORED))


def test_an_image_lies_in_the_memory_of_the_one_before(tmp_path: Path, photo: np.ndarray) -> None:
    encode(photo, tmp_path / "a.jpg")
    encode(photo[:40, :50], tmp_path / "b.jpg")
    scratch = Scratch()
    first = decode_image(tmp_path / "a.jpg", SIZE, scratch=scratch)
    second = decode_image(tmp_path / "b.jpg", (40, 50), scratch=scratch)
    assert np.shares_memory(first, second)
    assert not np.shares_memory(second, decode_image(tmp_path / "b.jpg", (40, 50)))


@pytest.mark.parametrize("end", [3, 20, 60, 150])
def test_a_part_of_a_header(tmp_path: Path, photo: np.ndarray, end: int) -> None:
    data = encode(photo, tmp_path / "a.jpg")
    assert jpeg_size(data) == SIZE
    frame = data.find(b"\xff\xc0")
    assert jpeg_size(data[:end]) == (SIZE if end >= frame + 9 else None)
    assert jpeg_size(data[: frame + 9]) == SIZE


@pytest.mark.parametrize(("place", "value"), [(0, 12), (5, 4), (7, 0x44), (10, 0x21), (13, 0x12)])
def test_uncommon_frames_are_left_to_opencv(tmp_path: Path, photo: np.ndarray, place: int, value: int) -> None:
    # The precision, the number of components, and the sampling of the luma and of both chroma channels.
    data = bytearray(encode(photo, tmp_path / "a.jpg"))
    assert decode_jpeg(bytes(data), SIZE, Scratch()) is not None
    data[data.index(b"\xff\xc0") + 4 + place] = value
    assert decode_jpeg(bytes(data), SIZE, Scratch()) is None


def test_fill_bytes_before_a_marker_are_skipped(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "a.jpg"
    data = encode(photo, path)
    frame = data.index(b"\xff\xc0")
    expected = decode(path)
    path.write_bytes(data[:2] + b"\xff\xff" + data[2:frame] + b"\xff" + data[frame:])
    np.testing.assert_array_equal(decode(path), expected)


def test_tables_may_come_before_the_frame(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "photo.jpg"
    data = encode(photo, path)
    expected = decode(path)
    frame, table = data.index(b"\xff\xc0"), data.index(b"\xff\xc4")
    assert frame < table
    moved = data[:frame] + data[table : data.index(b"\xff\xda")]  # with all tables of codes before the frame
    moved += data[frame:table] + data[data.index(b"\xff\xda") :]
    assert jpeg_size(moved) == SIZE
    path.write_bytes(moved)
    np.testing.assert_array_equal(decode(path), expected)
