"""What an exported model tells of itself: its classes, and what its input and outputs are."""

from __future__ import annotations

import json
from typing import Any

from detect.config import Config
from detect.trained import Trained
from dpipe.policy import Augment

DESCRIPTION_FILE = "detect.json"
"""The name of the description among the extra files of an exported program."""

INPUT = "images: (N, 3, H, W) float32, RGB as 0..255, each picture filling its place; normalised and padded inside"


def describe_export(config: Config, trained: Trained, augment: Augment) -> dict[str, str]:
    """What is stored with an exported model, each value as text: JSON but for ``input``.

    Args:
        config: The recipe.
        trained: The model and its classes.
        augment: The recipe's ``test_transforms``.
    """
    normalize = augment.normalize
    assert normalize is not None  # recipes without it are refused
    before = [t for t in config.data.test_transforms if t["type"] not in ("Normalize", "Pad")]
    proposes = getattr(trained.model, "proposes", False)
    values: dict[str, Any] = {
        "class_names": ["object"] if proposes else list(trained.class_names),
        "category_ids": [1] if proposes else list(trained.category_ids),
        "mean": list(normalize.mean),
        "std": list(normalize.std),
        "bgr": normalize.bgr,
        "size_divisor": augment.size_divisor,
        "transforms": before,
        "mask_thr": getattr(getattr(trained.model, "roi_head", None), "mask_thr", None),
    }
    return {"input": INPUT, **{key: json.dumps(value) for key, value in values.items()}}
