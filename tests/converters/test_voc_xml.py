from __future__ import annotations

import pytest

from converters.errors import ConversionError
from converters.voc_xml import VocObject, read_annotation, read_names

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"


@pytest.fixture
def parse(tmp_path):
    def parse(text, **options):
        path = tmp_path / "x.xml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_annotation(path, **options)

    return parse


def test_corner_pixels_belong_to_a_box_and_count_from_one(parse, voc_object_xml):
    text = f"<annotation>{voc_object_xml('dog', (1, 1, 1, 1))}{voc_object_xml('dog', (11, 6, 30, 25))}</annotation>"
    assert [item.box for item in parse(text).objects] == [(0, 0, 1, 1), (10, 5, 30, 25)]
    assert [item.box for item in parse(text, box_origin=0).objects] == [(1, 1, 2, 2), (11, 6, 31, 26)]


def test_missing_tags_take_the_defaults_of_voc(parse):
    annotation = parse(f"<annotation><object><name> dog </name>{BOX}</object></annotation>")
    assert annotation.size is None
    assert annotation.objects == (VocObject("dog", (0, 1, 3, 4), "Unspecified", 0, 0, 0),)


def test_all_tags_are_kept(parse):
    tags = "<pose>Left</pose><truncated>1</truncated><difficult>1</difficult><occluded>1</occluded>"
    size = "<size><width>40</width><height>30</height></size>"
    annotation = parse(f"<annotation>{size}<object><name>dog</name>{tags}{BOX}</object></annotation>")
    assert annotation.size == (40, 30)
    assert annotation.objects == (VocObject("dog", (0, 1, 3, 4), "Left", 1, 1, 1),)


def test_boxes_of_body_parts_are_not_objects(parse, voc_object_xml):
    part = f"<part><name>head</name>{BOX}</part>"
    annotation = parse(f"<annotation>{voc_object_xml('person', (5, 5, 9, 9), part)}</annotation>")
    assert [(item.name, item.box) for item in annotation.objects] == [("person", (4, 4, 9, 9))]


def test_fractions_and_a_size_of_zero(parse, voc_object_xml):
    size = "<size><width>0</width><height>0</height></size>"
    annotation = parse(f"<annotation>{size}{voc_object_xml('dog', ('1.5', '2.25', '3.0', '4'))}</annotation>")
    assert annotation.size is None
    assert annotation.objects[0].box == (0.5, 1.25, 3, 4)


def test_byte_order_mark_and_encodings(parse):
    text = (
        '<?xml version="1.0" encoding="{}"?><annotation><object><name>Katze ä</name>' + BOX + "</object></annotation>"
    )
    assert parse(b"\xef\xbb\xbf" + text.format("utf-8").encode()).objects[0].name == "Katze ä"
    assert parse(text.format("latin-1").encode("latin-1")).objects[0].name == "Katze ä"


BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><annotation><folder>&b;</folder></annotation>'
LEAK = (
    '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><object><name>&a;</name></object></annotation>'
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<annotation><object>", "is not well-formed XML"),
        ("", "is not well-formed XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "is not well-formed XML"),
        (b'<?xml version="1.0" encoding="utf-8"?><annotation>\xff\xfe</annotation>', "is not well-formed XML"),
        ("<annotations/>", "begins with <annotations>, expected <annotation>"),
        (BOMB, "declares XML entities"),
        (LEAK, "declares XML entities"),
        (f"<annotation><object>{BOX}</object></annotation>", "object 1: has no <name>"),
        ("<annotation><object><name>dog</name></object></annotation>", r"object 1 \(dog\): has no <bndbox>"),
        (f"<annotation><object><name>dog</name>{BOX.replace('xmin', 'x')}</object></annotation>", "has no <xmin>"),
        (
            f"<annotation><object><name>dog</name>{BOX.replace('3', 'a')}</object></annotation>",
            "<xmax> is 'a', expected",
        ),
        (f"<annotation><object><name>dog</name>{BOX.replace('3', 'nan')}</object></annotation>", "<xmax> is 'nan'"),
        (f"<annotation><object><name>dog</name>{BOX.replace('3', '0')}</object></annotation>", "ends before it begins"),
        (
            f"<annotation><object><name>dog</name><difficult>maybe</difficult>{BOX}</object></annotation>",
            "<difficult> is 'maybe', expected a whole number",
        ),
        (
            "<annotation><size><width>-4</width><height>3</height></size></annotation>",
            "size: <width> is '-4', expected a whole number",
        ),
    ],
)
def test_bad_files_are_one_line(parse, text, line):
    with pytest.raises(ConversionError, match=line) as caught:
        parse(text)
    assert "x.xml: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(ConversionError, match=r"x\.xml: is missing"):
        read_annotation(tmp_path / "x.xml")


def test_names_alone_are_those_of_the_objects(tmp_path, voc_object_xml):
    part = f"<part><name>head</name>{BOX}</part>"
    objects = voc_object_xml(" dog ", (1, 1, 2, 2)) + voc_object_xml("person", (9, 9, 5, 5), part) + "<object/>"
    path = tmp_path / "x.xml"
    path.write_text(f"<annotation><folder><name>x</name></folder>{objects}</annotation>")
    assert read_names(path) == {"dog", "person"}


def test_file_that_may_not_be_read(parse, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("defusedxml.ElementTree.parse", refuse)
    with pytest.raises(ConversionError, match=r"x\.xml: cannot be read \(Permission denied\)$"):
        parse("")
