"""The registry of model parts: what a recipe's ``type:`` names."""

from __future__ import annotations

from dpipe.registry import Registry

MODELS = Registry("model part")
