"""The page on analysis: its Python block runs as it stands, and it knows all options, errors, files and keys."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from detect import analyze, compare
from detect.analysis import writing
from detect.analysis.errors import ERROR_KINDS
from detect.analysis.writing import as_dict

PAGE = (Path(__file__).parents[3] / "docs" / "analysis.md").read_text()


@pytest.mark.parametrize("confused", [True, False])
def test_the_block_runs(confused, study, truth, found, tmp_path, monkeypatch, capsys):
    rows = found(truth)
    study.write(truth, [{**row, "category_id": 7} if confused and row["score"] < 0.7 else row for row in rows])
    (tmp_path / "other.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writing, "png_of", lambda figure: b"")
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(block, {})
    printed = capsys.readouterr().out
    assert ("is taken for car" in printed) == confused
    assert f"Difference(name='AP', first={'0.' if confused else '1.'}" in printed
    assert (tmp_path / "analysis" / "comparison.png").exists()


def test_the_page_names_everything(study, truth, found):
    first = analyze(*study.write(truth, found(truth)))
    comparison = compare(first, first, resamples=2)
    told = as_dict(first, comparison)
    keys = [*told, *told["classes"][0], *told["curves"], *told["errors"], *told["errors"]["sizes"]["small"]]
    keys += [*told["confusion"], *told["calibration"], *told["comparison"], *told["comparison"]["overall"][0]]
    files = [*writing._plots(first, comparison), writing.NUMBERS]
    options = ["--kind", "--iou", "--background-iou", "--score", "--compare", "--resamples"]
    for name in [*keys, *ERROR_KINDS, *files, *options]:
        assert re.search(rf"`{name}[` ]", PAGE) or f"# {name}" in PAGE, name
