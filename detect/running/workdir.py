"""The folder that a training run writes into."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detect.config import Config, load_config
from detect.running.locking import locked
from detect.running.logs import environment
from detect.running.state import checkpoint_folders, remove_unfinished
from dpipe.errors import InputError
from dpipe.files import writable_folder, write_whole


@contextmanager
def prepared_work_dir(work_dir: Path, resume: bool | str | Path, say: Callable[[str], None]) -> Iterator[None]:
    """Makes the folders of a run and keeps other runs out of them; takes those away that a failed run left empty.

    Args:
        work_dir: The run's.
        resume: See :func:`detect.running.resuming.find_checkpoint`.
        say: Is told where other runs cannot be kept out.

    Raises:
        InputError: If they cannot be written, if another run is going on there, or if they hold another run's
            checkpoints and ``resume`` is off.
    """
    checkpoints = work_dir / "checkpoints"
    with writable_folder(work_dir), locked(work_dir, say):
        if not resume and checkpoint_folders(checkpoints):
            raise InputError(f"{work_dir}: has checkpoints of a run; go on with --resume, or give another --work-dir")
        with writable_folder(checkpoints):
            yield


def write_setup(config: Config, work_dir: Path) -> list[str]:
    """Writes the resolved recipe and the environment of a run, and removes what a killed one had not finished.

    Returns:
        A line for each key in which the recipe differs from the one that was there, or one if that cannot be read.
    """
    path = work_dir / "config.yaml"
    notes = []
    if path.is_file():
        try:
            before, now = _flatten(load_config(path).model_dump()), _flatten(config.model_dump())
        except InputError as error:
            notes = [f"the run's recipe so far is replaced, as it cannot be read: {str(error).splitlines()[0]}"]
        else:
            changed = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]
            notes = [f"recipe: {key} was {before.get(key)}, now {now.get(key)}" for key in sorted(changed)]
    write_whole(path, config.to_yaml())
    write_whole(work_dir / "environment.json", json.dumps(environment(), indent=2) + "\n")
    remove_unfinished(work_dir / "checkpoints")
    return notes


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: value
        for name, inner in values.items()
        for key, value in _flatten(inner, f"{prefix}.{name}".strip(".")).items()
    }
