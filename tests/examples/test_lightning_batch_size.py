"""The data module of the Lightning example, where a run goes on with another batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

L = pytest.importorskip("lightning", reason="lightning is not installed")

from lightning_datamodule import DetectionData  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")


class Recorder(L.LightningModule):  # type: ignore[misc, name-defined]
    """Notes the samples of each step, and saves a checkpoint after one of them."""

    def __init__(self, save_after: int = 0, path: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.save_after, self.path = save_after, path
        self.epochs: dict[int, list[list[int]]] = {}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.epochs.setdefault(self.current_epoch, []).append([target.sample for target in batch.targets])
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """As there is a validation set."""

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step == self.save_after:
            self.trainer.save_checkpoint(self.path)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(streets: Any, batch_size: int, module: Recorder, **options: Any) -> None:
    train, val = ((streets.annotations(split), streets.images(split)) for split in ("train", "val"))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(module, datamodule=DetectionData(train, val, batch_size, size=80), **options)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (2, 2)])
def test_no_sample_is_lost_or_repeated(streets: Any, tmp_path: Path, before: int, after: int) -> None:
    path = tmp_path / "run.ckpt"
    first, second = Recorder(2, path), Recorder()
    fit(streets, before, first)
    fit(streets, after, second, ckpt_path=path)
    taken = [sample for step in first.epochs[0][:2] for sample in step]
    left = [sample for step in second.epochs[0] for sample in step]
    assert sorted((taken + left)[:7]) == list(range(7))
    assert len(second.epochs[0]) == -(-(7 - len(taken)) // after)
    for epoch in (1, 2):
        samples = [sample for step in second.epochs[epoch] for sample in step]
        assert sorted(samples[:7]) == list(range(7))
        assert len(second.epochs[epoch]) == -(-7 // after)
    if before == after:
        assert second.epochs[1] == first.epochs[1]
