"""The Python blocks of the documentation run as they stand, one after another."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

DOCS = Path(__file__).resolve().parent.parent / "docs"
PARITY = Path(__file__).resolve().parent / "data" / "parity"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def write_data_set(folder: Path) -> None:
    """Six small images with a polygon, a run-length mask with a hole and a crowd each."""
    rng = np.random.default_rng(0)
    height, width = 60, 80
    ring = np.zeros((height, width), dtype=np.uint8)
    ring[30:50, 40:60] = 1
    ring[36:44, 46:54] = 0
    rle = coco_mask.encode(np.asfortranarray(ring))
    rle["counts"] = rle["counts"].decode()
    segmentations = [
        ([[10, 10, 40, 12, 38, 35, 9, 30]], [9, 10, 31, 25], 0),
        (rle, [40, 30, 20, 20], 0),
        (rle, [40, 30, 20, 20], 1),
    ]
    images, annotations = [], []
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    for number in range(1, 7):
        name = f"{number}.jpg"
        cv2.imwrite(str(folder / "images" / name), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for segmentation, box, crowd in segmentations:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1 + crowd,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": crowd,
                    "segmentation": segmentation,
                }
            )
    categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "train.json").write_text(json.dumps(content))


def test_blocks_of_the_page_on_pipelines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "pipelines.md").read_text()
    write_data_set(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = list(BLOCK.finditer(page))
    assert len(blocks) > 10
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        # Lines of a traceback are then those of the page.
        before = "\n" * page[: block.start(1)].count("\n")
        exec(compile(before + block[1], str(DOCS / "pipelines.md"), "exec"), names)


def test_the_page_names_every_transform() -> None:
    from dpipe.registry import TRANSFORMS

    page = (DOCS / "pipelines.md").read_text()
    missing = [name for name in TRANSFORMS.names() if f"`{name}" not in page]
    assert not missing


def test_the_table_names_every_argument_of_the_loader() -> None:
    from dpipe import DetectionLoader

    page = (DOCS / "pipelines.md").read_text()
    table = page.partition("## All arguments of the loader")[2].partition("## Speed")[0]
    missing = [name for name in inspect.signature(DetectionLoader).parameters if f"`{name}`" not in table]
    assert not missing


@pytest.fixture
def own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, the current one, with a data set and the files of the page on parts of one's own."""
    from detect.registry import MODELS

    write_data_set(tmp_path)
    shutil.copy(tmp_path / "annotations" / "train.json", tmp_path / "annotations" / "val.json")
    for language, block in ANY_BLOCK.findall((DOCS / "customize.md").read_text()):
        if language in ("python", "yaml"):
            path = tmp_path / block.partition("\n")[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr(MODELS, "_classes", {name: MODELS.get(name) for name in MODELS.names()})
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_parts"]:
        del sys.modules[name]


def run_command(words: list[str]) -> tuple[int, str]:
    """Runs a command as the page writes it: here, but for what starts several processes."""
    import detect.cli
    import dpipe.cli

    if "--devices" in words:
        command = [sys.executable, "-m", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        return done.returncode, done.stdout + done.stderr
    app = {"detect": detect.cli.app, "dpipe": dpipe.cli.app}[words[0]]
    result = CliRunner().invoke(app, words[1:], prog_name=words[0], catch_exceptions=False)
    return result.exit_code, result.output


def test_the_page_on_parts_of_ones_own_runs_as_it_stands(own_parts: Path) -> None:
    blocks = ANY_BLOCK.findall((DOCS / "customize.md").read_text())
    commands = 0
    for (language, block), (next_language, told) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        for line in block.splitlines() if language == "bash" else ():
            code, output = run_command(shlex.split(line))
            expected = told if next_language == "text" else ""
            assert code == (2 if expected.startswith("error:") else 0), output
            # Rows of the page are rows of the output; the output may have more.
            assert not [row for row in expected.splitlines() if row not in output.splitlines()], output
            commands += 1
    assert commands == 11
    for name, epochs in (("mine", 2), ("two", 1)):
        records = [json.loads(row) for row in (own_parts / "runs" / name / "train.jsonl").read_text().splitlines()]
        assert [record["kind"] for record in records].count("evaluation") == epochs
    assert (own_parts / "pictures" / "6.jpg").is_file()
    assert (own_parts / "sheet.png").is_file()


def test_parts_of_ones_own_are_found_beside_the_recipe_from_elsewhere(
    own_parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detect.config import build_model, load_config

    (own_parts / "elsewhere").mkdir()
    monkeypatch.chdir(own_parts / "elsewhere")
    recipe = Path("..", "my_recipe.yaml")
    model = build_model(load_config(recipe), 2)
    assert type(model.neck).__name__ == "PathNeck"
    assert type(model.roi_head.bbox_head.loss_bbox).__module__ == "my_parts.loss"
    code, output = run_command(["detect", "list", "my_parts", "--config", str(recipe)])
    assert code == 0
    assert [row.split()[0] for row in output.splitlines() if row.startswith("  ")] == [
        "my_parts.backbone.LightNet",
        "my_parts.neck.PathNeck",
        "my_parts.loss.LogCoshLoss",
        "my_parts.transform.Zoom",
    ]


def test_the_neck_of_the_page_is_as_short_as_it_says(own_parts: Path) -> None:
    lines = (own_parts / "my_parts" / "neck.py").read_text().splitlines()
    assert len(lines) <= 25


def tables(page: str) -> dict[str, list[list[str]]]:
    """The cells of the rows of each section's tables, without their heads."""
    found: dict[str, list[list[str]]] = {}
    for section in page.split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
        found[heading] = [[cell.strip() for cell in row] for row in rows if row[0].strip().startswith("`")]
    return found


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_the_page_on_models_names_all_there_is_and_nothing_else() -> None:
    from detect.looking.listing import KINDS, list_parts

    rows = tables((DOCS / "models.md").read_text())
    for kind in set(KINDS) - {"transform", "other part"}:
        heading = {"loss": "losses"}.get(kind, f"{kind}s")
        named = [quoted(row[0])[0] for row in rows[heading[0].upper() + heading[1:]]]
        assert sorted(named) == sorted(entry.name for entry in list_parts() if entry.kind == kind)


def test_the_page_on_models_names_arguments_that_there_are() -> None:
    from detect.looking.listing import describe_part

    for heading, rows in tables((DOCS / "models.md").read_text()).items():
        for row in rows if heading != "Recipes" else ():
            arguments = {argument.name for argument in describe_part(quoted(row[0])[0]).arguments}
            assert {name.partition(":")[0] for name in quoted(row[-1])} <= arguments, row[0]


def test_the_page_on_models_names_reference_cases_that_there_are() -> None:
    page = (DOCS / "models.md").read_text()
    folders = {path.name for path in PARITY.iterdir()}
    official = {path.stem for path in (PARITY / "full_size_keys").iterdir()}
    assert folders <= set(quoted(page))
    for heading, rows in tables(page).items():
        for row in rows:
            known = official if heading == "Recipes" else folders | official
            cells = row[-1] if heading == "Recipes" else row[2]
            assert set(quoted(cells)) <= known, row[0]
