"""The page on prediction: its Python runs, its recipe is one, and it names what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detect.config import build_model, load_config
from detect.predicting.files import FORMS
from detect.predicting.videos import VIDEO_SUFFIXES
from detect.running.state import ModelInfo, save_checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "prediction.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def setting(shapes, monkeypatch):
    """A folder, the current one, with the recipe, the checkpoint and the images of the page."""
    recipe = json.loads(shapes.recipe.read_text())
    recipe["model"]["roi_head"]["max_per_img"] = 5
    (shapes.root / "my_recipe.yaml").write_text(json.dumps(recipe))
    for number in range(1, 4):
        path = shapes.root / "images" / f"{number}.jpg"
        cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    torch.manual_seed(0)
    config = load_config(shapes.root / "my_recipe.yaml")
    info = ModelInfo(("car", "person"), (1, 2), config.to_yaml(), 0, 0)
    folder = shapes.root / "runs" / "mine" / "checkpoints"
    folder.mkdir(parents=True)
    save_checkpoint(folder, build_model(config, 2), {}, info)
    monkeypatch.chdir(shapes.root)
    return shapes.root


def test_blocks_run(setting):
    page = PAGE.read_text()
    blocks = list(BLOCK.finditer(page))
    assert len(blocks) == 5
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        before = "\n" * page[: block.start(1)].count("\n")  # lines of a traceback are then those of the page
        exec(compile(before + block[1], str(PAGE), "exec"), names)
    assert names["pixels"].shape == (60, 80, 3)
    assert (setting / "cars.png").is_file()
    assert names["results"] == json.loads((setting / "found" / "predictions.json").read_text())
    assert len(list((setting / "found" / "labelme").iterdir())) == 9


def test_the_recipe_is_one(tmp_path):
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(f"_base_: faster_rcnn_r50_fpn_coco\n{block}")
    assert len(load_config(tmp_path / "recipe.yaml").evaluation.tta.scales) == 3


def test_it_names_what_is_read_and_written():
    page = PAGE.read_text()
    assert {suffix for suffix in VIDEO_SUFFIXES if f"`{suffix}`" in page} == VIDEO_SUFFIXES
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(FORMS)
