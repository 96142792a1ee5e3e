"""Cityscapes in the forms that people have it in: archives, coarse labels, some cities, no labels, no images."""

from __future__ import annotations

import shutil
import zipfile

import numpy as np
import orjson
import pytest
from PIL import Image

from converters import ConversionError, convert_cityscapes
from converters.cityscapes.image import convert_pair

NAME = "instancesonly_filtered_{}_{}.json"


def documents(folder):
    return {path.name: orjson.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}


def beside_counts(report):
    """The notes, without those on the number of images."""
    return [note for note in report.notes if "; Cityscapes published " not in note]


def archived(folder, archive, method=zipfile.ZIP_DEFLATED):
    """Moves a folder into an archive of its name, with a licence beside it as published ones have."""
    with zipfile.ZipFile(archive, "w", method) as file:
        file.writestr("license.txt", "free for research")
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent).as_posix())
    shutil.rmtree(folder)


@pytest.fixture
def root(write_cityscapes, street):
    def city(name, seeds):
        return {f"{name}/{name}_{seed:06d}_000019": street(seed, 40 + seed, 70) for seed in seeds}

    return write_cityscapes(
        {"train": {**city("zurich", range(2)), **city("aachen", range(3, 5))}, "val": city("ulm", [7])}
    )


def test_published_archives_are_read_in_place(root, tmp_path):
    expected = convert_cityscapes(root, tmp_path / "folders", nproc=1)
    archived(root / "gtFine", root / "gtFine_trainvaltest.zip")
    archived(root / "leftImg8bit", root / "leftImg8bit_trainvaltest.zip", zipfile.ZIP_STORED)
    for given in (root, root / "gtFine_trainvaltest.zip"):
        for nproc in (1, 2):
            report = convert_cityscapes(given, tmp_path / "archives", nproc=nproc)
            assert documents(tmp_path / "archives") == documents(tmp_path / "folders")
            assert report.notes[:2] == expected.notes[:2]
            assert [split.instances for split in report.splits] == [split.instances for split in expected.splits]
            shutil.rmtree(tmp_path / "archives")
    assert sorted(path.name for path in root.iterdir()) == ["gtFine_trainvaltest.zip", "leftImg8bit_trainvaltest.zip"]


def test_output_of_an_archive_lies_beside_it(root):
    archived(root / "gtFine", root / "gtFine_trainvaltest.zip")
    report = convert_cityscapes(root / "gtFine_trainvaltest.zip", splits=["val"], nproc=1)
    assert report.splits[0].path == root / "annotations" / NAME.format("gtFine", "val")


def test_labels_alone_are_enough(root, tmp_path):
    convert_cityscapes(root, tmp_path / "both", nproc=1)
    shutil.rmtree(root / "leftImg8bit")
    report = convert_cityscapes(root, tmp_path / "alone", nproc=1)
    assert documents(tmp_path / "alone") == documents(tmp_path / "both")
    assert beside_counts(report) == [
        f"{root}: has no leftImg8bit: sizes are those of the labels, and no image was looked at"
    ]
    archived(root / "gtFine", root / "gtFine_trainvaltest.zip")
    report = convert_cityscapes(root, tmp_path / "archive", nproc=1)
    assert documents(tmp_path / "archive") == documents(tmp_path / "both")


def test_a_folder_goes_before_archives(root, tmp_path):
    (root / "gtFine_trainvaltest.zip").write_bytes(b"half of a download")
    assert convert_cityscapes(root, tmp_path, nproc=1).splits[0].images == 4
    shutil.rmtree(root / "gtFine")
    with pytest.raises(ConversionError, match=r"gtFine_trainvaltest\.zip: is not a whole archive"):
        convert_cityscapes(root, tmp_path, nproc=1)


def test_an_archive_of_something_else_is_passed_over(root, tmp_path):
    shutil.copytree(root / "leftImg8bit", root / "leftImg8bit_blurred")
    archived(root / "leftImg8bit_blurred", root / "leftImg8bit_blurred.zip")
    archived(root / "leftImg8bit", root / "leftImg8bit_trainvaltest.zip")
    assert convert_cityscapes(root, tmp_path, nproc=1).splits[0].images == 4


def test_damage_in_an_archive_is_one_line(root, tmp_path):
    archived(root / "gtFine", root / "gtFine_trainvaltest.zip", zipfile.ZIP_STORED)
    path = root / "gtFine_trainvaltest.zip"
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConversionError) as caught:
        convert_cityscapes(root, tmp_path / "out", nproc=1)
    assert str(caught.value) == (
        f"{path}/gtFine/train/aachen/aachen_000003_000019_gtFine_instanceIds.png: is damaged: its bytes are not those "
        "that the archive was made of"
    )
    report = convert_cityscapes(root, tmp_path / "out", nproc=2, on_error="skip")
    assert (report.splits[0].images, report.skipped) == (3, [str(caught.value)])


def test_sizes_are_compared_in_archives_too(root, tmp_path):
    image = root / "leftImg8bit/val/ulm/ulm_000007_000019_leftImg8bit.png"
    Image.new("RGB", (33, 22)).save(image)
    archived(root / "leftImg8bit", root / "leftImg8bit_trainvaltest.zip")
    with pytest.raises(ConversionError, match=r"_instanceIds\.png: is 70x47, but its image .*\.zip/.* is 33x22"):
        convert_cityscapes(root, tmp_path / "out", nproc=1)


def coarse(root):
    """Renames the labels into coarse ones."""
    for path in sorted((root / "gtFine").rglob("*.png")):
        path.rename(path.with_name(path.name.replace("gtFine", "gtCoarse")))
    (root / "gtFine").rename(root / "gtCoarse")


def test_coarse_labels(root, tmp_path):
    convert_cityscapes(root, tmp_path / "fine", nproc=1)
    coarse(root)
    for part in ("gtCoarse", "leftImg8bit"):
        (root / part / "val").rename(root / part / "train_extra")
    report = convert_cityscapes(root, tmp_path / "coarse", labels="gtCoarse", nproc=1)
    assert [split.path.name for split in report.splits] == [
        NAME.format("gtCoarse", "train"),
        NAME.format("gtCoarse", "train_extra"),
    ]
    assert report.notes == [
        "the split train has 4 images; Cityscapes published 2975",
        "the split train_extra has 1 image; Cityscapes published 19998",
    ]
    fine, found = documents(tmp_path / "fine"), documents(tmp_path / "coarse")
    for split, of_fine in (("train", "train"), ("train_extra", "val")):
        one, other = found[NAME.format("gtCoarse", split)], fine[NAME.format("gtFine", of_fine)]
        assert one["annotations"] == other["annotations"]
        assert all(image["segm_file"].endswith("_gtCoarse_labelIds.png") for image in one["images"])

    with pytest.raises(
        ConversionError, match=r"no folder gtFine and no archive gtFine\*\.zip with one; it has gtCoarse: "
    ):
        convert_cityscapes(root, tmp_path / "out")


def test_published_numbers_are_not_remarked_upon(root, tmp_path, monkeypatch):
    monkeypatch.setattr("converters.cityscapes.convert.PUBLISHED", {"gtFine": {"train": 4, "val": 2}})
    assert convert_cityscapes(root, tmp_path, nproc=1).notes == ["the split val has 1 image; Cityscapes published 2"]


def test_cities_on_one_side_only_are_left_out(root, write_cityscapes, street, tmp_path):
    shutil.rmtree(root / "leftImg8bit/train/aachen")
    write_cityscapes({"train": {f"city{number}/a": None for number in range(6)}}, root)
    report = convert_cityscapes(root, tmp_path, nproc=1)
    assert beside_counts(report) == [
        "left out: 1 city (aachen) of the split train, without images",
        "left out: 6 cities (city0, city1, city2, city3, city4 ...) of the split train, without annotations",
    ]
    assert [image["file_name"] for image in documents(tmp_path)[NAME.format("gtFine", "train")]["images"]] == [
        f"zurich/zurich_{seed:06d}_000019_leftImg8bit.png" for seed in range(2)
    ]


def test_a_split_without_any_city_in_common_is_left_out(root, write_cityscapes, tmp_path):
    shutil.rmtree(root / "leftImg8bit/val/ulm")
    write_cityscapes({"val": {"bonn/a": None}}, root)
    line = "the split val has no city with both annotations and images"
    assert beside_counts(convert_cityscapes(root, tmp_path, nproc=1)) == [f"left out: {line}"]
    with pytest.raises(ConversionError, match=line):
        convert_cityscapes(root, tmp_path, splits=["val"])


def test_a_split_without_images_is_left_out(root, tmp_path):
    shutil.rmtree(root / "leftImg8bit/val")
    line = f"the split val has no images ({root}/leftImg8bit/val/*/*_leftImg8bit.png)"
    assert beside_counts(convert_cityscapes(root, tmp_path, nproc=1)) == [f"left out: {line}"]
    with pytest.raises(ConversionError) as caught:
        convert_cityscapes(root, tmp_path, splits=["val"])
    assert str(caught.value) == f"{root}: {line}"


def test_the_test_split_lists_its_images_if_it_is_named(root, write_cityscapes, tmp_path):
    write_cityscapes({"test": {"bonn/bonn_0": None, "bonn/bonn_1": None}}, root)
    assert [split.name for split in convert_cityscapes(root, tmp_path / "all", nproc=1).splits] == ["train", "val"]
    report = convert_cityscapes(root, tmp_path / "test", splits=["test"], nproc=1)
    document = documents(tmp_path / "test")[NAME.format("gtFine", "test")]
    assert document["images"] == [
        {"file_name": f"bonn/bonn_{number}_leftImg8bit.png", "height": 8, "width": 8, "id": number}
        for number in range(2)
    ]
    assert document["annotations"] == []
    assert len(document["categories"]) == 8
    (note,) = beside_counts(report)
    assert note.startswith("the split test has no annotations (")
    assert note.endswith("): its file lists images only")


def test_the_test_split_as_published_has_labels_without_objects(root, write_cityscapes, tmp_path):
    write_cityscapes({"test": {"bonn/bonn_0": np.full((6, 9), 3)}}, root)
    report = convert_cityscapes(root, tmp_path, nproc=1)
    assert (report.splits[2].name, report.splits[2].images, report.splits[2].instances) == ("test", 1, 0)


def test_classes_are_chosen(root, tmp_path):
    convert_cityscapes(root, tmp_path / "all", nproc=1)
    convert_cityscapes(root, tmp_path / "some", classes=["car", "person"], nproc=1)
    convert_cityscapes(root, tmp_path / "odd", classes=["caravan"], nproc=1)
    for name, document in documents(tmp_path / "some").items():
        assert document["categories"] == [{"id": 24, "name": "person"}, {"id": 26, "name": "car"}]
        complete = documents(tmp_path / "all")[name]
        kept = [a for a in complete["annotations"] if a["category_id"] in (24, 26)]
        assert len(kept) < len(complete["annotations"])
        assert [{**a, "id": 0} for a in document["annotations"]] == [{**a, "id": 0} for a in kept]
        assert document["images"] == complete["images"]
    odd = documents(tmp_path / "odd")[NAME.format("gtFine", "train")]  # told apart, but not evaluated
    assert odd["categories"] == [{"id": 29, "name": "caravan"}]
    assert {a["category_id"] for a in odd["annotations"]} == {29}
    with pytest.raises(ConversionError, match="no class road, cat in Cityscapes whose objects are told apart; "):
        convert_cityscapes(root, tmp_path, classes=["car", "road", "cat"])


def test_small_objects_are_left_out_and_counted(write_cityscapes, tmp_path):
    ids = np.full((10, 10), 7)
    ids[0, :5], ids[1, :6], ids[2, :2], ids[3, :1] = 24000, 24001, 24, 29000
    root = write_cityscapes({"val": {"x/x_0": ids}})
    report = convert_cityscapes(root, tmp_path, min_area=6, nproc=1)
    (document,) = documents(tmp_path).values()
    assert [(a["area"], a["iscrowd"]) for a in document["annotations"]] == [(2, 1), (6, 0)]
    assert beside_counts(report) == ["left out: 1 object of fewer than 6 pixels"]


@pytest.mark.parametrize("argument", [{"labels": "gtBbox"}, {"source": "masks"}, {"min_area": -1}])
def test_wrong_arguments_are_told(root, argument):
    with pytest.raises(ConversionError, match=r"labels, source and min_area are .*, expected one of gtFine, "):
        convert_cityscapes(root, **argument)


def test_dry_run_writes_nothing(root, tmp_path):
    report = convert_cityscapes(root, tmp_path / "out", dry_run=True)
    assert report.planned
    assert [(split.name, split.images, split.path.name) for split in report.splits] == [
        (split, count, NAME.format("gtFine", split)) for split, count in (("train", 4), ("val", 1))
    ]
    assert not (tmp_path / "out").exists()


def test_an_interrupted_conversion_goes_on(root, tmp_path, monkeypatch):
    expected = convert_cityscapes(root, tmp_path / "at once", nproc=1)
    broken = root / "gtFine/val/ulm/ulm_000007_000019_gtFine_instanceIds.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-30])
    output = tmp_path / "out"
    with pytest.raises(ConversionError, match="it ends in the middle"):
        convert_cityscapes(root, output, nproc=1, resume=True)
    assert [path.name for path in output.iterdir()] == [".cityscapes.resume"]

    converted = []

    def counting(pair, *, choices):
        converted.append(pair.key)
        return convert_pair(pair, choices=choices)

    monkeypatch.setattr("converters.cityscapes.convert.convert_pair", counting)
    with pytest.raises(ConversionError):  # other choices, other results
        convert_cityscapes(root, output, nproc=1, resume=True, min_area=3)
    assert len(converted) == 5
    converted.clear()
    broken.write_bytes(whole)
    convert_cityscapes(root, output, nproc=1, resume=True)
    assert converted == ["ulm/ulm_000007_000019"]
    assert documents(output) == documents(tmp_path / "at once")
    assert sorted(path.name for path in output.iterdir()) == [split.path.name for split in expected.splits]
