from __future__ import annotations

import os

import pytest

from converters.running.journal import Journal


@pytest.fixture
def files(tmp_path):
    """Three files of four bytes, and what was made of them."""
    found = {str(tmp_path / name): {"of": name} for name in "abc"}
    for name in found:
        with open(name, "w") as file:
            file.write("data")
        os.utime(name, ns=(0, 0))
    return found


def journal(tmp_path, options="options"):
    return Journal(tmp_path / "journal", options, lambda name: [name], dict)


def known(tmp_path, files, **options):
    with journal(tmp_path, **options) as kept:
        return [kept.known(name) == files[name] for name in files]


@pytest.fixture
def size(tmp_path, files):
    """The bytes of the journal with all results, each of which has as many."""
    with journal(tmp_path) as kept:
        kept.keep(list(files.items()))
    assert known(tmp_path, files) == [True, True, True]
    return (tmp_path / "journal").stat().st_size


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_file_that_changed_has_no_result(tmp_path, files, size, change):
    name = list(files)[1]
    if change == "size":
        with open(name, "a") as file:
            file.write("more")
        os.utime(name, ns=(0, 0))
    else:
        os.utime(name, ns=(0, 1000))
    assert known(tmp_path, files) == [True, False, True]


def test_other_options_have_no_results(tmp_path, files, size):
    assert known(tmp_path, files, options="others") == [False, False, False]


@pytest.mark.parametrize("damage", ["cut short", "changed"])
def test_what_is_damaged_is_done_anew_and_kept(tmp_path, files, size, damage):
    path = tmp_path / "journal"
    data = bytearray(path.read_bytes())
    if damage == "cut short":
        del data[-1:]
    else:
        data[-1] ^= 1
    path.write_bytes(data)
    assert known(tmp_path, files) == [True, True, False]
    last = list(files)[2]
    with journal(tmp_path) as kept:
        kept.keep([(last, files[last])])
    assert path.stat().st_size == size
    assert known(tmp_path, files) == [True, True, True]
