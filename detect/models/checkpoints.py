"""Loads weights into models: safetensors, ``.pth`` of torchvision and OpenMMLab, files and URLs."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from detect.models.pretrained import download, is_url
from detect.models.torchvision_names import from_torchvision, is_torchvision_detector
from detect.models.unpickling import load_pth
from dpipe.errors import InputError


@dataclass
class LoadReport:
    """What became of a checkpoint's tensors, under the names that the model has for them.

    Args:
        source: The path or URL.
        loaded: Names that were loaded.
        left_out: Names of the checkpoint that were not, each with the reason.
        missing: Names of the model that the checkpoint has nothing for, and that keep their values.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def table(self, rows: int = 8) -> str:
        """Tells all this in a few lines of plain text, with at most ``rows`` names of a kind."""
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        for title, items in (
            ("left out", [f"{name} ({reason})" for name, reason in self.left_out]),
            ("missing", self.missing),
        ):
            if items:
                lines.append(f"  {title}: {len(items)}")
                lines += [f"    {item}" for item in items[:rows]]
                if len(items) > rows:
                    lines.append(f"    ... and {len(items) - rows} more")
        return "\n".join(lines)


def load_weights(model: nn.Module, source: str | Path, *, strict: bool = False) -> LoadReport:
    """Loads a checkpoint into a model, as far as it fits.

    The dense head of a detector of one stage is stored as ``bbox_head``, that of a detector of two stages as
    ``rpn_head``. Where the checkpoint has the one and the model the other, it is loaded under the model's name.
    Detectors of torchvision are renamed, see :func:`detect.models.torchvision_names.from_torchvision`.

    Args:
        model: Takes the weights; each tensor keeps its device and dtype.
        source: A path, or a URL that is downloaded once.
        strict: Whether every tensor of both must find its like. If not, what has another name or shape is left out.
            Whole parts that the model lacks are left out in any case, such as the RoI head where it only proposes, and
            so are second copies of the weights.

    Returns:
        What was loaded, left out and missing.

    Raises:
        InputError: The checkpoint cannot be read, or nothing of it fits, or not all of it does and ``strict`` is on.
            The model is then unchanged.
    """
    own = model.state_dict()
    state = _as_named_in(own, read_weights(source), source)
    report = LoadReport(str(source))
    fitting = {}
    expected_absent = set()
    absent_parts = tuple(part for part in PARTS if not _begins(own, part))
    averaged = {f"ema_{name.replace('.', '_')}" for name in state}
    for name, tensor in state.items():
        if name in averaged and name not in own:
            report.left_out.append((name, "a second copy of the weights, kept to average them"))
            expected_absent.add(name)
        elif name.startswith(absent_parts):
            part = next(part for part in absent_parts if name.startswith(part))
            report.left_out.append((name, f"the model has no {part.removesuffix('.')}"))
            expected_absent.add(name)
        elif name not in own:
            report.left_out.append((name, "the model has no such tensor"))
        elif tensor.shape != own[name].shape:
            report.left_out.append((name, f"shape {list(tensor.shape)}, the model's is {list(own[name].shape)}"))
        else:
            fitting[name] = tensor
            report.loaded.append(name)
    # Checkpoints from before PyTorch 0.4.1 lack BatchNorm's counter, which momentum-based statistics never read.
    report.missing = [name for name in own if name not in state and not name.endswith(".num_batches_tracked")]
    if not fitting:
        raise InputError(
            f"{source}: nothing fits the model: {_some(list(state))} of the checkpoint, {_some(list(own))} of the model"
        )
    faults = [f"{name} ({reason})" for name, reason in report.left_out if name not in expected_absent]
    faults += [f"{name} (missing)" for name in report.missing]
    if strict and faults:
        either = own.keys() | state.keys() - expected_absent
        raise InputError(
            f"{source}: does not fit the model in {len(faults)} of the {len(either)} tensors that either has: "
            f"{_some(faults)}"
        )
    try:
        model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:  # tensors that cannot be copied, such as sparse ones
        raise InputError(f"{source}: cannot be loaded: {' '.join(str(error).split())}") from error
    return report


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Reads the named tensors of a checkpoint: safetensors, or ``.pth``, bare or under ``state_dict`` or ``model``.

    Raises:
        InputError: The file is missing, cannot be read, or holds no named tensors, or a name that cannot be printed.
    """
    path = _local(source)
    if path.suffix == ".safetensors":
        try:
            return _plain_names(load_file(path), path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: is not a safetensors file that can be read: {error}") from error
    content = load_pth(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no named tensors, but an object of type {type(content).__name__!r}")
    content = entries(content)
    inner = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    state = {
        name: tensor
        for name, tensor in entries(inner).items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }
    if not state:
        found = ", ".join(f"{key!r:.40}" for key in list(entries(inner))[:5]) or "nothing"
        raise InputError(f"{path}: holds no named tensors, bare or under 'state_dict' or 'model', but {found}")
    return _plain_names(state, path)


def _local(source: str | Path) -> Path:
    """The file of a source, downloaded where it is a URL.

    Raises:
        InputError: There is none.
    """
    if isinstance(source, str) and is_url(source):
        return download(source)
    path = Path(source).expanduser()
    if path.is_file():
        return path
    scheme = re.match(r"[a-z][a-z0-9+.-]+://", str(source))
    if scheme:  # such as open-mmlab://, which only OpenMMLab's own table resolves
        raise InputError(f"{source}: {scheme[0]} is not known here: give a path, or the file's http:// or https:// URL")
    raise InputError(f"{source}: {'is a folder, not a' if path.is_dir() else 'no such'} checkpoint file")


WRAPPERS = ("module.", "_orig_mod.")
"""What data-parallel training and ``AveragedModel``, and ``torch.compile``, put before the names of the whole model."""


def _plain_names(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors without what wrappers of the model add to them.

    Raises:
        InputError: A name would break lines or change colours where it is printed.
    """
    odd = next((name for name in state if not name.isprintable()), None)
    if odd is not None:
        raise InputError(f"{path}: holds a tensor of the name {odd!r}, which no model has")
    unwrapped = {name: tensor for name, tensor in state.items() if name != "n_averaged"}
    while wrapper := next((w for w in WRAPPERS if unwrapped and all(name.startswith(w) for name in unwrapped)), None):
        unwrapped = state = {name.removeprefix(wrapper): tensor for name, tensor in unwrapped.items()}
    return state


def entries(mapping: Any) -> dict[Any, Any]:
    """A mapping of a ``.pth`` file as a plain one, empty if it is none.

    An ``OrderedDict`` takes attributes from a pickle, ``get`` and ``items`` among them: its methods are not to be used.
    """
    return dict(dict.items(mapping)) if isinstance(mapping, dict) else {}


DENSE_HEADS = ("bbox_head.", "rpn_head.")
"""What names of the dense head begin with, in detectors of one stage and of two."""

PARTS = ("roi_head.mask_head.", "roi_head.mask_roi_extractor.", "roi_head.", "auxiliary_head.")
"""Parts without which a detector is whole, inner ones first: without its masks, or with its proposals alone."""

CLASSES = "roi_head.bbox_head.fc_cls.bias"


def _as_named_in(own: dict[str, Tensor], state: dict[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names that a model has for them.

    Args:
        own: The model's tensors.
        state: The checkpoint's tensors.
        source: Where the checkpoint comes from, for the message.

    Returns:
        The tensors in their order.

    Raises:
        InputError: It is a detector of torchvision that is not known here, or no whole one.
    """
    if is_torchvision_detector(state):
        try:
            state = from_torchvision(state, len(own[CLASSES]) - 1 if CLASSES in own else None)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        except (IndexError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{source}: is named as torchvision's detectors, but not shaped so: {reason}") from error
    # Checkpoints of mmdetection's early versions name FCOS's last convolutions after it.
    state = {
        re.sub(r"^(bbox|rpn)_head\.fcos_(cls|reg|centerness)\.", r"\1_head.conv_\2.", n): t for n, t in state.items()
    }
    for ours, theirs in (DENSE_HEADS, DENSE_HEADS[::-1]):
        if _begins(own, ours) and not _begins(own, theirs) and _begins(state, theirs) and not _begins(state, ours):
            return {ours + n.removeprefix(theirs) if n.startswith(theirs) else n: t for n, t in state.items()}
    return state


def _begins(names: Collection[str], prefix: str) -> bool:
    """Whether any of the names begins so."""
    return any(name.startswith(prefix) for name in names)


def _some(names: list[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
