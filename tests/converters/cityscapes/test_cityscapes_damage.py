"""Thousands of damaged label images and polygon files: each is converted, or refused in one clear line."""

from __future__ import annotations

import itertools
import json
import struct
import time
import zlib

import numpy as np
import orjson
import pytest
from PIL import Image

from converters import ConversionError
from converters.cityscapes.image import Choices, convert_pair
from converters.cityscapes.labels import chosen_labels
from converters.cityscapes.layout import ImagePair

MOST_SECONDS = 3.0  # of processor time for one file; some damaged headers ask for a hundred million pixels
PNG_BEGINNING = b"\x89PNG\r\n\x1a\n"


def damaged(rng, data):
    """Changes, cuts, repeats or exchanges a few bytes."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at, length = int(rng.integers(0, len(data) + 1)), int(rng.choice([1, 2, 4, 16, 64]))
        kind = rng.integers(0, 5)
        if kind == 0:
            data[at : at + length] = rng.bytes(len(data[at : at + length]))
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length] or b"\0"
        elif kind == 3 and at < len(data):
            data[at] ^= 1 << int(rng.integers(0, 8))
        else:
            data[at:at] = bytes([int(rng.choice([0, 10, 34, 44, 45, 91, 93, 123, 125, 255]))]) * length
        if not data:
            break
    return bytes(data)


def chunks(data):
    place = len(PNG_BEGINNING)
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length


def png_of(parts):
    """Writes chunks, whatever is in them, with the right lengths and checksums."""
    return PNG_BEGINNING + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def with_damage_inside(rng, data):
    """Damages a chunk, the order of chunks or the packed pixels, and makes all checksums right again."""
    parts = list(chunks(data))
    number = int(rng.integers(0, len(parts)))
    kind, body = parts[number]
    way = rng.integers(0, 5)
    if way == 0 and len(parts) > 2 and parts[-2][0] == b"IDAT" != parts[-3][0]:
        number = len(parts) - 2
        kind, body = b"IDAT", zlib.compress(damaged(rng, zlib.decompress(parts[number][1])))
    elif way == 1 and kind == b"IHDR":
        field = int(rng.integers(0, 3))
        values = ([0, 1, 2, 3, 7, 8, 255, 20_000, 2**31 - 1, 2**32 - 1], [0, 1, 2, 4, 8, 16, 32], [0, 2, 3, 4, 6, 9])
        header = [*struct.unpack(">II", body[:8]), *body[8:]]
        header[[int(rng.integers(0, 2)), 2, 3][field]] = int(rng.choice(values[field]))
        body = struct.pack(">II", *header[:2]) + bytes(header[2:])
    elif way == 2:
        body = damaged(rng, body + b"\0")
    elif way == 3:
        kind = [b"IDAT", b"IHDR", b"IEND", b"PLTE", b"tRNS", b"zTXt", b"iCCP", b"acTL"][rng.integers(0, 8)]
    else:
        parts.insert(int(rng.integers(0, len(parts) + 1)), parts[int(rng.integers(0, len(parts)))])
    parts[number] = (kind, body)
    return png_of(parts)


def with_odd_values(rng, data):
    """Puts odd values in the place of some of a JSON's, which stays one."""
    odd = [None, True, -1, 0, 1e308, -(2**63), 2**64, "", "car", "\0", "x" * 5000, [], {}, [[0, 0]], {"label": "car"}]
    document = orjson.loads(data)
    places = []

    def visit(value):
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], (dict, list)):
                visit(value[key])

    visit(document)
    for _ in range(rng.integers(1, 4)):
        container, key = places[int(rng.integers(0, len(places)))]
        container[key] = odd[int(rng.integers(0, len(odd)))]
    return json.dumps(document).encode()


class Held:
    """A file that was never written: opening thousands takes longer than all that is tested."""

    def __init__(self, name, data=b""):
        self.name, self.data = name, data

    def __str__(self):
        return self.name

    def is_file(self):
        return True

    def read_bytes(self):
        return self.data


@pytest.fixture
def outcome(monkeypatch):
    """Converts a file; returns the error, or None where it was converted."""
    monkeypatch.setattr("converters.cityscapes.image.image_size", lambda image: (20, 16))
    image = Held("ulm/ulm_0_leftImg8bit.png")

    def convert(data, source, with_image):
        path = Held("ulm/ulm_0_gtFine_labels", data)
        choices = Choices("gtFine", source, chosen_labels(None))
        begin = time.process_time()
        try:
            converted = convert_pair(ImagePair("ulm/ulm_0", image if with_image else None, path), choices=choices)
        except ConversionError as error:
            line = str(error)
            assert line.startswith(f"{path}: ")
            assert "\n" not in line
            assert len(line) < 250
            return line
        finally:
            assert time.process_time() - begin < MOST_SECONDS
        size = orjson.loads(converted.record.image)
        for annotation in map(orjson.loads, converted.record.annotations):
            x, y, width, height = annotation["bbox"]
            assert 0 <= x < x + width <= size["width"]
            assert 0 <= y < y + height <= size["height"]
            assert 0 < annotation["area"] <= width * height
        return None

    return convert


@pytest.fixture(scope="module")
def good_images(tmp_path_factory):
    """Label images as they are stored in practice: of 16 and 8 bits, of a palette, in several chunks."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("good") / "a.png"
    found = []
    for dtype, values in ((np.uint16, [7, 24, 24000, 24001, 26000, 33012]), (np.uint8, [7, 24, 26, 30])):
        Image.fromarray(rng.choice(values, (16, 20)).astype(dtype)).save(path)
        found.append(path.read_bytes())
    palette = Image.frombytes("P", (20, 16), rng.choice([7, 24, 26], 320).astype(np.uint8).tobytes())
    palette.putpalette([9] * 768)
    palette.save(path, transparency=3)
    found.append(path.read_bytes())
    ((_, header), (_, pixels), *_) = chunks(found[0])
    found.append(png_of([(b"IHDR", header), (b"IDAT", pixels[:20]), (b"IDAT", pixels[20:]), (b"IEND", b"")]))
    return found


@pytest.fixture(scope="module")
def good_polygons():
    rng = np.random.default_rng(0)
    found = []
    for count in (1, 3, 6):
        objects = [
            {"label": str(rng.choice(["car", "person", "persongroup", "sky"])), "polygon": polygon.tolist()}
            for polygon in rng.integers(-5, 25, (count, 4, 2))
        ]
        found.append(orjson.dumps({"imgHeight": 16, "imgWidth": 20, "objects": objects}))
    return found


def counts_of(outcomes):
    lines = list(outcomes)
    return len(lines), sum(line is None for line in lines)


def test_good_files_are_converted(outcome, good_images, good_polygons):
    assert counts_of(outcome(data, "instance-ids", True) for data in good_images) == (4, 4)
    assert counts_of(outcome(data, "polygons", True) for data in good_polygons) == (3, 3)


def test_damaged_label_images(outcome, good_images):
    rng = np.random.default_rng(1)
    cases = itertools.islice(itertools.cycle(good_images), 3000)
    total, converted = counts_of(
        outcome(damaged(rng, data), "instance-ids", number % 2) for number, data in enumerate(cases)
    )
    assert total == 3000
    assert converted < 150  # damage after the last chunk, or none at all


def test_label_images_damaged_inside(outcome, good_images):
    rng = np.random.default_rng(2)
    cases = itertools.islice(itertools.cycle(good_images), 2000)
    total, converted = counts_of(
        outcome(with_damage_inside(rng, data), "instance-ids", number % 2) for number, data in enumerate(cases)
    )
    assert total == 2000
    assert 100 < converted < 1500


def test_damaged_polygons(outcome, good_polygons):
    rng = np.random.default_rng(3)
    cases = itertools.islice(itertools.cycle(good_polygons), 2500)
    total, converted = counts_of(
        outcome(damaged(rng, data), "polygons", number % 2) for number, data in enumerate(cases)
    )
    assert total == 2500
    assert 10 < converted < 800


def test_polygons_with_odd_values(outcome, good_polygons):
    rng = np.random.default_rng(4)
    cases = itertools.islice(itertools.cycle(good_polygons), 2500)
    total, converted = counts_of(
        outcome(with_odd_values(rng, data), "polygons", number % 2) for number, data in enumerate(cases)
    )
    assert total == 2500
    assert 10 < converted < 1600


def test_every_changed_byte_of_a_label_image_is_told(outcome, good_images):
    """Decoders overlook some: Pillow does not compare the checksum of the pixels."""
    data = good_images[0]
    for place in range(len(data)):
        assert outcome(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :], "instance-ids", True), place


def test_a_picture_of_too_many_pixels_is_refused(outcome, good_images):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 16, 0, 0, 0, 0)
    bomb = png_of([(b"IHDR", header), (b"IDAT", zlib.compress(bytes(10_000_000), 9)), (b"IEND", b"")])
    assert "exceeds limit" in outcome(bomb, "instance-ids", False)
