"""What the sections of a recipe are made of: a base that refuses unknown keys, and kinds of numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrZero = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A section of a recipe: unknown keys are errors, and types are strict (``"1"`` and ``1.0`` are no integers)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def mistake(message: str) -> PydanticCustomError:
    """What a validator raises for a value that cannot be."""
    return PydanticCustomError("mistake", "{message}", {"message": message})
