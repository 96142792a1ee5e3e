from __future__ import annotations

from pathlib import Path

import pytest

from dpipe.errors import InputError
from dpipe.files import check_writable, check_writable_file, named_folder, writable_folder, write_whole


@pytest.mark.parametrize("content", ["grün", "grün".encode()])
def test_a_file_is_written_and_replaced(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "a.txt"
    for _ in range(2):
        write_whole(path, content)
        assert path.read_text(encoding="utf-8") == "grün"
        assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def no_room(_: int) -> None:
        raise OSError(28, "No space left on device")  # which names no file

    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_told_under_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a.txt"
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(path, "new")
    assert caught.value.filename == str(path)


def test_a_folder_is_made_and_tried(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "deep" / "folder"):
        with pytest.raises(InputError, match=rf"^{tmp_path}/file: is a file, expected a folder to write to$"):
            check_writable(folder)


def test_an_empty_name_is_no_folder() -> None:
    assert named_folder("a") == Path("a")
    assert named_folder(Path()) == Path()
    with pytest.raises(InputError, match=r"^expected the name of a folder, got an empty text$"):
        named_folder("")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
@pytest.mark.parametrize("path", ["/proc", "/proc/x"])
def test_a_file_system_that_takes_nothing(path: str) -> None:
    with pytest.raises(InputError, match=rf"^{path}: cannot be written: (?!No such file)"):
        check_writable(Path(path))


def test_the_folder_of_a_file_is_made(tmp_path: Path) -> None:
    check_writable_file(tmp_path / "a" / "b" / "c.txt")
    assert not list((tmp_path / "a" / "b").iterdir())
    with pytest.raises(InputError, match=r"b: is a folder, expected the name of a file$"):
        check_writable_file(tmp_path / "a" / "b")


def test_a_folder_made_for_nothing_goes_again(tmp_path: Path) -> None:
    def fail_in(folder: Path, leaves: bool) -> None:
        with writable_folder(folder):
            assert folder.is_dir()
            if leaves:
                (folder / "e.txt").touch()
            raise ZeroDivisionError

    (tmp_path / "was there").mkdir()
    for name, leaves in (("a/b", False), ("was there", False), ("c/d", True)):
        with pytest.raises(ZeroDivisionError):
            fail_in(tmp_path / name, leaves)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "c",
        "c/d",
        "c/d/e.txt",
        "was there",
    ]
