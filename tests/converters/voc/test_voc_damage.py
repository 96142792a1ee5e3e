"""Damaged files end in a conversion or in one line, and the fast reader never reads otherwise than the parser."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.errors import ConversionError
from converters.voc.annotation_xml import parse_annotation
from converters.voc.image import convert_image
from converters.voc.layout import VocImage
from converters.voc.plain_xml import read_plain

ITEM = (
    "<object>\n\t<name>{}</name>\n\t<pose>Left</pose><truncated>1</truncated><difficult>0</difficult>\n\t"
    "<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20.5</ymax></bndbox>\n</object>\n"
)
GOOD = (
    '<?xml version="1.0" encoding="utf-8"?>\n<annotation>\n\t<folder>VOC2012</folder><filename>a.png</filename>\n\t'
    "<source><database>The VOC2012 Database</database><image>flickr</image></source>\n\t"
    "<size><width>40</width><height>30</height><depth>3</depth></size><segmented>0</segmented>\n"
    f"{ITEM.format('dog', 3)}{ITEM.format('traffic light', '1')}</annotation>\n"
).encode()
PIECES = [
    *(b"<", b">", b"&", b"&a;", b"&#10;", b"</object>", b"<object>", b"<name>", b"<!--", b"-->", b"<![CDATA[", b"]]>"),
    *(b"<!DOCTYPE a [<!ENTITY a 'aaaa'>]>", b"<?pi?>", b"\0", b"\xff", b"\xc3\xa4", b"\r", b"\x0b", b"\x1b[2J", b"\n"),
    *(b"nan", b"inf", b"-", b"1e999", b"9" * 400, b" ", b'x="1"', b"xmlns='u'", b"utf-16", b"1", b"0", b".", b"../"),
]
USUAL = b"0123456789abcdefghijklmnopqrstuvwxyz <>/\n"


def damaged(random_numbers: random.Random, data: bytes) -> bytes:
    for _ in range(random_numbers.choice([1, 1, 1, 2, 5])):
        at, to = sorted(random_numbers.randrange(len(data) + 1) for _ in range(2))
        kind = random_numbers.randrange(8)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + random_numbers.choice(PIECES) + data[at:]
        elif kind == 2:
            data = data[:at] + data[min(to, at + 40) :]
        elif kind == 3:
            data = data[:at] + bytes([random_numbers.randrange(256)]) + data[at + 1 :]
        elif kind == 4:
            data = data[:at] + data[at : min(to, at + 200)] * 2 + data[to:]
        else:
            data = data[:at] + bytes([random_numbers.choice(USUAL)]) + data[at + 1 :]
    return data


def parsed(data: bytes):
    try:
        return parse_annotation(data, "x.xml", box_origin=1)
    except ConversionError as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 400
    return None


def test_the_fast_reader_reads_the_usual_form_as_the_parser_does():
    for origin in (0, 1):
        annotation = read_plain(GOOD, box_origin=origin)
        assert annotation is not None
        assert len(annotation.objects) == 2
        assert annotation == parse_annotation(GOOD, "x.xml", box_origin=origin)


def test_damaged_annotations_are_read_alike_or_end_in_one_line():
    random_numbers = random.Random(0)
    fast = 0
    for _ in range(9000):
        data = damaged(random_numbers, GOOD)
        plain, by_parser = read_plain(data, box_origin=1), parsed(data)
        fast += plain is not None
        assert plain is None or plain == by_parser, data
    assert fast > 300


@given(st.lists(st.sampled_from([*PIECES, GOOD[:300], GOOD[300:], GOOD]), max_size=6).map(b"".join))
def test_odd_annotations_are_read_alike_or_end_in_one_line(data):
    plain = read_plain(data, box_origin=1)
    by_parser = parsed(data)
    assert plain is None or plain == by_parser


@pytest.mark.parametrize("which", ["image", "masks"])
def test_damaged_images_and_masks_end_in_one_line_or_a_record(tmp_path, write_voc, voc_object_xml, street, which):
    labels = street(1, 30, 40) % 5
    root = write_voc({"a": voc_object_xml("dog", (1, 1, 30, 20))}, {"train": ["a"]}, masks={"a": labels})
    folder = root / "VOC2012"
    files = {"image": folder / "JPEGImages/a.jpg", "masks": folder / "SegmentationObject/a.png"}
    image = VocImage(str(folder / "Annotations/a.xml"), str(files["image"]), "a.jpg", str(files["masks"]), None)
    good = files[which].read_bytes()
    random_numbers = random.Random(1)
    lines = []
    for _ in range(500):
        files[which].write_bytes(damaged(random_numbers, good))
        try:
            convert_image(image, box_origin=1)
        except ConversionError as error:
            lines.append(str(error))
    assert len(lines) > 150
    assert not any("\n" in line for line in lines)
