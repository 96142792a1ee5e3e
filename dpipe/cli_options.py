"""Options that take several values in a row, ``--eval bbox segm``, which Typer itself does not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

IsValue = Callable[[str], bool]

ARCHIVE_ENDINGS = (".zip", ".tar")


def several_values(options: Mapping[str, IsValue]) -> type[TyperCommand]:
    """Makes the class of a command whose options take several values in a row as well as being repeated.

    Args:
        options: Which words count as values, by option; a word that does not is an argument, as elsewhere.
    """

    class SeveralValuesCommand(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, repeat_options(args, options))

    return SeveralValuesCommand


def repeat_options(words: Sequence[str], options: Mapping[str, IsValue]) -> list[str]:
    """Puts an option in front of each further value that follows its first one.

    Args:
        words: A command line.
        options: Which words count as values, by option.

    Returns:
        The command line with ``--option a b`` written as ``--option a --option b``.
    """
    repeated: list[str] = []
    option = None  # the one whose values are being read
    for number, word in enumerate(words):
        if word in options:
            option = word
        elif option is not None and words[number - 1] != option:
            if not word.startswith("-") and options[option](word):
                repeated.append(option)
            else:
                option = None
        repeated.append(word)
    return repeated


def names_beside(*marks: str) -> IsValue:
    """Makes the test for names that may be followed by a data set's folder, ``--splits train val ROOT``.

    Args:
        marks: What the folder of a data set holds, as patterns of ``Path.glob``.

    Returns:
        Whether a word counts as a name: a path does not, nor does a folder that holds one of the marks, nor an archive.
        Any other file or folder may have a split's name.
    """

    def is_name(word: str) -> bool:
        path = Path(word)
        if path.name != word or word in ("", "..") or path.suffix.lower() in ARCHIVE_ENDINGS:
            return False
        return not any(True for mark in marks for _ in path.glob(mark))

    return is_name
