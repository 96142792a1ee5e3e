"""Anchors: boxes of fixed shapes, centred on the positions of a feature map.

Shapes and names:
    L levels; A anchors a position (ratios x scales); H, W size of a level's feature map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dpipe.errors import InputError


class AnchorGenerator(nn.Module):
    """Anchors of a pyramid, unrounded: of scale s and ratio r, s * stride / sqrt(r) wide and s * stride * sqrt(r) high.

    Those of position (i, j) have their centre at ((j + center_offset) * stride, (i + center_offset) * stride).

    Args:
        strides: For each level, pixels of the image per position.
        scales: Sides of the square anchor in strides.
        ratios: Heights over widths; the area stays that of the square.
        center_offset: Where in its cell an anchor has its centre, in strides: 0 is the corner, 0.5 the middle.

    Raises:
        InputError: If there is none of strides, scales or ratios, one is not a positive number, or ``center_offset``
            is not within 0..1.
    """

    def __init__(
        self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float], center_offset: float = 0.0
    ) -> None:
        super().__init__()
        for name, values in (("strides", strides), ("scales", scales), ("ratios", ratios)):
            if not values or not all(0 < value < math.inf for value in values):
                raise InputError(f"anchors need {name} above 0, at least one, got {list(values)}")
        if not 0 <= center_offset <= 1:
            raise InputError(f"anchors need a center_offset of 0..1, got {center_offset}")
        self.strides = tuple(strides)
        root_ratios = torch.tensor(list(ratios), dtype=torch.float32).sqrt()
        sides = torch.tensor(list(scales), dtype=torch.float32)
        base_anchors = []
        for stride in self.strides:
            widths = (stride * (1 / root_ratios)[:, None] * sides).reshape(-1)  # (A,) ratio by ratio
            heights = (stride * root_ratios[:, None] * sides).reshape(-1)
            corners = 0.5 * torch.stack([-widths, -heights, widths, heights], dim=1)
            base_anchors.append(corners + center_offset * stride)
        # On the device with the model, so that no iteration copies them there; no part of checkpoints.
        self.base_anchors: Tensor
        self.register_buffer("base_anchors", torch.stack(base_anchors), persistent=False)  # (L, A, 4)

    @property
    def num_anchors(self) -> int:
        """A: anchors at each position."""
        return self.base_anchors.shape[1]

    def grids(self, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Anchors of every level.

        Args:
            sizes: (H, W) of each level's feature map.

        Returns:
            For each level (H * W * A, 4) float32: row by row, position by position, anchor by anchor.
        """
        grids, device = [], self.base_anchors.device
        for (height, width), stride, base in zip(sizes, self.strides, self.base_anchors, strict=True):
            y = torch.arange(height, device=device, dtype=torch.float32) * stride
            x = torch.arange(width, device=device, dtype=torch.float32) * stride
            yy, xx = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack([xx, yy, xx, yy], dim=-1).reshape(-1, 1, 4)  # (H * W, 1, 4)
            grids.append((shifts + base).reshape(-1, 4))
        return grids

    def inside_padding(self, sizes: Sequence[tuple[int, int]], padded_size: tuple[int, int]) -> list[Tensor]:
        """Which anchors stand on a position that one image, padded by itself, would have.

        A batch is padded to its largest image; positions beyond an image's own padded size have no loss.

        Args:
            sizes: (H, W) of each level's feature map.
            padded_size: (height, width) in pixels of the image with its own padding.

        Returns:
            For each level (H * W * A,) bool.
        """
        flags, device = [], self.base_anchors.device
        for (height, width), stride in zip(sizes, self.strides, strict=True):
            rows = torch.arange(height, device=device) < math.ceil(padded_size[0] / stride)
            columns = torch.arange(width, device=device) < math.ceil(padded_size[1] / stride)
            positions = (rows[:, None] & columns[None, :]).reshape(-1, 1)
            flags.append(positions.expand(-1, self.num_anchors).reshape(-1))
        return flags
