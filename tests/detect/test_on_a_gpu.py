"""Training, evaluation and prediction on a GPU."""

from __future__ import annotations

import copy
import json
import math
import shutil

import pytest
import torch

from detect.config import build_model
from detect.data import train_index, train_loader
from detect.evaluation import evaluate
from detect.predicting.predictor import load
from detect.running.devices import make_fabric
from detect.running.logs import read_log
from detect.training import train

pytestmark = pytest.mark.gpu

CUDA = "cuda"


@pytest.mark.parametrize("backend", ["dali", "opencv"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_run_learns_goes_on_and_predicts(shapes, tmp_path, precision, backend):
    run = tmp_path / "run"
    choices = (f"train.precision={precision}", f"data.backend={backend}")
    config = shapes.config(*choices, "train.eval_every=1", "train.ema={}")
    last = train(config, run, accelerator=CUDA)
    records = read_log(run / "train.jsonl")
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert len([record for record in records if record["kind"] == "evaluation"]) == 2
    assert json.loads((run / "environment.json").read_text())["gpus"]
    # From the middle: optimizer, average and scaler come back to the GPU from the checkpoint.
    shutil.rmtree(last)
    assert train(config, run, resume=True, accelerator=CUDA) == last
    again = [record["loss"] for record in read_log(run / "train.jsonl") if record["kind"] == "train"]
    assert again == pytest.approx(losses, rel=0.2)  # whose sums are in no fixed order there
    assert {scores.kind for scores in evaluate(config, run, accelerator=CUDA)} == {"bbox", "segm"}
    found = load(config, run, accelerator=CUDA).predict(shapes.images[:3])
    assert [one.size for one in found] == [(64, 96)] * 3


def test_losses_are_those_of_the_cpu(shapes):
    config = shapes.config()
    index = train_index(config)
    torch.manual_seed(0)
    model = build_model(config, len(index.class_names)).train()
    there = copy.deepcopy(model).to(CUDA)
    with torch.backends.cudnn.flags(allow_tf32=False):
        for batch in train_loader(config, index, make_fabric(1, "cpu", "32-true")):
            torch.manual_seed(1)
            expected = model(batch.images, batch.targets)
            torch.manual_seed(1)
            on_gpu = batch.to(CUDA)
            losses = there(on_gpu.images, on_gpu.targets)
            assert losses.keys() == expected.keys()
            for name, loss in losses.items():
                # Rounding may change which of the RoIs that fit alike are learned from.
                assert loss.item() == pytest.approx(expected[name].item(), rel=0.1, abs=0.02), name
