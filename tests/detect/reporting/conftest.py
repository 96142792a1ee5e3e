"""A work directory without a run: three images, detections of which it is known what they are, and a log."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from detect import Results, evaluate_results, report
from detect.metrics.scores import Kind
from detect.reporting.keeping import keep_evaluation, tidy_evaluations
from dpipe.coco import CocoIndex

VOID = {"meta", "input", "link"}
# Image id, class, x, y, width, height, whether it is a crowd.
OBJECTS = [(1, 0, 8, 8, 20, 20, 0), (1, 1, 50, 10, 20, 30, 0), (2, 0, 60, 20, 24, 24, 0), (2, 0, 0, 0, 40, 40, 1)]
# Image id, class, x, y, width, height, score. In the first image one finds its object, one finds it again, and one is
# of the wrong class; in the second one lies in the crowd, and one finds its object.
DETECTIONS = [
    (1, 0, 8, 8, 20, 20, 0.9),
    (1, 0, 9, 8, 20, 20, 0.6),
    (1, 0, 50, 10, 20, 30, 0.5),
    (2, 0, 4, 4, 20, 20, 0.8),
    (2, 0, 60, 20, 24, 22, 0.35),
]


@dataclass
class Made:
    """A work directory and the data set that it is of."""

    work_dir: Path
    data: Path

    @property
    def index(self) -> CocoIndex:
        return CocoIndex.load(self.data / "val.json")

    def log(self, *records: dict[str, Any]) -> None:
        """Appends to the log."""
        with (self.work_dir / "train.jsonl").open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def evaluate(self, iteration: int, kinds: Sequence[Kind] = (), best: int | None = None, masks: bool = True) -> None:
        """Keeps an evaluation, as a run does."""
        results = results_of(DETECTIONS, masks=masks)
        scores = evaluate_results(results, self.index, kinds)
        keep_evaluation(self.work_dir, results, scores, iteration // 10, iteration, pytest.fail)
        tidy_evaluations(self.work_dir, iteration, iteration if best is None else best)


class Page(HTMLParser):
    """The tags and the texts of a page, and whether they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style") and data.strip():
            self.texts.append(" ".join(data.split()))

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def results_of(rows: Sequence[tuple[Any, ...]], masks: bool = False) -> Results:
    """Detections as results; a mask is its box, without the upper left quarter."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    outlines = None
    if masks:
        from pycocotools import mask as coco_mask

        outlines = []
        for x, y, width, height in table[:, 2:6].astype(int).tolist():
            bitmap = np.zeros((64, 96), np.uint8, order="F")
            bitmap[y : y + height, x : x + width] = 1
            bitmap[y : y + height // 2, x : x + width // 2] = 0
            rle = coco_mask.encode(bitmap)
            outlines.append({"size": rle["size"], "counts": rle["counts"].decode()})
    ids = np.array([4, 9])[table[:, 1].astype(int)]
    return Results(table[:, 0].astype(np.int64), ids, table[:, 2:6], table[:, 6], outlines)


def write_data(folder: Path, class_names: Sequence[str], masks: bool) -> None:
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in (1, 2, 3):
        name = f"{number}.png"
        cv2.imwrite(str(folder / "images" / name), rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": name, "width": 96, "height": 64})
    for image, label, x, y, width, height, crowd in OBJECTS:
        row: dict[str, Any] = {"id": len(annotations) + 1, "image_id": image, "category_id": (4, 9)[label]}
        row |= {"bbox": [x, y, width, height], "area": width * height, "iscrowd": crowd}
        if masks:
            row["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        annotations.append(row)
    ids = [4, 9, *range(10, 10 + len(class_names) - 2)]
    categories = [{"id": id_, "name": name} for id_, name in zip(ids, class_names, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "val.json").write_text(json.dumps(content))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    """Makes a work directory in which nothing was evaluated yet."""

    def make_run(class_names: Sequence[str] = ("box", "disc"), masks: bool = True) -> Made:
        data, work_dir = tmp_path / "data", tmp_path / "run"
        work_dir.mkdir()
        write_data(data, class_names, masks)
        recipe = {
            "model": {"type": "CascadeRCNN"},
            "data": {"val": {"annotations": str(data / "val.json"), "images": str(data / "images")}, "classes": None},
            "train": {"epochs": 3},
        }
        (work_dir / "config.yaml").write_text(yaml.safe_dump(recipe))
        environment = {"command": ["detect", "train"], "python": "3.12.1", "gpus": [], "packages": {"torch": "2.9"}}
        (work_dir / "environment.json").write_text(json.dumps(environment))
        return Made(work_dir, data)

    return make_run


@pytest.fixture
def page_of() -> Callable[..., Page]:
    """Makes the report of a work directory, and reads it."""
    return lambda made, **options: Page(report(made.work_dir, **options).read_text())


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium that tells what it asks the network for and what its console says."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not there; nox -s browser installs them")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # The last one: containers have little shared memory.
    words = ["--headless=new", "--window-size=1280,900", "--disable-gpu", "--disable-dev-shm-usage"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        words.append("--no-sandbox")  # which root cannot have
    for word in words:
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()
