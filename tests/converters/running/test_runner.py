from __future__ import annotations

import functools
import logging
import math
import operator
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from converters.errors import ConversionError
from converters.running.journal import Journal
from converters.running.runner import map_files

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


@pytest.mark.parametrize(
    ("function", "argument", "how"),
    [
        (signal.raise_signal, signal.SIGKILL, r"was killed \(out of memory\?\)"),
        (signal.raise_signal, signal.SIGSEGV, r"crashed \(SIGSEGV\)"),
        (os._exit, 3, r"ended by itself \(exit code 3\)"),
    ],
)
def test_a_process_that_dies_is_one_clear_error(function, argument, how):
    with pytest.raises(ConversionError) as caught:
        run(function, [argument] * 20, nproc=2)
    group = rf"while it worked on file {argument} or on one of the (7|3) files after it: "
    assert re.fullmatch(f"one of 2 worker processes {how} {group}try again with a smaller --nproc", str(caught.value))


@pytest.mark.parametrize("nproc", [1, 2])
def test_memory_that_runs_out_is_no_fault_of_an_image(nproc):
    items = [*range(10), sys.maxsize // 8, *range(10)]
    with pytest.raises(ConversionError, match=r"^file \d+: out of memory; try again with a smaller --nproc$"):
        run(bytearray, items, nproc=nproc, on_error="skip")


CALL = "print(map_files(math.sqrt, [4] * 20, name_of=str, title='roots', nproc=2)[0])"
IMPORTS = "import math\nfrom converters.running.runner import map_files\n"


@pytest.mark.parametrize("way", ["without a guard", "from stdin"])
def test_workers_never_run_the_main_program(tmp_path, way):
    script = tmp_path / "script.py"
    script.write_text(IMPORTS + CALL)
    with script.open() as file:
        command = [sys.executable, "-" if way == "from stdin" else str(script)]
        result = subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == (f"{[2.0] * 20}\n", "")


def test_a_function_that_workers_cannot_import_is_one_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"{IMPORTS}def root(value): return value\n{CALL.replace('math.sqrt', 'root')}")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("converters.errors.ConversionError: ")]
    assert "a worker process could not be started (AttributeError: " in line


def test_a_python_that_cannot_be_started_is_one_error(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(ConversionError, match=r"^a worker process could not be started \(No such file or directory\)$"):
        run(math.sqrt, [4] * 20, nproc=2)


def test_what_functions_print_is_no_result(capfd):
    assert run(print, ["text"] * 20, nproc=2) == ([None] * 20, [])
    assert capfd.readouterr() == ("", "")


def test_workers_have_nothing_of_this_process(monkeypatch):
    monkeypatch.setitem(logging._levelToName, logging.DEBUG, "of this process")
    assert set(run(logging.getLevelName, [logging.DEBUG] * 20, nproc=2)[0]) == {"DEBUG"}
    assert run(logging.getLevelName, [logging.DEBUG], nproc=1)[0] == ["of this process"]


def test_workers_leave_signals_of_the_terminal_to_the_parent():
    blocked, _ = run(functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK), [()] * 20, nproc=2)
    assert {signal.SIGINT, signal.SIGTERM} <= set.intersection(*blocked)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes as on Linux")
def test_an_interrupt_ends_many_workers_at_once():
    """Each worker sleeps for a minute; the interrupt comes while they start, or a moment later."""
    for delay in (0.05, 1.0):
        threading.Timer(delay, os.kill, [os.getpid(), signal.SIGINT]).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run(time.sleep, [60] * 8 * 64, nproc=64)
        assert time.monotonic() - began < delay + 5
        assert _children() == []  # nor one that ended and was not waited for


def _children():
    tasks = Path(f"/proc/{os.getpid()}/task")
    return [child for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def test_an_interrupted_run_goes_on_from_its_journal(tmp_path):
    made = []
    names = [str(tmp_path / str(number)) for number in range(30)]
    for name in names:
        Path(name).write_text(name)

    def journal():
        return Journal(tmp_path / "journal", "test", lambda name: [name], dict)

    def convert(name):
        if len(made) == 20:
            raise KeyboardInterrupt
        made.append(name)
        return {"name": name}

    with pytest.raises(KeyboardInterrupt), journal() as kept:
        run(convert, names, nproc=1, journal=kept)
    del made[:]
    Path(names[3]).write_text("another size")
    with journal() as kept:
        results, _ = run(convert, names, nproc=1, journal=kept)
    assert results == [{"name": name} for name in names]
    assert made == [names[3], *names[16:]]  # whole groups are kept


@pytest.mark.parametrize(
    ("options", "line"), [({"nproc": 0}, "nproc is 0"), ({"on_error": "stop"}, "on_error is 'stop'")]
)
def test_bad_arguments(options, line):
    with pytest.raises(ConversionError, match=line):
        run(math.sqrt, [1], **options)


@pytest.mark.parametrize("nproc", [1, 2])
def test_plain_progress_lines_where_there_is_no_terminal(capsys, monkeypatch, nproc):
    monkeypatch.setattr("converters.running.progress.SECONDS_BETWEEN_LINES", 0.0)
    run(operator.neg, list(range(17)), nproc=nproc, show_progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["test: 8/17", "test: 16/17", "test: 17/17"]
    assert all(re.fullmatch(r"test: \d+/17, \d+\.\d images/s, \d+ s left", line) for line in lines)


def test_progress_is_silent_unless_asked_for(capsys, monkeypatch):
    monkeypatch.setattr("converters.running.progress.SECONDS_BETWEEN_LINES", 0.0)
    run(operator.neg, list(range(17)), nproc=1)
    assert capsys.readouterr().err == ""


def test_bar_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    run(operator.neg, list(range(17)), nproc=1, show_progress=True)
    shown = capsys.readouterr().err
    assert "17/17" in shown
    assert "images/s" in shown
