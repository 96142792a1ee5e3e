from __future__ import annotations

import subprocess
import sys

import pytest

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
