"""What a head reads from the pyramid below it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dpipe.errors import InputError


def common_channels(in_channels: int | Sequence[int], part: str) -> int:
    """The one number of channels of all levels: heads share their weights over levels.

    Args:
        in_channels: A number, or one number for each level.
        part: Name of the head, for the message.

    Raises:
        InputError: If the levels differ.
    """
    if isinstance(in_channels, int):
        return in_channels
    if len(set(in_channels)) != 1:
        raise InputError(f"{part}: in_channels is {list(in_channels)}; levels that share a head must have equally many")
    return in_channels[0]


def check_levels(detector: nn.Module, dense_head: nn.Module, auxiliary_head: nn.Module | None = None) -> None:
    """Checks what the neck and the heads of a detector take the levels to be against what the part before them tells.

    Args:
        detector: Has a ``backbone`` and a ``neck``, which may be None. A neck may have ``source_channels`` and
            ``source_strides``, of the backbone's levels. What reads levels has ``level_strides`` or ``level_channels``.
        dense_head: Reads all levels of the neck (of the backbone without one); others read the finest.
        auxiliary_head: Reads all laterals.

    Raises:
        InputError: If strides or channels differ.
    """
    owner = type(detector).__name__
    _check_neck(detector, owner)
    source, source_name = (detector.backbone, "backbone") if detector.neck is None else (detector.neck, "neck")
    strides = getattr(source, "strides", None)
    channels = getattr(source, "channels", None)
    lateral_strides = getattr(detector.backbone, "strides", ())
    for name, part in detector.named_modules():
        told = getattr(part, "level_strides", None)
        # Proposals come from all levels; RoIs and consistent supervision from the finest.
        if told is not None and strides is not None:
            expected = strides if part is dense_head else strides[: len(told)]
            least = len(lateral_strides) if part is auxiliary_head else 1
            if tuple(told) != tuple(expected) or len(told) < least:
                raise InputError(
                    f"{owner}: {name} has the strides {list(told)}, but the {source_name}'s are {list(strides)}"
                )
        width = getattr(part, "level_channels", None)
        if width is not None and channels is not None and set(channels) != {width}:
            raise InputError(
                f"{owner}: {name} has in_channels {width}, but the {source_name}'s levels have {list(channels)}"
            )


def _check_neck(detector: nn.Module, owner: str) -> None:
    """Checks what a neck was given of the backbone's levels, where both tell."""
    for argument, of_neck, of_backbone in (
        ("in_channels", "source_channels", "channels"),
        ("strides", "source_strides", "strides"),
    ):
        given, told = getattr(detector.neck, of_neck, None), getattr(detector.backbone, of_backbone, None)
        if given is not None and told is not None and list(given) != list(told):
            raise InputError(
                f"{owner}: neck has the {argument} {list(given)}, but the backbone's levels have {list(told)}"
            )


def check_output(detector: nn.Module, name: str, images: Tensor, levels: Sequence[Tensor]) -> None:
    """Checks the levels that a backbone or a neck made against what it tells of them, where it tells.

    Reads shapes alone. A level may be some cells larger or smaller than its stride says, for want of padding.

    Args:
        detector: Has the part.
        name: ``backbone`` or ``neck``.
        images: (N, 3, H, W).
        levels: (N, C_l, H_l, W_l) each.

    Raises:
        InputError: If there are more or fewer levels, or if their channels or sizes are others.
    """
    part = getattr(detector, name)
    channels, strides = getattr(part, "channels", None), getattr(part, "strides", None)
    if channels is None or strides is None:
        return
    sides = images.shape[2:]
    owner = f"{type(detector).__name__}: {name}: {type(part).__name__}"
    if isinstance(levels, Tensor):
        raise InputError(f"{owner} made one tensor of shape {list(levels.shape)}, not a list of levels")
    made = [tuple(level.shape[1:]) for level in levels]
    fits = len(made) == len(channels) == len(strides) and all(
        width == told and all(abs(cells * stride - side) <= 2 * stride for cells, side in zip(size, sides, strict=True))
        for (width, *size), told, stride in zip(made, channels, strides, strict=True)
    )
    if not fits:
        shapes = ", ".join("x".join(map(str, shape)) for shape in made)
        raise InputError(
            f"{owner} tells the channels {list(channels)} and the strides {list(strides)}, but made levels of "
            f"{shapes} (channels, height, width) of images of {sides[0]}x{sides[1]}"
        )
