"""The registry of model parts: what a ``type:`` below a recipe's ``model`` names."""

from __future__ import annotations

from dpipe.registry import Registry

MODELS = Registry("model part", homes=["detect.models"])
