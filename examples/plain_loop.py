"""Trains a small detector of object centres with a loop of its own, from plain tensors.

    python examples/plain_loop.py train.json images --epochs 4 --checkpoint run.pt

Stop it wherever you like: it saves the weights and the loader's position every few steps, and the same command goes on
with the very batch that would have come. The model (object centres on a heat map, arXiv 1904.07850) is as small as it
can be; put your own in its place.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpipe import CocoIndex, DetectionLoader, InputError, Normalize, Pad, RandomFlip, Resize, to_tensors

STRIDE = 8


class CentreNet(nn.Module):
    """Predicts, for each cell of STRIDE x STRIDE pixels, what is centred there and how large it is.

    Args:
        num_classes: Channels of the heat map.
        width: Channels of the features.
    """

    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (3, width, width):
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.heat = nn.Conv2d(width, num_classes, 1)
        self.size = nn.Conv2d(width, 2, 1)
        nn.init.constant_(self.heat.bias, -4.0)  # centres are rare

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits of centres, (N, C, H/8, W/8), and log widths and heights in cells, (N, 2, H/8, W/8)."""
        features = self.features(images)
        return self.heat(features), self.size(features)


def loss_of(model: CentreNet, batch: dict[str, Tensor]) -> Tensor:
    """The loss of a batch as ``to_tensors`` gives it."""
    heat, size = model(batch["images"])
    boxes, image_of = batch["boxes"], batch["image_of"]
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE).long()  # (T, 2): column, row
    columns, rows = centres.unbind(1)
    wanted = torch.zeros_like(heat)
    wanted[image_of, batch["labels"], rows, columns] = 1
    weight = torch.ones_like(heat)
    for image, box in zip(batch["image_of_ignored"].tolist(), (batch["ignore_boxes"] / STRIDE).tolist(), strict=True):
        x0, y0, x1, y1 = map(int, box)
        weight[image, :, y0 : y1 + 1, x0 : x1 + 1] = 0
    found = F.binary_cross_entropy_with_logits(heat, wanted, weight, reduction="sum")
    sides = torch.log((boxes[:, 2:] - boxes[:, :2]) / STRIDE)
    sized = F.l1_loss(size[image_of, :, rows, columns], sides, reduction="sum")
    return (found + 0.1 * sized) / max(len(boxes), 1)


def train(arguments: argparse.Namespace) -> list[float]:
    """Trains, and returns the loss of each step."""
    torch.manual_seed(0)
    index = CocoIndex.load(arguments.annotations)
    loader = DetectionLoader(
        index,
        arguments.images,
        augment=[
            Resize((arguments.size, arguments.size)),
            RandomFlip(0.5),
            Normalize(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
            Pad(32),
        ],
        batch_size=arguments.batch_size,
        device=arguments.device,
        on_bad_sample="skip",
    )
    model = CentreNet(len(index.class_names)).to(arguments.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
    if arguments.checkpoint.exists():
        state = torch.load(arguments.checkpoint, map_location=arguments.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])

    losses: list[float] = []
    while loader.sampler.epoch < arguments.epochs:
        for batch in loader:  # the rest of the epoch; at its end the epoch's number rises
            loss = loss_of(model, to_tensors(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            stop = len(losses) == arguments.steps
            if stop or len(losses) % arguments.save_every == 0:
                save(arguments.checkpoint, model, optimizer, loader)
            if stop:
                return losses
        save(arguments.checkpoint, model, optimizer, loader)
        if losses:  # none where the run was stopped after the last batch of an epoch
            print(f"epoch {loader.sampler.epoch}: loss {losses[-1]:.3f}")
    return losses


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, loader: DetectionLoader) -> None:
    """Writes a checkpoint, whole or not at all."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
    part = path.with_name(f"{path.name}.part")
    torch.save(state, part)
    part.replace(path)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description="Train a small detector with a plain loop.")
    parser.add_argument("annotations", type=Path, help="COCO JSON")
    parser.add_argument("images", type=Path, help="folder of the images")
    parser.add_argument("--checkpoint", type=Path, default=Path("plain_loop.pt"), help="written; gone on from")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps; 0 for no limit")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--size", type=int, default=512, help="longer side of the images")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return train(parser.parse_args(arguments))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
