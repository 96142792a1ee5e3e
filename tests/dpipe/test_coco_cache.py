from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.index import cache as cache_module
from dpipe.index import coco_cache
from dpipe.index.coco_cache import arrays_of
from dpipe.plan import SamplePlan


def document(images: int = 20) -> dict[str, Any]:
    """Images with polygons, run lengths, annotations without either, and some that get no row."""
    annotations: list[dict[str, Any]] = []
    for number in range(5 * images):
        record: dict[str, Any] = {
            "id": number,
            "image_id": number * 7 % images,
            "category_id": 2 - number % 2,
            "bbox": [1, 2, 0 if number % 11 == 0 else 30, 40],
            # Quarters of pixels: exact in every processor's arithmetic.
            "segmentation": [
                [(37 * number + 23 * part + 101 * place) % 240 / 4 for place in range(12)]
                for part in range(1 + number % 3)
            ],
        }
        if number % 5 == 0:
            record.update(iscrowd=1, area=7.5, segmentation={"size": [80, 90], "counts": [9, 300, 500, 60, 6331]})
        elif number % 7 == 0:
            del record["segmentation"]
        annotations.append(record)
    return {
        "images": [{"id": n, "file_name": f"größe/{n}.jpg", "height": 80, "width": 90} for n in range(images)],
        "annotations": annotations,
        "categories": [{"id": 2, "name": "car"}, {"id": 1, "name": "größer"}],
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder; files of any size are stored."""
    monkeypatch.setenv("DPIPE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(coco_cache, "SMALLEST_BYTES", 0)
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document()))
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose JSON was parsed."""
    parsed: list[Path] = []
    original = coco_cache.read_index

    def read_index(path: Path, data: bytes) -> CocoIndex:
        parsed.append(path)
        return original(path, data)

    monkeypatch.setattr(coco_cache, "read_index", read_index)
    return parsed


def assert_same(one: CocoIndex, other: CocoIndex) -> None:
    assert len(one) == len(other) == 20
    assert (one.path, one.class_names, one.left_out) == (other.path, other.class_names, other.left_out)
    assert list(one.file_names) == list(other.file_names)
    arrays = arrays_of(other)
    for name, array in arrays_of(one).items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def the_entry(folder: Path) -> Path:
    (entry,) = folder.glob("*.arrays")
    return entry


def test_the_second_load_is_the_first_one_mapped(folder: Path, path: Path, reads: list[Path]) -> None:
    expected = CocoIndex.load(path, cache=False)
    assert not folder.exists()
    assert expected.mapped is None
    for _ in range(3):
        index = CocoIndex.load(path)
        assert_same(index, expected)
        assert index.mapped is not None
        assert index.mapped.path == the_entry(folder)
        for array in arrays_of(index).values():
            assert not array.flags.writeable
    assert reads == [path]
    assert sorted(file.suffix for file in folder.iterdir()) == ["", ".arrays", ".known"]


def test_a_file_at_rest_is_not_even_read(
    folder: Path, path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "AT_REST_NS", -(10**10))
    CocoIndex.load(path)
    monkeypatch.setattr(coco_cache, "read_content", lambda _: pytest.fail("was read"))
    CocoIndex.load(path)
    assert reads == [path]


@pytest.mark.parametrize("at_rest", [True, False])
def test_a_changed_file_is_read_again(folder: Path, path: Path, at_rest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text()
    if at_rest:
        monkeypatch.setattr(cache_module, "AT_REST_NS", -(10**10))
    state = path.stat()
    assert CocoIndex.load(path).boxes[0, 2] == 31
    for number in range(2):
        # Of the same size and time of modification, and in the first round within a tick of the clock.
        path.write_text(text.replace("30, 40]", f"3{number + 1}, 40]"))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        if at_rest and path.stat().st_ctime_ns == state.st_ctime_ns:
            pytest.skip("too quick for this file system's clock")
        assert CocoIndex.load(path).boxes[0, 2] == 32 + number


def test_copies_and_touched_files_find_the_arrays(folder: Path, path: Path, reads: list[Path]) -> None:
    CocoIndex.load(path)
    copied = path.with_name("copied.json")
    shutil.copy(path, copied)
    index = CocoIndex.load(copied)
    assert index.path == copied
    os.utime(path, ns=(5, 5))
    CocoIndex.load(path)
    assert reads == [path]


def test_small_files_are_not_stored(folder: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_cache, "SMALLEST_BYTES", path.stat().st_size + 1)
    CocoIndex.load(path)
    assert not folder.exists()


def test_an_empty_variable_switches_it_off(folder: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPIPE_CACHE_DIR", "")
    assert CocoIndex.load(path).mapped is None
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_done_without(
    folder: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("no folder")
    with caplog.at_level(logging.DEBUG, logger="dpipe"):
        assert_same(CocoIndex.load(path), CocoIndex.load(path, cache=False))
    assert "is not stored" in caplog.text


def test_a_full_disk_leaves_nothing_behind(folder: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_room)
    assert_same(CocoIndex.load(path), CocoIndex.load(path, cache=False))
    assert [file.name for file in folder.iterdir()] == ["lock"]


def test_classes_are_checked_each_time(folder: Path, path: Path) -> None:
    for _ in range(2):
        CocoIndex.load(path, classes=["car", "größer"])
        with pytest.raises(InputError, match="has the classes"):
            CocoIndex.load(path, classes=["größer", "car"])


def test_mistakes_are_told_and_not_stored(folder: Path, path: Path) -> None:
    data = document()
    data["annotations"][7]["bbox"] = [1, 2, 3]
    path.write_text(json.dumps(data))
    for _ in range(2):
        with pytest.raises(InputError, match="annotation 7: 'bbox' is"):
            CocoIndex.load(path)
    assert not list(folder.glob("*.arrays"))
    path.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        CocoIndex.load(path)


@pytest.mark.parametrize("damage", ["shorter", "longer", "header", "array", "empty", "other arrays"])
def test_damaged_entries_are_made_anew(folder: Path, path: Path, damage: str, reads: list[Path]) -> None:
    CocoIndex.load(path)
    entry = the_entry(folder)
    data = entry.read_bytes()
    names = CocoIndex.load(path).file_names
    if damage == "other arrays":
        coco_cache.write_arrays(entry, {"boxes": np.zeros(3)}, {})
    else:
        blob = data.index(names.data.tobytes())  # type: ignore[attr-defined]
        entry.write_bytes(
            {
                "shorter": data[:-64],
                "longer": data + bytes(64),
                "header": data[:40] + bytes([data[40] ^ 1]) + data[41:],
                "array": data[:blob] + b"X" + data[blob + 1 :],
                "empty": b"",
            }[damage]
        )
    expected = CocoIndex.load(path, cache=False)
    assert_same(CocoIndex.load(path), expected)
    assert reads == [path, path]
    assert the_entry(folder).read_bytes() == data
    assert_same(CocoIndex.load(path), expected)
    assert reads == [path, path]


PROCESS = """
import sys, time
from pathlib import Path
from dpipe.index import coco_cache
from dpipe.coco import CocoIndex

original = coco_cache.read_index

def read_index(path, data):
    print("read", flush=True)
    time.sleep(0.5)
    return original(path, data)

coco_cache.SMALLEST_BYTES = 0
coco_cache.read_index = read_index
print("ready", flush=True)
sys.stdin.readline()
index = CocoIndex.load(sys.argv[1])
print(len(index), index.boxes.sum(), index.mapped.path)
"""


def test_of_processes_that_start_together_one_reads(folder: Path, path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = [process.communicate("\n", timeout=60)[0].splitlines() for process in _told_to_go(processes)]
    assert all(process.returncode == 0 for process in processes)
    expected = CocoIndex.load(path, cache=False)
    assert {lines[-1] for lines in outputs} == {f"20 {expected.boxes.sum()} {the_entry(folder)}"}
    assert sum(lines.count("read") for lines in outputs) == 1


def _told_to_go(processes: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def test_a_pickled_index_is_mapped_again(folder: Path, path: Path) -> None:
    index = CocoIndex.load(path)
    data = pickle.dumps(index)
    assert len(data) < 2000
    restored = pickle.loads(data)
    assert_same(restored, index)
    assert restored.mapped is not None
    assert_same(copy.deepcopy(index), index)
    assert CocoIndex.load(path, cache=False).mapped is None


def test_an_index_in_memory_is_pickled_whole(path: Path) -> None:
    index = CocoIndex.load(path, cache=False)
    path.unlink()
    assert_same(pickle.loads(pickle.dumps(index)), index)


def test_arrays_that_were_exchanged_are_pickled(folder: Path, path: Path) -> None:
    index = CocoIndex.load(path)
    changed = dataclasses.replace(
        index, labels=1 - index.labels, class_names=("a", "b"), file_names=[f"{number}.png" for number in range(20)]
    )
    restored = pickle.loads(pickle.dumps(changed))
    assert_same(restored, changed)
    assert restored.boxes.base is not None
    assert not restored.boxes.flags.writeable


def test_a_pickled_index_outlives_its_stored_arrays(folder: Path, path: Path) -> None:
    index = CocoIndex.load(path)
    data = pickle.dumps(index)
    shutil.rmtree(folder)
    assert_same(index, pickle.loads(data))
    path.write_text(path.read_text().replace("car", "bus"))
    with pytest.raises(InputError, match="has changed since"):
        pickle.loads(data)


def test_samples_are_views_of_the_mapped_arrays(folder: Path, path: Path) -> None:
    from dpipe.target import make_target

    stored, expected = CocoIndex.load(path), CocoIndex.load(path, cache=False)
    for image in range(len(stored)):
        rows = slice(int(stored.offsets[image]), int(stored.offsets[image + 1]))
        chosen = stored.polygons.select(rows)
        assert np.shares_memory(chosen.vertices, stored.polygons.vertices) or not len(chosen.vertices)
        plan = SamplePlan(sample=image, image=image, epoch=0, source_size=(80, 90), size=(80, 90), matrix=np.eye(2, 3))
        one, other = make_target(stored, plan), make_target(expected, plan)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        one.labels += 1  # their own, whatever they come from
        one.boxes += 1


def test_what_is_stored_is_numbered(folder: Path, path: Path) -> None:
    # Fails when something else is read from the same file: count up coco_cache.KIND then, so that no arrays of before
    # are taken for those of now, and put the new checksum here.
    sums = {name: zlib.crc32(np.ascontiguousarray(array)) for name, array in arrays_of(CocoIndex.load(path)).items()}
    assert (coco_cache.KIND, zlib.crc32(json.dumps(sums, sort_keys=True).encode())) == ("coco-1", 4139867629)
