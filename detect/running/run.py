"""The training loop.

A run is a function of its recipe: before each iteration PyTorch's generators are seeded with (seed, iteration,
process), and the data is a function of (seed, epoch, batch, process). So a checkpoint needs no generator's state, and a
run that was killed and resumed gives, on the CPU with the same number of threads, the same bits as one that was not.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn

from detect.config import Config, build_model
from detect.data import check_masks, train_loader
from detect.models.checkpoints import load_weights
from detect.models.detectors import total_loss
from detect.reporting.keeping import tidy_evaluations
from detect.running.averages import Averages
from detect.running.boards import Board, WeightsAndBiases
from detect.running.compiling import compile_parts
from detect.running.control import TrainingInterruptedError, iteration_seed
from detect.running.disk import check_room, checkpoint_bytes
from detect.running.logs import LOG_NAME, RunLog, logged_evaluation
from detect.running.loss_step import LossStep, Sealed
from detect.running.not_finite import keep_and_tell
from detect.running.optim import group_lrs, load_state_by_name, make_optimizer, scaled_lr, set_lr, state_by_name
from detect.running.resuming import find_checkpoint, fitting, tidy
from detect.running.schedules import Progress, iterations_left, make_schedule
from detect.running.skipped import SkippedFiles
from detect.running.state import ModelInfo, checkpoint_path, load_state, point, prune, save_checkpoint
from detect.running.sync_norm import synchronise_norms
from detect.running.validation import Validation
from detect.running.weight_average import WeightAverage
from detect.running.workdir import write_setup
from dpipe.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from dpipe.batch import Batch
    from dpipe.coco import CocoIndex


class Run:
    """A training run, ready to begin or to go on.

    Args:
        config: The recipe.
        work_dir: Exists and can be written.
        training_data: The training set.
        validation_data: The validation set, of the same classes.
        fabric: Launched.
        received: Gets the numbers of signals that ask the run to stop.
        resume: What to go on from; see :func:`detect.running.resuming.find_checkpoint`.
        console: Where the run tells how it goes.

    Attributes:
        epoch: Epochs finished.
        iteration: Iterations done, each of which is a step of the optimizer.
        parts: Batches that the iteration has learned from so far.
        lr: The learning rate of the iteration, without the multipliers of groups.
        averages: Of the losses.
        average: Of the weights, if the recipe says so.
        validation: Evaluates, and knows which evaluation was best.
        skipped: The files of each data set that could not be used in this run.
    """

    def __init__(
        self,
        config: Config,
        work_dir: Path,
        training_data: CocoIndex,
        validation_data: CocoIndex,
        fabric: Fabric,
        received: list[int],
        resume: bool | str | Path,
        console: Console,
    ) -> None:
        self.config, self.fabric, self.received = config, fabric, received
        self.checkpoints = work_dir / "checkpoints"
        self.class_names = training_data.class_names
        self.category_ids: list[int] = training_data.category_ids.tolist()
        self.epoch = self.iteration = self.parts = 0
        self.mid_epoch = False
        notes: list[str] = []

        if training_data.left_out_note:
            notes.append(f"{training_data.path}: {training_data.left_out_note}")
        checkpoint = find_checkpoint(self.checkpoints, resume, fabric, notes)
        history = (checkpoint.parent.parent if checkpoint else work_dir) / LOG_NAME
        torch.manual_seed(config.train.seed)
        self.model = build_model(config, len(self.class_names), pretrained=checkpoint is None)
        if config.train.sync_bn:
            self.model = synchronise_norms(self.model, fabric.device, fabric.world_size)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise InputError(f"{config.recipe.where(('model',))}: model: has no weights to train")
        check_masks(training_data, self.model)
        self.validation = Validation(config, validation_data, self.model, fabric)
        state = None if checkpoint is None else load_state(checkpoint, self.model)
        if state is None and config.train.load_from is not None:
            notes.append(load_weights(self.model, config.train.load_from).table())
        self.optimizer = make_optimizer(self.model, config.optimizer, config.recipe.where)
        self.lr = self.full_lr = self._scaled_lr(notes)
        self.step_module, self.fabric_optimizer = fabric.setup(LossStep(self.model), self.optimizer)
        self.schedule = make_schedule(config.schedule)
        self.averages = Averages(fabric)
        self.loader = train_loader(config, training_data, fabric)
        self.average = None if config.train.ema is None else WeightAverage(self.model, config.train.ema)
        if config.train.compile is not None:
            compile_parts(self.model, config.train.compile)
        if checkpoint is not None and state is not None:
            record = logged_evaluation(history, state.get("iteration", 0)) if fabric.is_global_zero else None
            with fitting(checkpoint):
                self.load_state_dict(state, fabric.broadcast(record))
        if fabric.is_global_zero and self.epoch < config.train.epochs:
            each = checkpoint_bytes(self.model, config.optimizer, self.average is not None)
            check_room(self.checkpoints, each, config.train, self._total())
        # Only now nothing can be wrong with what was given, so that a mistake leaves the work directory as it was.
        if fabric.is_global_zero:
            notes += write_setup(config, work_dir)
        if checkpoint is not None:
            notes += tidy(self.checkpoints, checkpoint, self.validation.evaluations, fabric)
            change = self.validation.evaluations.change() if config.train.eval_every else None
            notes += [] if change is None else [change]
            notes.append(f"resumed from {checkpoint}: epoch {self.epoch}, iteration {self.iteration}")

        boards: list[Callable[[], Board]] = []
        if config.train.wandb is not None:
            recipe = config.model_dump(mode="json")
            boards.append(partial(WeightsAndBiases, config.train.wandb, work_dir, recipe, self.iteration))
        self.log = RunLog(work_dir, self.iteration, self._total(), console, fabric.is_global_zero, boards, history)
        self.skipped = SkippedFiles(fabric, self.log)
        for note in notes:
            self.log.say(note)

    def train(self) -> Path:
        """Trains to the end, and returns the last checkpoint."""
        epochs, checkpoint_every = self.config.train.epochs, self.config.train.checkpoint_every
        if not self.mid_epoch:
            self.evaluate_if_due()  # a run that was killed between checkpoint and evaluation has not done it
        while self.epoch < epochs and not self.stops_early():
            self.train_epoch()
            self.skipped.note("train", self.loader, self.iteration)
            self.epoch += 1
            self.mid_epoch = False
            if self.epoch == epochs or self.epoch % checkpoint_every == 0:
                self.save()
            self.evaluate_if_due()
        if self.epoch < epochs:
            self.save()  # the checkpoint of the epoch may not have been due
        last = checkpoint_path(self.checkpoints, self.iteration)
        self.skipped.tell()
        self.log.say(f"finished: {last}")
        return last

    def train_epoch(self) -> None:
        """Trains to the end of the epoch."""
        self.step_module.train()
        self.averages.begin_window()
        began_waiting = time.perf_counter()
        for batch in self.loader:
            self.averages.waited += time.perf_counter() - began_waiting
            self.mid_epoch = True
            self.averages.add(self.step(batch))
            if not self.parts:
                self.after_iteration()
            began_waiting = time.perf_counter()
        if self.parts:  # the epoch's last batches had no usable image, and were left out
            self.update()
            self.after_iteration()
        self.log.epoch(self.epoch + 1, self.config.train.epochs, self.iteration, self.averages.end_epoch())

    def after_iteration(self) -> None:
        """Logs, stops and saves where that is due."""
        settings, batches_left = self.config.train, self.loader.sampler.batches_left
        self.log.advance()
        self.averages.iterations += 1
        last = self.epoch + 1 == settings.epochs and not batches_left
        if self.iteration % settings.log_every == 0 or last:
            window = self.averages.end_window()
            lrs = group_lrs(self.optimizer)
            self.log.training(self.epoch + 1, settings.epochs, self.iteration, self.lr, lrs, *window)
        if self.stopping:
            self.stop()
        every = settings.checkpoint_every_iters
        # At the end of the epoch comes the epoch's own checkpoint.
        if every is not None and self.iteration % every == 0 and batches_left:
            self.save()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Learns from a batch; at the last one of an iteration the weights are updated.

        Returns:
            The losses by name, with their sum as ``loss`` first.

        Raises:
            InputError: If the loss is not finite, with the names of the images.
        """
        settings = self.config.train
        if not self.parts:
            torch.manual_seed(iteration_seed(settings.seed, self.iteration, self.fabric.global_rank))
            self.lr = self.full_lr * self.schedule.factor(self.progress())
            set_lr(self.optimizer, self.lr)
        is_last = self.parts + 1 == settings.accumulate or not self.loader.sampler.batches_left
        with self.fabric.no_backward_sync(self.step_module, enabled=not is_last):
            losses = self.step_module(batch.images, Sealed(batch.targets))
            loss = total_loss(losses)
            if batch.stand_in:
                loss = 0 * loss
            if not math.isfinite(loss.item()):
                number, rank = self.iteration + 1, self.fabric.global_rank
                path = self.checkpoints.parent / f"not_finite-iter_{number:08d}-process{rank}.pt"
                seed = iteration_seed(settings.seed, self.iteration, rank)
                raise InputError(keep_and_tell(path, batch, losses, self.model, seed, number, self.epoch + 1))
            self.fabric.backward(loss)
        self.parts += 1
        if is_last:
            self.update()
        return {"loss": loss, **losses}

    def update(self) -> None:
        """Updates the weights by the mean of the gradients of the iteration's batches."""
        settings = self.config.train
        self.stopping = self.agree_to_stop()
        if self.parts > 1:
            for weight in self.model.parameters():
                if weight.grad is not None:
                    weight.grad /= self.parts
        if settings.clip_norm is not None:
            self.fabric.clip_gradients(
                self.step_module, self.fabric_optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False
            )
        self.fabric_optimizer.step()
        self.fabric_optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        self.iteration += 1
        self.parts = 0

    def progress(self) -> Progress:
        """Where the run is when the first batch of an iteration has come."""
        return Progress(self.iteration, self._total(handed_out=1), self.epoch, self.config.train.epochs)

    def agree_to_stop(self) -> bool:
        """Whether any process was asked to stop, so that all do after the same iteration."""
        if self.fabric.world_size == 1:
            return bool(self.received)
        received = torch.tensor(len(self.received), device=self.fabric.device)
        torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
        return bool(received)

    def stop(self) -> None:
        """Saves, and ends the run as a signal asked.

        Raises:
            TrainingInterruptedError: Always, on the first process; SystemExit on the others.
        """
        self.save()
        where = f"after iteration {self.iteration} of {self.log.total}"
        if not self.fabric.is_global_zero:
            raise SystemExit(0)  # anything else makes the launcher kill the first process
        raise TrainingInterruptedError(self.received[0] if self.received else signal.SIGTERM, where)

    def save(self) -> None:
        """Writes a checkpoint, on the first process, and removes those that are not kept.

        Raises:
            OSError: If it cannot be written, such as when the disk is full.
        """
        averages = self.averages.state_dict()  # all processes together
        if not self.fabric.is_global_zero:
            return
        evaluations = self.validation.evaluations
        state = {
            "epoch": self.epoch,
            "iteration": self.iteration,
            "mid_epoch": self.mid_epoch,
            "evaluations": evaluations.state_dict(),
            "optimizer": state_by_name(self.optimizer, self.model),
            "averages": averages,
            "precision": self.fabric.strategy.precision.state_dict(),
            "loader": self.loader.state_dict(),
            "ema": None if self.average is None else self.average.state_dict(self.model),
        }
        recipe = self.config.to_yaml()
        info = ModelInfo(self.class_names, tuple(self.category_ids), recipe, self.epoch, self.iteration)
        save_checkpoint(self.checkpoints, self.evaluated, state, info)
        best = None if evaluations.best is None else evaluations.best.iteration
        if best is not None:
            point(self.checkpoints, "best", checkpoint_path(self.checkpoints, best))
        prune(self.checkpoints, self.config.train.keep, best, self.iteration)

    def load_state_dict(self, state: dict[str, Any], record: dict[str, Any] | None) -> None:
        """Takes over what a checkpoint's state says.

        Args:
            state: What :meth:`save` wrote.
            record: The log's record of the evaluation of that checkpoint, which was made after it was saved.

        Raises:
            InputError: If it is of another optimizer or data set.
            KeyError, TypeError, ValueError, AttributeError, RuntimeError: If it is another run's, or none at all.
        """
        self.epoch, self.iteration, self.mid_epoch = state["epoch"], state["iteration"], state["mid_epoch"]
        self.validation.evaluations.load_state_dict(state["evaluations"], record)
        self.averages.load_state_dict(state["averages"])
        if state["ema"] is not None:  # the weights that are trained; those of the checkpoint are their average
            self.model.load_state_dict(state["ema"]["weights"])
            if self.average is not None:
                self.average.updates = int(state["ema"]["updates"])
        load_state_by_name(self.optimizer, self.model, state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.loader.load_state_dict(state["loader"])

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated, and whose weights are a checkpoint's."""
        return self.model if self.average is None else self.average.model

    def evaluate_if_due(self) -> None:
        """Evaluates at the end of those epochs that the recipe says, unless that is done; saves what is best."""
        evaluations = self.validation.evaluations
        if not self.validation.is_due(self.epoch):
            return
        if self.iteration not in evaluations:
            evaluations.add(self.iteration, self.evaluate())
            if self.fabric.is_global_zero:
                best = None if evaluations.best is None else evaluations.best.iteration
                tidy_evaluations(self.log.work_dir, self.iteration, best)
        if evaluations.best is not None and evaluations.best.iteration == self.iteration:
            self.save()

    def stops_early(self) -> bool:
        """Whether the run has got no better for as long as the recipe bears; tells so."""
        reason = self.validation.enough()
        if reason is not None:
            self.log.say(f"stopped early after epoch {self.epoch} of {self.config.train.epochs}: {reason}")
        return reason is not None

    def evaluate(self) -> float:
        """Evaluates on the validation set, and returns the number by which checkpoints are compared."""

        def stop_if_asked() -> None:
            # Processes have unequal shares, so only a run of one process may leave its evaluation.
            if self.received and self.fabric.world_size == 1:
                self.stop()

        return self.validation.evaluate(
            self.evaluated, self.epoch, self.iteration, self.log, self.skipped, stop_if_asked
        )

    def _scaled_lr(self, notes: list[str]) -> float:
        section, data = self.config.optimizer, self.config.data
        images = data.batch_size * self.config.train.accumulate * self.fabric.world_size
        lr = scaled_lr(section, images)
        if section.auto_scale_lr:
            notes.append(
                f"optimizer.lr: {section.lr:g} is for {section.base_batch_size} images an iteration; "
                f"this run has {images}, so it is {lr:g}"
            )
        return lr

    def _total(self, handed_out: int = 0) -> int:
        """Iterations of the whole run, those done and those to come.

        Args:
            handed_out: Batches that the loader has handed out for the iteration that is not done.
        """
        sampler, section = self.loader.sampler, self.config.train
        batches = sampler.batches_left + handed_out, sampler.batches_of_an_epoch()
        return self.iteration + iterations_left(*batches, section.epochs - sampler.epoch, section.accumulate)
