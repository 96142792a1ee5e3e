"""Training of a recipe's model, from its beginning or from a checkpoint."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.console import Console

from detect.config import Config, as_config
from detect.data import train_index, val_index
from detect.reporting.closing import report_at_the_end
from detect.running.boards import require_wandb
from detect.running.control import TrainingInterruptedError, deterministic, signals
from detect.running.devices import Accelerator, Launcher, launched_rank, make_fabric
from detect.running.loss_step import without_stride_warnings
from detect.running.run import Run
from detect.running.together import failing_together
from detect.running.workdir import prepared_work_dir
from dpipe.files import named_folder


def train(
    config: Config | str | Path,
    work_dir: str | Path | None = None,
    *,
    resume: bool | str | Path = False,
    devices: int = 1,
    accelerator: Accelerator = "auto",
    console: Console | None = None,
) -> Path:
    """Trains a recipe's model.

    The work directory gets ``config.yaml`` (the resolved recipe), ``environment.json``, ``train.jsonl``,
    ``tensorboard/``, ``checkpoints/``, ``evaluations/`` and, when it ends or is interrupted, ``report.html``.

    Args:
        config: The recipe, or its file, or the name of a shipped one.
        work_dir: Where the run's files go; ``work_dirs/<name of the recipe>`` where not given.
        resume: Go on from the newest intact checkpoint in the work directory, and begin where there is none; or the
            path of the checkpoint to go on from, or of its work directory.
        devices: GPUs, or processes on the CPU, of this machine. Each further one runs this program's command again,
            unless torchrun or srun have started them all.
        accelerator: ``auto`` takes GPUs where there are any.
        console: Where the run tells how it goes; standard output by default.

    Returns:
        The last checkpoint's folder.

    Raises:
        InputError: For a mistake in what was given, told before training where it can be known then; and for a loss
            that is not finite.
        TrainingInterruptedError: After SIGINT or SIGTERM, when the iteration is done and saved.
    """
    config = as_config(config)
    work_dir = Path("work_dirs", Path(config.recipe.name).stem) if work_dir is None else named_folder(work_dir)
    if config.train.wandb is not None:
        require_wandb()
    fabric = make_fabric(devices, accelerator, config.train.precision)
    console = console or Console(highlight=False, markup=False, soft_wrap=True)
    first, launched = launched_rank() == 0, Launcher.found() is not None

    def home(now: bool) -> AbstractContextManager[None]:
        return prepared_work_dir(work_dir, resume, console.print) if first and now else nullcontext()

    # What is wrong with the work directory is told before further processes start, or, to those that a launcher has
    # started, when they listen to each other.
    with home(not launched):
        training_data = train_index(config)
        validation_data = val_index(config, training_data.class_names)
        fabric.launch()
        with (
            report_at_the_end(work_dir, console.print) if first else nullcontext(),
            deterministic(fabric.device),
            signals() as received,
            without_stride_warnings(),
            failing_together(fabric, TrainingInterruptedError),
            home(launched),
        ):
            run = Run(config, work_dir, training_data, validation_data, fabric, received, resume, console)
            with run.log.running():
                return run.train()
