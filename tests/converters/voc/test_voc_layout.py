from __future__ import annotations

import shutil
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import orjson
import pytest
from PIL import Image

from converters import ConversionError, convert_voc
from dpipe.outlines.outline_masks import outline_masks


def convert(root, output, **options):
    report = convert_voc(root, output, **{"nproc": 1, **options})
    return report, {split.path.name: split.path.read_bytes() for split in report.splits}


def names(content):
    return [image["file_name"] for image in orjson.loads(content)["images"]]


@pytest.fixture
def two_years(write_voc, voc_object_xml):
    item = voc_object_xml("dog", (1, 1, 9, 9))
    write_voc(dict.fromkeys("ab", item), {"train": ["a"], "trainval": ["a", "b"]}, year="VOC2007")
    write_voc(dict.fromkeys("tu", item), {"test": ["u", "t"]}, year="VOC2007")
    return write_voc({"c": item}, {"train": ["c"]}, year="VOC2012")


def pack(root, path, keep):
    with tarfile.open(path, "w") as file:
        file.add(root, "VOCdevkit", filter=lambda member: member if keep(member) else None)


def test_years_apart(two_years, tmp_path):
    _, files = convert(two_years, tmp_path / "out", joined=False)
    assert sorted(files) == [
        *("voc_2007_test.json", "voc_2007_train.json", "voc_2007_trainval.json", "voc_2012_train.json")
    ]
    assert names(files["voc_2007_train.json"]) == ["VOC2007/JPEGImages/a.jpg"]


@pytest.mark.parametrize("nproc", [1, 2])
def test_archives_give_the_same_as_the_folder(two_years, tmp_path, nproc, monkeypatch):
    monkeypatch.setattr("converters.voc.convert.IMAGES_PER_GROUP", 1)
    monkeypatch.setattr("converters.voc.convert.FILES_PER_PROCESS", 1)
    _, expected = convert(two_years, tmp_path / "out")
    assert names(expected["voc_2007_test.json"]) == ["VOC2007/JPEGImages/u.jpg", "VOC2007/JPEGImages/t.jpg"]
    archives = tmp_path / "archives"
    archives.mkdir()
    test = ("t.", "u.", "test.")

    def part(member, tests, year):
        name = Path(member.name).name
        return member.isdir() or (name.startswith(test) == tests and f"/{year}/" in member.name)

    pack(two_years, archives / "VOCtrainval_06-Nov-2007.tar", lambda member: part(member, False, "VOC2007"))
    pack(two_years, archives / "VOCtest_06-Nov-2007.tar", lambda member: part(member, True, "VOC2007"))
    pack(two_years, archives / "VOCtrainval_11-May-2012.tar", lambda member: part(member, False, "VOC2012"))
    before = sorted(archives.iterdir())
    _, files = convert(archives, tmp_path / "of_archives", nproc=nproc)
    assert files == expected
    assert sorted(archives.iterdir()) == before  # nothing was unpacked

    pack(two_years, tmp_path / "all.tar", lambda member: True)
    report, files = convert(tmp_path / "all.tar", None, nproc=nproc)
    assert files == expected
    assert {split.path.parent for split in report.splits} == {tmp_path / "annotations"}


def test_a_folder_that_holds_a_devkit_is_as_good(two_years, tmp_path):
    assert convert(two_years.parent, tmp_path / "a")[1] == convert(two_years, tmp_path / "b")[1]


@pytest.fixture
def own(two_years, tmp_path):
    """Files of a set of one's own, to be put where a test wants them."""
    return two_years / "VOC2007"


def move(own, root, annotations, images):
    for source, target in (("Annotations", annotations), ("JPEGImages", images)):
        (root / target).mkdir(parents=True, exist_ok=True)
        for path in (own / source).iterdir():
            shutil.copy(path, root / target / path.name)
    return root


@pytest.mark.parametrize(
    ("annotations", "images", "prefix"),
    [
        *(("Annotations", "JPEGImages", "JPEGImages/"), ("annotations", "images", "images/")),
        *(("Annotations", ".", ""), (".", ".", "")),
    ],
)
def test_sets_without_lists_become_one_split(own, tmp_path, annotations, images, prefix):
    root = move(own, tmp_path / "mine", annotations, images)
    (root / annotations / "._a.xml").write_bytes(b"\0\5\x16\7")
    Image.new("RGB", (9, 9)).save(root / images / "unlabelled.png")
    report, files = convert(root, tmp_path / "out")
    assert list(files) == ["voc_all.json"]
    assert names(files["voc_all.json"]) == [f"{prefix}{name}.jpg" for name in "abtu"]
    (note,) = report.notes
    assert note.startswith("1 image of ")
    assert note.endswith(" without an annotation file left out")


def test_the_converters_own_output_folder_is_no_set(two_years, tmp_path):
    _, expected = convert(two_years, None)
    assert (two_years / "annotations").is_dir()
    _, files = convert(two_years, tmp_path / "out")
    assert files == expected


def test_a_folder_for_each_split(own, tmp_path):
    for split in ("train", "valid"):
        move(own, tmp_path / "mine" / split, ".", ".")
    _, files = convert(tmp_path / "mine", tmp_path / "out")
    assert list(files) == ["voc_train.json", "voc_valid.json"]
    assert names(files["voc_valid.json"]) == [f"valid/{name}.jpg" for name in "abtu"]


def test_lists_may_name_files_with_their_endings_and_lie_in_imagesets(own, tmp_path):
    (own / "ImageSets/Main").rename(tmp_path / "Main")
    (own / "ImageSets/mine.txt").write_text("\ufeffa.jpg\nb.xml\nt\n", encoding="utf-8")
    report, files = convert(own, tmp_path / "out")
    assert names(files["voc_2007_mine.json"]) == [f"JPEGImages/{name}.jpg" for name in "abt"]
    (note,) = report.notes
    assert "2 names are written otherwise than the files', the first 'a.jpg'" in note


@pytest.mark.parametrize("name", ["dog 1 of 2", "犬", "chien-été", "v1.2.final"])
def test_names_with_spaces_dots_and_other_alphabets(write_voc, voc_object_xml, tmp_path, name):
    root = write_voc({name: voc_object_xml(name, (1, 1, 9, 9))}, {"train": [name]})
    _, files = convert(root, tmp_path / "out")
    document = orjson.loads(files["voc_2012_train.json"])
    assert [image["file_name"] for image in document["images"]] == [f"VOC2012/JPEGImages/{name}.jpg"]
    assert document["categories"] == [{"id": 1, "name": name}]
    (root / "VOC2012/ImageSets/Main/train.txt").write_text(unicodedata.normalize("NFD", name))
    assert convert(root, tmp_path / "out")[1] == files


def test_files_that_name_another_image(write_voc, voc_object_xml, tmp_path):
    item = voc_object_xml("dog", (1, 1, 9, 9))
    root = write_voc(dict.fromkeys(("a", "b", "c"), item), {"train": ["a", "b", "c"]})
    for name, written in (("a", "a.png"), ("b", "C:\\pictures\\B7.jpg"), ("c", "../../other/c.jpg")):
        path = root / f"VOC2012/Annotations/{name}.xml"
        path.write_text(path.read_text().replace(f"<filename>{name}.jpg", f"<filename>{written}"))
    (root / "VOC2012/JPEGImages/b.jpg").rename(root / "VOC2012/JPEGImages/B7.jpg")
    report, files = convert(root, tmp_path / "out")
    assert names(files["voc_2012_train.json"]) == [f"VOC2012/JPEGImages/{name}.jpg" for name in ("a", "B7", "c")]
    assert [(Path(repair.file).stem, repair.kind) for repair in report.repairs] == [
        ("a", "filename"),
        ("b", "other_name"),
    ]
    assert [note.split(" (")[0] for note in report.notes] == [
        "1 annotation file names another file than the image of its own name, which was taken",
        "1 annotation file has no image of its own name; the one that it names was taken",
    ]


@pytest.mark.parametrize("written", ["../secret.jpg", "/etc/passwd", "..", "a/../../secret.jpg", "secret.jpg\u2028"])
def test_an_annotation_never_leads_out_of_the_folder_of_images(write_voc, voc_object_xml, tmp_path, written):
    root = write_voc({"a": voc_object_xml("dog", (1, 1, 9, 9))}, {"train": ["a"]})
    path = root / "VOC2012/Annotations/a.xml"
    path.write_text(path.read_text().replace("<filename>a.jpg", f"<filename>{written}"))
    (root / "VOC2012/JPEGImages/a.jpg").rename(root / "VOC2012/secret.jpg")
    with pytest.raises(ConversionError, match=r"a\.xml: has no image in "):
        convert(root, tmp_path / "out")


REPAIRS = {
    "size": ("<size><width>40</width><height>30</height><depth>3</depth></size>", ""),
    "corners": ("<xmin>1</xmin>", "<xmin>19</xmin>"),
    "flag": ("<bndbox>", "<truncated>Unspecified</truncated><bndbox>"),
    "clipped": ("<xmin>1</xmin>", "<xmin>0</xmin>"),
    "outside": ("<xmin>1</xmin><ymin>1</ymin><xmax>9<", "<xmin>50</xmin><ymin>1</ymin><xmax>60<"),
    "filename": ("a.jpg", "b.jpg"),
}


@pytest.mark.parametrize("kind", REPAIRS)
def test_repairs_are_listed_and_refused_if_strict(write_voc, voc_object_xml, tmp_path, kind):
    item = voc_object_xml("dog", (1, 1, 9, 9))
    root = write_voc(dict.fromkeys("ab", item), {"train": ["a", "b"]})
    path = root / "VOC2012/Annotations/a.xml"
    old, new = REPAIRS[kind]
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    report, _ = convert(root, tmp_path / "out")
    (repair,) = report.repairs
    assert (repair.file, repair.kind) == (str(path), kind)
    (note,) = report.notes
    assert note.startswith("1 ")
    assert str(path) in note
    assert report.splits[0].instances == (1 if kind == "outside" else 2)

    with pytest.raises(ConversionError, match=rf"a\.xml: .*\({kind}\); refused, as --strict is set"):
        convert(root, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()
    report, files = convert(root, tmp_path / "skip", strict=True, on_error="skip")
    assert names(files["voc_2012_train.json"]) == ["VOC2012/JPEGImages/b.jpg"]
    assert len(report.skipped) == 1


def test_polygons(write_voc, voc_object_xml, tmp_path):
    labels = np.zeros((30, 40), np.uint8)
    labels[5:15, 5:15] = 1
    objects = voc_object_xml("dog", (6, 6, 15, 15)) + voc_object_xml("cat", (20, 1, 30, 10))
    root = write_voc({"m": objects}, {"train": ["m"]}, masks={"m": labels})
    _, files = convert(root, tmp_path / "out", outline=outline_masks)
    dog, cat = orjson.loads(files["voc_2012_train.json"])["annotations"]
    (ring,) = dog["segmentation"]
    assert {tuple(ring[i : i + 2]) for i in range(0, len(ring), 2)} == {(5, 5), (15, 5), (15, 15), (5, 15)}
    assert dog["area"] == 100
    assert "segmentation" not in cat


def test_dry_run_tells_and_writes_nothing(two_years, tmp_path):
    report = convert_voc(two_years, tmp_path / "out", dry_run=True)
    assert report.planned
    assert [(split.path.name, split.images) for split in report.splits] == [
        *(("voc_2007_2012_train.json", 2), ("voc_2007_trainval.json", 2), ("voc_2007_test.json", 2))
    ]
    assert not (tmp_path / "out").exists()


def test_an_interrupted_conversion_goes_on(write_voc, voc_object_xml, tmp_path, monkeypatch):
    images = {f"i{number:03}": voc_object_xml("dog", (1, 1, 2 + number % 30, 9)) for number in range(200)}
    root = write_voc(images, {"train": list(images)})
    _, expected = convert(root, tmp_path / "at_once")
    converted = []

    def interrupted(image, **options):
        if len(converted) == 150:
            raise KeyboardInterrupt
        converted.append(image)
        return convert_image(image, **options)

    from converters.voc.image import convert_image

    monkeypatch.setattr("converters.voc.convert.convert_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(root, tmp_path / "out", resume=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".voc.resume"]
    with (tmp_path / "out/.voc.resume").open("ab") as file:
        file.write(b"a record that was cut sho")
    del converted[:]
    assert convert(root, tmp_path / "out", resume=True)[1] == expected
    assert len(converted) == 200 - 128  # two groups of 64 had been kept
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["voc_2012_train.json"]


@pytest.mark.parametrize("change", ["box_origin", "outline", "strict", "masks"])
def test_what_was_done_otherwise_is_done_anew(write_voc, voc_object_xml, tmp_path, monkeypatch, change):
    from converters.voc.image import convert_image

    labels = np.zeros((30, 40), np.uint8)
    labels[5:15, 5:15] = 1
    objects = voc_object_xml("dog", (6, 6, 15, 15))
    # The second image ends the first conversion; the box of the first image has to be clipped.
    root = write_voc({"a": objects + voc_object_xml("cat", (20, 0, 30, 9)), "b": objects}, {"train": ["a", "b"]})
    write_voc({}, {}, masks=dict.fromkeys("ab", labels))

    def interrupted(image, **options):
        if str(image.annotation).endswith("b.xml"):
            raise KeyboardInterrupt
        return convert_image(image, **options)

    monkeypatch.setattr("converters.voc.convert.IMAGES_PER_GROUP", 1)
    with monkeypatch.context() as patch:
        patch.setattr("converters.voc.convert.convert_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(root, tmp_path / "out", resume=True)
    options = {"box_origin": {"box_origin": 0}, "outline": {"outline": outline_masks}}.get(change, {})
    if change == "strict":
        with pytest.raises(ConversionError, match="refused, as --strict is set"):
            convert(root, tmp_path / "out", resume=True, strict=True)
        return
    if change == "masks":
        labels[5:10, 5:10] = 0
        write_voc({}, {}, masks={"a": labels})
    _, expected = convert(root, tmp_path / "at_once", **options)
    assert convert(root, tmp_path / "out", resume=True, **options)[1] == expected


def test_something_else_in_the_place_of_what_was_done_is_refused(two_years, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.voc.resume").write_text("my own notes, not to be lost")
    with pytest.raises(ConversionError, match=r"\.voc\.resume: is not what an interrupted conversion leaves"):
        convert(two_years, tmp_path / "out", resume=True)
    assert (tmp_path / "out/.voc.resume").read_text() == "my own notes, not to be lost"
