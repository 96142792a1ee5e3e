"""One training step on the CPU (forward, backward, SGD): our Mask R-CNN R50-FPN against torchvision's, and the cascade.

    python benchmarks/training_step.py --json training_step.json

All train on the same image of 512x512 with 8 objects and their masks, with the same weights where the models are the
same, in float32 on two threads. Steps are interleaved, so that what else the machine does hits all alike; a figure is
the median over rounds. The peak of memory is taken of each in a process of its own (docs/benchmarks.md tells more).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from machine import describe
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList

SIDE, OBJECTS, CLASSES = 512, 8, 80
PROPOSALS, RPN_STEPS = 1000, 25
THEIRS, OURS, SAME_SAMPLES, CASCADE = "torchvision", "mask R-CNN", "mask R-CNN, 2x2 samples", "cascade"
RECIPES = {
    OURS: "mask_rcnn_r50_fpn_coco",
    SAME_SAMPLES: "mask_rcnn_r50_fpn_coco",
    CASCADE: "cascade_mask_rcnn_r50_fpn_coco",
}
BF16 = ", bfloat16"
TARGETS = {(OURS, THEIRS): 0.9, (SAME_SAMPLES, THEIRS): 0.9, (CASCADE, OURS): 2.0}
"""What the first is to take at most, as a multiple of the second's time."""


class Contender(Protocol):
    """Something that trains.

    Attributes:
        rows: What its heads were given in the last step, by head.
    """

    rows: dict[str, list[int]]

    def step(self) -> float:
        """One step; returns the loss."""
        ...


def main() -> None:
    """Reads the command line, measures, prints the table and writes the JSON."""
    args = _arguments()
    names = [THEIRS, OURS, SAME_SAMPLES, CASCADE, *([OURS + BF16] if args.bf16 else [])]
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "weights.pth"
        save_weights(weights)
        # Before anything is measured here: a child begins with what its parent holds.
        memory = {name: peak_memory(name, weights, args.threads) for name in names if args.memory}
        report = measure(names, weights, args)
    report["megabytes"] = memory
    report = {"machine": describe(), "threads": args.threads, "rounds": args.rounds, **report}
    show(report, Console(width=120))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(names: list[str], weights: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Times the steps of all contenders in turn."""
    torch.set_num_threads(args.threads)
    contenders = {name: make_contender(name, weights) for name in names}
    losses = {name: [contender.step() for _ in range(args.warm_up)] for name, contender in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(args.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            contenders[name].step()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": medians,
        "steps": seconds,
        "first_losses": {name: values[0] for name, values in losses.items()},
        "rows": {name: contender.rows for name, contender in contenders.items()},
        "ratios": [
            {"of": one, "to": other, "ratio": medians[one] / medians[other], "at_most": limit}
            for (one, other), limit in TARGETS.items()
        ],
    }


def peak_memory(name: str, weights: Path, threads: int) -> float:
    """The peak of resident memory, in MB, of a process that does nothing but train for three steps."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train_alone, (name, weights, threads))


def _train_alone(name: str, weights: Path, threads: int) -> float:
    torch.set_num_threads(threads)
    contender = make_contender(name, weights)
    for _ in range(3):
        contender.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_contender(name: str, weights: Path) -> Contender:
    """What a name stands for."""
    if name == THEIRS:
        return Torchvision(weights)
    return Ours(RECIPES[name.removesuffix(BF16)], weights, name == SAME_SAMPLES, name.endswith(BF16))


@dataclass(frozen=True)
class Scene:
    """The image, normalised, and what is in it.

    Attributes:
        image: (3, SIDE, SIDE).
        boxes: (OBJECTS, 4), tight around the outlines.
        labels: (OBJECTS,), from 0.
        outlines: Of each object 35 vertices, (35, 2).
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    outlines: list[np.ndarray]


def make_scene() -> Scene:
    """Draws the scene, always the same: objects of 40 to 300 pixels, as many as COCO's images have."""
    rng = np.random.default_rng(0)
    outlines = []
    for width in np.geomspace(40, 300, OBJECTS):
        size = np.array([width, np.clip(width * rng.uniform(0.6, 1.6), 24, 320)])
        centre = rng.uniform(size / 2, SIDE - size / 2)
        angles = np.linspace(0, 2 * np.pi, 35, endpoint=False)
        radii = rng.uniform(0.8, 1.0, (35, 1))
        outlines.append(centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1) * size / 2)
    boxes = [np.concatenate([outline.min(axis=0), outline.max(axis=0)]) for outline in outlines]
    canvas = 0.3 * rng.standard_normal((SIDE, SIDE, 3), dtype=np.float32)
    for outline in reversed(outlines):
        cv2.fillPoly(canvas, [np.round(outline).astype(np.int32)], rng.uniform(-2, 2, 3).tolist())
    return Scene(
        image=torch.from_numpy(canvas).permute(2, 0, 1).contiguous(),
        boxes=torch.tensor(np.array(boxes), dtype=torch.float32),
        labels=torch.from_numpy(rng.integers(0, CLASSES, OBJECTS)),
        outlines=outlines,
    )


def save_weights(path: Path) -> None:
    """Makes the weights that both libraries' Mask R-CNN begin with, and stores them under torchvision's names.

    They are random, but for the RPN, which is trained on the scene a little: of proposals that lie anywhere hardly any
    are positive, and there would be next to nothing for the mask head to do.
    """
    torch.manual_seed(0)
    model = torchvision_model().train()
    for name, value in model.state_dict().items():
        if name.endswith("bn3.weight"):
            value.fill_(0.3)  # sixteen residual branches of full weight would add up to huge features
    scene = make_scene()
    images = ImageList(scene.image[None], [(SIDE, SIDE)])
    targets = [{"boxes": scene.boxes, "labels": scene.labels + 1}]
    with torch.no_grad():
        features = model.backbone(images.tensors)
    optimizer = torch.optim.Adam(model.rpn.head.parameters(), lr=1e-3)
    for _ in range(RPN_STEPS):
        _, losses = model.rpn(images, features, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    torch.save(model.state_dict(), path)


def torchvision_model() -> nn.Module:
    """What ``maskrcnn_resnet50_fpn`` builds where it starts from ImageNet weights, which it has no use for here.

    FrozenBatchNorm, and the stem and the first stage not trained. As many proposals and classes as our recipe has.
    """
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    # Its own resizing to the size that the image has would only cost it time.
    return MaskRCNN(backbone, CLASSES + 1, rpn_post_nms_top_n_train=PROPOSALS, _skip_resize=True)


class Torchvision:
    """torchvision's Mask R-CNN, with masks as the bitmaps that it wants."""

    def __init__(self, weights: Path) -> None:
        scene = make_scene()
        self.model = torchvision_model().train()
        self.model.load_state_dict(torch.load(weights))
        transform = self.model.transform
        mean, std = (torch.tensor(values)[:, None, None] for values in (transform.image_mean, transform.image_std))
        self.images = [scene.image * std + mean]
        masks = np.zeros((OBJECTS, SIDE, SIDE), np.uint8)
        for mask, outline in zip(masks, scene.outlines, strict=True):
            cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
        self.targets = [{"boxes": scene.boxes, "labels": scene.labels + 1, "masks": torch.from_numpy(masks)}]
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        # The rate is 0: random weights would go astray, and each step do other work.
        self.optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)
        heads = self.model.roi_heads
        self.rows = count_rows({"rois": heads.box_head, "mask rois": heads.mask_head})
        _count_proposals(self.model.rpn, self.rows, lambda output: output[0][0])

    def step(self) -> float:
        """One step; returns the loss."""
        self.rows.clear()
        loss = sum(self.model(self.images, self.targets).values())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


class Ours:
    """A shipped recipe's model and optimizer, with masks as polygons.

    Args:
        recipe: Its name.
        weights: torchvision's; what else a cascade has is drawn.
        same_samples: RoIAlign with torchvision's 2x2 samples a cell, and its alignment.
        bf16: Computes in bfloat16 where autocast does.
    """

    def __init__(self, recipe: str, weights: Path, same_samples: bool, bf16: bool) -> None:
        from detect.config import build_model, load_config
        from detect.models.checkpoints import load_weights
        from detect.running.optim import make_optimizer, set_lr
        from dpipe.polygons import Polygons
        from dpipe.target import Target

        scene = make_scene()
        overrides = [
            f"model.roi_head.{part}_roi_extractor.{setting}"
            for part in ("bbox", "mask")
            for setting in ("sampling_ratio=2", "alignment=unaligned")
        ]
        config = load_config(recipe, [f"model.rpn_head.train_max_per_img={PROPOSALS}", *(overrides * same_samples)])
        torch.manual_seed(0)
        self.model = build_model(config, CLASSES, pretrained=False).train()
        load_weights(self.model, weights)
        self.images = scene.image[None].contiguous(memory_format=torch.channels_last)  # as the loader hands them out
        segmentations = [[outline.ravel().tolist()] for outline in scene.outlines]
        self.targets = [
            Target(
                image_id=0,
                sample=0,
                file_name="scene",
                size=(SIDE, SIDE),
                original_size=(SIDE, SIDE),
                matrix=np.eye(2, 3),
                boxes=scene.boxes,
                labels=scene.labels,
                masks=Polygons.from_coco(segmentations),
                annotation_ids=torch.arange(OBJECTS),
                ignore_boxes=torch.zeros(0, 4),
            )
        ]
        self.optimizer = make_optimizer(self.model, config.optimizer)
        set_lr(self.optimizer, 0.0)
        self.precision: Callable[[], Any] = (lambda: torch.autocast("cpu", torch.bfloat16)) if bf16 else nullcontext
        head = self.model.roi_head
        self.rows = count_rows({"rois": head.bbox_head, "mask rois": head.mask_head})
        sample = head.sample

        def counted(features: Any, proposals: Any, targets: Any) -> Any:
            self.rows["proposals"] = [len(boxes) for boxes in proposals]
            return sample(features, proposals, targets)

        head.sample = counted

    def step(self) -> float:
        """One step; returns the loss."""
        from detect.models.detectors import total_loss

        self.rows.clear()
        with self.precision():
            loss = total_loss(self.model(self.images, self.targets))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def count_rows(heads: dict[str, nn.Module]) -> dict[str, list[int]]:
    """Notes how many rows the heads are given, those of a cascade's stages one after the other."""
    rows: dict[str, list[int]] = {}
    for name, head in heads.items():
        for part in head if isinstance(head, nn.ModuleList) else [head]:
            part.register_forward_pre_hook(
                lambda _, inputs, name=name: rows.setdefault(name, []).append(len(inputs[0]))
            )
    return rows


def _count_proposals(module: nn.Module, rows: dict[str, list[int]], proposals: Callable[[Any], Tensor]) -> None:
    module.register_forward_hook(lambda _, inputs, output: rows.__setitem__("proposals", [len(proposals(output))]))


def show(report: dict[str, Any], console: Console) -> None:
    """Prints the table."""
    console.print(report["machine"])
    table = Table(title=f"a training step, one image of {SIDE}x{SIDE}, {OBJECTS} objects, {report['threads']} threads")
    for column in ("", "seconds", "of theirs", "peak", "first loss", "proposals", "RoIs", "mask RoIs"):
        table.add_column(column, justify="right" if column else "left")
    for name, seconds in report["seconds"].items():
        rows = report["rows"][name]
        memory = report["megabytes"].get(name)
        table.add_row(
            name,
            f"{seconds:.3f}",
            f"{seconds / report['seconds'][THEIRS]:.2f}",
            "" if memory is None else f"{memory:.0f} MB",
            f"{report['first_losses'][name]:.3f}",
            *(", ".join(map(str, rows[key])) for key in ("proposals", "rois", "mask rois")),
        )
    console.print(table)
    for ratio in report["ratios"]:
        verdict = "reached" if ratio["ratio"] <= ratio["at_most"] else "missed"
        console.print(f"{ratio['of']}: {ratio['ratio']:.2f} of {ratio['to']}, at most {ratio['at_most']}: {verdict}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds to take the median of (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before those (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="ours in bfloat16 as well")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="peaks of memory as well")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
