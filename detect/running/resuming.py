"""Going on from a checkpoint: which one, what can go wrong with it, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from detect.running.best import Evaluations
from detect.running.state import (
    MANIFEST,
    checkpoint_folders,
    checkpoint_path,
    newest_intact,
    point,
    problem_of,
    set_damaged_aside,
    unpoint,
)
from dpipe.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def find_checkpoint(folder: Path, start: bool | str | Path, fabric: Fabric, notes: list[str]) -> Path | None:
    """The checkpoint that a run goes on from; all processes find the same.

    Args:
        folder: The run's own folder of checkpoints.
        start: True for the newest intact one in there; or the path of a checkpoint or of a work directory; False to
            begin.
        fabric: Launched.
        notes: Gets a line where there is none.

    Raises:
        InputError: If what is asked for is not there, or damaged, or the folder has checkpoints that are no part of the
            run up to it.
    """
    checkpoint = None
    if fabric.is_global_zero and start is not False:
        checkpoint = _newest(folder) if start is True else _named(Path(start), folder)
        if checkpoint is None:
            notes.append(f"{folder}: no checkpoint yet, so training begins")
    found: Path | None = fabric.broadcast(checkpoint)
    return found


def _newest(folder: Path) -> Path | None:
    checkpoint, damaged = newest_intact(folder)
    if damaged and checkpoint is None:
        raise InputError(f"{damaged[0]}, and there is no other to go on from")
    return checkpoint


def _named(path: Path, folder: Path) -> Path:
    """The checkpoint of a path, with the name that it has in the run's folder if it is in there."""
    checkpoint = path.resolve() if (path / MANIFEST).is_file() else _newest(path / folder.name)
    if checkpoint is None:
        raise InputError(f"{path}: expected a checkpoint of a run, such as its checkpoints/last, or its work directory")
    problem = problem_of(checkpoint)
    if problem is not None:
        raise InputError(f"{path}: damaged ({problem})")
    own = folder / checkpoint.name
    checkpoint = own if own.is_dir() and own.samefile(checkpoint) else checkpoint
    others = checkpoint_folders(folder)
    if others and others[-1] != checkpoint:
        raise InputError(
            f"{folder.parent}: has {others[-1].name}, which a run that goes on from {path} would be mixed with; give "
            "another --work-dir"
        )
    return checkpoint


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


def tidy(folder: Path, checkpoint: Path, evaluations: Evaluations, fabric: Fabric) -> list[str]:
    """Sees to the other checkpoints when a run goes on from one; returns lines for the user.

    Args:
        folder: The run's own folder of checkpoints.
        checkpoint: The one that it goes on from, which may be elsewhere.
        evaluations: Those up to it; forgets which is best where that one's checkpoint is gone.
        fabric: Launched; all processes call this together.
    """
    notes: list[str] = []
    best, lost = evaluations.best, False
    if fabric.is_global_zero:
        notes += set_damaged_aside(folder)
        if checkpoint.parent == folder:
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
