"""Problems in what a user wrote, told all at once: where each is, what it is, and the name that was probably meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

KeyPath = tuple[str | int, ...]


class Problem(NamedTuple):
    """One mistake at one key of a recipe.

    Attributes:
        path: The keys and list indices that lead to it.
        message: What is wrong, and what was expected.
    """

    path: KeyPath
    message: str


def dotted(path: Iterable[str | int]) -> str:
    """A key path as it is written on the command line: ``model.roi_head.bbox_head.0``."""
    return ".".join(str(key) for key in path)


def nearest(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the valid name nearest to ``name``, in upper or lower case, else all of them."""
    names = sorted(names)
    by_lower = {each.lower(): each for each in reversed(names)}
    close = difflib.get_close_matches(name.lower(), sorted(by_lower), n=1, cutoff=0.6)
    if close:
        return f"; did you mean {by_lower[close[0]]!r}?"
    return f"; expected one of: {', '.join(names)}" if names else ""


def shorten(value: Any, limit: int = 60) -> str:
    """A value as a recipe writes it, cut to fit a line."""
    text = "null" if value is None else json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def report(title: str, problems: Sequence[Problem], where: Callable[[KeyPath], str]) -> str:
    """One line for a single problem; for several, a line that counts them and a line for each.

    Args:
        title: What the problems are in, such as a recipe's name.
        problems: At least one.
        where: Tells the file and line that a key came from.
    """
    lines = [
        ": ".join(filter(None, (where(problem.path), dotted(problem.path), problem.message))) for problem in problems
    ]
    if len(lines) == 1:
        return lines[0]
    return "\n".join([f"{len(lines)} problems in {title}:", *(f"  {line}" for line in lines)])
