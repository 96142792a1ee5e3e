"""Evaluation of a model on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from detect.config import Config, as_config
from detect.data import skipped_anywhere, usable_ids, val_index, val_loader
from detect.metrics.evaluating import check_kinds, default_kinds, evaluate_results, several
from detect.metrics.results import Results
from detect.metrics.scores import Kind, Scores
from detect.predicting.views import build_views, check_mergeable, detect_in_views
from detect.running.devices import Accelerator, launched_rank, make_fabric
from detect.running.together import failing_together
from detect.trained import load_trained
from dpipe.files import check_writable_file, write_whole

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from dpipe.batch import Batch


def evaluate(
    config: Config | str | Path,
    checkpoint: str | Path,
    kinds: Sequence[Kind] | Kind = (),
    *,
    out: str | Path | None = None,
    tta: bool = False,
    devices: int = 1,
    accelerator: Accelerator = "auto",
    console: Console | None = None,
) -> list[Scores]:
    """Evaluates a checkpoint on the recipe's validation set.

    Args:
        config: The recipe, or its file, or the name of a shipped one.
        checkpoint: A ``.safetensors`` or ``.pth`` file, a checkpoint folder, or a work directory.
        kinds: What is evaluated, one kind or several; by default what the recipe's ``evaluation.kinds`` says, else
            ``proposal`` for a model that only proposes, else ``bbox``, and ``segm`` where the model and the data set
            have masks.
        out: Gets the detections in COCO's results format.
        tta: Whether each image is looked at several times and the results merged, as ``evaluation.tta`` says.
        devices: GPUs, or processes on the CPU.
        accelerator: ``auto`` takes GPUs where there are any.
        console: Gets notes, and a progress bar if it is a terminal.

    Returns:
        The scores in the order of ``kinds``, each once; an empty list on all processes but the first.

    Raises:
        InputError: For a data set, a checkpoint, an image or a device that cannot be used, one line for each; and where
            the data set or the model lacks what a kind needs.
    """
    config = as_config(config)
    fabric = make_fabric(devices, accelerator, config.train.precision)
    first = launched_rank() == 0

    def say(line: str) -> None:
        if console is not None and first:
            console.print(line)

    if out is not None and first:
        check_writable_file(Path(out))
    index = val_index(config, None)
    kinds, options = several(kinds) or config.evaluation.kinds or (), config.evaluation.options
    check_kinds(kinds, index, options)
    trained = load_trained(config, checkpoint, index.class_names, say)
    check_kinds(kinds, index, options, **abilities(trained.model))
    views = build_views(config, tta)
    if len(views) > 1:
        check_mergeable(trained.model)
    fabric.launch()
    with failing_together(fabric):
        model = fabric.to_device(trained.model)
        category_ids = index.category_ids.tolist()
        # Each reads the images in the same order and skips the same ones.
        loaders = [val_loader(config, index, fabric, view, len(views) - 1) for view in views]
        with image_progress(len(index), console, fabric.is_global_zero) as on_images:
            results = collect_results(model, zip(*loaders, strict=True), category_ids, fabric, on_images)
        skipped = skipped_anywhere(loaders[0], fabric)
    if not fabric.is_global_zero:
        return []
    if out is not None:
        write_whole(Path(out), orjson.dumps(results.to_coco()))
    if not kinds:
        kinds, note = default_kinds(index, results, abilities(trained.model)["proposes"])
        if note:
            say(note)
    if skipped:
        say(without_note(skipped))
    return evaluate_results(results, index, kinds, options, usable_ids(index, skipped))


def abilities(model: nn.Module) -> dict[str, bool]:
    """What a model's predictions will be, as far as it can be seen, in the words of ``check_kinds``.

    Returns:
        ``proposes``, and ``has_masks``, which is also true of models of one's own that may have masks.
    """
    proposes: bool = getattr(model, "proposes", False)
    roi_head = getattr(model, "roi_head", None)
    without = roi_head is not None and getattr(roi_head, "mask_head", roi_head) is None
    return {"proposes": proposes, "has_masks": not (without or proposes)}


def without_note(skipped: Mapping[str, str]) -> str:
    """A line for the user where images were left out of an evaluation."""
    files = ", ".join(f"{name} ({reason})" for name, reason in skipped.items())
    return f"evaluated without images that cannot be used: {len(skipped)}: {files}"


def collect_results(
    model: nn.Module,
    batches: Iterable[Batch | tuple[Batch, ...]],
    category_ids: Sequence[int],
    fabric: Fabric,
    on_images: Callable[[int], None] = lambda count: None,
) -> Results:
    """Runs a model over this process's share of a data set, and gathers the results of all processes.

    Args:
        model: In evaluation mode, on the device; not wrapped for distributed training, as shares can be unequally long.
        batches: This process's batches, or several views of each, whose detections are merged.
        category_ids: The JSON's id of each label.
        fabric: Tells device, precision and processes.
        on_images: Called after each batch with about how many images all processes have seen since the last call.

    Returns:
        The results ordered by image id, on process 0; on the others those of the process itself.
    """
    parts: list[Results] = []
    with torch.inference_mode():
        for batch in batches:
            views = [view.to(fabric.device) for view in (batch if isinstance(batch, tuple) else (batch,))]
            with fabric.autocast():
                detections = detect_in_views(model, [(view.images, view.targets) for view in views])
            for target, found in zip(views[0].targets, detections, strict=True):
                parts.append(Results.of_image(found, int(target.image_id), category_ids))
            on_images(len(detections) * fabric.world_size)  # all go at about the same pace
    results = Results.concatenate(parts)
    if fabric.world_size > 1:
        shares: list[Any] | None = [None] * fabric.world_size if fabric.is_global_zero else None
        torch.distributed.gather_object(results, shares)
        if shares is not None:
            # Ordered by image, so that the number of processes makes no difference.
            results = Results.concatenate(shares)
    return results


@contextmanager
def image_progress(total: int, console: Console | None, active: bool) -> Iterator[Callable[[int], None]]:
    """A bar that counts images, on a terminal.

    Yields:
        A function that is told each number of further images.
    """
    if console is None or not console.is_terminal or not active:
        yield lambda count: None
        return
    columns = TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("images", total=total)
        yield lambda count: bar.update(task, completed=min(bar.tasks[0].completed + count, total))
