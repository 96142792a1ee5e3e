"""Features of regions of interest (RoIs), cut out of a pyramid.

Legend: N images, R RoIs, L levels, C channels, S side of the output grid. A RoI is a row (image, x1, y1, x2, y2),
its corners in continuous pixels of the padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from detect.models.arguments import Count, CountOrZero, Counts
from detect.models.boxes import on_device
from detect.models.channels import common_channels
from detect.models.layers import xavier_init
from detect.models.roi_align import align_by_products, by_products
from detect.registry import MODELS
from dpipe.errors import InputError

Alignment = Literal["aligned", "unaligned", "legacy"]


@MODELS.register
class SingleRoIExtractor(nn.Module):
    """RoIAlign from the one level that suits a RoI's size (arXiv 1612.03144, equation 1).

    Level floor(log2(sqrt(w * h) / finest_scale)): a RoI of less than twice ``finest_scale`` comes from level 0, one
    of less than four times from level 1, and so on.

    Args:
        output_size: Side S of the grid of each RoI.
        strides: Pixels per cell of each level.
        sampling_ratio: Samples per output cell and axis; 0 adapts their number to the RoI's size.
        finest_scale: Side in pixels that the scale of level 0 starts from.
        num_levels: How many of the finest levels RoIs come from; None takes up to four, as a pyramid's fifth level
            serves proposals only.
        alignment: How RoIs meet the cells, see :func:`pool_level`; ``unaligned``, with two samples, is what
            torchvision's detectors were trained with.

    Raises:
        InputError: If there are not as many levels as ``num_levels`` says.
    """

    def __init__(
        self,
        output_size: Count,
        strides: Counts,
        sampling_ratio: CountOrZero = 0,
        finest_scale: Count = 56,
        num_levels: Count | None = None,
        alignment: Alignment = "aligned",
    ) -> None:
        super().__init__()
        # Not named `strides`: that attribute would announce levels to the parts of a recipe that follow.
        self.level_strides = finest(strides, num_levels, "SingleRoIExtractor")
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.finest_scale = finest_scale
        self.alignment = alignment

    def forward(self, features: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Cuts out RoIs.

        Args:
            features: At least as many levels as the extractor reads, (N, C, H_l, W_l), finest first.
            rois: (R, 5).
            roi_scale_factor: Grows RoIs about their centres after their levels were chosen.

        Returns:
            (R, C, S, S), in the order of the RoIs. Every level stays in the gradient graph, even where no RoI reads it.
        """
        features = features[: len(self.level_strides)]
        levels = roi_levels(rois, len(features), self.finest_scale)
        if roi_scale_factor is not None:
            rois = scale_rois(rois, roi_scale_factor)
        how = (self.output_size, self.sampling_ratio, self.alignment)
        if by_products(features[0]):
            return _pool_by_products(features, rois, levels, self.level_strides, *how)
        if torch.compiler.is_exporting():
            return _pool_in_graph(features, rois, levels, self.level_strides, *how)
        # Sorted by level, so that one transfer of L counts tells the host all the shapes.
        order = levels.argsort(stable=True)
        counts = torch.bincount(levels, minlength=len(features)).tolist()
        pooled = [
            pool_level(feature, level_rois, stride, *how)
            for feature, level_rois, stride in zip(features, rois[order].split(counts), self.level_strides, strict=True)
        ]
        return torch.cat(pooled)[order.argsort()]


@MODELS.register
class SoftRoIExtractor(nn.Module):
    """RoIAlign from all levels, weighed by a learned spatial attention: AugFPN's Soft RoI Selection (arXiv 1912.05384).

    The features of a RoI on all levels are concatenated; a 1x1 convolution, ReLU and a 3x3 convolution give one
    gate (sigmoid) per level and cell; the sum of the gated features is the result. Parameters are named as in the
    authors' repository.

    Args:
        output_size: Side S of the grid of each RoI.
        strides: Pixels per cell of each level.
        in_channels: Channels C of the levels, the same on each.
        sampling_ratio: Samples per output cell and axis; 0 adapts their number to the RoI's size.
        num_levels: How many of the finest levels are read; None takes up to four, as a pyramid's fifth level serves
            proposals only.
        alignment: How RoIs meet the cells, see :func:`pool_level`; ``legacy`` is what the authors' weights were
            trained with.

    Raises:
        InputError: If there are not as many levels as ``num_levels`` says, or they differ in channels.
    """

    def __init__(
        self,
        output_size: Count,
        strides: Counts,
        in_channels: Count | Counts = 256,
        sampling_ratio: CountOrZero = 0,
        num_levels: Count | None = None,
        alignment: Alignment = "aligned",
    ) -> None:
        super().__init__()
        self.level_strides = finest(strides, num_levels, "SoftRoIExtractor")
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.alignment = alignment
        channels = self.level_channels = common_channels(in_channels, "SoftRoIExtractor")
        levels = len(self.level_strides)
        self.spatial_attention_conv = nn.Sequential(
            nn.Conv2d(channels * levels, channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, levels, 3, padding=1),
        )
        xavier_init(self)

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Cuts RoIs (R, 5) out of levels (N, C, H_l, W_l), finest first, to (R, C, S, S)."""
        pooled = extract_all_levels(
            features, rois, self.level_strides, self.output_size, self.sampling_ratio, self.alignment
        )  # R, L, C, S, S
        gates = self.spatial_attention_conv(pooled.flatten(1, 2)).sigmoid()  # R, L, S, S
        return (pooled * gates[:, :, None]).sum(dim=1)


def finest(strides: Sequence[int], num_levels: int | None, part: str) -> tuple[int, ...]:
    """The strides of the levels that RoIs come from, of all there are; without a number up to four.

    Raises:
        InputError: If there are not as many as asked for.
    """
    if num_levels is not None and num_levels > len(strides):
        raise InputError(f"{part}: num_levels is {num_levels}, but there are {len(strides)} levels")
    return tuple(strides)[: num_levels or 4]


def extract_all_levels(
    features: Sequence[Tensor],
    rois: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int = 0,
    alignment: Alignment = "aligned",
) -> Tensor:
    """Cuts every RoI out of every level.

    Consistent supervision's auxiliary heads read the raw laterals this way; ``.flatten(0, 1)`` gives one row per
    RoI and level, the levels of a RoI side by side.

    Args:
        features: At least as many levels as strides, (N, C, H_l, W_l), finest first.
        rois: (R, 5).
        strides: Pixels per cell of each level that is read.
        output_size: Side S of the grid of each RoI.
        sampling_ratio: Samples per output cell and axis; 0 adapts their number to the RoI's size.
        alignment: How RoIs meet the cells, see :func:`pool_level`.

    Returns:
        (R, L, C, S, S).
    """
    return torch.stack(
        [
            pool_level(feature, rois, stride, output_size, sampling_ratio, alignment)
            for feature, stride in zip(features[: len(strides)], strides, strict=True)
        ],
        dim=1,
    )


def pool_level(
    feature: Tensor,
    rois: Tensor,
    stride: int,
    output_size: int,
    sampling_ratio: int = 0,
    alignment: Alignment = "aligned",
) -> Tensor:
    """RoIAlign (arXiv 1703.06870) of all RoIs on one level.

    Args:
        feature: (N, C, H, W).
        rois: (R, 5).
        stride: Pixels per cell.
        output_size: Side S of the grid of each RoI.
        sampling_ratio: Samples per output cell and axis; 0 adapts their number to the RoI's size.
        alignment: ``aligned`` takes the centre of cell i to be at i + 0.5, as boxes do. ``unaligned`` takes it to
            be at i, and no RoI to be smaller than a cell. ``legacy`` is the first open kernels' (the original
            AugFPN's): centres at i, corners x2 and y2 inclusive, RoIs as small as they come.

    Returns:
        (R, C, S, S), of the features' dtype.
    """
    if by_products(feature):
        levels = torch.zeros(len(rois), dtype=torch.int64)
        return _pool_by_products([feature], rois, levels, [stride], output_size, sampling_ratio, alignment)
    if alignment == "legacy":
        rois = rois + _legacy_shift(on_device([stride], rois))
    # Corners need float32: in bfloat16 one at 2000 px is off by pixels.
    dtype = torch.promote_types(feature.dtype, torch.float32)
    pooled = roi_align(
        feature.to(dtype),
        rois.to(dtype),
        output_size,
        spatial_scale=1 / stride,
        sampling_ratio=sampling_ratio,
        aligned=alignment != "unaligned",
    )
    return pooled.to(feature.dtype)


def _pool_by_products(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    alignment: Alignment,
) -> Tensor:
    """:func:`pool_level` of each RoI on its own level (R,), on the CPU."""
    if alignment == "legacy":
        rois = rois + _legacy_shift(torch.tensor(strides, dtype=rois.dtype)[levels])
    dtype = torch.promote_types(features[0].dtype, torch.float32)
    pooled = align_by_products(
        [feature.to(dtype) for feature in features],
        rois.to(dtype),
        levels,
        strides,
        output_size,
        sampling_ratio,
        alignment != "unaligned",
    )
    return pooled.to(features[0].dtype)


def _pool_in_graph(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    alignment: Alignment,
) -> Tensor:
    """:func:`pool_level` of each RoI on its own level (R,), in operations that an exported graph can hold."""
    pooled = [
        pool_level(
            feature, rois[(levels == number).nonzero().squeeze(1)], stride, output_size, sampling_ratio, alignment
        )
        for number, (feature, stride) in enumerate(zip(features, strides, strict=True))
    ]
    # No two keys are alike, so that any way of sorting gives one order.
    order = (levels * levels.shape[0] + torch.arange(levels.shape[0], device=levels.device)).argsort()
    return torch.cat(pooled)[order.argsort()]


def _legacy_shift(strides: Tensor) -> Tensor:
    """What takes RoIs on levels of strides (R,) to those whose aligned features are the legacy kernels', (R, 5)."""
    # Half a cell further is what `aligned` subtracts again; 1 px more makes inclusive corners continuous.
    halves = strides / 2
    return torch.stack([torch.zeros_like(halves), halves, halves, 1 + halves, 1 + halves], dim=1)


def roi_levels(rois: Tensor, num_levels: int, finest_scale: int) -> Tensor:
    """The level of each RoI by its size: (R, 5) to (R,) int64 in 0 .. num_levels - 1."""
    scales = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).clamp(min=0).sqrt()
    # 1e-6 keeps a RoI at exactly a power of two of finest_scale from falling below it, and log2 from minus infinity.
    levels = (scales / finest_scale + 1e-6).log2().floor()
    return levels.clamp(0, num_levels - 1).long()


def scale_rois(rois: Tensor, factor: float) -> Tensor:
    """Grows RoIs (R, 5) about their centres by a factor."""
    centres = (rois[:, 1:3] + rois[:, 3:5]) / 2
    half_sizes = (rois[:, 3:5] - rois[:, 1:3]) * (factor / 2)
    return torch.cat([rois[:, :1], centres - half_sizes, centres + half_sizes], dim=1)
