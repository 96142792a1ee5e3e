"""The benchmark scripts run, and the contenders that they compare do the same work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CONTENDERS = {
    "dpipe",
    "dpipe, 2 threads",
    "fused prototype",
    "fused prototype, 2 threads",
    "chain with polygons",
    "chain with polygons, uint8",
    "chain with bitmaps",
    "albumentations",
    "torchvision.transforms.v2",
}


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "DPIPE_TEST_DATA"}
    environment.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pipelines")
    result = folder / "result.json"
    tiny = ("--rounds", "1", "--images", "4", "--sizes", "320x240", "--formats", "jpeg")
    done = run_script("pipelines.py", *tiny, "--data", str(folder / "data"), "--json", str(result))
    assert done.returncode == 0, done.stderr
    assert "320x240 JPEG, uint8 out" in done.stdout
    return json.loads(result.read_text())


def test_every_contender_is_measured(report: dict[str, Any]) -> None:
    (setting,) = report["settings"]
    assert set(setting["images_per_second"]) == CONTENDERS
    assert all(rate > 0 for rate in setting["images_per_second"].values())
    assert all(len(rounds) == 1 for rounds in setting["rounds"].values())


def test_boxes_of_all_contenders_agree(report: dict[str, Any]) -> None:
    agreement = report["settings"][0]["agreement"]
    assert set(agreement) == CONTENDERS - {"dpipe", "dpipe, 2 threads"}
    for name, found in agreement.items():
        assert found["boxes"] > 0, name
        assert found["largest_distance"] <= 1, name


def test_ratios_are_ours_over_theirs(report: dict[str, Any]) -> None:
    setting = report["settings"][0]
    rates = setting["images_per_second"]
    ratios = {one["peer"]: one["ratio"] for one in setting["ratios"]}
    assert ratios["albumentations"] == pytest.approx(rates["dpipe"] / rates["albumentations"])
    assert ratios["dpipe"] == pytest.approx(rates["dpipe, 2 threads"] / rates["dpipe"])


def test_gpu_pipeline_says_that_it_needs_a_gpu() -> None:
    done = run_script("gpu_pipeline.py")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "CUDA device" in done.stderr


def test_evaluation_is_measured_and_agrees_with_pycocotools() -> None:
    done = run_script("evaluation.py", "--images", "30", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    for kind in ("bbox", "proposal"):
        assert f"{kind}: detect " in done.stdout


def test_the_start_of_commands_is_measured() -> None:
    done = run_script("overheads.py", "--only", "help", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["help_s"].keys() == {"detect", "dpipe"}
