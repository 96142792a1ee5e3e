"""Operations that change colours: each adds a photometric step to the plan (pixels: ``dpipe.images.photometric``).

Wherever they stand in a list of transforms, they act on the output pixels, after the one warp that all geometric
operations make together, in their order among themselves. So they change the fill as well: ``Brightness`` at factor 0.5
makes 64 of an ``img_fill_val`` of 128, even that of a ``Rotate`` that comes later in the list.

Names and magnitudes are those of OpenMMLab's auto_augment, as for the geometric operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dpipe.operations.operation import MAX_LEVEL, Operation, check_level, check_probabilities
from dpipe.plan import Draft
from dpipe.registry import TRANSFORMS


@dataclass(frozen=True)
class Enhancement(Operation):
    """Blends the image with a duller version of itself: factor 0 is that one, 1 the image, above 1 goes beyond it.

    Args:
        level: 0..10; the factor is level/10 * 1.8 + 0.1.
        prob: Chance that it is applied.
    """

    step: ClassVar[str]

    level: float
    prob: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level(self, self.level)
        check_probabilities(self, prob=self.prob)

    def apply(self, draft: Draft) -> None:
        """See the class."""
        if draft.chance(self.prob):
            draft.photometric.append((self.step, self.level / MAX_LEVEL * 1.8 + 0.1))


@TRANSFORMS.register
class Color(Enhancement):
    """Blends the image with its grey version: factor 0 is grey, 1 is the image, above 1 is more colourful.

    Args:
        level: 0..10; the factor is level/10 * 1.8 + 0.1.
        prob: Chance that it is applied.
    """

    step = "color"


@TRANSFORMS.register
class Brightness(Enhancement):
    """Blends the image with black: factor 0 is black, 1 is the image, above 1 is brighter.

    Args:
        level: 0..10; the factor is level/10 * 1.8 + 0.1.
        prob: Chance that it is applied.
    """

    step = "brightness"


@TRANSFORMS.register
class Contrast(Enhancement):
    """Blends the image with its mean grey level: factor 0 is that grey, 1 is the image, above 1 has more contrast.

    Args:
        level: 0..10; the factor is level/10 * 1.8 + 0.1.
        prob: Chance that it is applied.
    """

    step = "contrast"


@TRANSFORMS.register
@dataclass(frozen=True)
class Equalize(Operation):
    """Equalises the histogram of each channel.

    Args:
        prob: Chance that it is applied.
    """

    prob: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probabilities(self, prob=self.prob)

    def apply(self, draft: Draft) -> None:
        """See the class."""
        if draft.chance(self.prob):
            draft.photometric.append(("equalize", 1.0))
