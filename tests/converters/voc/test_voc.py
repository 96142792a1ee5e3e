from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import orjson
import pytest
from PIL import Image

from converters import ConversionError, convert_voc
from converters.voc.classes import VOC_CLASSES


def read(folder, name):
    return orjson.loads((folder / f"{name}.json").read_bytes())


def convert(root, output, **options):
    return convert_voc(root, output, **{"nproc": 1, **options})


@pytest.fixture
def root(write_voc, voc_object_xml):
    difficult = "<difficult>1</difficult><truncated>1</truncated><pose>Left</pose>"
    return write_voc(
        {
            "a": voc_object_xml("dog", (11, 6, 30, 25)) + voc_object_xml("cat", (1, 1, 40, 30), difficult),
            "b": "",
            "c": voc_object_xml("person", (3, 4, 3, 4)),
        },
        {"train": ["a"], "val": ["b", "c"], "trainval": ["a", "b", "c"], "dog_train": ["a  1"]},
    )


def test_boxes_and_attributes(root, tmp_path):
    convert(root, tmp_path / "out")
    document = read(tmp_path / "out", "voc_2012_trainval")
    assert document["images"] == [
        {"file_name": f"VOC2012/JPEGImages/{name}.jpg", "height": 30, "width": 40, "id": number}
        for number, name in enumerate("abc", 1)
    ]
    plain = {"iscrowd": 0, "ignore": 0, "difficult": 0, "truncated": 0, "occluded": 0, "pose": "Unspecified"}
    hard = {**plain, "ignore": 1, "difficult": 1, "truncated": 1, "pose": "Left"}
    assert document["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 12, "bbox": [10, 5, 20, 20], "area": 400, **plain},
        {"id": 2, "image_id": 1, "category_id": 8, "bbox": [0, 0, 40, 30], "area": 1200, **hard},
        {"id": 3, "image_id": 3, "category_id": 15, "bbox": [2, 3, 1, 1], "area": 1, **plain},
    ]


def test_report_counts_splits_and_lists_of_one_class_are_no_splits(root, tmp_path):
    report = convert(root, tmp_path / "out")
    assert [(split.name, split.images, split.instances, split.ignored) for split in report.splits] == [
        ("train", 1, 2, 1),
        ("val", 2, 1, 0),
        ("trainval", 3, 3, 1),
    ]
    assert sorted(os.listdir(tmp_path / "out")) == [
        "voc_2012_train.json",
        "voc_2012_trainval.json",
        "voc_2012_val.json",
    ]
    assert report.notes == report.skipped == []


def test_categories_are_the_twenty_of_voc_in_every_split(root, tmp_path):
    convert(root, tmp_path / "out")
    for split in ("train", "val", "trainval"):
        categories = read(tmp_path / "out", f"voc_2012_{split}")["categories"]
        assert categories == [{"id": number, "name": name} for number, name in enumerate(VOC_CLASSES, 1)]
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)


def test_other_names_are_sorted_and_collected_over_all_splits(root, write_voc, voc_object_xml, tmp_path):
    write_voc({"d": voc_object_xml("Zebra", (1, 1, 5, 5))}, {"test": ["d"]}, root=root)
    convert(root, tmp_path / "out")
    for split in ("train", "val", "test"):
        categories = read(tmp_path / "out", f"voc_2012_{split}")["categories"]
        assert [category["name"] for category in categories] == ["Zebra", "cat", "dog", "person"]


def test_ids_do_not_depend_on_the_splits_that_are_converted_together(write_voc, voc_object_xml, tmp_path):
    names = {"a": "dog", "b": "zebra", "c": "ape", "unlisted": "bee"}
    images = {image: voc_object_xml(name, (1, 1, 5, 5)) for image, name in names.items()}
    # The names in train are all among VOC's 20; the others are not.
    root = write_voc(images, {"train": ["a"], "val": ["b"], "test": ["c"]})
    write_voc({"a": voc_object_xml("gnu", (1, 1, 5, 5))}, {"train": ["a"]}, year="VOC2007", root=root)
    expected = [{"id": number, "name": name} for number, name in enumerate(["ape", "bee", "dog", "zebra"], 1)]
    for splits in (["train"], ["val"], ["test"], None):
        convert(root, tmp_path / "out", years=["2012"], splits=splits)
    for split, category in (("train", 3), ("val", 4), ("test", 1)):
        document = read(tmp_path / "out", f"voc_2012_{split}")
        assert document["categories"] == expected
        assert [annotation["category_id"] for annotation in document["annotations"]] == [category]


@pytest.mark.parametrize("splits", [["train"], ["val"]])
def test_names_of_an_image_that_cannot_be_converted_count(root, write_voc, voc_object_xml, tmp_path, splits):
    write_voc({"d": voc_object_xml("zebra", (1, 1, 5, 5))}, {"train": ["a", "d"]}, root=root)
    (root / "VOC2012/JPEGImages/d.jpg").write_bytes(b"")
    report = convert(root, tmp_path / "out", splits=splits, on_error="skip")
    categories = read(tmp_path / "out", f"voc_2012_{splits[0]}")["categories"]
    assert [category["name"] for category in categories] == ["cat", "dog", "person", "zebra"]
    assert report.notes == []


def test_annotation_outside_the_splits_that_cannot_be_read_is_told(root, tmp_path):
    annotations = root / "VOC2012/Annotations"
    (annotations / "._a.xml").write_bytes(b"\0\5\x16\7")  # another system's attributes of the file a.xml
    (annotations / "old.xml").write_text("<annotation>")
    report = convert(root, tmp_path / "out")
    (note,) = report.notes
    assert note.startswith("1 annotation file outside the chosen splits could not be searched for classes; the first: ")
    assert f"{annotations / 'old.xml'}: is not well-formed XML" in note
    assert report.skipped == []


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text exist on Linux only")
def test_name_that_is_not_utf_8_is_one_line(root, tmp_path):
    path = root / "VOC2012/JPEGImages/c.jpg"
    (root / "VOC2012/ImageSets").rename(root / "lists")
    name = "c" + os.fsdecode(b"\xff")
    path.rename(path.with_name(f"{name}.jpg"))
    annotation_of(root).rename(annotation_of(root).with_name(f"{name}.xml"))
    with pytest.raises(ConversionError) as caught:
        convert(root, tmp_path / "out")
    shown = repr(os.fsencode(path.parent) + b"/c\xff.jpg")
    assert str(caught.value) == f"{shown}: the name is not valid UTF-8, which JSON needs; rename it"
    report = convert(root, tmp_path / "out", on_error="skip")
    assert report.skipped == [str(caught.value)]


def test_years_are_joined_by_split(root, write_voc, voc_object_xml, tmp_path):
    write_voc({"x": voc_object_xml("cow", (1, 1, 5, 5))}, {"train": ["x"], "test": ["x"]}, year="VOC2007", root=root)
    convert(root, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "voc_2007_2012_train.json",
        "voc_2007_test.json",
        "voc_2012_trainval.json",
        "voc_2012_val.json",
    ]
    names = [image["file_name"] for image in read(tmp_path / "out", "voc_2007_2012_train")["images"]]
    assert names == ["VOC2007/JPEGImages/x.jpg", "VOC2012/JPEGImages/a.jpg"]

    report = convert(root, tmp_path / "named", years=["2012"], splits=["train"])
    assert [split.path.name for split in report.splits] == ["voc_2012_train.json"]


def test_root_may_be_one_year(root, tmp_path):
    convert(root / "VOC2012", None, splits=["val"])
    document = read(root / "VOC2012" / "annotations", "voc_2012_val")
    assert [image["file_name"] for image in document["images"]] == ["JPEGImages/b.jpg", "JPEGImages/c.jpg"]

    (root / "VOC2012").rename(tmp_path / "mine")
    convert(tmp_path / "mine", tmp_path / "out", splits=["val"])
    assert os.listdir(tmp_path / "out") == ["voc_val.json"]


def test_split_without_annotations_is_left_out_with_a_note(root, write_voc, tmp_path):
    write_voc({}, {"test": ["unknown"]}, root=root)
    report = convert(root, tmp_path / "out")
    assert [split.name for split in report.splits] == ["train", "val", "trainval"]
    assert report.notes == [f"left out: the split test of {root / 'VOC2012'} has no annotations"]
    with pytest.raises(ConversionError, match="the split test has no annotations"):
        convert(root, tmp_path / "out", splits=["test"])


def test_zero_based_boxes(root, tmp_path):
    report = convert(root, tmp_path / "out", box_origin=0, splits=["train"])
    boxes = [annotation["bbox"] for annotation in read(tmp_path / "out", "voc_2012_train")["annotations"]]
    assert boxes == [[11, 6, 20, 20], [1, 1, 39, 29]]
    place = root / "VOC2012/Annotations/a.xml"
    assert report.notes == [f"1 box reached outside its image and was clipped (in {place})"]
    with pytest.raises(ConversionError, match="the box origin is 2"):
        convert(root, tmp_path / "out", box_origin=2)


def test_boxes_are_clipped_to_the_image_and_counted(root, write_voc, voc_object_xml, tmp_path):
    write_voc({"d": voc_object_xml("dog", (0, 5, 44, 12))}, {"extra": ["d"]}, root=root)
    report = convert(root, tmp_path / "out", splits=["extra"])
    assert read(tmp_path / "out", "voc_2012_extra")["annotations"][0]["bbox"] == [0, 4, 40, 8]
    (note,) = report.notes
    assert note.startswith("1 box reached outside its image and was clipped; if the data set counts pixels from 0")
    assert note.endswith(f" (in {root / 'VOC2012/Annotations/d.xml'})")

    write_voc({"e": voc_object_xml("dog", (0, 5, 44, 12))}, {"extra": ["d", "e"]}, root=root)
    note, replaced = convert(root, tmp_path / "out", splits=["extra"]).notes
    assert replaced == f"{tmp_path / 'out/voc_2012_extra.json'}: was there before, and has been replaced"
    assert note.startswith("2 boxes reached outside their image and were clipped; ")
    assert note.endswith(f" (in 2 images, the first {root / 'VOC2012/Annotations/d.xml'})")


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((3, 3, 9, 31), [2, 2, 7, 28]),
        ((3, 3, 41, 9), [2, 2, 38, 7]),
        ((41, 3, 45, 9), None),  # begins where the image ends
        ((3, 31, 9, 35), None),
        ((-4, 3, 0, 9), None),
        ((3, -4, 9, 0), None),
    ],
)
def test_boxes_beyond_each_edge(write_voc, voc_object_xml, tmp_path, box, kept):
    other = voc_object_xml("cat", (1, 1, 9, 9), "<difficult>1</difficult>")
    root = write_voc({"a": voc_object_xml("dog", box, "<truncated>1</truncated>") + other}, {"train": ["a"]})
    report = convert(root, tmp_path / "out")
    boxes = [row["bbox"] for row in read(tmp_path / "out", "voc_2012_train")["annotations"]]
    assert boxes == [*([] if kept is None else [kept]), [0, 0, 9, 9]]
    assert report.splits[0].ignored == 1
    (note,) = report.notes
    assert ("left out" in note) == (kept is None)


def masked_image(write_voc, voc_object_xml):
    labels = np.zeros((30, 40), np.uint8)
    labels[2:12, 3:13] = 255
    labels[3:11, 4:12] = 2  # belongs to the first object
    labels[15:29, 20:39] = 1
    objects = voc_object_xml("dog", (4, 3, 13, 12)) + voc_object_xml("cat", (21, 16, 39, 29))
    return write_voc({"m": objects}, {"train": ["m"]}, masks={"m": labels}), labels


def test_masks_are_matched_and_the_void_border_is_nobodys(write_voc, voc_object_xml, tmp_path, encode_one_by_one):
    root, labels = masked_image(write_voc, voc_object_xml)
    report = convert(root, tmp_path / "out")
    document = read(tmp_path / "out", "voc_2012_train")
    expected = encode_one_by_one(labels, [2, 1])
    assert [(a["segmentation"]["counts"], a["area"]) for a in document["annotations"]] == [
        (counts, area) for _, counts, area, _ in expected
    ]
    assert document["annotations"][0]["segmentation"]["size"] == [30, 40]
    assert document["annotations"][0]["bbox"] == [3, 2, 10, 10]  # the box stays the annotation's
    assert report.splits[0].masks == 2
    assert report.notes == []


def test_objects_without_mask_and_masks_without_object_are_told(write_voc, voc_object_xml, tmp_path):
    labels = np.zeros((30, 40), np.uint8)
    labels[5:15, 5:15] = 1
    labels[20:30, 30:40] = 2
    objects = voc_object_xml("dog", (6, 6, 15, 15)) + voc_object_xml("cat", (20, 1, 30, 10))
    root = write_voc({"m": objects}, {"train": ["m"]}, masks={"m": labels})
    report = convert(root, tmp_path / "out")
    assert (report.splits[0].instances, report.splits[0].masks) == (2, 1)
    assert ["segmentation" in a for a in read(tmp_path / "out", "voc_2012_train")["annotations"]] == [True, False]
    assert [note.split(" (")[0] for note in report.notes] == [
        "1 mask fits no object and was left out",
        "1 object has no mask although its image has masks; it keeps its box only",
    ]


def test_exif_decides_only_where_it_makes_the_size_agree(write_voc, voc_object_xml, tmp_path):
    root = write_voc({"t": voc_object_xml("dog", (1, 1, 5, 5))}, {"train": ["t"]})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40)).save(root / "VOC2012/JPEGImages/t.jpg", exif=exif)
    convert(root, tmp_path / "out")
    image = read(tmp_path / "out", "voc_2012_train")["images"][0]
    assert (image["width"], image["height"]) == (40, 30)


@pytest.mark.parametrize(
    ("endings", "chosen"), [([".png", ".jpg", ".txt"], ".jpg"), ([".PNG"], ".PNG"), ([".bmp", ".png"], ".png")]
)
def test_images_of_other_formats(write_voc, voc_object_xml, tmp_path, endings, chosen):
    root = write_voc({"a": voc_object_xml("dog", (1, 1, 5, 5))}, {"train": ["a"]})
    folder = root / "VOC2012/JPEGImages"
    (folder / "a.jpg").rename(tmp_path / "a.jpg")
    for ending in endings:
        if ending == ".txt":
            (folder / "a.txt").touch()
        else:
            Image.open(tmp_path / "a.jpg").save(folder / f"a{ending}")
    convert(root, tmp_path / "out")
    (image,) = read(tmp_path / "out", "voc_2012_train")["images"]
    assert image["file_name"] == f"VOC2012/JPEGImages/a{chosen}"


@pytest.fixture
def started(monkeypatch):
    """The processes that have been started."""
    found = []
    start = subprocess.Popen
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: found.append(args) or start(*args, **options))
    monkeypatch.setattr("converters.voc.convert.IMAGES_PER_GROUP", 4)
    return found


def test_few_annotations_without_masks_are_not_worth_a_process(write_voc, voc_object_xml, tmp_path, started):
    images = {name: voc_object_xml("dog", (1, 1, 10, 10)) for name in "abcdefghijklmnop"}
    root = write_voc(images, {"train": list(images)[:8]})  # the others are searched for classes
    convert(root, tmp_path / "boxes", nproc=2)
    assert len(started) == 0
    root = write_voc(images, {"train": list(images)[:8]}, masks=dict.fromkeys(images, np.ones((30, 40), np.uint8)))
    convert(root, tmp_path / "masks", nproc=2)
    assert len(started) == 2


def test_files_are_the_same_whatever_nproc(write_voc, voc_object_xml, tmp_path, monkeypatch, started):
    monkeypatch.setattr("converters.voc.convert.FILES_PER_PROCESS", 4)
    names = [f"i{number:02d}" for number in range(20)]
    images = {name: voc_object_xml("dog", (1 + n, 1, 20 + n, 9)) for n, name in enumerate(names)}
    root = write_voc(images, {"train": names[::-1], "val": names[:3]})
    for nproc, processes in ((1, 0), (2, 2), (3, 3)):
        del started[:]
        convert(root, tmp_path / str(nproc), nproc=nproc)
        assert len(started) == processes
    for file in ("voc_2012_train.json", "voc_2012_val.json"):
        assert len({(tmp_path / str(nproc) / file).read_bytes() for nproc in (1, 2, 3)}) == 1


def annotation_of(root):
    return root / "VOC2012/Annotations/c.xml"


def break_root(root):
    return root / "nowhere", "no Pascal VOC data set found; tried: "


def break_no_year(root):
    for path in (root / "VOC2012/Annotations").iterdir():
        path.unlink()
    (root / "VOC2012/Annotations").rmdir()
    return root, "is no Pascal VOC data set; expected folders VOC20xx, a folder Annotations, or XML"


def break_empty_list(root):
    (root / "VOC2012/ImageSets/Main/val.txt").write_text("\n\n")
    return root, "val.txt: holds no image names"


def break_list_is_binary(root):
    (root / "VOC2012/ImageSets/Main/val.txt").write_bytes(b"\xff\xfe\x00")
    return root, "val.txt: is not a text file"


def break_path_in_list(root):
    (root / "VOC2012/ImageSets/Main/val.txt").write_text("b\n../../../etc/passwd\n")
    return root, "val.txt: line 2 is '../../../etc/passwd'"


def break_xml_truncated(root):
    annotation_of(root).write_text(annotation_of(root).read_text()[:-30])
    return root, "c.xml: is not well-formed XML"


def break_xml_bomb(root):
    annotation_of(root).write_text('<!DOCTYPE a [<!ENTITY a "ha">]><annotation>&a;</annotation>')
    return root, "c.xml: declares XML entities"


def break_xml_missing(root):
    annotation_of(root).unlink()
    return root, "c.xml: is missing"


def break_image_missing(root):
    (root / "VOC2012/JPEGImages/c.jpg").unlink()
    return root, "c.xml: has no image in "


def break_image_truncated(root):
    path = root / "VOC2012/JPEGImages/c.jpg"
    path.write_bytes(path.read_bytes()[:-30])
    return root, "c.jpg: cannot be read as an image ("


def break_image_size(root):
    Image.new("RGB", (50, 30)).save(root / "VOC2012/JPEGImages/c.jpg")
    return root, "c.xml: <size> is 40x30, but the image"


def break_mask_size(root):
    Image.new("L", (50, 30)).save(root / "VOC2012/SegmentationObject/c.png")
    return root, "c.png: is 50x30, but its image is 40x30"


def break_mask_damaged(root):
    (root / "VOC2012/SegmentationObject/c.png").write_bytes(b"no image")
    return root, "c.png: is not an image"


BREAKS = [value for name, value in list(globals().items()) if name.startswith("break_")]


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda function: function.__name__)
def test_bad_input_is_one_line_and_leaves_nothing(root, tmp_path, break_it):
    given, line = break_it(root)
    with pytest.raises(ConversionError) as caught:
        convert(given, tmp_path / "out")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"splits": ["tran"]}, "no split tran here; found: train, val, trainval"),
        ({"years": ["2010"]}, "no year 2010 here; found: 2012"),
    ],
)
def test_named_parts_that_are_not_there(root, tmp_path, options, line):
    with pytest.raises(ConversionError, match=line):
        convert(root, tmp_path / "out", **options)


def test_list_of_one_class_is_refused_by_name(root, tmp_path):
    (root / "VOC2012/ImageSets/Main/dogs.txt").write_text("a  1\nb -1\n")
    with pytest.raises(ConversionError, match=r"dogs\.txt: lists the images of one class"):
        convert(root, tmp_path / "out", splits=["dogs"])


def test_a_split_may_be_named_like_a_list_of_one_class(write_voc, voc_object_xml, tmp_path):
    images = dict.fromkeys("abc", voc_object_xml("dog", (1, 1, 9, 9)))
    lists = {"train": ["a", "b"], "mini_train": ["a"], "night 1_val": ["c  1", "c"], "val": ["c"]}
    # Lists of classes, whose second column and line ends are written in many ways; the last class has no image.
    lists |= {"dog_train": ["a  1", "b -1"], "cat_val": ["c\t0", ""], "cow_mini_train": ["a 1 "], "bus_val": []}
    root = write_voc(images | {"c  1": images["c"]}, lists)
    report = convert(root, tmp_path / "out")
    assert [(split.name, split.images) for split in report.splits] == [
        *(("train", 2), ("val", 1), ("mini_train", 1), ("night 1_val", 2))
    ]


def test_skip_leaves_out_the_bad_image_of_every_split(root, tmp_path):
    break_xml_bomb(root)
    report = convert(root, tmp_path / "out", on_error="skip")
    assert [(split.name, split.images) for split in report.splits] == [("train", 1), ("val", 1), ("trainval", 2)]
    assert len(report.skipped) == 1
    assert "c.xml: declares XML entities" in report.skipped[0]
    assert report.notes == []  # of what is told already
    (root / "VOC2012/Annotations/b.xml").write_text("")
    with pytest.raises(ConversionError, match=r"no image of the split val could be converted; the first: .*b\.xml: "):
        convert(root, tmp_path / "none", on_error="skip", splits=["val"])


def test_unwritable_output_is_told_before_the_work(root, tmp_path, monkeypatch):
    (tmp_path / "out").touch()
    monkeypatch.setattr("converters.voc.convert.map_files", lambda *a, **k: pytest.fail("the work began"))
    with pytest.raises(ConversionError, match="out: cannot be used as the output folder"):
        convert(root, tmp_path / "out")


@pytest.mark.realdata
def test_pedestrians_have_masks_that_fill_their_boxes(data_root, tmp_path, encode_one_by_one):
    report = convert_voc(data_root / "pennfudan_voc", tmp_path)
    assert [(split.name, split.images, split.instances, split.masks) for split in report.splits] == [
        ("train", 136, 339, 339),
        ("val", 34, 84, 84),
        ("trainval", 170, 423, 423),
    ]
    assert report.notes == []
    document = read(tmp_path, "voc_2012_val")
    for image in document["images"]:
        annotations = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        path = data_root / "pennfudan_voc" / image["file_name"].replace("JPEGImages", "SegmentationObject")
        labels = np.asarray(Image.open(path.with_suffix(".png")))
        masks = {
            counts: (area, box) for _, counts, area, box in encode_one_by_one(labels, range(1, len(annotations) + 1))
        }
        # The boxes of this set were made from its masks: a mask that is matched rightly has exactly its object's box.
        assert {a["segmentation"]["counts"]: (a["area"], a["bbox"]) for a in annotations} == masks


@pytest.mark.realdata
def test_blood_cells_keep_every_box_as_written(data_root, tmp_path):
    report = convert_voc(data_root / "bccd_voc", tmp_path)
    assert [(split.name, split.images) for split in report.splits] == [
        ("train", 205),
        ("val", 87),
        ("trainval", 292),
        ("test", 72),
    ]
    document = read(tmp_path, "voc_2007_trainval")
    assert [category["name"] for category in document["categories"]] == ["Platelets", "RBC", "WBC"]
    names = {category["id"]: category["name"] for category in document["categories"]}
    found = [(names[a["category_id"]], a["bbox"]) for a in document["annotations"]]
    expected = []
    for image in document["images"]:
        path = data_root / "bccd_voc" / image["file_name"].replace("JPEGImages", "Annotations").replace(".jpg", ".xml")
        for item in ElementTree.parse(path).iter("object"):
            left, top, right, bottom = (int(item.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax"))
            expected.append((item.findtext("name"), [left - 1, top - 1, right - left + 1, bottom - top + 1]))
    assert found == expected
