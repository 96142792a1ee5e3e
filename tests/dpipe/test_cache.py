from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from dpipe.index import cache as cache_module
from dpipe.index.cache import Cache, cache_folder, looks_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source.json"
    source.write_text("one")
    return source


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    with Cache(tmp_path / "cache", "kind-1").alone():
        return Cache(tmp_path / "cache", "kind-1")


def later(seconds: float = 10) -> int:
    """A time at which files written now are at rest."""
    return time.time_ns() + int(seconds * 1e9)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DPIPE_CACHE_DIR": "/x"}, "/x"),
        ({"DPIPE_CACHE_DIR": "~/x"}, "/home/me/x"),
        ({"DPIPE_CACHE_DIR": "", "XDG_CACHE_HOME": "/y"}, None),
        ({"XDG_CACHE_HOME": "/y"}, "/y/dpipe"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/dpipe"),
        ({}, "/home/me/.cache/dpipe"),
    ],
)
def test_the_folder(variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DPIPE_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == (None if expected is None else Path(expected))


def test_a_file_at_rest_is_known(source: Path, cache: Cache) -> None:
    assert cache.known_digest(source) is None
    cache.remember(source, looks_of(source), "abc", later())
    assert cache.known_digest(source) == "abc"
    source.symlink_to(shutil.move(source, source.with_name("moved.json")))
    assert cache.known_digest(source) is None


def test_a_file_that_was_just_written_is_not_known(source: Path, cache: Cache) -> None:
    read_ns = time.time_ns()
    cache.remember(source, looks_of(source), "abc", read_ns)
    assert cache.known_digest(source) is None
    assert cache.known_digest(source, since_ns=read_ns - 1) == "abc"
    assert cache.known_digest(source, since_ns=read_ns + 1) is None


def test_a_time_in_the_future_is_never_at_rest(source: Path, cache: Cache) -> None:
    os.utime(source, ns=(later(1000), later(1000)))
    cache.remember(source, looks_of(source), "abc", later())
    assert cache.known_digest(source) is None


def test_a_change_is_seen_even_if_the_time_of_modification_is_set_back(source: Path, cache: Cache) -> None:
    state = source.stat()
    cache.remember(source, looks_of(source), "abc", later())
    time.sleep(0.02)  # beyond a tick of the file system's clock
    source.write_text("two")
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert source.stat().st_mtime_ns == state.st_mtime_ns
    assert cache.known_digest(source) is None


def test_another_file_in_its_place_is_seen(source: Path, cache: Cache) -> None:
    cache.remember(source, looks_of(source), "abc", later())
    copy = source.with_name("copy")
    shutil.copy2(source, copy)
    copy.replace(source)
    assert cache.known_digest(source) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"looks": 5, "read_ns": 1, "digest": "x"}', "\0" * 50, "[" * 10])
def test_records_of_others_are_ignored(source: Path, cache: Cache, content: str) -> None:
    cache.remember(source, looks_of(source), "abc", later())
    (record,) = cache.folder.glob("*.known")
    record.write_text(content)
    assert cache.known_digest(source) is None


def fill(cache: Cache, name: str, size: int, age: float) -> Path:
    path = cache.folder / name
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_sweeping_keeps_what_is_used(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "KEPT_BYTES", 100)
    day = 86_400
    kept = [
        fill(cache, "kind-1-1-a.arrays", 30, 100 * day),  # just stored
        fill(cache, "kind-1-2-b.arrays", 30, 2),
        fill(cache, "kind-0-2-b.arrays", 30, 3),
        fill(cache, "a.known", 5, 59 * day),
        fill(cache, ".kind-1-3-d.arrays-5-aa", 500, 3600),  # being written
        fill(cache, "readme.txt", 500, 100 * day),
    ]
    removed = [
        fill(cache, "kind-1-2-c.arrays", 30, 4),
        fill(cache, "kind-0-9-c.arrays", 30, 61 * day),
        fill(cache, "b.known", 5, 61 * day),
        fill(cache, ".kind-1-3-e.arrays-5-aa", 500, 2 * day),  # of a crash
    ]
    cache.sweep(kept[0])
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in removed)


def test_use_makes_a_result_young(cache: Cache) -> None:
    path = fill(cache, "kind-1-1-a.arrays", 5, 1000)
    cache.use(path)
    assert time.time() - path.stat().st_mtime < 500
    cache.use(cache.folder / "missing")


def test_the_folder_is_the_users_own(cache: Cache) -> None:
    assert cache.folder.stat().st_mode & 0o777 == 0o700
