"""Trains a DETR of Hugging Face's transformers, from random weights.

    python examples/transformers_detr.py train.json images --epochs 100 --device cuda

Nothing is downloaded. To fine-tune instead, make the model by ``DetrForObjectDetection.from_pretrained`` with the
``num_labels`` below and ``ignore_mismatched_sizes=True``; the normalisation is that of its image processor.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from dpipe import CocoIndex, DetectionLoader, InputError, Normalize, RandomFlip, Resize, to_detr


def make_model(class_names: Sequence[str], width: int, layers: int, queries: int) -> DetrForObjectDetection:
    """Builds a DETR on a ResNet-18.

    Args:
        class_names: In the order of the labels.
        width: Channels of the transformer.
        layers: Of the encoder, and of the decoder.
        queries: The most objects that can be found in an image.
    """
    backbone = ResNetConfig(
        layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], out_features=["stage4"]
    )
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_queries=queries,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        id2label=dict(enumerate(class_names)),
        label2id={name: label for label, name in enumerate(class_names)},
    )
    return DetrForObjectDetection(config)


def train(arguments: argparse.Namespace) -> list[float]:
    """Trains, and returns the mean loss of each epoch."""
    torch.manual_seed(0)
    index = CocoIndex.load(arguments.annotations)
    loader = DetectionLoader(
        index,
        arguments.images,
        augment=[
            Resize((2 * arguments.size, arguments.size)),
            RandomFlip(0.5),
            Normalize(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
        ],
        batch_size=arguments.batch_size,
        device=arguments.device,
    )
    model = make_model(index.class_names, arguments.width, arguments.layers, arguments.queries).to(arguments.device)
    backbone = [weight for name, weight in model.named_parameters() if "backbone" in name]
    others = [weight for name, weight in model.named_parameters() if "backbone" not in name]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": backbone, "lr": arguments.lr / 10}], lr=arguments.lr)
    means = []
    model.train()
    for epoch in range(arguments.epochs):
        losses = []
        for batch in loader:
            loss = model(**to_detr(batch)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
        print(f"epoch {epoch}: loss {means[-1]:.3f}")
    if arguments.save is not None:
        model.save_pretrained(arguments.save)
    return means


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description="Train a DETR.")
    parser.add_argument("annotations", type=Path, help="COCO JSON")
    parser.add_argument("images", type=Path, help="folder of the images")
    parser.add_argument("--save", type=Path, help="folder for the trained model")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--size", type=int, default=512, help="shorter side of the images; the longer is at most twice")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return train(parser.parse_args(arguments))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
