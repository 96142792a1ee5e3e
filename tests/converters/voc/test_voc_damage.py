"""Damaged files end in a conversion or in one line, and the fast reader never reads otherwise than the parser."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
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


@pytest.mark.parametrize("origin", [0, 1])
@pytest.mark.parametrize(
    "data",
    [
        *(GOOD, GOOD.replace(b"\n", b"\r\n"), GOOD.replace(b"\n", b"\r"), GOOD.replace(b"\n", b"")),
        *(GOOD.replace(b"traffic light", text) for text in (b"traffic\r\n\tlight ", b"a > b", b"3/4", b'"c" \\d')),
        GOOD.replace(b"</object>", b"</object> and then "),
        GOOD.replace(b"<difficult>0</difficult>", b"").replace(b"</object>", b"<difficult>1</difficult></object>"),
    ],
)
def test_the_fast_reader_reads_the_usual_form_as_the_parser_does(data, origin):
    annotation = read_plain(data, box_origin=origin)
    assert annotation is not None
    assert len(annotation.objects) == 2
    expected = parse_annotation(data, "x.xml", box_origin=origin)
    assert annotation == expected
    assert repr(annotation) == repr(expected)  # whole numbers are whole in both


@pytest.mark.parametrize(
    "data",
    [
        *(GOOD.replace(b"dog", text) for text in (b"a & b", b"a ]]> b", b"", b" ", b"d\x0bg", b"caf\xc3\xa9", b"\x7f")),
        *(GOOD + text for text in (b"x", b"<a/>", b"<!-- -->", b"</annotation>", GOOD)),
        *(GOOD.replace(b"</object>", text, 1) for text in (b"", b"</object><object>", b"</object><part></part>")),
        *(b" " + GOOD, GOOD.replace(b"</annotation>", b""), GOOD.replace(b"<xmin>3<", b"<xmin>-3<"), b""),
        GOOD.replace(b"</object>", b"<difficult>1</difficult></object>"),
        GOOD.replace(b"<xmin>3<", b"<xmin>31<"),
    ],
)
def test_the_fast_reader_leaves_all_else_to_the_parser(data):
    assert read_plain(data, box_origin=1) is None


def test_damaged_annotations_are_read_alike_or_end_in_one_line():
    random_numbers = random.Random(0)
    fast = 0
    for number in range(9000):
        data = damaged(random_numbers, GOOD if number % 2 else GOOD.replace(b"\n", b"\r\n"))
        plain, by_parser = read_plain(data, box_origin=1), parsed(data)
        fast += plain is not None
        assert plain is None or repr(plain) == repr(by_parser), data
    assert fast > 300


@settings(deadline=None)
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
