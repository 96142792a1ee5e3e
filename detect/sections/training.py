"""The section ``train`` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from detect.sections.section import BelowOne, Count, CountOrZero, NotNegative, Positive, Section, mistake


class Ema(Section):
    """An exponential moving average of the weights; see ``detect.running.weight_average``.

    Attributes:
        decay: How much of the average stays at an iteration.
        warmup_iters: The decay rises like 1 - exp(-iteration / warmup_iters); 0: it is the same from the beginning.
    """

    decay: BelowOne = 0.9998
    warmup_iters: CountOrZero = 2000


class EarlyStopping(Section):
    """When a run that gets no better ends.

    Attributes:
        patience: It ends after so many evaluations in a row that have not raised the best value.
        min_delta: What raises it by no more than this has not raised it; a fraction of 1, as the value is.
    """

    patience: Count
    min_delta: NotNegative = 0.0


class Compile(Section):
    """``torch.compile`` of backbone and neck; see ``detect.running.compiling``.

    Attributes:
        backend: PyTorch's name of what compiles.
        mode: ``max-autotune-no-cudagraphs`` compiles for longer.
        dynamic: Whether one compiled program is for images of all sizes; ``false``: each size has its own; ``null``:
            the first size has its own, and another one is for all others.
    """

    backend: Annotated[str, Field(min_length=1)] = "inductor"
    mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
    dynamic: bool | None = None


class Wandb(Section):
    """Weights & Biases, which gets the run's curves and recipe beside the log; the package must be installed.

    Attributes:
        project: The project that the run is of.
        entity: The user or team; ``null``: the default one.
        name: Of the run; ``null``: one is made up.
    """

    project: Annotated[str, Field(min_length=1)]
    entity: str | None = None
    name: str | None = None


class Train(Section):
    """The training run.

    Attributes:
        epochs: Passes over the (repeated) data.
        seed: Of the weights, the order of samples, the augmentation and the sampling of anchors and RoIs.
        precision: Lightning Fabric's name: full, or mixed with bfloat16 or (on a GPU) float16.
        accumulate: Batches of each device that an iteration learns from, by the mean of their gradients; the last
            iteration of an epoch takes what is left.
        sync_bn: BatchNorm takes its statistics from the batches of all devices together.
        clip_norm: Largest norm of all gradients together; ``null`` for no clipping.
        load_from: Checkpoint (path or URL) that training starts from; what does not fit is left out and listed.
        eval_every: Epochs between evaluations; 0 for none. The last epoch is evaluated as well.
        checkpoint_every: Epochs between checkpoints. The last epoch is saved as well.
        checkpoint_every_iters: Iterations between further checkpoints within an epoch; ``null`` for none.
        keep: How many of the latest checkpoints stay, beside the best one.
        log_every: Iterations between lines of the log.
        early_stopping: See :class:`EarlyStopping`; ``null``: the run goes through all its epochs.
        ema: See :class:`Ema`; what is evaluated and saved is the average then. ``null``: the weights themselves.
        wandb: See :class:`Wandb`; ``null``: not used.
        compile: See :class:`Compile`; ``null``: nothing is compiled.
    """

    epochs: Annotated[int, Field(ge=1, le=10**6)]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: Count = 1
    sync_bn: bool = False
    clip_norm: Positive | None = None
    load_from: str | None = None
    eval_every: CountOrZero = 1
    checkpoint_every: Count = 1
    checkpoint_every_iters: Count | None = None
    keep: Count = 2
    log_every: Count = 50
    early_stopping: EarlyStopping | None = None
    ema: Ema | None = None
    wandb: Wandb | None = None
    compile: Compile | None = None

    @field_validator("early_stopping")
    @classmethod
    def _evaluates(cls, early_stopping: EarlyStopping | None, info: ValidationInfo) -> EarlyStopping | None:
        # Where eval_every is wrong itself, it is not in the data.
        if early_stopping is not None and info.data.get("eval_every") == 0:
            raise mistake("needs train.eval_every above 0")
        return early_stopping
