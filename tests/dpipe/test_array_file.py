from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpipe.index import array_file
from dpipe.index.array_file import DamagedError, map_arrays, write_arrays


def arrays() -> dict[str, np.ndarray]:
    return {
        "numbers": np.arange(50, dtype=np.float32).reshape(25, 2),
        "nothing": np.zeros((0, 4), dtype=np.float64),
        "every other": np.arange(20, dtype=np.int64)[::2],
        "flags": np.array([True, False, True]),
        "bytes": np.frombuffer(b"abc", dtype=np.uint8),
        "last": np.zeros((0, 2), dtype=np.int32),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.arrays"
    write_arrays(path, arrays(), {"names": ["ä"]})
    return path


def assert_whole(mapped: Any) -> None:
    assert mapped.meta == {"names": ["ä"]}
    assert list(mapped.arrays) == list(arrays())
    for name, array in arrays().items():
        assert mapped.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(mapped.arrays[name], array)


def test_arrays_come_back_aligned_and_read_only(path: Path) -> None:
    mapped = map_arrays(path)
    assert_whole(mapped)
    assert mapped.path == path
    for array in mapped.arrays.values():
        assert not array.flags.writeable
        assert array.size == 0 or array.ctypes.data % 64 == 0
    assert [file.name for file in path.parent.iterdir()] == ["a.arrays"]


def test_nothing_can_be_written(tmp_path: Path) -> None:
    write_arrays(tmp_path / "empty", {}, {})
    assert map_arrays(tmp_path / "empty").arrays == {}


def test_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'names' is of type object"):
        write_arrays(tmp_path / "x", {"names": np.array([object()])}, {})


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        map_arrays(tmp_path / "x")


def test_every_shorter_or_longer_file_is_damaged(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            map_arrays(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedError):
        map_arrays(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(place=st.integers(0, 2000), value=st.integers(1, 255))
def test_a_changed_byte_is_found(path: Path, place: int, value: int) -> None:
    write_arrays(path, arrays(), {"names": ["ä"]})
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= value
    path.write_bytes(data)
    try:
        mapped = map_arrays(path)
    except DamagedError:
        return
    assert_whole(mapped)  # it was in the space between arrays


@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04" * 100, b"\x93NUMPY" + bytes(200), bytes(4096)])
def test_files_of_others_are_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        map_arrays(path)


@pytest.mark.parametrize(
    "header", [b"[]", b"{}", b"7", b'{"bytes": 0}', b'{"bytes": 0, "arrays": [], "meta": {}}', b'{"bytes": "x"}']
)
def test_headers_of_others_are_damaged(path: Path, header: bytes) -> None:
    checksum = array_file.zlib.crc32(header).to_bytes(4, "little")
    text = array_file.MAGIC + len(header).to_bytes(8, "little") + checksum + header
    path.write_bytes(text.ljust(array_file._aligned(len(text)), b"\0"))
    with pytest.raises(DamagedError):
        map_arrays(path)


def test_only_small_arrays_are_summed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_file, "CHECKED_BYTES", 100)
    write_arrays(path, arrays(), {"names": ["ä"]})
    data = path.read_bytes()
    path.write_bytes(data.replace(np.float32(7).tobytes(), np.float32(8).tobytes()))
    assert map_arrays(path).arrays["numbers"][3, 1] == 8
    path.write_bytes(data.replace(b"abc", b"abd"))
    with pytest.raises(DamagedError, match="damaged array"):
        map_arrays(path)


def test_a_disk_that_fails_while_the_rest_is_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail_once(file: int) -> None:
        calls.append(file)
        if len(calls) == 1:  # Linux tells of an error once
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(array_file, "FLUSH_BYTES", 64)
    monkeypatch.setattr("os.fsync", fail_once)
    with pytest.raises(OSError, match="Input/output error"):
        write_arrays(tmp_path / "a", arrays(), {})
    assert not list(tmp_path.iterdir())


def test_arrays_that_are_flushed_in_parts_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_file, "FLUSH_BYTES", 7)
    monkeypatch.setattr(array_file, "PIECE_BYTES", 3)
    write_arrays(tmp_path / "a", arrays(), {"names": ["ä"]})
    assert_whole(map_arrays(tmp_path / "a"))
