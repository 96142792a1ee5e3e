"""The whole of it learns: four images by heart."""

from __future__ import annotations

import json

import pytest

from detect import evaluate, load_config, train


@pytest.mark.slow
def test_a_small_cascade_learns_four_images_by_heart(tmp_path, draw_shapes, small_recipe):
    (tmp_path / "images").mkdir()
    truth = draw_shapes(tmp_path / "images", 4, 192, 128, seed=1)
    for name in ("train.json", "val.json"):
        (tmp_path / name).write_text(json.dumps(truth))
    recipe = small_recipe(tmp_path, channels=16, long=192, short=128)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    iterations = ("data.batch_size=4", "data.train.repeat=40", "train.epochs=4", "schedule.steps=[3]")
    config = load_config(tmp_path / "recipe.yaml", [*iterations, "train.eval_every=0", "train.log_every=40"])
    train(config, tmp_path / "run")
    boxes, masks = evaluate(config, tmp_path / "run")
    assert boxes.metrics["AP50"] > 0.9
    assert masks.metrics["AP50"] > 0.9
