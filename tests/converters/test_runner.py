from __future__ import annotations

import math
import operator
import os
import signal

import pytest

from converters.errors import ConversionError
from converters.runner import map_files

# Functions of the standard library: the other processes must be able to import them.


def run(function, items, **options):
    return map_files(function, items, name_of=lambda item: f"file {item}", title="test", **options)


@pytest.mark.parametrize("nproc", [1, 2, 5, None])
def test_order_is_kept_whatever_the_number_of_processes(nproc):
    items = list(range(50))
    assert run(math.sqrt, items, nproc=nproc) == ([math.sqrt(item) for item in items], [])


def test_no_items():
    assert run(math.sqrt, [], nproc=2) == ([], [])


@pytest.mark.parametrize("nproc", [1, 2])
def test_first_error_in_order_names_its_file(nproc):
    items = [*range(20), -1, *range(20), -2]
    with pytest.raises(ConversionError, match=r"^file -1: ValueError: ") as caught:
        run(math.sqrt, items, nproc=nproc)
    assert "Traceback" in str(caught.value.__cause__)


@pytest.mark.parametrize("nproc", [1, 2])
def test_skip_leaves_out_and_tells(nproc):
    results, errors = run(math.sqrt, [4, -1, *[9] * 20, -2], nproc=nproc, on_error="skip")
    assert results == [2, None, *[3] * 20, None]
    assert [line.split(":")[0] for line in errors] == ["file -1", "file -2"]


def test_a_process_that_dies_is_one_clear_error():
    with pytest.raises(ConversionError, match="a smaller --nproc"):
        run(os._exit, [1] * 20, nproc=2)


def test_workers_leave_ctrl_c_to_the_parent():
    handlers, _ = run(signal.getsignal, [signal.SIGINT] * 20, nproc=2)
    assert set(handlers) == {signal.SIG_IGN}


@pytest.mark.parametrize(
    ("options", "line"), [({"nproc": 0}, "nproc is 0"), ({"on_error": "stop"}, "on_error is 'stop'")]
)
def test_bad_arguments(options, line):
    with pytest.raises(ConversionError, match=line):
        run(math.sqrt, [1], **options)


@pytest.mark.parametrize("nproc", [1, 2])
def test_plain_progress_lines_where_there_is_no_terminal(capsys, monkeypatch, nproc):
    monkeypatch.setattr("converters.progress.SECONDS_BETWEEN_LINES", 0.0)
    run(operator.neg, list(range(17)), nproc=nproc, show_progress=True)
    assert capsys.readouterr().err.splitlines() == ["test: 8/17", "test: 16/17", "test: 17/17"]


def test_progress_is_silent_unless_asked_for(capsys, monkeypatch):
    monkeypatch.setattr("converters.progress.SECONDS_BETWEEN_LINES", 0.0)
    run(operator.neg, list(range(17)), nproc=1)
    assert capsys.readouterr().err == ""


def test_bar_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    run(operator.neg, list(range(17)), nproc=1, show_progress=True)
    assert "17/17" in capsys.readouterr().err
