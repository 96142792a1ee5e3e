"""Checkpoints: whole, verified, and never in each other's way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from detect.running import state
from detect.running.state import (
    ModelInfo,
    load_state,
    newest_intact,
    problem_of,
    prune,
    remove_unfinished,
    save_checkpoint,
    set_damaged_aside,
)
from dpipe.errors import InputError


def make_model(value: float = 0.0) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    nn.init.constant_(model[0].bias, value)
    return model


def info(iteration: int, epoch: int = 0) -> ModelInfo:
    return ModelInfo(("cat", "sea cow"), (3, 8), "train:\n  epochs: 2\n", epoch, iteration)


def save(folder: Path, iteration: int) -> Path:
    return save_checkpoint(folder, make_model(iteration), {"iteration": iteration}, info(iteration))


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    model = make_model(1.5)
    saved = {"iteration": 7, "best": None, "loader": {"epoch": 1}, "momentum": [torch.arange(3.0)]}
    path = save_checkpoint(tmp_path, model, saved, info(7, epoch=1))
    other = make_model()
    loaded = load_state(path, other)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert torch.equal(loaded.pop("momentum")[0], torch.arange(3.0))
    assert loaded == {"iteration": 7, "best": None, "loader": {"epoch": 1}}
    with safe_open(path / state.WEIGHTS, "pt") as weights:
        assert ModelInfo.from_metadata(weights.metadata(), path) == info(7, epoch=1)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["iter_00000007", "last"]
    assert (tmp_path / "last").resolve() == path.resolve()


def test_shared_tensors_are_written_once_each(tmp_path):
    model = make_model()
    model.append(model[0])  # two names for one weight
    path = save_checkpoint(tmp_path, model, {}, info(1))
    other = make_model()
    other.append(other[0])
    load_state(path, other)
    assert torch.equal(other[2].weight, model[0].weight)


@pytest.mark.parametrize("name", [state.WEIGHTS, state.STATE, state.MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, name, damage):
    older, newer = save(tmp_path, 9), save(tmp_path, 10)
    assert newest_intact(tmp_path) == (newer, [])
    content = bytearray((newer / name).read_bytes())
    if damage == "cut":
        (newer / name).write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 0xFF
        (newer / name).write_bytes(content)
    else:
        (newer / name).unlink()
    found, damaged = newest_intact(tmp_path)
    assert found == older
    assert len(damaged) == 1
    assert damaged[0].startswith(f"{newer}: damaged (")
    assert problem_of(older) is None


def test_weights_and_state_of_different_checkpoints_are_no_pair(tmp_path):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    (newer / state.STATE).write_bytes((older / state.STATE).read_bytes())
    assert newest_intact(tmp_path)[0] == older


def test_saving_again_replaces_a_damaged_one(tmp_path):
    path = save(tmp_path, 3)
    (path / state.STATE).write_bytes(b"")
    assert save(tmp_path, 3) == path
    assert newest_intact(tmp_path) == (path, [])


@pytest.mark.parametrize("step", ["save_file", "_flush"])
def test_a_failure_while_writing_leaves_nothing_behind(tmp_path, monkeypatch, step):
    save(tmp_path, 1)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device", str(args[0]))

    monkeypatch.setattr(state, step, fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["iter_00000001", "last"]
    assert (tmp_path / "last").resolve().name == "iter_00000001"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "STATE", "../full")
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"iter_00000002: cannot be written: No space left on device$"):
        save(tmp_path, 2)
    assert newest_intact(tmp_path) == (None, [])


def test_what_a_killed_run_left_is_no_checkpoint_and_is_removed(tmp_path):
    (tmp_path / f"{state.UNFINISHED}iter_00000005-123").mkdir()
    (tmp_path / f"{state.UNFINISHED}last-123").symlink_to("iter_00000004")
    assert newest_intact(tmp_path) == (None, [])
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for iteration in (5, 100, 20, 30, 9):
        save(tmp_path, iteration)
    prune(tmp_path, keep=2, best=9, iteration=100)
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == ["iter_00000009", "iter_00000030", "iter_00000100"]


def test_pruning_counts_only_what_the_run_has_come_to(tmp_path):
    for iteration in (10, 15, 20, 30):
        save(tmp_path, iteration)
    prune(tmp_path, keep=1, best=None, iteration=15)
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == ["iter_00000015", "iter_00000020", "iter_00000030"]


def test_damaged_checkpoints_are_set_aside(tmp_path):
    intact = save(tmp_path, 2)
    for iteration in (1, 3, 3):
        path = save(tmp_path, iteration)
        (path / state.STATE).write_bytes(b"")
        assert set_damaged_aside(tmp_path) == [
            f"{path}: damaged (state.pt is not what was written), so it is now damaged-{path.name}"
        ]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "damaged-iter_00000001",
        "damaged-iter_00000003",
        "iter_00000002",
    ]
    assert newest_intact(tmp_path) == (intact, [])


def test_an_intact_checkpoint_is_not_saved_again(tmp_path, monkeypatch):
    path = save(tmp_path, 3)
    save(tmp_path, 4)
    before = [(path / name).stat().st_ino for name in (state.WEIGHTS, state.STATE, state.MANIFEST)]
    monkeypatch.setattr(state, "_remove", lambda folder: pytest.fail("there is a moment without the checkpoint"))
    assert save(tmp_path, 3) == path
    assert [(path / name).stat().st_ino for name in (state.WEIGHTS, state.STATE, state.MANIFEST)] == before
    assert (tmp_path / "last").resolve() == path.resolve()


def test_weights_of_another_model_are_told_in_one_line(tmp_path):
    path = save(tmp_path, 1)
    with pytest.raises(InputError, match="do not fit the recipe's model") as caught:
        load_state(path, nn.Linear(2, 2))
    assert "\n" not in str(caught.value)


def changed_metadata(**changes: object) -> dict[str, str]:
    content = json.loads(info(1).to_metadata()["detect"])
    return {"detect": json.dumps({**content, **changes})}


def test_metadata_of_a_later_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="format 99, written by a later version"):
        ModelInfo.from_metadata(changed_metadata(format_version=99), tmp_path)


def test_an_unreadable_state_is_told_in_one_line(tmp_path):
    path = save(tmp_path, 1)
    for name in (state.STATE, state.WEIGHTS):
        (path / name).write_bytes(b"nothing")
        with pytest.raises(InputError, match="cannot be read: ") as caught:
            load_state(path, make_model())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"detect": "no JSON"},
        {"detect": "[" * 100000},
        {"detect": "null"},
        {"detect": "{}"},
        changed_metadata(epoch="x"),
        changed_metadata(epoch=None),
        changed_metadata(class_names=None),
        changed_metadata(class_names="ab"),
        changed_metadata(class_names=[1, 2]),
        changed_metadata(class_names=[], category_ids=[]),
        changed_metadata(category_ids=[1]),
        changed_metadata(category_ids=[True, 2]),
    ],
)
def test_metadata_that_does_not_parse_is_refused(tmp_path, metadata):
    with pytest.raises(InputError, match="metadata of the weights cannot be"):
        ModelInfo.from_metadata(metadata, tmp_path)


def test_the_same_weights_are_the_same_bytes_and_anyone_may_read_them(tmp_path):
    model = make_model()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, again = (save_checkpoint(tmp_path / name, model, {}, info(1)) / state.WEIGHTS for name in ("a", "b"))
    assert first.read_bytes() == again.read_bytes()
    assert first.stat().st_mode == (first.parent / state.STATE).stat().st_mode


def test_the_manifest_names_both_files(tmp_path):
    manifest = json.loads((save(tmp_path, 1) / state.MANIFEST).read_text())
    assert set(manifest["files"]) == {state.WEIGHTS, state.STATE}
