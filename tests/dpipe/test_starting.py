from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Interrupts the program when it is about to import a certain module.
PROGRAM = """
import signal, sys

class Interruption:
    def find_spec(name, path=None, target=None):
        if name == {moment!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interruption)
{before}
from dpipe.starting import {program}
{program}()
"""


def interrupted(program: str, moment: str, *arguments: str, before: str = "") -> tuple[int, str]:
    code = PROGRAM.format(program=program, moment=moment, before=before)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("program", "moment"),
    [
        ("dpipe", "dpipe.cli"),
        ("dpipe", "typer"),
        ("dpipe", "dpipe.commands.transcode"),
        ("detect", "detect.cli"),
        ("detect", "detect.commands.report"),
    ],
)
def test_an_interrupt_during_the_imports_ends_the_program_without_a_word(program: str, moment: str) -> None:
    assert interrupted(program, moment, "--help") == (-signal.SIGINT, "")


def test_an_interrupt_of_a_command_is_told_by_it() -> None:
    assert interrupted("dpipe", "converters.voc.convert", "convert", "voc", "nowhere") == (130, "interrupted\n")


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    assert interrupted("dpipe", "typer", "--help", before=before) == (0, "")


def test_little_is_imported_before_interrupts_are_looked_after() -> None:
    """Typing and what it imports would take as long as Python itself does to start."""
    code = (
        "import sys; before = set(sys.modules); import signal, dpipe.starting; print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "typing" not in done.stdout


def test_the_programs_begin_there() -> None:
    scripts = '[project.scripts]\ndpipe = "dpipe.starting:dpipe"\ndetect = "dpipe.starting:detect"\n'
    assert scripts in (ROOT / "pyproject.toml").read_text()
