"""Names of parts to classes."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T", bound=type)


class Registry:
    """Maps type names to classes.

    Args:
        kind: What the classes are, for messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.classes: dict[str, type] = {}

    def register(self, cls: T) -> T:
        """Registers a class under its own name; used as a decorator."""
        self.classes[cls.__name__] = cls
        return cls


TRANSFORMS = Registry("transform")
