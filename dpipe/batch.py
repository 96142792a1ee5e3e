"""What a loader hands out."""

from __future__ import annotations

import torch

from dpipe.target import Target


class Batch:
    """N images and their targets.

    It is no dataclass, as trainers that convert the tensors of every container they know (Lightning) would change the
    types of targets; they move it to a device by its ``to``.

    Args:
        images: (N, 3, H, W), channels_last: normalised, or uint8 RGB where the augmentation has no ``Normalize``.
            Images lie top left; the padding is 0.
        targets: One for each image.
        stand_in: Whether the batch stands in for one without any usable sample, so that training on several ranks stays
            in step: one image of zeros, with nothing to find and all of it to be ignored. Nothing should be learned
            from it: multiply its loss by 0.
    """

    def __init__(self, images: torch.Tensor, targets: list[Target], stand_in: bool = False) -> None:
        self.images = images
        self.targets = targets
        self.stand_in = stand_in

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        instances = sum(len(target.boxes) for target in self.targets)
        return f"Batch({tuple(self.images.shape)} {self.images.dtype}, {instances} instances)"

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch with all tensors on a device.

        On the way to a GPU nothing waits for what is queued there, and pixels in pinned memory not even for their copy.
        """
        # Towards the host, a copy that nobody waits for could be read too early.
        images = self.images.to(device, non_blocking=torch.device(device).type == "cuda")
        return Batch(images, [target.to(device) for target in self.targets], self.stand_in)
