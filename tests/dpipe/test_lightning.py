"""Lightning's Trainer saves and restores the loader's position by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpipe.batch import Batch
from dpipe.coco import CocoIndex
from dpipe.loader import DetectionLoader

L = pytest.importorskip("lightning", reason="lightning is not installed")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

WriteDataset = Callable[..., tuple[CocoIndex, Path]]

# Lightning 2.6 makes PyTorch's tree specs in a way that PyTorch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")


class Recorder(L.LightningModule):  # type: ignore[misc, name-defined]
    """Learns next to nothing, and notes the samples of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[tuple[int, list[int]]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert isinstance(batch, Batch)
        assert batch.targets[0].matrix.dtype == np.float64
        self.trained.append((self.current_epoch, [target.sample for target in batch.targets]))
        return (self.weight * batch.images.float().mean() - 1) ** 2

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated.append([target.sample for target in batch.targets])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


@pytest.fixture
def data(write_dataset: WriteDataset) -> tuple[CocoIndex, Path]:
    return write_dataset([np.full((8, 9 + n, 3), n, np.uint8) for n in range(11)])


def fit(
    data: tuple[CocoIndex, Path],
    *,
    steps: int = -1,
    save_to: Path | None = None,
    go_on_from: Path | None = None,
    **options: Any,
) -> Recorder:
    """Trains three epochs, or so many steps, and saves a checkpoint after each step where ``save_to`` is given."""
    index, images = data
    training = DetectionLoader(index, images, augment=[{"type": "RandomFlip"}], batch_size=2, prefetch=3)
    validation = DetectionLoader(index, images, augment=[], batch_size=4, shuffle=False, pad_last=False)
    saving = ModelCheckpoint(dirpath=save_to, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        max_steps=steps,
        callbacks=[saving] if save_to else [],
        enable_checkpointing=save_to is not None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    module = Recorder()
    trainer.fit(module, training, validation, ckpt_path=go_on_from)
    return module


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks:UserWarning")
@pytest.mark.parametrize("steps", [1, 5, 6, 8, 12])
def test_a_run_stopped_anywhere_goes_on_with_the_remaining_samples(
    data: tuple[CocoIndex, Path], tmp_path: Path, steps: int
) -> None:
    whole = fit(data)
    assert [epoch for epoch, _ in whole.trained] == [0] * 6 + [1] * 6 + [2] * 6
    stopped = fit(data, steps=steps, save_to=tmp_path / "run")
    assert stopped.trained == whole.trained[:steps]
    resumed = fit(data, go_on_from=tmp_path / "run" / f"step={steps}.ckpt")
    assert resumed.trained == whole.trained[steps:]


def test_each_validation_sees_every_image_once(data: tuple[CocoIndex, Path]) -> None:
    # Two batches before training, and two validations an epoch.
    module = fit(data, val_check_interval=3)
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert module.validated == expected[:2] + 6 * expected


def test_mixed_precision_leaves_targets_as_they_are(data: tuple[CocoIndex, Path]) -> None:
    assert len(fit(data, steps=1, precision="bf16-mixed").trained) == 1


def test_lightning_2_5_finds_a_sampler(data: tuple[CocoIndex, Path]) -> None:
    loader = DetectionLoader(*data, augment=[])
    assert loader.batch_sampler.sampler is loader.sampler
