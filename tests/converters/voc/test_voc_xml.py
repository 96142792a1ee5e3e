from __future__ import annotations

import pytest

from converters.errors import ConversionError
from converters.voc.annotation_xml import read_annotation, read_names
from converters.voc.files import LARGEST_ANNOTATION, USUAL_ANNOTATION
from converters.voc.objects import VocObject

SIZE = "<size><width>40</width><height>30</height></size>"
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
    assert parse("<annotation><size><width>40</width><height>0</height></size></annotation>").size is None


def test_of_tags_that_occur_twice_the_first_counts(parse):
    tags = "<filename>a.jpg</filename>" + SIZE, "<filename>b.jpg</filename>" + SIZE.replace("40", "50")
    annotation = parse(f"<annotation>{''.join(tags)}</annotation>")
    assert (annotation.filename, annotation.size) == ("a.jpg", (40, 30))


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
        ("<annotations/>", "begins with 'annotations', expected 'annotation'"),
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
    def refuse(path, flags):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("converters.voc.files.os.open", refuse)
    with pytest.raises(ConversionError, match=r"x\.xml: cannot be read \(Permission denied\)$"):
        parse("")


def test_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "x.xml").open("wb") as file:
        file.truncate(LARGEST_ANNOTATION + 1)
    with pytest.raises(ConversionError, match=r"x\.xml: has 33554433 bytes, expected an annotation of at most"):
        read_annotation(str(tmp_path / "x.xml"))


def test_long_file_is_read_to_its_end(parse, voc_object_xml):
    text = f"<annotation>{voc_object_xml('dog', (1, 1, 2, 2)) * 2000}</annotation>"
    assert len(text) > 2 * USUAL_ANNOTATION
    assert len(parse(text).objects) == 2000


def test_exchanged_corners_are_put_right_and_told(parse, voc_object_xml):
    annotation = parse(f"<annotation>{SIZE}{voc_object_xml('dog', (30, 6, 11, 25))}</annotation>")
    assert annotation.objects[0].box == (10, 5, 30, 25)
    assert annotation.repairs == (("corners", "object 1 (dog): xmin ymin xmax ymax are 30 6 11 25"),)


@pytest.mark.parametrize(
    ("text", "value", "repaired"),
    [
        *(
            ("True", 1, False),
            ("yes", 1, False),
            ("No", 0, False),
            (" 1 ", 1, False),
            ("1.0", 1, False),
            ("2", 2, False),
        ),
        *(("Unspecified", 0, True), ("-1", 0, True), ("1e300", 0, True), ("nan", 0, True), ("", 0, False)),
    ],
)
def test_flags_as_people_write_them(parse, voc_object_xml, text, value, repaired):
    item = voc_object_xml("dog", (1, 1, 2, 2), f"<difficult>{text}</difficult>")
    annotation = parse(f"<annotation>{SIZE}{item}</annotation>")
    assert annotation.objects[0].difficult == value
    expected = (("flag", f"object 1 (dog): <difficult> is {text!r}"),) if repaired else ()
    assert annotation.repairs == expected


def test_namespaces_are_no_part_of_names(parse, voc_object_xml):
    text = f'<annotation xmlns="http://example.org/voc">{SIZE}{voc_object_xml("dog", (1, 1, 2, 2))}</annotation>'
    assert parse(text) == parse(text.replace(' xmlns="http://example.org/voc"', ""))
    text = text.replace('annotation xmlns="', 'v:annotation xmlns:v="').replace("</annotation", "</v:annotation")
    assert parse(text.replace("<object>", "<v:object>").replace("</object>", "</v:object>")).objects[0].name == "dog"


def test_utf_16_is_read_and_its_entities_are_refused(parse, voc_object_xml):
    text = f"<annotation>{SIZE}{voc_object_xml('犬 dog', (1, 1, 2, 2))}</annotation>"
    assert parse(text.encode("utf-16")).objects[0].name == "犬 dog"
    for bomb in (BOMB, LEAK):
        with pytest.raises(ConversionError, match="declares XML entities"):
            parse(bomb.encode("utf-16"))


def test_a_document_type_without_entities_is_no_harm(parse, voc_object_xml):
    text = f"<annotation>{SIZE}{voc_object_xml('dog', (1, 1, 2, 2))}</annotation>"
    assert parse(f'<!DOCTYPE annotation SYSTEM "voc.dtd">{text}') == parse(text)


@pytest.mark.parametrize("depth", [100_000])
def test_deep_nesting_is_no_harm(parse, depth):
    text = f"<annotation>{SIZE}{'<a>' * depth}{'</a>' * depth}</annotation>"
    assert parse(text).objects == ()


def test_long_and_odd_names_are_cut_and_escaped_in_errors(parse):
    with pytest.raises(ConversionError) as caught:
        parse(f"<annotation><object><name>a\nb{'c' * 1000}</name></object></annotation>")
    line = str(caught.value)
    assert "('a\\nbccc" in line
    assert "\n" not in line
    assert len(line) < 300
