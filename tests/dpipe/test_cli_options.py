"""Options that take several values in a row."""

from __future__ import annotations

import pytest

from dpipe.cli_options import names_beside, repeat_options

OPTIONS = {"--eval": {"bbox", "segm"}.__contains__, "--splits": names_beside("leftImg*")}


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
        ("--splits train .", "--splits train ."),
        ("--splits train ..", "--splits train .."),
        ("--splits train root/", "--splits train root/"),
        ("--splits train /root", "--splits train /root"),
        ("--splits", "--splits"),
        ("segm bbox", "segm bbox"),
    ],
)
def test_each_value_gets_its_option(line: str, expected: str) -> None:
    assert repeat_options(line.split(), OPTIONS) == expected.split()


def test_only_a_folder_that_holds_a_data_set_is_no_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "streets" / "leftImg8bit").mkdir(parents=True)
    (tmp_path / "val" / "pictures").mkdir(parents=True)
    (tmp_path / "test").touch()
    monkeypatch.chdir(tmp_path)
    line = ["--splits", "train", "val", "test", "streets"]
    expected = ["--splits", "train", "--splits", "val", "--splits", "test", "streets"]
    assert repeat_options(line, OPTIONS) == expected
