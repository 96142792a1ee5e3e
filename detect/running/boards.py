"""Where a run's curves go beside its log: TensorBoard, and Weights & Biases where the recipe asks for it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from detect.sections.training import Wandb
from dpipe.errors import InputError
from dpipe.files import write_whole

WANDB_NAME = "wandb.json"


class Board(Protocol):
    """Takes numbers over iterations."""

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """Adds numbers by name, such as ``train/loss``."""

    def close(self, failed: bool) -> None:
        """Writes what is not written yet.

        Args:
            failed: Whether the run ends by an exception.
        """


class TensorBoard:
    """Event files of TensorBoard.

    Args:
        folder: Gets the files.
        first_iteration: Iterations done before; what an earlier run wrote beyond them is not shown.
    """

    def __init__(self, folder: Path, first_iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._hook = threading.excepthook
        threading.excepthook = self._without_writer(self._hook)
        # What is of the checkpoint's own iteration stays.
        self._writer = SummaryWriter(str(folder), purge_step=first_iteration + 1 if first_iteration else None)

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """See :class:`Board`.

        Raises:
            OSError: If something before could not be written, such as when the disk is full; it names the folder.
        """
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)
        except OSError as error:
            raise self._named(error) from error

    def close(self, failed: bool) -> None:
        """See :class:`Board`; a run that fails has its own reason, and is told no other."""
        try:
            self._writer.close()
        except OSError as error:
            if not failed:
                raise self._named(error) from error
        finally:
            threading.excepthook = self._hook

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror or str(error), str(self._folder))

    @staticmethod
    def _without_writer(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Has no traceback printed for what the writer's thread meets: the next call raises it."""

        def quiet(args: Any) -> None:
            if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
                hook(args)

        return quiet


class WeightsAndBiases:
    """A run of Weights & Biases; one that is resumed goes on with the same.

    Args:
        section: The recipe's ``train.wandb``.
        work_dir: Gets ``wandb.json``, which knows the run, and what the package keeps of its own.
        recipe: The recipe's values.
        first_iteration: Iterations done before; 0 begins another run.

    Raises:
        InputError: If the package refuses, such as where nobody is logged in.
    """

    def __init__(self, section: Wandb, work_dir: Path, recipe: Mapping[str, Any], first_iteration: int) -> None:
        wandb: Any = importlib.import_module("wandb")
        path, place = work_dir / WANDB_NAME, {"project": section.project, "entity": section.entity}
        known = _read(path) if first_iteration else {}
        same = known.pop("id", None) if {name: known.get(name) for name in place} == place else None
        try:
            self._run = wandb.init(
                **place, name=section.name, id=same, resume="allow", config=dict(recipe), dir=str(work_dir)
            )
        except Exception as error:  # the package's own kinds, of which it says little
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(
                f"train.wandb: Weights & Biases cannot be used: {reason}; log in with `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        # Its own steps must rise, and those of a resumed run may begin before those that were told.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        write_whole(path, json.dumps({"id": self._run.id, **place}) + "\n")

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """See :class:`Board`."""
        self._run.log({**values, "iteration": iteration})

    def close(self, failed: bool) -> None:
        """See :class:`Board`."""
        self._run.finish(exit_code=int(failed))


def require_wandb() -> None:
    """Checks that Weights & Biases is installed.

    Raises:
        InputError: If it is not.
    """
    if importlib.util.find_spec("wandb") is None:
        raise InputError("train.wandb: the package wandb is not installed; `pip install wandb` installs it")


def _read(path: Path) -> dict[str, Any]:
    """What is known of the run so far; nothing where that cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
