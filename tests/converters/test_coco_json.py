from __future__ import annotations

import os

import orjson
import pytest

from converters.coco_json import ImageRecord, make_document, writable_folder, write_json
from converters.errors import ConversionError


def test_ids_count_up_and_records_stay_as_they_are():
    records = [ImageRecord({"file_name": name}, [{"area": 1}, {"area": 2}]) for name in "ab"]
    document = make_document(records, [{"id": 3, "name": "x"}], first_image_id=1)
    assert [image["id"] for image in document["images"]] == [1, 2]
    assert [(a["image_id"], a["id"]) for a in document["annotations"]] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    document = make_document(records, [{"id": 3, "name": "x"}], first_image_id=0)
    assert [image["id"] for image in document["images"]] == [0, 1]
    assert [(a["image_id"], a["id"]) for a in document["annotations"]] == [(0, 1), (0, 2), (1, 3), (1, 4)]
    assert records[0].annotations == [{"area": 1}, {"area": 2}]


def test_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    write_json(path, {"images": []})
    assert orjson.loads(path.read_bytes()) == {"images": []}
    assert os.listdir(tmp_path) == ["out.json"]


def test_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "out.json", {})
    assert (tmp_path / "out.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(28, "No space left on device"), ConversionError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, failing, error, expected):
    def fail(*arguments):
        raise error

    path = tmp_path / "out.json"
    path.write_text("old")
    monkeypatch.setattr(failing, fail)
    with pytest.raises(expected) as caught:
        write_json(path, {"images": []})
    if expected is ConversionError:
        assert str(caught.value) == f"{path}: cannot be written (No space left on device)"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.json"]


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
