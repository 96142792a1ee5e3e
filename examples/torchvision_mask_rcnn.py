"""Trains torchvision's Mask R-CNN in the manner of torchvision's own references/detection.

    python examples/torchvision_mask_rcnn.py train.json train/images val.json val/images --epochs 12 --device cuda

``TorchvisionBatches`` gives what that training loop takes, so ``train_one_epoch`` below may as well be torchvision's.
Training images come resized from the loader; for evaluation the model resizes, so that its boxes are those of the
files.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from dpipe import CocoIndex, DetectionLoader, InputError, RandomFlip, Resize, to_torchvision


class TorchvisionBatches:
    """A loader whose batches are (images, targets) as torchvision's loop unpacks them.

    Args:
        loader: Without ``Normalize``, which the model does.
        masks: Whether targets have masks.
    """

    def __init__(self, loader: DetectionLoader, masks: bool = True) -> None:
        self.loader = loader
        self.masks = masks

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[list[Tensor], list[dict[str, Any]]]]:
        return (to_torchvision(batch, self.masks) for batch in self.loader)


def train_one_epoch(
    model: MaskRCNN, optimizer: torch.optim.Optimizer, data_loader: TorchvisionBatches, device: torch.device, epoch: int
) -> float:
    """Trains to the end of the epoch, and returns its mean loss."""
    model.train()
    warmup = None
    if epoch == 0:
        steps = min(1000, max(len(data_loader) - 1, 1))
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.001, total_iters=steps)
    losses = []
    for images, targets in data_loader:
        images = [image.to(device) for image in images]
        targets = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in target.items()} for target in targets]
        loss = sum(model(images, targets).values(), torch.zeros((), device=device))
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise SystemExit(f"the loss is {losses[-1]} on the images {[target['image_id'] for target in targets]}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if warmup is not None:
            warmup.step()
    return float(np.mean(losses))


@torch.inference_mode()
def evaluate(
    model: MaskRCNN, data_loader: TorchvisionBatches, device: torch.device, annotations: Path
) -> dict[str, float]:
    """Returns the COCO AP of boxes and of masks."""
    model.eval()
    index = data_loader.loader.index
    results: list[dict[str, Any]] = []
    for images, targets in data_loader:
        outputs = model([image.to(device) for image in images])
        for target, output in zip(targets, outputs, strict=True):
            boxes = output["boxes"].cpu()
            boxes[:, 2:] -= boxes[:, :2]
            bitmaps = (output["masks"][:, 0] > 0.5).cpu().numpy().astype(np.uint8)
            for box, label, score, bitmap in zip(
                boxes.tolist(), output["labels"].tolist(), output["scores"].tolist(), bitmaps, strict=True
            ):
                rle = coco_mask.encode(np.asfortranarray(bitmap))
                category = int(index.category_ids[label - 1])
                results.append(
                    {
                        "image_id": target["image_id"],
                        "category_id": category,
                        "bbox": box,
                        "score": score,
                        "segmentation": rle,
                    }
                )
    if not results:
        return {"bbox": 0.0, "segm": 0.0}
    truth = COCO(str(annotations))
    found = truth.loadRes(results)
    scores = {}
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        scores[kind] = float(evaluation.stats[0])
    return scores


def train(arguments: argparse.Namespace) -> dict[str, float]:
    """Trains, and returns the last evaluation's scores."""
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    train_index, val_index = (CocoIndex.load(path) for path in (arguments.train_annotations, arguments.val_annotations))
    train_loader = DetectionLoader(
        train_index,
        arguments.train_images,
        augment=[Resize((2 * arguments.size, arguments.size)), RandomFlip(0.5)],
        batch_size=arguments.batch_size,
        device=arguments.device,
        filter_empty=True,
    )
    val_loader = DetectionLoader(
        val_index, arguments.val_images, augment=[], device=arguments.device, shuffle=False, pad_last=False
    )
    model = MaskRCNN(
        resnet_fpn_backbone(backbone_name=arguments.backbone, weights=None, trainable_layers=5),
        num_classes=len(train_index.class_names) + 1,
        min_size=arguments.size,
        max_size=2 * arguments.size,
        box_batch_size_per_image=arguments.rois,
        rpn_post_nms_top_n_test=2 * arguments.rois,
        _skip_resize=True,  # in training, as the loader resizes
    ).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9, weight_decay=1e-4)
    if arguments.checkpoint.exists():
        state = torch.load(arguments.checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        train_loader.load_state_dict(state["loader"])
    scores: dict[str, float] = {}
    while (epoch := train_loader.sampler.epoch) < arguments.epochs:
        loss = train_one_epoch(model, optimizer, TorchvisionBatches(train_loader), device, epoch)
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "loader": train_loader.state_dict(),
        }
        torch.save(state, arguments.checkpoint)
        print(f"epoch {epoch}: loss {loss:.3f}")
        scores = evaluate(model, TorchvisionBatches(val_loader, masks=False), device, arguments.val_annotations)
    return scores


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description="Train torchvision's Mask R-CNN.")
    parser.add_argument("train_annotations", type=Path, help="COCO JSON")
    parser.add_argument("train_images", type=Path, help="folder of the images")
    parser.add_argument("val_annotations", type=Path, help="COCO JSON of the validation set")
    parser.add_argument("val_images", type=Path, help="folder of its images")
    parser.add_argument("--checkpoint", type=Path, default=Path("mask_rcnn.pt"), help="written; gone on from")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--size", type=int, default=800, help="shorter side of the images; the longer is at most twice")
    parser.add_argument("--backbone", default="resnet50", help="a ResNet of torchvision, such as resnet18")
    parser.add_argument("--rois", type=int, default=512, help="regions of an image to train on; twice as many to test")
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return train(parser.parse_args(arguments))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
