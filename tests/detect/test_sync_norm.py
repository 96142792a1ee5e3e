"""BatchNorm over the batches of several processes."""

from __future__ import annotations

import os
import subprocess
import sys

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


def test_two_processes_are_one_with_twice_the_batch(shapes, tiny, tmp_path):
    alone = train(shapes.config(tiny, *OPTIONS, "data.batch_size=2"), tmp_path / "alone")

    def two(sync: bool) -> dict[str, torch.Tensor]:
        command = [sys.executable, "-m", "detect", "train", str(shapes.recipe), tiny, *OPTIONS, "data.batch_size=1"]
        work_dir = tmp_path / str(sync)
        command += [f"train.sync_bn={str(sync).lower()}", "--devices", "2", "--accelerator", "cpu"]
        done = subprocess.run(
            [*command, "--work-dir", str(work_dir)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return load_file(work_dir / "checkpoints" / "last" / WEIGHTS)

    synced, apart = two(True), two(False)
    for name, weight in load_file(alone / WEIGHTS).items():
        torch.testing.assert_close(synced[name], weight, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(apart["norm.running_var"], synced["norm.running_var"], rtol=1e-3)


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
