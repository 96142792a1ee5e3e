"""Trains torchvision's FCOS with Lightning's Trainer, from a data module.

    python examples/lightning_datamodule.py train.json train/images val.json val/images --root run --epochs 12

Stopped in the middle of an epoch, the same command goes on with the batch that would have come: Lightning saves and
restores the position of a loader that has ``state_dict`` and ``load_state_dict`` by itself. Only where a run may go on
with another number of devices or another batch size, more is needed, as the Trainer counts batches: the data module
restores the position before the Trainer asks how many batches there are, and the Trainer asks anew in each epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from dpipe import Batch, CocoIndex, DetectionLoader, InputError, RandomFlip, Resize, to_torchvision


class DetectionData(L.LightningDataModule):
    """Loaders of a training and a validation set, shared by the Trainer's processes.

    Args:
        train: COCO JSON and folder of the images.
        val: The same of the validation set.
        batch_size: Images of a batch on one device.
        size: Shorter side of the images; the longer is at most twice as long.
    """

    def __init__(self, train: tuple[Path, Path], val: tuple[Path, Path], batch_size: int, size: int) -> None:
        super().__init__()
        self.folders = {"train": train[1], "val": val[1]}
        self.indexes = {"train": CocoIndex.load(train[0]), "val": CocoIndex.load(val[0])}
        self.batch_size = batch_size
        self.resize = Resize((2 * size, size))
        self.train_loader: DetectionLoader | None = None
        self.restored: dict[str, Any] | None = None

    def _loader(self, split: str) -> DetectionLoader:
        assert self.trainer is not None
        training = split == "train"
        return DetectionLoader(
            self.indexes[split],
            self.folders[split],
            augment=[self.resize, RandomFlip(0.5)] if training else [self.resize],
            batch_size=self.batch_size,
            device=str(self.trainer.strategy.root_device),
            shuffle=training,
            filter_empty=training,
            pad_last=training,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def train_dataloader(self) -> DetectionLoader:
        """The training set, augmented; in a resumed run, what is left of the epoch."""
        self.train_loader = self._loader("train")
        if self.restored:
            self.train_loader.load_state_dict(self.restored)
            self.restored = None
        return self.train_loader

    def val_dataloader(self) -> DetectionLoader:
        """The validation set, each image once."""
        return self._loader("val")

    def state_dict(self) -> dict[str, Any]:
        """What the Trainer saves."""
        return {} if self.train_loader is None else self.train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self.restored = state_dict


class Detector(L.LightningModule):
    """An FCOS.

    Args:
        num_classes: Of objects, without the background.
        size: Shorter side of the images.
        lr: Learning rate.
        backbone: A ResNet of torchvision.
    """

    def __init__(self, num_classes: int, size: int, lr: float = 0.005, backbone: str = "resnet50") -> None:
        super().__init__()
        self.save_hyperparameters()
        features = resnet_fpn_backbone(
            backbone_name=backbone,
            weights=None,
            trainable_layers=5,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )
        self.model = FCOS(features, num_classes=num_classes + 1, min_size=size, max_size=2 * size)
        self.lr = lr

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss."""
        images, targets = to_torchvision(batch, masks=False)
        loss = sum(self.model(images, targets).values(), torch.zeros((), device=self.device))
        self.log("loss", loss, batch_size=len(batch), prog_bar=True)
        return 0 * loss if batch.stand_in else loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs how many of the objects are found, by a box of their class with an IoU above 0.5."""
        images, targets = to_torchvision(batch, masks=False)
        for output, target in zip(self.model(images), targets, strict=True):
            overlaps = box_iou(target["boxes"], output["boxes"])
            same = target["labels"][:, None] == output["labels"]
            if len(target["boxes"]):
                found = ((overlaps > 0.5) & same).any(dim=1).float().mean()
                self.log("recall", found, batch_size=len(target["boxes"]), on_epoch=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns stochastic gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)


def main(arguments: Sequence[str] | None = None) -> L.Trainer:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description="Train FCOS with Lightning.")
    parser.add_argument("train_annotations", type=Path, help="COCO JSON")
    parser.add_argument("train_images", type=Path, help="folder of the images")
    parser.add_argument("val_annotations", type=Path, help="COCO JSON of the validation set")
    parser.add_argument("val_images", type=Path, help="folder of its images")
    parser.add_argument("--root", type=Path, default=Path("lightning_run"), help="gets checkpoints, gone on from")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many steps; -1 for no limit")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--size", type=int, default=800, help="shorter side of the images; the longer is at most twice")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--devices", default="auto")
    given = parser.parse_args(arguments)
    L.seed_everything(0)
    data = DetectionData(
        (given.train_annotations, given.train_images),
        (given.val_annotations, given.val_images),
        given.batch_size,
        given.size,
    )
    trainer = L.Trainer(
        accelerator=given.accelerator,
        devices=given.devices,
        max_epochs=given.epochs,
        max_steps=given.steps,
        default_root_dir=given.root,
        callbacks=[ModelCheckpoint(given.root, every_n_train_steps=given.save_every, save_last="link")],
        log_every_n_steps=1,
        reload_dataloaders_every_n_epochs=1,
    )
    module = Detector(len(data.indexes["train"].class_names), given.size, backbone=given.backbone)
    last = given.root / "last.ckpt"
    trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None)
    return trainer


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
