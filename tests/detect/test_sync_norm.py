"""BatchNorm over the batches of several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from detect.running.state import WEIGHTS
from detect.running.sync_norm import SyncedBatchNorm, synchronise_norms
from detect.training import train
from dpipe.errors import InputError

OPTIONS = (
    "train.eval_every=0",
    "train.epochs=2",
    "data.train.repeat=2",
    "schedule.warmup_iters=0",
    "optimizer.lr=0.1",
)


@pytest.fixture
def one_process(tmp_path_factory):
    """PyTorch's process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("plain", "shape"), [(nn.BatchNorm2d, (3, 4, 5, 6)), (nn.BatchNorm1d, (7, 4))])
def test_of_one_process_it_is_batch_norm(one_process, plain, shape, momentum):
    torch.manual_seed(0)
    norm = plain(4, momentum=momentum, eps=0.01)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    other = plain(4, momentum=momentum, eps=0.01)
    other.load_state_dict(norm.state_dict())
    synced = SyncedBatchNorm.like(other)
    assert list(synced.state_dict()) == list(norm.state_dict())
    for _ in range(2):
        x = (torch.randn(shape) * 3 + 5).requires_grad_()
        y = x.detach().clone().requires_grad_()
        direction = torch.randn(shape)
        (norm(x) * direction).sum().backward()
        (synced(y) * direction).sum().backward()
        torch.testing.assert_close(y.grad, x.grad, rtol=1e-4, atol=1e-5)
    for one, two in zip(norm.parameters(), synced.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-4)
    for name, tensor in norm.state_dict().items():
        torch.testing.assert_close(synced.state_dict()[name], tensor)
    torch.testing.assert_close(synced.eval()(x), norm.eval()(x))


def train_two(recipe: Path, work_dir: Path, *options: str) -> dict[str, torch.Tensor]:
    command = [sys.executable, "-m", "detect", "train", str(recipe), *OPTIONS, "data.batch_size=1", *options]
    done = subprocess.run(
        [*command, "--devices", "2", "--accelerator", "cpu", "--work-dir", str(work_dir)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return load_file(work_dir / "checkpoints" / "last" / WEIGHTS)


def test_two_processes_are_one_with_twice_the_batch(shapes, tiny, tmp_path):
    alone = train(shapes.config(tiny, *OPTIONS, "data.batch_size=2"), tmp_path / "alone")
    synced = train_two(shapes.recipe, tmp_path / "two", tiny, "train.sync_bn=true")
    for name, weight in load_file(alone / WEIGHTS).items():
        torch.testing.assert_close(synced[name], weight, rtol=1e-4, atol=1e-5)


TELLING = """
import json, os
import torch
from tiny_model import Tiny

class Telling(Tiny):
    def forward(self, images, targets):
        out = super().forward(images, targets)
        told = {"training": self.training, "seed": torch.initial_seed(), "var": self.norm.running_var.tolist()}
        with open(os.path.join(os.path.dirname(__file__), f"told-{torch.distributed.get_rank()}.jsonl"), "a") as file:
            file.write(json.dumps(told) + "\\n")
        return out
"""


def test_two_processes_have_statistics_and_seeds_of_their_own_and_are_evaluated_with_the_first_ones(
    shapes, tiny, tmp_path
):
    (shapes.root / "telling_model.py").write_text(TELLING)
    model = "model={_delete_: true, type: telling_model.Telling}"
    weights = train_two(shapes.recipe, tmp_path / "run", model, "train.eval_every=2")
    told = [
        [json.loads(line) for line in (shapes.root / f"told-{rank}.jsonl").read_text().splitlines()]
        for rank in range(2)
    ]
    first, second = ([row for row in rows if row["training"]] for rows in told)
    assert len(first) == len(second) == 8
    assert all(one["seed"] != two["seed"] and one["var"] != two["var"] for one, two in zip(first, second, strict=True))
    evaluated = [row["var"] for rows in told for row in rows if not row["training"]]
    assert len(evaluated) == 2
    for var in evaluated:
        torch.testing.assert_close(torch.tensor(var), weights["norm.running_var"], rtol=0, atol=0)


def test_a_model_keeps_its_weights_and_one_process_its_norms(shapes):
    def model() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)))

    made = model()
    assert type(synchronise_norms(made, torch.device("cpu"), 1)[1][0]) is nn.BatchNorm2d
    before, weight = list(made.state_dict()), made[1][0].weight
    assert type(synchronise_norms(made, torch.device("cpu"), 2)[1][0]) is SyncedBatchNorm
    assert list(made.state_dict()) == before
    assert made[1][0].weight is weight
    assert type(synchronise_norms(model(), torch.device("cuda"), 2)[1][0]) is nn.SyncBatchNorm


def test_a_model_without_statistics_is_told(shapes, tmp_path):
    with pytest.raises(InputError, match=r"^train\.sync_bn: no BatchNorm of the model takes its statistics from"):
        train(shapes.config("train.sync_bn=true", "model.backbone.norm_eval=true"), tmp_path)
