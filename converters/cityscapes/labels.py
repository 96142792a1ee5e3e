"""Cityscapes' labels, and which of them are converted."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from converters.errors import ConversionError


@dataclass(frozen=True)
class InstanceLabel:
    """A label whose objects are told apart.

    Attributes:
        id: Cityscapes' label id, which becomes the category id.
        name: The name.
        evaluated: Whether Cityscapes' evaluation of instances counts it.
    """

    id: int
    name: str
    evaluated: bool


def chosen_labels(classes: Sequence[str] | None) -> tuple[InstanceLabel, ...]:
    """Returns the labels to convert, in the order of their ids.

    Args:
        classes: Their names; None or empty for those that are evaluated.

    Raises:
        ConversionError: A name is not that of a label whose objects are told apart.
    """
    known = instance_labels()
    unknown = [name for name in classes or () if name not in {label.name for label in known}]
    if unknown:
        raise ConversionError(
            f"no class {', '.join(unknown)} in Cityscapes whose objects are told apart; "
            f"there are: {', '.join(label.name for label in known)}"
        )
    return tuple(label for label in known if (label.name in classes if classes else label.evaluated))


@functools.cache
def instance_labels() -> tuple[InstanceLabel, ...]:
    """Returns all labels whose objects are told apart, in the order of their ids."""
    return tuple(
        InstanceLabel(label.id, label.name, not label.ignoreInEval)
        for label in sorted(_table(), key=lambda label: label.id)
        if label.hasInstances
    )


@functools.cache
def label_ids() -> dict[str, int]:
    """Maps the name of every label to its id, which is negative for one that is never drawn."""
    return {label.name: label.id for label in _table()}


def _table() -> Sequence[Any]:
    from cityscapesscripts.helpers.labels import labels

    return labels
