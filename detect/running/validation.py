"""Evaluation within a run: when it is due, what the log tells of it, and which checkpoint is best by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from detect.config import Config
from detect.data import check_val_images, usable_ids, val_loader
from detect.evaluation import abilities, collect_results, without_note
from detect.metrics.evaluating import check_kinds, default_kinds, evaluate_results
from detect.metrics.tables import class_tables, score_table
from detect.reporting.keeping import keep_evaluation
from detect.running.best import Evaluations, Measure
from detect.running.compiling import not_compiled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_fabric import Fabric

    from detect.metrics.results import Results
    from detect.metrics.scores import Kind
    from detect.running.logs import RunLog
    from detect.running.skipped import SkippedFiles
    from dpipe.coco import CocoIndex


class Validation:
    """Evaluates a run's model on its validation set.

    Args:
        config: The recipe.
        data: The validation set.
        model: What will be evaluated, or its like.
        fabric: Launched. Its processes call :meth:`evaluate` together.

    Attributes:
        evaluations: Those so far, by the number that checkpoints are compared by.

    Raises:
        InputError: If the data set or the model lacks what the recipe's ``evaluation`` needs, or images are not there.
    """

    def __init__(self, config: Config, data: CocoIndex, model: nn.Module, fabric: Fabric) -> None:
        self.config, self.data, self.fabric = config, data, fabric
        self._abilities = abilities(model)
        section = config.evaluation
        measure = Measure.of_recipe(section, data.path, self._abilities["proposes"])
        self.evaluations = Evaluations(measure)
        self._told_of_masks = False
        if config.train.eval_every:
            kinds = section.kinds or [measure.kind][: section.best is not None]
            check_kinds(kinds, data, section.options, **self._abilities)
            if fabric.is_global_zero:
                check_val_images(config, data)

    def is_due(self, epoch: int) -> bool:
        """Whether the recipe asks for an evaluation after so many epochs."""
        every = self.config.train.eval_every
        return bool(every and epoch) and (epoch % every == 0 or epoch == self.config.train.epochs)

    def evaluate(
        self,
        model: nn.Module,
        epoch: int,
        iteration: int,
        log: RunLog,
        skipped: SkippedFiles,
        on_images: Callable[[], None],
    ) -> float:
        """Evaluates a model, and logs it.

        Args:
            model: On the device; is in evaluation mode afterwards.
            epoch: Epochs finished.
            iteration: Iterations done.
            log: Gets the scores and tables.
            skipped: Is told the files that cannot be used.
            on_images: Called after each batch; may raise.

        Returns:
            The number by which checkpoints are compared, on all processes.
        """
        loader = val_loader(self.config, self.data, self.fabric)
        model.eval()
        if self.fabric.world_size > 1:  # BatchNorm's statistics; the checkpoint has those of the first process
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        with not_compiled(self.config.train.compile), log.counting(len(self.data)) as count_images:

            def after_batch(count: int) -> None:
                count_images(count)
                on_images()

            results = collect_results(model, loader, self.data.category_ids.tolist(), self.fabric, after_batch)
        loader.close()
        unusable = skipped.note("val", loader, iteration)
        score = self._score(results, unusable, epoch, iteration, log) if self.fabric.is_global_zero else 0.0
        return float(self.fabric.broadcast(score))

    def enough(self) -> str | None:
        """A line for the user where the run has got no better for as long as the recipe bears; else None."""
        section, best = self.config.train.early_stopping, self.evaluations.best
        if section is None or best is None:
            return None
        count = self.evaluations.without_gain(section.min_delta)
        if count < section.patience:
            return None
        more = f" by more than {section.min_delta:g}" if section.min_delta else ""
        return (
            f"{count} evaluations in a row have not raised {self.evaluations.measure.name}{more}; the best is "
            f"{best.value:.4f}, of iteration {best.iteration}"
        )

    def _score(self, results: Results, unusable: Mapping[str, str], epoch: int, iteration: int, log: RunLog) -> float:
        """Scores and logs the results of all processes; returns the number by which checkpoints are compared."""
        epochs, section = self.config.train.epochs, self.config.evaluation
        kinds: Sequence[Kind] = section.kinds or ()
        if not kinds:
            kinds, note = default_kinds(self.data, results, self._abilities["proposes"])
            if note and not self._told_of_masks:
                log.say(note)
                self._told_of_masks = True
            kinds = tuple(dict.fromkeys((*kinds, self.evaluations.measure.kind)))
        if unusable:
            log.say(without_note(unusable))
        ids = usable_ids(self.data, unusable)
        all_scores = evaluate_results(results, self.data, kinds, section.options, ids)
        log.evaluation(epoch, iteration, all_scores)
        keep_evaluation(log.work_dir, results, all_scores, epoch, iteration, log.say)
        log.say(f"evaluation after epoch {epoch} of {epochs}, {len(results)} detections")
        for scores in all_scores:
            log.say(score_table(scores))
        for table in class_tables(all_scores) if epoch == epochs else ():
            log.say(table)
        return self.evaluations.measure.of_scores(all_scores)
