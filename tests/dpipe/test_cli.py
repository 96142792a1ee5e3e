from __future__ import annotations

import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from detect.cli import app as detect_app
from dpipe.cli import app
from dpipe.cli_text import IN_TABLE, one_line, printable, short

COMMANDS = ("", "convert", "preview", "stats", "check", "bench", "transcode")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys, dpipe.cli; from typer.testing import CliRunner\n"
        f"result = CliRunner().invoke(dpipe.cli.app, [*{command.split()!r}, '--help'])\n"
        f"assert result.exit_code == 0 and {command!r} in result.output\n"
        "heavy = {'torch', 'cv2', 'numpy', 'nvidia', 'PIL', 'omegaconf', 'matplotlib', 'jinja2', 'hotcoco', 'orjson'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_help_names_every_command() -> None:
    code = "from dpipe.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    for command in filter(None, COMMANDS):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize(
    ("program", "commands", "begun", "whole"),
    [("dpipe", app, "tra", "transcode"), ("detect", detect_app, "tr", "train")],
)
def test_a_shell_may_complete_commands(program: str, commands: Typer, begun: str, whole: str) -> None:
    asked = {f"_{program.upper()}_COMPLETE": "complete_bash", "COMP_WORDS": f"{program} {begun}", "COMP_CWORD": "1"}
    result = CliRunner().invoke(commands, env=asked, prog_name=program)
    assert (result.exit_code, result.output) == (0, f"{whole}\n")


@pytest.mark.parametrize(
    "command",
    [
        ("stats", "instances.json", "-o", "out"),
        ("check", "instances.json", "images", "--report", "out/report.json"),
        ("preview", "instances.json", "images", "--raw", "-o", "out/preview.png"),
        ("preview", "instances.json", "images", "--raw", "--html", "out/preview.html"),
        ("bench", "instances.json", "images", "--threads", "1", "--seconds", "0.01", "--json", "out/bench.json"),
    ],
    ids=" ".join,
)
def test_sigterm_in_the_middle_of_a_file_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_dataset, command: tuple[str, ...]
) -> None:
    def terminate(_: object) -> None:
        assert any((tmp_path / "out").iterdir())
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # which would end the tests
        signal.raise_signal(signal.SIGTERM)

    write_dataset([np.zeros((40, 60, 3), dtype=np.uint8)])
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dpipe.files.os.fsync", terminate)
    assert CliRunner().invoke(app, command).exit_code == 143
    assert not any((tmp_path / "out").iterdir())


def test_only_line_ends_of_a_text_reach_the_terminal() -> None:
    assert printable("ä\n[b]\x1b[2J\t\u202e") == "ä\n[b]\\x1b[2J\\t\\u202e"
    assert one_line("ä\nb\x07") == "ä b\\x07"


def test_a_long_name_is_cut_in_a_table() -> None:
    assert short("a\n" + 30 * "b") == "a " + 30 * "b"
    assert short("a\n" + 31 * "b") == "a " + 29 * "b" + "…"
    assert short("a" * 60, IN_TABLE) == "a" * 60


@pytest.mark.parametrize("program", ["dpipe", "detect"])
def test_the_version_is_told_without_importing_anything_heavy(program: str) -> None:
    code = (
        f"import sys; from {program}.cli import main; sys.argv[1:] = ['--version']\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'numpy', 'cv2', 'omegaconf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"dpipe-detect {version('dpipe-detect')}\n[]\n"


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("dpipe", "nope", "no such command 'nope'"),
        ("dpipe", "--nope", "no such option: --nope"),
        ("dpipe", "preview", "missing argument 'annotations'"),
        ("dpipe", "stats a b", "got unexpected extra argument"),
        ("dpipe", "transcode a b", "missing option '--to'"),
        ("dpipe", "convert voc --nope", "no such option: --nope"),
        ("dpipe", "bench a b --images 0", "invalid value for '--images'"),
        ("dpipe", "bench a b --seconds nan", "invalid value for '--seconds'"),
        ("dpipe", "bench a b --seconds inf", "invalid value for '--seconds'"),
        ("detect", "nope", "no such command 'nope'"),
        ("detect", "train", "missing argument 'CONFIG'"),
        ("detect", "eval a b --eval foo", "invalid value for '--eval': 'foo' is not one of 'bbox', "),
        ("detect", "predict a b c -o d --score-thr nan", "invalid value for '--score-thr'"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(program: str, arguments: str, message: str) -> None:
    result = CliRunner().invoke({"dpipe": app, "detect": detect_app}[program], arguments.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.lower().startswith(f"error: {message}".lower())  # Typer's versions differ in the case of names
    assert line.endswith(" --help)")


@pytest.mark.parametrize("arguments", [[], ["convert"]])
def test_no_command_at_all_is_answered_with_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert "Usage" in result.output
    assert "error" not in result.output
