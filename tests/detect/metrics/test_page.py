"""The Python blocks of the page on evaluation run as they stand, and the page knows all kinds and options."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import torch

from detect.metrics.scores import KINDS, Options
from detect.sections.evaluation import Evaluation

PAGE = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()


def test_the_blocks_run(random_case, tmp_path, monkeypatch, capsys):
    truth, results = random_case(0)
    (tmp_path / "annotations.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    monkeypatch.chdir(tmp_path)
    boxes = torch.tensor([[0.0, 0.0, 30.0, 40.0]])
    names: dict = {
        "predictions": [
            (10, boxes, torch.tensor([0.5]), torch.tensor([1])),
            (11, boxes[:0], *[torch.zeros(0).long()] * 2),
        ],
        "category_ids": [3, 7, 8, 20, 21],
    }
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out
    assert "voc 0." in printed
    assert "class 21: {'AP': nan" in printed
    assert names["scores"].kind == "proposal"


def test_the_page_names_all_kinds_and_options():
    for name in (*KINDS, *(field.name for field in fields(Options)), *Evaluation.model_fields):
        assert f"`{name}`" in PAGE or f"  {name}:" in PAGE, name
