"""What docstrings in Google's style say: a summary, the text below it, and a line for each argument."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

SECTION = re.compile(r"^([A-Z]\w+):$")
ENTRY = re.compile(r"^    \*{0,2}(\w+)(?: \([^)]*\))?:\s*(.*)$")


@dataclass(frozen=True)
class Docstring:
    """A docstring taken apart, in plain text.

    Attributes:
        summary: The first paragraph, on one line.
        text: The paragraphs after it, before the first section.
        arguments: By name what each does, on one line.
    """

    summary: str
    text: str
    arguments: dict[str, str]


def parse_docstring(cls: type) -> Docstring:
    """Takes apart the docstring of a class, and of its constructor where that has the arguments."""
    own = cls.__doc__ or ""
    if own.startswith(f"{cls.__name__}("):  # what dataclasses write for themselves
        own = ""
    paragraphs, sections = _split(inspect.cleandoc(own))
    _, constructor = _split(inspect.cleandoc(cls.__init__.__doc__ or ""))  # type: ignore[misc]
    arguments = {
        name: _plain(text)
        for found in (sections.get("Attributes"), constructor.get("Args"), sections.get("Args"))
        for name, text in _entries(found or []).items()
    }
    summary, _, text = paragraphs.partition("\n\n")
    return Docstring(_plain(" ".join(summary.split())), _plain(text.strip()), arguments)


def _plain(text: str) -> str:
    """A text without the marks of documentation tools, such as ``:func:`name``` for a name."""
    text = re.sub(r":\w+:`(?:~[\w.]*\.)?([^`]+)`", r"\1", text)
    return re.sub(r"``([^`]+)``", r"\1", text)


def _split(text: str) -> tuple[str, dict[str, list[str]]]:
    """What comes before the sections, and the lines of each section."""
    before: list[str] = []
    sections: dict[str, list[str]] = {}
    lines = before
    for line in text.splitlines():
        heading = SECTION.match(line)
        if heading:
            lines = sections.setdefault(heading[1], [])
        else:
            lines.append(line)
    return "\n".join(before), sections


def _entries(lines: list[str]) -> dict[str, str]:
    entries: dict[str, str] = {}
    name = ""
    for line in lines:
        entry = ENTRY.match(line)
        if entry:
            name = entry[1]
            entries[name] = entry[2]
        elif name and line.strip():
            entries[name] = f"{entries[name]} {line.strip()}".strip()
    return entries
