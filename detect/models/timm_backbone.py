"""Backbones of timm, an optional package (``pip install 'dpipe-detect[timm]'``).

Legend: N images, H, W their padded size, C_l channels and s_l stride of output level l.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from detect.models.arguments import CountOrZero
from detect.models.backbone_parts import hold_in_evaluation
from detect.models.checkpoints import load_weights
from detect.registry import MODELS
from dpipe.errors import InputError

FINEST_STRIDE = 4


@MODELS.register
class TimmBackbone(nn.Module):
    """Any model of timm (github.com/huggingface/pytorch-image-models) that hands out features.

    Args:
        model_name: timm's name, such as ``convnext_tiny``.
        out_indices: Which of its levels are handed out, counted from 0; null takes those of stride 4 and more.
        norm_eval: BatchNorm keeps its statistics, as is usual for batches of an image or two.
        pretrained: True for the weights that timm downloads; or a path or URL of weights of the whole model. False, or
            null, draws them at random.
        options: Further arguments of the timm model. Transformers are made for images of one size, unless they have
            ``strict_img_size: false`` (Swin) or ``dynamic_img_size: true`` (ViT).

    Attributes:
        channels: Channels of each output level.
        strides: Pixels per cell of each output level.

    Raises:
        InputError: timm is not installed, has no such model, level or option, or the weights cannot be had or do not
            fit.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[CountOrZero] | None = None,
        norm_eval: bool = True,
        pretrained: bool | str | None = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        further = dict(options or {})
        _check_options(further)
        features: dict[str, Any] = {} if out_indices is None else {"out_indices": tuple(out_indices)}
        if isinstance(pretrained, str):
            # timm itself would load a file of other names without a word.
            whole = _create(model_name, **further)
            _load_whole(whole, model_name, pretrained)
            features["pretrained_cfg_overlay"] = {"state_dict": whole.state_dict()}
        self.body: Any = _create(model_name, features_only=True, pretrained=bool(pretrained), **features, **further)
        self.norm_eval = norm_eval
        strides = self.body.feature_info.reduction()
        self.taken = tuple(i for i, s in enumerate(strides) if out_indices is not None or s >= FINEST_STRIDE)
        self.strides = tuple(int(strides[i]) for i in self.taken)
        self.channels = tuple(int(self.body.feature_info.channels()[i]) for i in self.taken)
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self.train(self.training)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) to features (N, C_l, ceil(H / s_l), ceil(W / s_l)), finest first."""
        outs = self.body(images)
        return tuple(outs[i].permute(0, 3, 1, 2) if self.channels_last else outs[i] for i in self.taken)

    def train(self, mode: bool = True) -> TimmBackbone:
        """Switches to training or evaluation, but for what ``norm_eval`` holds in evaluation."""
        super().train(mode)
        hold_in_evaluation((), self if self.norm_eval else None)
        return self


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises InputError for options that are this class's to set, or that would have timm load further files."""
    taken = ("model_name", "features_only", "out_indices", "pretrained", "checkpoint_path", "cache_dir")
    wrong = sorted(name for name in options if name in taken or name.startswith("pretrained_"))
    if wrong:
        raise InputError(
            f"TimmBackbone: options cannot hold {', '.join(wrong)}; weights and levels are told by pretrained and "
            "out_indices beside them"
        )


def _create(model_name: str, **options: Any) -> Any:
    """Builds a model of timm.

    Raises:
        InputError: timm is not installed, or cannot; what it raises then differs from model to model.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"TimmBackbone: needs timm, which cannot be imported ({error}): pip install 'dpipe-detect[timm]'"
        ) from None

    try:
        return timm.create_model(model_name, **options)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"TimmBackbone: timm cannot make {model_name!r}: {reason}") from error


def _load_whole(whole: Any, model_name: str, pretrained: str) -> None:
    """Loads weights into a whole model of timm, all but its classifier.

    Raises:
        InputError: The weights cannot be had, or do not fit.
    """
    classifiers = whole.default_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ([classifiers] if isinstance(classifiers, str) else classifiers))
    report = load_weights(whole, pretrained)
    wrong = [name for name in [*(name for name, _ in report.left_out), *report.missing] if not name.startswith(heads)]
    if wrong:
        raise InputError(
            f"pretrained {pretrained!r} does not fit timm's {model_name}: {len(wrong)} tensors are missing, unknown or "
            f"of another shape, such as {wrong[0]}"
        )
