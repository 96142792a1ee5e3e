from __future__ import annotations

import logging
import math
import operator
import os
import signal
import subprocess
import sys

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
    with pytest.raises(ConversionError, match=r"was killed \(out of memory\?\): try again with a smaller --nproc"):
        run(os._exit, [1] * 20, nproc=2)


CALL = "print(map_files(math.sqrt, [4] * 20, name_of=str, title='roots', nproc=2)[0])"
IMPORTS = "import math\nfrom converters.runner import map_files\n"


@pytest.mark.parametrize("way", ["without a guard", "from stdin"])
def test_a_program_that_workers_cannot_import_is_told_what_to_do(tmp_path, way):
    script = tmp_path / "script.py"
    script.write_text(IMPORTS + CALL)
    with script.open() as file:
        command = [sys.executable, "-" if way == "from stdin" else str(script)]
        result = subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("converters.errors.ConversionError: ")]
    assert len(errors) == 1
    assert "no worker process could start" in errors[0]
    assert "not from stdin" in errors[0]
    assert '`if __name__ == "__main__":`' in errors[0]


def test_workers_have_nothing_of_this_process_but_its_imports(monkeypatch):
    # A plain fork would hand them what this process has in memory, and the locks of its threads.
    monkeypatch.setitem(logging._levelToName, logging.DEBUG, "of this process")
    assert set(run(logging.getLevelName, [logging.DEBUG] * 20, nproc=2)[0]) == {"DEBUG"}
    assert run(logging.getLevelName, [logging.DEBUG], nproc=1)[0] == ["of this process"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs the server that workers are forked from")
@pytest.mark.parametrize("function", ["work.root", "functools.partial(functools.partial(work.root), digits=3)"])
def test_workers_find_the_functions_module_imported(tmp_path, function):
    imports = tmp_path / "imports.txt"
    (tmp_path / "work.py").write_text(
        f"import os, time\nwith open({str(imports)!r}, 'a') as file: file.write(f'{{os.getpid()}}\\n')\n"
        "def root(value, digits=0):\n"
        "    time.sleep(0.02)  # so that no worker is done before the others are up\n"
        "    return round(value**0.5, digits)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "from converters.runner import map_files\nif __name__ == '__main__':\n    import functools\n    import work\n"
        f"    print(len(map_files({function}, [4] * 80, name_of=str, title='roots', nproc=4)[0]))\n"
    )
    # Found as an installed module is: the server of some versions of Python does not look in a script's folder.
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("80\n", "")
    assert len(imports.read_text().splitlines()) == 2  # this process, and the workers' server


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
