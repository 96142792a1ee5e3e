from __future__ import annotations

import os

import orjson
import pytest

from converters.errors import ConversionError
from converters.writing.coco_json import Document, encode_record, writable_folder, write_documents


@pytest.fixture
def document(tmp_path):
    def make(name="out", records=(), categories=(), first_image_id=1):
        return Document(name, tmp_path / f"{name}.json", list(records), list(categories), first_image_id)

    return make


@pytest.mark.parametrize("first", [0, 1])
def test_ids_of_images_count_from_the_first_and_those_of_annotations_from_1(document, first):
    records = [encode_record({"file_name": name}, [{"area": 1}, {"area": 2}]) for name in "ab"]
    made = document(records=records, categories=[{"id": 3, "name": "x"}], first_image_id=first)
    write_documents([made])
    assert orjson.loads(made.path.read_bytes()) == {
        "images": [{"file_name": "a", "id": first}, {"file_name": "b", "id": first + 1}],
        "categories": [{"id": 3, "name": "x"}],
        "annotations": [
            {"area": 1, "image_id": first, "id": 1},
            {"area": 2, "image_id": first, "id": 2},
            {"area": 1, "image_id": first + 1, "id": 3},
            {"area": 2, "image_id": first + 1, "id": 4},
        ],
    }


def test_names_of_classes_become_ids(document):
    records = [encode_record({"file_name": "a"}, [{"area": 1}, {"area": 2}], ["dog", "cat"])]
    made = document(records=records, categories=[{"id": 4, "name": "cat"}, {"id": 7, "name": "dog"}])
    write_documents([made])
    annotations = orjson.loads(made.path.read_bytes())["annotations"]
    assert [annotation["category_id"] for annotation in annotations] == [7, 4]


@pytest.mark.parametrize("pieces", [1, 2, 3, 1000])
def test_files_are_the_same_however_many_annotations_are_written_at_a_time(document, monkeypatch, pieces):
    # Images without annotations at the beginning, in the middle and at the end of a piece.
    counts = (0, 0, 2, 0, 1, 0, 0)
    records = [encode_record({"file_name": str(n)}, [{"area": n}] * count) for n, count in enumerate(counts)]
    monkeypatch.setattr("converters.writing.coco_json.ANNOTATIONS_PER_WRITE", pieces)
    made = document(records=records)
    write_documents([made])
    images = [{"file_name": str(n), "id": 1 + n} for n in range(len(counts))]
    annotations = [{"area": n, "image_id": 1 + n, "id": 1 + i} for i, n in enumerate((2, 2, 4))]
    expected = {"images": images, "categories": [], "annotations": annotations}
    assert made.path.read_bytes() == orjson.dumps(expected)


def test_summary_counts_what_is_written(document):
    records = [
        encode_record({}, [{"iscrowd": 1, "segmentation": []}, {"iscrowd": 0, "ignore": 1}]),
        encode_record({}, [{"iscrowd": 0}]),
    ]
    summary = document("val", records, [{"id": 1, "name": "x"}]).summary()
    assert (summary.name, summary.images, summary.instances, summary.categories) == ("val", 2, 3, 1)
    assert (summary.crowd, summary.ignored, summary.masks) == (1, 1, 1)


def test_write_replaces_the_file_and_says_so(tmp_path, document):
    (tmp_path / "out.json").write_text("old")
    lines = write_documents([document(), document("new")])
    assert lines == [f"{tmp_path / 'out.json'}: was there before, and has been replaced"]
    assert orjson.loads((tmp_path / "out.json").read_bytes())["images"] == []
    assert sorted(os.listdir(tmp_path)) == ["new.json", "out.json"]


def test_written_file_has_the_usual_permissions(tmp_path, document):
    (tmp_path / "plain").touch()
    write_documents([document()])
    assert (tmp_path / "out.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(28, "No space left on device"), ConversionError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_interrupted_write_leaves_the_old_file(tmp_path, document, monkeypatch, failing, error, expected):
    def fail(*arguments):
        raise error

    path = tmp_path / "out.json"
    path.write_text("old")
    monkeypatch.setattr(failing, fail)
    with pytest.raises(expected) as caught:
        write_documents([document()])
    if expected is ConversionError:
        assert str(caught.value) == f"{path}: cannot be written (No space left on device)"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.json"]


def test_a_disk_that_is_full_for_the_second_file_leaves_the_first_as_it_was(tmp_path, document, monkeypatch):
    (tmp_path / "train.json").write_text("old")
    calls = iter([None, OSError(28, "No space left on device")])

    def sync(descriptor):
        if (error := next(calls)) is not None:
            raise error

    monkeypatch.setattr("os.fsync", sync)
    with pytest.raises(ConversionError, match=r"val\.json: cannot be written"):
        write_documents([document("train"), document("val")])
    assert (tmp_path / "train.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["train.json"]


def test_writable_folder_is_created_and_kept_on_success(tmp_path):
    folder = tmp_path / "a" / "b"
    with writable_folder(folder, ["out.json"]):
        assert os.listdir(folder) == []
    assert folder.is_dir()


def test_writable_folder_takes_away_what_it_created_on_failure(tmp_path):
    def work():
        with writable_folder(tmp_path / "a" / "b", []):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert os.listdir(tmp_path) == []


def test_writable_folder_keeps_what_was_there(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "keep").touch()

    def work():
        with writable_folder(tmp_path / "a", []):
            raise ConversionError("x")

    with pytest.raises(ConversionError, match="x"):
        work()
    assert os.listdir(tmp_path / "a") == ["keep"]


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(ConversionError, match="cannot be used as the output folder"), writable_folder(folder, []):
            pytest.fail("the work began")


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "out.json").mkdir()
    with pytest.raises(ConversionError, match=r"out\.json: is a folder"), writable_folder(tmp_path, ["out.json"]):
        pytest.fail("the work began")
