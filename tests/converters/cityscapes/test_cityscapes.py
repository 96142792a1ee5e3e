from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import orjson
import pytest
from cityscapesscripts.helpers.labels import id2label, labels
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from converters import ConversionError, convert_cityscapes

NAME = "instancesonly_filtered_gtFine_{}.json"

linux_names = pytest.mark.skipif(sys.platform != "linux", reason="names that are no text exist on Linux only")


def read(folder, split):
    return orjson.loads((folder / NAME.format(split)).read_bytes())


def beside_counts(report):
    """The notes, without those on the number of images."""
    return [note for note in report.notes if "; Cityscapes published " not in note]


def expected_document(root, split, encode_one_by_one):
    """The published semantics, one instance at a time: an id below 1000 is a crowd, and only evaluated labels count.

    Unlike the published ids of annotations, these begin at 1.
    """
    document = {"images": [], "annotations": []}
    for path in sorted((root / "gtFine" / split).glob("*/*_instanceIds.png")):
        ids = np.asarray(Image.open(path))
        stem = f"{path.parent.name}/{path.name.removesuffix('_gtFine_instanceIds.png')}"
        image_id = len(document["images"])
        document["images"].append(
            {
                "file_name": f"{stem}_leftImg8bit.png",
                "height": ids.shape[0],
                "width": ids.shape[1],
                "segm_file": f"{stem}_gtFine_labelIds.png",
                "id": image_id,
            }
        )
        kept = []
        for value in np.unique(ids[ids >= 24]):
            label = id2label[value // 1000 if value >= 1000 else value]
            if label.hasInstances and not label.ignoreInEval:
                kept.append((value, label.id))
        for (_, label), (value, counts, area, box) in zip(
            kept, encode_one_by_one(ids, [value for value, _ in kept]), strict=True
        ):
            document["annotations"].append(
                {
                    "iscrowd": int(value < 1000),
                    "category_id": label,
                    "bbox": box,
                    "area": area,
                    "segmentation": {"size": list(ids.shape), "counts": counts},
                    "image_id": image_id,
                    "id": len(document["annotations"]) + 1,
                }
            )
    document["categories"] = [
        {"id": label.id, "name": label.name} for label in labels if label.hasInstances and not label.ignoreInEval
    ]
    return document


@pytest.fixture
def root(write_cityscapes, street):
    def city(name, seeds):
        return {f"{name}/{name}_{seed:06d}_000019": street(seed, 40 + seed, 70) for seed in seeds}

    return write_cityscapes(
        {
            "train": {**city("zurich", range(3)), **city("aachen", range(3, 6))},
            "val": city("ulm", [7]),
            "test": {"bonn/bonn_000000_000019": None},
        }
    )


def test_equals_the_reference_instance_by_instance(root, tmp_path, encode_one_by_one):
    report = convert_cityscapes(root, tmp_path / "out", nproc=1)
    for split, summary in zip(("train", "val"), report.splits, strict=True):
        document = read(tmp_path / "out", split)
        assert document == expected_document(root, split, encode_one_by_one)
        assert (summary.name, summary.path) == (split, tmp_path / "out" / NAME.format(split))
        assert summary.images == len(document["images"])
        assert summary.instances == summary.masks == len(document["annotations"]) > 0
        assert summary.crowd == sum(annotation["iscrowd"] for annotation in document["annotations"]) > 0
        assert summary.categories == 8
    assert report.skipped == []


@pytest.mark.realdata
def test_equals_the_reference_on_real_streets(data_root, tmp_path, encode_one_by_one):
    convert_cityscapes(data_root / "coco_streets", tmp_path)
    for split, images, instances, crowds in (("train", 59, 264, 4), ("val", 31, 160, 2)):
        document = read(tmp_path, split)
        assert document == expected_document(data_root / "coco_streets", split, encode_one_by_one)
        assert len(document["images"]) == images
        assert len(document["annotations"]) == instances
        assert sum(annotation["iscrowd"] for annotation in document["annotations"]) == crowds


def test_images_come_in_the_order_of_city_and_name(root, tmp_path):
    convert_cityscapes(root, tmp_path, nproc=1)
    names = [image["file_name"] for image in read(tmp_path, "train")["images"]]
    assert names == sorted(names)
    assert names[0] == "aachen/aachen_000003_000019_leftImg8bit.png"


def test_labels_without_instances_or_evaluation_are_dropped_and_crowds_kept(write_cityscapes, tmp_path):
    ids = np.array([[24, 29, 29000, 5, 5001, 30, 33999, 26000]])
    root = write_cityscapes({"train": {"x/x_0": ids}})
    convert_cityscapes(root, tmp_path / "out")
    found = [(a["category_id"], a["iscrowd"]) for a in read(tmp_path / "out", "train")["annotations"]]
    assert found == [(24, 1), (26, 0), (33, 0)]


def test_the_first_instance_of_the_first_label_is_no_crowd(write_cityscapes, tmp_path):
    # 1000 is instance 0 of label 1, which has no instances; as a crowd it would be of label 1000, which is none.
    root = write_cityscapes({"train": {"x/x_0": np.array([[1000, 26000, 999 + 25001]])}})
    convert_cityscapes(root, tmp_path / "out")
    assert [a["category_id"] for a in read(tmp_path / "out", "train")["annotations"]] == [26]


def test_image_without_instances_is_kept(write_cityscapes, tmp_path):
    root = write_cityscapes({"train": {"x/x_0": np.full((4, 5), 7)}})
    convert_cityscapes(root, tmp_path / "out")
    document = read(tmp_path / "out", "train")
    assert len(document["images"]) == 1
    assert document["annotations"] == []


def test_files_are_the_same_whatever_nproc(write_cityscapes, street, tmp_path):
    root = write_cityscapes({"train": {f"x/x_{seed:02d}": street(seed) for seed in range(25)}})
    contents = set()
    for nproc in (1, 2, 3):
        convert_cityscapes(root, tmp_path / str(nproc), nproc=nproc)
        contents.add((tmp_path / str(nproc) / NAME.format("train")).read_bytes())
    assert len(contents) == 1


def test_output_is_annotations_in_the_root_unless_told(root):
    convert_cityscapes(root, splits=["val"], nproc=1)
    assert os.listdir(root / "annotations") == [NAME.format("val")]


def test_split_without_annotations_is_left_out_with_a_note(root, tmp_path):
    report = convert_cityscapes(root, tmp_path / "out", nproc=1)
    assert [split.name for split in report.splits] == ["train", "val"]
    (note,) = beside_counts(report)
    assert note.startswith("left out: the split test has no annotations")


def test_root_from_the_environment_then_from_data(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CITYSCAPES_DATASET", str(root))
    assert convert_cityscapes(output="out", splits=["val"], nproc=1).splits[0].images == 1

    monkeypatch.setenv("CITYSCAPES_DATASET", "nowhere")
    with pytest.raises(ConversionError) as caught:
        convert_cityscapes()
    line = "no Cityscapes data set found; tried: $CITYSCAPES_DATASET = nowhere (no such folder)"
    assert str(caught.value) == line

    # Nor is the default taken in the place of what was asked for, once it exists.
    (tmp_path / "data").mkdir()
    root.rename(tmp_path / "data" / "cityscapes")
    with pytest.raises(ConversionError) as caught:
        convert_cityscapes()
    assert str(caught.value) == line

    for unset in (lambda name: monkeypatch.setenv(name, ""), monkeypatch.delenv):
        unset("CITYSCAPES_DATASET")
        report = convert_cityscapes(splits=["val"], nproc=1)
        assert report.splits[0].path == Path("data/cityscapes/annotations") / NAME.format("val")


def test_perfect_detections_have_an_average_precision_of_one(write_cityscapes, tmp_path):
    ids = np.full((40, 60), 7)
    for number, value in enumerate((24000, 24001, 26000)):  # the first annotation is no crowd: it is to be found
        ids[5:30, 20 * number : 20 * number + 15] = value
    root = write_cityscapes({"train": {"x/x_0": ids, "x/x_1": ids}})
    convert_cityscapes(root, tmp_path / "out", nproc=1)
    with redirect_stdout(None):
        truth = COCO(str(tmp_path / "out" / NAME.format("train")))
        found = [{**a, "score": 0.9} for a in truth.loadAnns(truth.getAnnIds(iscrowd=False))]
        for kind in ("bbox", "segm"):
            evaluation = COCOeval(truth, truth.loadRes([dict(a) for a in found]), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[0] == 1.0
    assert truth.dataset["images"][0]["id"] == 0  # as OpenMMLab's


def test_label_ids_in_the_place_of_instance_ids_are_told(root, street, write_cityscapes, tmp_path):
    ids = street(0)
    labels = np.where(ids >= 1000, ids // 1000, ids)
    write_cityscapes({"val": {"ulm/ulm_000007_000019": labels}, "extra": {"x/x_0": np.full((4, 5), 7)}}, root)
    report = convert_cityscapes(root, tmp_path / "out", nproc=1, splits=["train", "val", "extra"])
    (note,) = beside_counts(report)
    crowds = report.splits[1].crowd
    assert crowds > 1
    assert note == (
        f"the split val has {crowds} crowd regions and not one instance: its files *_gtFine_instanceIds.png may hold "
        "label ids (*_gtFine_labelIds.png) instead"
    )

    write_cityscapes({"val": {"ulm/ulm_000007_000019": np.full((4, 5), 24)}}, root)
    (note,) = beside_counts(convert_cityscapes(root, tmp_path / "again", nproc=1, splits=["val"]))
    assert note.startswith("the split val has 1 crowd region and not one instance: ")


@pytest.mark.parametrize("folder", ["leftImg8bit", "leftImg8bit/val", "gtFine/val", "gtFine/val/ulm"])
@pytest.mark.parametrize("splits", [None, ["val"]])
def test_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(root, tmp_path, monkeypatch, folder, splits):
    scandir = os.scandir

    def refuse(path):
        if Path(path) == root / folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(ConversionError) as caught:
        convert_cityscapes(root, tmp_path / "out", splits=splits, nproc=1)
    assert str(caught.value) == f"{root / folder}: cannot be read (Permission denied)"


@pytest.mark.parametrize("folder", ["", "gtFine"])
def test_folder_that_may_not_be_looked_at_is_not_taken_for_a_missing_one(root, tmp_path, monkeypatch, folder):
    is_dir = Path.is_dir

    def refuse(path, **options):
        if path == root / folder:
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path, **options)

    monkeypatch.setattr("pathlib.Path.is_dir", refuse)
    with pytest.raises(ConversionError) as caught:
        convert_cityscapes(root, tmp_path / "out", nproc=1)
    assert str(caught.value) == f"{root / folder}: cannot be read (Permission denied)"


@linux_names
@pytest.mark.parametrize("key", [b"a\xff/x_0", b"a/x_\xff"])
def test_name_that_is_not_utf_8_is_one_line(root, write_cityscapes, street, tmp_path, key):
    write_cityscapes({"val": {os.fsdecode(key): street(0)}}, root)
    with pytest.raises(ConversionError) as caught:
        convert_cityscapes(root, tmp_path / "out", nproc=1)
    shown = repr(os.fsencode(root / "leftImg8bit/val") + b"/" + key + b"_leftImg8bit.png")
    assert str(caught.value) == f"{shown}: the name is not valid UTF-8, which JSON needs; rename it"
    report = convert_cityscapes(root, tmp_path / "out", nproc=1, on_error="skip")
    assert report.skipped == [str(caught.value)]


@linux_names
def test_split_whose_name_is_not_utf_8_is_one_line(root, write_cityscapes, street, tmp_path):
    write_cityscapes({os.fsdecode(b"v\xff"): {"x/x_0": street(0)}}, root)
    with pytest.raises(ConversionError) as caught:
        convert_cityscapes(root, tmp_path / "out", nproc=1)
    shown = repr(os.fsencode(root / "leftImg8bit") + b"/v\xff")
    assert str(caught.value) == f"{shown}: the name is not valid UTF-8, which JSON needs; rename it"


def instances_of(root, key="val/ulm/ulm_000007_000019"):
    return root / "gtFine" / f"{key}_gtFine_instanceIds.png"


def image_of(root, key="val/ulm/ulm_000007_000019"):
    return root / "leftImg8bit" / f"{key}_leftImg8bit.png"


def break_root(root):
    return root / "elsewhere", "elsewhere (no such folder)"


def break_layout(root):
    (root / "gtFine").rename(root / "gtCoarse")
    return root, "has no folder gtFine"


def break_annotation_missing(root):
    instances_of(root, "train/aachen/aachen_000003_000019").unlink()
    return root, "aachen_000003_000019_gtFine_instanceIds.png: is missing, although there is "


def break_image_missing(root):
    image_of(root).unlink()
    return root, "ulm_000007_000019_leftImg8bit.png: is missing, although there is "


def break_annotation_truncated(root):
    path = instances_of(root)
    path.write_bytes(path.read_bytes()[:-60])
    return root, "ulm_000007_000019_gtFine_instanceIds.png: cannot be read as an image ("


def break_image_truncated(root):
    path = image_of(root)
    path.write_bytes(path.read_bytes()[:-40])
    return root, "ulm_000007_000019_leftImg8bit.png: cannot be read as an image ("


def break_size(root):
    Image.new("RGB", (33, 22)).save(image_of(root))
    return root, "but its image"


def break_colours(root):
    Image.new("RGB", (70, 47)).save(instances_of(root))
    return root, "has colour channels"


def break_label_of_instance(root):
    Image.fromarray(np.full((47, 70), 40003, np.uint16)).save(instances_of(root))
    return root, "ulm_000007_000019_gtFine_instanceIds.png: instance id 40003 has no label"


def break_label_of_crowd(root):
    Image.fromarray(np.full((47, 70), 34, np.uint16)).save(instances_of(root))
    return root, "ulm_000007_000019_gtFine_instanceIds.png: instance id 34 has no label"


def break_no_annotations_at_all(root):
    for path in (root / "gtFine").glob("*/*/*"):
        path.unlink()
    return root, "no split has annotations"


BREAKS = [value for name, value in list(globals().items()) if name.startswith("break_")]


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda function: function.__name__)
def test_bad_input_is_one_line_and_leaves_nothing(root, tmp_path, break_it):
    given, line = break_it(root)
    with pytest.raises(ConversionError) as caught:
        convert_cityscapes(given, tmp_path / "out", nproc=1)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("splits", "line"),
    [(["other"], "the split other has no annotations"), (["vla"], "no split vla here; found: train, val, test, other")],
)
def test_named_split_that_cannot_be_converted(root, write_cityscapes, tmp_path, splits, line):
    write_cityscapes({"other": {"bonn/bonn_0": None}}, root)
    with pytest.raises(ConversionError, match=line):
        convert_cityscapes(root, tmp_path / "out", splits=splits)


def test_unwritable_output_is_told_before_the_work(root, tmp_path, monkeypatch):
    (tmp_path / "out").touch()
    monkeypatch.setattr("converters.cityscapes.convert.map_files", lambda *a, **k: pytest.fail("the work began"))
    with pytest.raises(ConversionError, match="out: cannot be used as the output folder"):
        convert_cityscapes(root, tmp_path / "out")


@pytest.mark.parametrize("break_it", [break_annotation_missing, break_label_of_crowd], ids=lambda f: f.__name__)
def test_skip_leaves_out_the_bad_image_and_lists_it(root, tmp_path, write_cityscapes, street, break_it):
    write_cityscapes({"val": {"ulm/ulm_000008_000019": street(8)}}, root)
    _, line = break_it(root)
    report = convert_cityscapes(root, tmp_path / "out", nproc=1, on_error="skip")
    assert len(report.skipped) == 1
    assert line in report.skipped[0]
    documents = [read(tmp_path / "out", split) for split in ("train", "val")]
    assert sum(len(document["images"]) for document in documents) == 7
    for document in documents:
        assert [image["id"] for image in document["images"]] == list(range(len(document["images"])))


def test_skipping_every_image_of_a_split_is_an_error(root, tmp_path):
    break_label_of_crowd(root)
    with pytest.raises(ConversionError, match="no image of the split val could be converted; the first: "):
        convert_cityscapes(root, tmp_path / "out", nproc=1, on_error="skip")
    assert not (tmp_path / "out").exists()
