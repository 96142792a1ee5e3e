"""Detectors on a pretended GPU: tensors of two devices never meet, and types fit under CUDA's own autocast.

The pretended GPU is PyTorch's device ``cuda`` with a tensor of the CPU behind each of its own. Autocast, which has
other rules there than on a CPU, is the real one. What it does not show: kernels, memory, time, and the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from detect.config import build_model, load_config
from detect.models.detectors import total_loss
from dpipe.polygons import Polygons
from dpipe.recipes import load_recipe
from dpipe.target import Target

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
    pytest.mark.skipif(not hasattr(torch._C, "_ensureCUDADeviceGuardSet"), reason="PyTorch cannot pretend a GPU yet"),
]

aten = torch.ops.aten
# A GPU's tensor may be indexed by tensors on the CPU.
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
COPYING = (aten._to_copy.default, aten.copy_.default)
HEIGHT, WIDTH = 96, 128
WIDTHS = {"out_channels": 16, "feat_channels": 16, "num_groups": 8, "fc_out_channels": 32, "conv_out_channels": 16}


class OnGPU(Tensor):
    """A tensor that says that it is on a GPU.

    Attributes:
        behind: The tensor of the CPU that has its values.
    """

    behind: Tensor

    @staticmethod
    def __new__(cls, behind: Tensor) -> OnGPU:
        like = {"strides": behind.stride(), "storage_offset": behind.storage_offset(), "dtype": behind.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, behind.shape, device=torch.device("cuda", 0), **like)
        made.behind = behind
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """What PyTorch does for its own tensors only."""
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGPU({self.behind})"


class MadeOnGPU(TorchDispatchMode):
    """Within it tensors are made on the pretended GPU where they are asked for there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls an operator with tensors of the CPU; its result is where a GPU's would be.

    Raises:
        RuntimeError: Where a GPU's tensor meets one of the CPU that is not a single number.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnGPU)]
    here = [tensor for tensor in tensors if not isinstance(tensor, OnGPU) and tensor.dim()]
    if there and here and func not in COPYING and not (func in INDEXING and isinstance(args[0], OnGPU)):
        raise RuntimeError(f"two devices in {func}: {[tuple(tensor.shape) for tensor in here]} on the CPU")
    on_gpu = bool(there)
    if func is aten.copy_.default:
        on_gpu = isinstance(args[0], OnGPU)
    elif kwargs.get("device") is not None:
        on_gpu = torch.device(kwargs["device"]).type == "cuda"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    real_args, real_kwargs = tree_map_only(OnGPU, lambda tensor: tensor.behind, (args, kwargs))
    out = func(*real_args, **real_kwargs)
    if not on_gpu:
        return out
    out = tree_map_only(Tensor, OnGPU, out)
    aliases = func is not aten._to_copy.default and any(returned.alias_info for returned in func._schema.returns)
    return return_and_correct_aliasing(func, args, kwargs, out) if aliases else out


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The pretended GPU."""
    torch._C._ensureCUDADeviceGuardSet()
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)  # whose operators a CPU lacks
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    torch._C._set_only_lift_cpu_tensors(True)  # so that those made of lists come by here
    with MadeOnGPU():
        yield
    torch._C._set_only_lift_cpu_tensors(False)


@pytest.fixture
def autocast(gpu: None) -> Iterator[None]:
    """CUDA's, to bfloat16; ``torch.autocast`` turns itself off where there is no GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.clear_autocast_cache()


def moved(model: nn.Module) -> nn.Module:
    """The model on the pretended GPU, not to be trained."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(OnGPU(weight.detach()), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, OnGPU(buffer))
    return model


def narrow(node: Any, path: str) -> list[str]:
    """Overrides that make a recipe's model small."""
    if isinstance(node, list):
        return [override for number, item in enumerate(node) for override in narrow(item, f"{path}.{number}")]
    if not isinstance(node, dict):
        return []
    overrides = [f"{path}.base_channels=8"] if node.get("type") == "ResNet" else []
    for key, value in node.items():
        overrides += [f"{path}.{key}={WIDTHS[key]}"] if key in WIDTHS else narrow(value, f"{path}.{key}")
    return overrides


def target(corners: list[list[float]]) -> Target:
    """Rectangles with masks, and one to ignore."""
    rings = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in corners]
    return Target(
        image_id=0,
        sample=0,
        file_name="a.png",
        size=(HEIGHT, WIDTH),
        original_size=(2 * HEIGHT, 2 * WIDTH),
        matrix=np.diag([0.5, 0.5, 1.0])[:2],
        boxes=torch.tensor(corners).reshape(-1, 4),
        labels=torch.arange(len(corners)) % 2,
        masks=Polygons.from_coco(rings),
        annotation_ids=torch.arange(len(corners)),
        ignore_boxes=torch.tensor([[100.0, 60.0, 120.0, 90.0]]),
    )


def test_it_notices_what_a_gpu_would(autocast: None) -> None:
    there, here = torch.ones(3, 3, device="cuda"), torch.ones(3, 3)
    assert there.is_cuda
    assert (there @ there).dtype == torch.bfloat16
    assert (there * torch.tensor(2.0) + torch.tensor([1.0], device=there.device)).tolist() == [[3.0] * 3] * 3
    assert there[torch.tensor([0, 2])].shape == (2, 3)
    for mix in (
        lambda: there + here,
        lambda: here[there > 0],
        lambda: torch.cat([there, here]),
        lambda: here.add_(there),
    ):
        with pytest.raises(RuntimeError, match="two devices"):
            mix()
    with pytest.raises((RuntimeError, TypeError), match="numpy"):
        there.numpy()


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("cascade_augfpn_autoaug", "model.roi_head"),
        ("double_head_faster_rcnn_r50_fpn_coco", "model.roi_head"),
        ("fcos_r50_caffe_fpn_gn_coco", "model.bbox_head"),
    ],
)
def test_losses_and_detections_are_made_on_the_gpu(name: str, head: str, autocast: None) -> None:
    overrides = [
        *narrow(load_recipe(name).values["model"], "model"),
        f"{head}.score_thr=0.001",
        f"{head}.max_per_img=5",
    ]
    model = moved(build_model(load_config(name, overrides), 2, pretrained=False))
    images = torch.randn(2, 3, HEIGHT, WIDTH).to("cuda")
    corners = [[10.0, 12.0, 50.0, 42.0], [20.0, 24.0, 90.0, 80.0]]
    targets = [one.to("cuda") for one in (target(corners), target([]))]
    losses = model.train()(images.bfloat16(), targets)  # as Fabric hands images over
    assert {(loss.device.type, loss.dtype) for loss in losses.values()} == {("cuda", torch.float32)}
    assert torch.isfinite(total_loss(losses))
    found = model.eval()(images, targets)
    assert sum(map(len, found)) > 0
    for one in found:
        assert {one.boxes.device.type, one.scores.device.type, one.labels.device.type} == {"cuda"}
        assert one.boxes.dtype == one.scores.dtype == torch.float32
