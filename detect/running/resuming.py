"""Going on from a checkpoint: which one, what can go wrong with it, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from detect.running.best import Evaluations
from detect.running.state import checkpoint_path, newest_intact, point, set_damaged_aside, unpoint
from dpipe.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def find_checkpoint(folder: Path, fabric: Fabric, notes: list[str]) -> Path | None:
    """The newest intact checkpoint in a folder; all processes find the same.

    Args:
        folder: The folder of checkpoints.
        fabric: Launched.
        notes: Gets a line where there is none.

    Raises:
        InputError: If there are only damaged ones.
    """
    checkpoint, damaged = newest_intact(folder) if fabric.is_global_zero else (None, [])
    if damaged and checkpoint is None:
        raise InputError(f"{damaged[0]}, and there is no other to go on from")
    if fabric.is_global_zero and checkpoint is None:
        notes.append(f"{folder}: no checkpoint yet, so training begins")
    found: Path | None = fabric.broadcast(checkpoint)
    return found


@contextmanager
def fitting(checkpoint: Path) -> Iterator[None]:
    """Tells what is wrong with a checkpoint's state in one line.

    Raises:
        InputError: For whatever a state that is another run's, or damaged, raises where it is read.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise InputError(
            f"{checkpoint}: its state does not fit the recipe's run, or an older version wrote it "
            f"({type(error).__name__}: {reason}); train.load_from begins a new run with its weights"
        ) from error


def tidy(checkpoint: Path, evaluations: Evaluations, fabric: Fabric) -> list[str]:
    """Sees to the other checkpoints when a run goes on from one; returns lines for the user.

    Args:
        checkpoint: That one.
        evaluations: Those up to it; forgets which is best where that one's checkpoint is gone.
        fabric: Launched; all processes call this together.
    """
    notes: list[str] = []
    folder, best, lost = checkpoint.parent, evaluations.best, False
    if fabric.is_global_zero:
        notes += set_damaged_aside(folder)
        point(folder, "last", checkpoint)
        if best is not None and not checkpoint_path(folder, best.iteration).is_dir():
            notes.append(
                f"the best checkpoint, of iteration {best.iteration}, is not there; the next evaluation is best"
            )
            unpoint(folder, "best")
            lost = True
    if fabric.broadcast(lost):  # all processes agree on what is best next
        evaluations.best = None
    return notes
