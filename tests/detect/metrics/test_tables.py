"""Scores as tables for a terminal."""

from __future__ import annotations

from rich.console import Console

from detect.metrics.scores import Scores
from detect.metrics.tables import class_tables


def test_names_of_classes_stay_on_one_line_and_command_no_terminal(capsys):
    names = ["two\nlines", "red \x1b[31m", "[bold]loud"]
    (table,) = class_tables([Scores("bbox", {"AP": 0.5}, {name: {"AP": 0.5} for name in names})])
    Console(width=80).print(table)  # which would take markup
    printed = capsys.readouterr().out
    for shown in ("two lines ", "red \\x1b[31m", "[bold]loud"):
        assert shown in printed
    assert "\x1b" not in printed


def test_a_long_name_leaves_the_numbers_beside_the_others(capsys):
    names = ["dog", "d" * 200]
    (table,) = class_tables([Scores("bbox", {"AP": 0.5}, {name: {"AP": 0.5} for name in names})])
    Console(width=10_000).print(table)  # of a pipe
    assert max(map(len, capsys.readouterr().out.splitlines())) < 80
