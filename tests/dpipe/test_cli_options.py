"""Options that take several values in a row."""

from __future__ import annotations

import pytest

from dpipe.cli_options import is_name, repeat_options

OPTIONS = {"--eval": {"bbox", "segm"}.__contains__, "--splits": is_name}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a --eval bbox segm", "a --eval bbox --eval segm"),
        ("a --eval bbox b", "a --eval bbox b"),
        ("--eval bbox segm a segm", "--eval bbox --eval segm a segm"),
        ("--eval bbox --eval segm", "--eval bbox --eval segm"),
        ("--eval bbox -o segm", "--eval bbox -o segm"),
        ("--eval bbox segm --splits x y", "--eval bbox --eval segm --splits x --splits y"),
        ("--splits train some/root", "--splits train some/root"),
        ("--splits", "--splits"),
        ("segm bbox", "segm bbox"),
    ],
)
def test_each_value_gets_its_option(line: str, expected: str) -> None:
    assert repeat_options(line.split(), OPTIONS) == expected.split()


def test_an_existing_folder_is_no_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "cityscapes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_name("train")
    assert not is_name("cityscapes")
