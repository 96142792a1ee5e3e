"""What tests of models share: the reference cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

PARITY = Path(__file__).parents[1] / "data" / "parity"


@dataclass(frozen=True)
class ParityCase:
    """One folder of tests/data/parity; its files are read when they are asked for, and must not be changed in place."""

    folder: Path

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "weights.safetensors")

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return load_file(self.folder / "inputs.safetensors")

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return load_file(self.folder / "expected.safetensors")

    def json(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text())

    def weights_of(self, part: str) -> dict[str, Tensor]:
        """The weights of one part (``backbone``), under the names that they have inside it."""
        return {name.removeprefix(f"{part}."): w for name, w in self.weights.items() if name.startswith(f"{part}.")}

    def levels(self, prefix: str) -> list[Tensor]:
        """Expected tensors ``prefix/0``, ``prefix/1`` ... in order."""
        names = [name for name in self.expected if name.rpartition("/")[0] == prefix]
        return [self.expected[f"{prefix}/{i}"] for i in range(len(names))]


@pytest.fixture(scope="session")
def parity() -> Callable[[str], ParityCase]:
    """Gives the reference case of a name."""
    cases: dict[str, ParityCase] = {}

    def case(name: str) -> ParityCase:
        return cases.setdefault(name, ParityCase(PARITY / name))

    return case
