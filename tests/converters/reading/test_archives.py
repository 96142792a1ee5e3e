from __future__ import annotations

import io
import pickle
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from converters.errors import ConversionError
from converters.reading import archives
from converters.reading.archives import ArchivePath, open_place
from converters.reading.folders import entries, is_folder

FILES = {
    "gt/train/a/one.txt": b"one " * 1000,
    "gt/train/a/two.txt": b"",
    "gt/train/b/three.txt": bytes(range(256)),
    "read me.txt": "Straße\r\n".encode(),
}


def write_zip(path, files=FILES, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def write_tar(path, files=FILES, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=form) as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def write_folder(path):
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


WRITERS = {
    "deflated.zip": write_zip,
    "stored.zip": lambda path: write_zip(path, method=zipfile.ZIP_STORED),
    "prefixed.zip": lambda path: prefixed(write_zip(path)),
    "pax.tar": write_tar,
    "gnu.tar": lambda path: write_tar(path, form=tarfile.GNU_FORMAT),
    "made of a point.tar": lambda path: write_tar(path, {f"./{name}": data for name, data in FILES.items()}),
}


def prefixed(path):
    path.write_bytes(b"#! some program that unpacks itself\n" + path.read_bytes())
    return path


@pytest.fixture(params=list(WRITERS))
def archive(request, tmp_path):
    return WRITERS[request.param](tmp_path / request.param)


def tree(place):
    """All files below a place, as text relative to it, and their bytes."""
    found = {}
    for path in entries(place):
        if is_folder(path):
            found.update({f"{path.name}/{name}": data for name, data in tree(path).items()})
        else:
            found[path.name] = path.read_bytes()
    return found


def test_an_archive_holds_what_the_folder_holds(archive, tmp_path):
    place = open_place(archive)
    assert tree(place) == FILES == tree(write_folder(tmp_path / "folder"))
    assert [path.name for path in entries(place / "gt" / "train")] == ["a", "b"]
    assert entries(place / "gt" / "nowhere") == []


def test_paths_are_those_of_pathlib(archive):
    path = open_place(archive) / "gt" / "train" / "a" / "one.txt"
    assert str(path) == f"{archive}/gt/train/a/one.txt"
    assert (path.name, path.stem, path.suffix, path.parent.name) == ("one.txt", "one", ".txt", "a")
    assert path.relative_to(open_place(archive) / "gt").as_posix() == "train/a/one.txt"
    assert path.relative_to(open_place(archive)).as_posix() == "gt/train/a/one.txt"
    assert (path.is_file(), path.is_dir(), path.exists()) == (True, False, True)
    assert (path.parent.is_file(), path.parent.is_dir(), path.parent.exists()) == (False, True, True)
    missing = path.parent / "four.txt"
    assert (missing.is_file(), missing.is_dir(), missing.exists()) == (False, False, False)
    with pytest.raises(FileNotFoundError):
        missing.read_bytes()
    assert (open_place(archive) / "read me.txt").read_text() == "Straße\n"


def test_the_beginning_of_a_file_is_read_alone(archive):
    path = open_place(archive) / "gt/train/a/one.txt"
    assert path.read_bytes(limit=6) == b"one on"
    assert path.read_bytes(limit=10**6) == FILES["gt/train/a/one.txt"]
    assert path.read_bytes(limit=0) == b""


def test_another_process_reads_a_file_without_listing_the_archive(archive, monkeypatch):
    path = pickle.loads(pickle.dumps(open_place(archive) / "gt/train/b/three.txt"))
    monkeypatch.setattr(archives, "_contents_of", lambda archive: pytest.fail("the archive was listed again"))
    assert path.is_file()
    assert path.read_bytes() == FILES["gt/train/b/three.txt"]


def test_an_archive_that_changed_is_listed_again(tmp_path):
    path = write_zip(tmp_path / "x.zip")
    assert tree(open_place(path)) == FILES
    write_zip(path, {"only": b"1"})
    assert tree(open_place(path)) == {"only": b"1"}


def test_a_folder_is_itself(tmp_path):
    assert open_place(tmp_path) == tmp_path
    folder = tmp_path / "folder.zip"
    folder.mkdir()
    assert open_place(folder) == folder


@pytest.mark.parametrize(
    "name", ["../evil", "gt/../../evil", "/etc/evil", "..\\evil", "C:/evil", "gt/..", "C:\\evil", "gt//../../evil"]
)
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_names_that_lead_out_are_refused(tmp_path, write, name):
    path = write(tmp_path / ("x.zip" if write is write_zip else "x.tar"), {"fine": b"1", name: b"2"})
    with pytest.raises(ConversionError, match="which would lie outside the archive; refused"):
        open_place(path)


def test_links_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, str(tmp_path / "secret"))
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret")
            file.addfile(info)
    for path in (tmp_path / "x.zip", tmp_path / "x.tar"):
        for member in entries(open_place(path)):
            with pytest.raises(ConversionError, match="is a link"):
                member.read_bytes()


def test_a_file_with_holes_is_not_read_as_if_it_had_none(tmp_path):
    """A tar keeps only what is between the holes."""
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("sparse")
        info.size = 4
        info.pax_headers = {"GNU.sparse.map": "1000,4", "GNU.sparse.size": "1004"}
        file.addfile(info, io.BytesIO(b"data"))
    with pytest.raises(ConversionError, match=r"sparse: is a link or no plain file; not followed$"):
        (open_place(tmp_path / "x.tar") / "sparse").read_bytes()


def test_an_archive_that_became_shorter_is_damaged(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"name": b"data"})
    member = open_place(path) / "name"
    path.write_bytes(path.read_bytes()[: member.member.offset + 2])
    with pytest.raises(ConversionError, match=r"name: is damaged: "):
        member.read_bytes()


def test_a_file_that_unpacks_to_more_than_its_list_says_is_refused(tmp_path):
    """Also where the checksum is that of what it says."""
    path = write_zip(tmp_path / "x.zip", {"name": b"data" * 100})
    damaged_size(path, b"name", 4)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 16 : at + 20] = struct.pack("<I", zlib.crc32(b"data"))
    path.write_bytes(data)
    with pytest.raises(ConversionError, match=r"name: is damaged: "):
        (open_place(path) / "name").read_bytes()


def damaged_size(path, name, size):
    """Writes another unpacked size into a zip's list of contents."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    assert data[at + 46 : at + 46 + len(name)] == name
    data[at + 24 : at + 28] = struct.pack("<I", size)
    path.write_bytes(data)


def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_FILE", 1 << 20)
    path = write_zip(tmp_path / "honest.zip", {"bomb": bytes(1 << 21)})
    with pytest.raises(ConversionError, match=r"bomb: unpacks to 2097152 bytes, expected at most 1 MiB in a file; re"):
        (open_place(path) / "bomb").read_bytes()

    unpacked = []
    decompressobj = zlib.decompressobj

    class Watched:
        def __init__(self, bits):
            self.inner = decompressobj(bits)

        def decompress(self, data, limit):
            unpacked.append(limit)
            return self.inner.decompress(data, limit)

    monkeypatch.setattr(archives.zlib, "decompressobj", Watched)
    damaged_size(path, b"bomb", 1000)
    with pytest.raises(ConversionError, match="bomb: is damaged"):
        (open_place(path) / "bomb").read_bytes()
    assert unpacked == [1001]


def test_damage_is_told(tmp_path):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = write_zip(tmp_path / "x.zip", {"a": bytes(range(256)) * 40}, method)
        whole = path.read_bytes()
        for at in (0, 5, 28, 33, 60, 100, 200):  # the header's signature and lengths, and the data
            data = bytearray(whole)
            data[at] ^= 0x55
            path.write_bytes(data)
            if at == 5:  # a field that nothing depends on
                continue
            with pytest.raises(ConversionError, match="a: is damaged: its bytes are not those"):
                (open_place(path) / "a").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_an_incomplete_archive_is_one_line(tmp_path, write, share):
    path = write(tmp_path / ("x.zip" if write is write_zip else "x.tar"), {"a": bytes(1 << 16)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ConversionError, match=r"is not a whole archive \(.*\); incomplete download"):
        open_place(path)


def test_a_tar_that_is_cut_between_its_files_is_incomplete(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a": bytes(512), "b": bytes(700)})
    whole = path.read_bytes()
    for end in (512, 1024, 1024 + 200, 1536, 1536 + 700, 2560, 2560 + 511):
        path.write_bytes(whole[:end])
        with pytest.raises(ConversionError, match="is not a whole archive"):
            open_place(path)
    path.write_bytes(whole[: 2560 + 512])
    assert set(tree(open_place(path))) == {"a", "b"}


def test_what_cannot_be_read_in_place_is_told(tmp_path):
    with pytest.raises(ConversionError, match=r"x\.zip: is missing"):
        open_place(tmp_path / "x.zip")
    (tmp_path / "x.tar.gz").write_bytes(b"anything")
    with pytest.raises(ConversionError, match=r"x\.tar\.gz: is compressed as a whole"):
        open_place(tmp_path / "x.tar.gz")
    write_zip(tmp_path / "x.zip", {"a": b"1" * 99}, zipfile.ZIP_BZIP2)
    with pytest.raises(ConversionError, match="a: is packed by method 12"):
        (open_place(tmp_path / "x.zip") / "a").read_bytes()
    data = bytearray(write_zip(tmp_path / "x.zip", {"a": b"1"}).read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + flags] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(ConversionError, match="a: is encrypted"):
        (open_place(tmp_path / "x.zip") / "a").read_bytes()


def test_paths_of_archives_compare_by_place():
    one = ArchivePath("x.zip", "a")
    assert one == ArchivePath("x.zip", "a", archives.Member(0, 1, 1))
    assert len({one, ArchivePath("x.zip", "a"), ArchivePath("y.zip", "a")}) == 2
    assert Path("x.zip/a") != one
