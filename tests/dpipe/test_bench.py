from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dpipe.backends.opencv import OpenCVBackend
from dpipe.cli import app
from dpipe.coco import CocoIndex, image_path
from dpipe.errors import InputError
from dpipe.images.memory import Scratch
from dpipe.loader import BackendName, DetectionLoader
from dpipe.looking.bench import BenchReport, LoaderRate, _notes, bench, choose_images, measure_loader
from dpipe.looking.bench_machine import machine_facts
from dpipe.looking.bench_stages import STAGES, StageTime, time_image
from dpipe.operations.colours import Brightness, Equalize
from dpipe.operations.geometric import RandomFlip, Resize, Rotate
from dpipe.policy import Augment, Normalize, Pad

RECIPE = Augment(
    [
        Rotate(5),
        Brightness(8),
        Resize((120, 80)),
        RandomFlip(0.5),
        Normalize((120.0, 110.0, 100.0), (60.0, 50.0, 40.0), bgr=True),
        Pad(32),
    ]
)
BOXES = [{"image_id": number, "bbox": [5, 5, 20, 20], "segmentation": [[5, 5, 25, 5, 5, 25]]} for number in range(11)]


@pytest.fixture
def data(
    write_dataset: Callable[..., tuple[CocoIndex, Path]], noise_images: list[np.ndarray]
) -> tuple[CocoIndex, Path]:
    return write_dataset(noise_images, BOXES)


@pytest.mark.parametrize("augment", [RECIPE, Augment([Equalize(prob=1.0)]), Augment([Resize((40, 30))])])
def test_the_stages_make_what_the_backend_makes(data: tuple[CocoIndex, Path], augment: Augment) -> None:
    index, folder = data
    loader = DetectionLoader(index, folder, augment=augment, backend="opencv", threads=1)
    paths = [image_path(folder, name) for name in index.file_names]
    backend = OpenCVBackend(paths, augment)
    for number, path in enumerate(paths):
        seconds, made = time_image(number, path, loader, backend, Scratch())
        assert len(seconds) == len(STAGES)
        assert min(seconds) >= 0
        plan = loader.plan(number, epoch=0)
        (batch,) = backend.stream([[plan]])
        expected = batch.images[0].permute(1, 2, 0).numpy()[: plan.size[0], : plan.size[1]]
        assert made.dtype == expected.dtype
        assert (made == expected).all()


def test_a_report_has_all_stages_and_loaders(data: tuple[CocoIndex, Path]) -> None:
    told: list[str] = []
    report = bench(*data, RECIPE, threads=[1, 2], batch_size=3, count=5, seconds=0.01, progress=told.append)
    assert [stage.name for stage in report.stages] == list(STAGES)
    assert sum(stage.share for stage in report.stages) == pytest.approx(1)
    assert [(rate.backend, rate.threads) for rate in report.loaders] == [("opencv", 1), ("opencv", 2)]
    for rate in report.loaders:
        assert 0 < rate.slowest <= rate.images_per_second <= rate.fastest
    assert report.data["images"] == 5
    assert report.data["formats"] == {"png": 5}
    assert told == ["stages", "opencv, 1 threads", "opencv, 2 threads"]
    assert "-bound: " in report.notes[0]
    assert json.loads(json.dumps(report.as_dict()))["loaders"][1]["threads"] == 2


def test_dali_has_no_stages(data: tuple[CocoIndex, Path]) -> None:
    pytest.importorskip("nvidia.dali")
    report = bench(*data, RECIPE, backends=["dali"], threads=[1], count=3, seconds=0.01)
    assert report.stages == ()
    assert [rate.backend for rate in report.loaders] == ["dali"]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["opencv", "dali"])
def test_batches_may_be_wanted_on_a_gpu(data: tuple[CocoIndex, Path], backend: BackendName) -> None:
    report = bench(*data, RECIPE, backends=[backend], device="cuda", threads=[2], count=3, seconds=0.01)
    assert [(rate.backend, rate.device) for rate in report.loaders] == [(backend, "cuda")]
    assert "gpu" in report.machine


def test_dali_on_a_gpu_is_measured_with_threads_that_it_has_use_for(
    data: tuple[CocoIndex, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpipe.looking.bench.checked_device", lambda name: name)
    monkeypatch.setattr(
        "dpipe.looking.bench.measure_loader",
        lambda *_, backend, device, threads, **__: LoaderRate(backend, device, threads, 1.0, 1.0, 1.0),
    )
    for device, expected in (("cuda", [1, 2, 3]), ("cpu", [1, 2, 4, 8])):
        report = bench(*data, RECIPE, backends=["dali"], device=device, threads=[1, 2, 4, 8], batch_size=3)
        assert [rate.threads for rate in report.loaders] == expected


def test_the_images_measured_on_keep_their_annotations(data: tuple[CocoIndex, Path]) -> None:
    index = data[0]
    assert choose_images(index, 11) is index
    chosen = choose_images(index, 4)
    assert len(chosen) == 4
    assert chosen.file_names == choose_images(index, 4).file_names
    assert [f"{number:03d}.png" for number in chosen.image_ids] == list(chosen.file_names)
    assert (chosen.annotation_ids == chosen.image_ids + 100).all()
    assert chosen.offsets.tolist() == [0, 1, 2, 3, 4]
    assert len(chosen.polygons) == 4
    assert (chosen.heights == index.heights[chosen.image_ids]).all()


def test_notes_say_what_bounds_the_rate(data: tuple[CocoIndex, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(milliseconds: dict[str, float], load: str) -> BenchReport:
        total = sum(milliseconds.values())
        stages = tuple(StageTime(name, milliseconds[name], milliseconds[name] / total) for name in STAGES)
        monkeypatch.setattr("dpipe.looking.bench.measure_stages", lambda *_: stages)
        monkeypatch.setattr("dpipe.looking.bench.machine_facts", lambda: {"load": load})
        rates = {1: 10.0, 2: 18.5}
        monkeypatch.setattr(
            "dpipe.looking.bench.measure_loader",
            lambda *_, threads, **__: LoaderRate("opencv", "cpu", threads, rates[threads], 1.0, 99.0),
        )
        return bench(*data, RECIPE, threads=[1, 2])

    costs = dict.fromkeys(STAGES, 1.0) | {"decode": 74.0}
    assert pretend(costs, "0.1").notes == (
        "decode-bound: 92% of the time goes to decoding PNG; dpipe transcode makes files that decode faster",
        "one thread of the loader gives 80% of what its stages would "
        "(over 100% where targets have a core of their own)",
        "2 threads are 1.85 times as fast as one",
    )
    notes = pretend(dict.fromkeys(STAGES, 1.0) | {"target": 14.0}, "3.25").notes
    assert notes[0] == "target-bound: 70% of the time goes to boxes and masks"
    assert "busy with something else (load 3.2)" in notes[-1]


@pytest.mark.parametrize(
    ("ending", "advice"),
    [
        ("jpg", "a GPU decodes them"),
        ("jp2", "a GPU decodes them"),
        ("webp", "dpipe transcode"),
        ("bmp", "dpipe transc"),
    ],
)
def test_advice_is_of_the_format(ending: str, advice: str) -> None:
    stages = [StageTime(name, 1.0, 0.9 if name == "decode" else 0.01) for name in STAGES]
    (note,) = _notes(stages, [], {ending: 3, "png": 1}, load=0.0)
    assert advice in note


def test_the_machine_is_named() -> None:
    facts = machine_facts()
    assert facts["processor"]
    assert " of " in facts["cores"]
    assert {"python", "numpy", "torch", "opencv-python-headless"} <= set(facts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"threads": [2, 0]}, "threads must be at least 1, got 0"),
        ({"seconds": 0}, "seconds must be a finite number above 0, got 0"),
        ({"seconds": math.nan}, "seconds must be a finite number above 0, got nan"),
        ({"seconds": math.inf}, "seconds must be a finite number above 0, got inf"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
    ],
)
def test_numbers_out_of_range_are_told(data: tuple[CocoIndex, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench(*data, RECIPE, **{"count": 1, "seconds": 0.01, **options})


def run(index: CocoIndex, folder: Path, *options: object):
    return CliRunner().invoke(app, ["bench", *map(str, (*options, index.path, folder))], env={"COLUMNS": "160"})


def test_the_command_prints_tables_and_writes_json(data: tuple[CocoIndex, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data:\n  train_transforms:\n    - {type: Resize, scale: [64, 48]}\n")
    result = run(
        *data,
        *("--config", recipe, "--images", 2, "--seconds", 0.01, "--json", tmp_path / "bench.json", "--threads", 1, 2),
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [rate["threads"] for rate in report["loaders"]] == [1, 2]
    assert report["data"]["images"] == 2
    assert report["machine"]["processor"] in result.stdout.replace("\n", " ")
    rows = [line.split("│")[1].strip() for line in result.stdout.splitlines() if line.count("│") > 4]
    assert rows == [*STAGES, "sum", "opencv", "opencv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "no_such_recipe"], "no_such_recipe"),
        (["--json", f"{__file__}/bench.json"], "test_bench.py: is a file, expected a folder"),
        (["--device", "tpu", "--seconds", "0.01"], "unknown device 'tpu'"),
    ],
)
def test_mistakes_are_told_in_one_line(data: tuple[CocoIndex, Path], options: list[str], message: str) -> None:
    result = run(*data, *options)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_bad_image_is_told(data: tuple[CocoIndex, Path]) -> None:
    (data[1] / "003.png").write_bytes(b"")
    result = run(*data, "--seconds", 0.01)
    assert result.exit_code == 2
    assert "003.png" in result.stderr


def test_bad_images_can_be_left_out_of_the_measuring(
    data: tuple[CocoIndex, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data[1] / "003.png").write_bytes(b"")
    (data[1] / "000.png").unlink()
    result = run(*data, "--seconds", 0.01, "--threads", 1, "--on-bad-sample", "skip", "--json", tmp_path / "bench.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "bench.json").read_text())["data"]["images"] == len(data[0]) - 2
    assert "skipped 003.png: the file is empty" in caplog.text
    assert "skipped 000.png: no such image file" in caplog.text
    for path in data[1].iterdir():
        path.write_bytes(b"")
    result = run(*data, "--seconds", 0.01, "--on-bad-sample", "skip")
    assert result.exit_code == 2
    assert "drawn to measure on can be used" in result.stderr


def test_images_that_only_dali_cannot_read_are_left_out_of_its_measuring(
    data: tuple[CocoIndex, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, folder = data
    monkeypatch.setattr("dpipe.looking.bench.MOST_REPETITIONS", 2)
    given = {"backend": "opencv", "device": "cpu", "threads": 1, "batch_size": 1, "seconds": 9.0}
    (folder / index.file_names[0]).write_bytes(b"")
    rate = measure_loader(index, folder, RECIPE, on_bad_sample="skip", **given)
    assert rate.slowest > 0
    for name in index.file_names[1:-1]:
        (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match="too few of the images"):
        measure_loader(index, folder, RECIPE, on_bad_sample="skip", **given)
