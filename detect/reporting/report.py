"""The report of a training run: one HTML file that needs nothing else.

What comes from the run (names of classes and files, values of the recipe) is text that the template escapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from detect.metrics.evaluating import evaluate_results
from detect.metrics.results import read_rows, results_of
from detect.predicting.predictions import SCORE_THR
from detect.reporting.charts import Chart, draw_chart
from detect.reporting.history import Curve, History, read_history
from detect.reporting.keeping import Kept, kept_evaluations
from detect.reporting.samples import Sample, Samples
from detect.reporting.tables import Evaluation, class_table, evaluation_of, metric_tables, tiles
from detect.running.logs import LOG_NAME, evaluation_record
from detect.sections.evaluation import Evaluation as EvaluationSection
from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.files import check_writable_file, write_whole
from dpipe.looking.page_parts import page_template

REPORT = "report.html"
SAMPLES = 12
MOST_SKIPPED = 200
"""Rows of the table of files that could not be used."""
SMALL_CHART = 270.0, 130.0
CURVES = 3
"""Numbers of a kind of evaluation that are drawn, the first ones: those of COCO at all IoUs, at 0.5 and at 0.75."""


def report(
    work_dir: str | Path,
    *,
    out: str | Path | None = None,
    results: str | Path | None = None,
    samples: int = SAMPLES,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Makes the report of a training run from what lies in its work directory.

    Args:
        work_dir: That of ``train``, finished or not.
        out: The file to write; by default ``report.html`` in the work directory.
        results: Detections in the validation set, in COCO's results format, to show instead of those that the run kept
            of its best evaluation.
        samples: Images to show, half of them those with the most mistakes.
        say: Is told what the page lacks, as it is no longer there or damaged.

    Returns:
        The file.

    Raises:
        InputError: If this is no work directory, a file in it or ``results`` cannot be used, or the report cannot be
            written. What is told in the report, in its place: a validation set or an image that is no longer there, and
            an evaluation that the run kept and that is damaged.
    """
    work_dir = Path(work_dir)
    out = work_dir / REPORT if out is None else Path(out)
    if samples < 0:
        raise InputError(f"samples must be at least 0, got {samples}")
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out}: the report is a page of HTML: expected a name that ends in .html")
    text, recipe = read_recipe(work_dir)
    check_writable_file(out)
    history = read_history(work_dir / LOG_NAME)
    index, problem = _validation_set(recipe)
    kept_ones, damaged = kept_evaluations(work_dir)
    evaluations = [evaluation_of(name, kept) for name, kept in kept_ones.items()]
    if not evaluations and history.evaluations:
        evaluations = [Evaluation("last", history.evaluations[-1], {}, None)]
    if results is not None:
        if index is None:
            raise InputError(problem)
        evaluations, damaged = [_evaluated(Path(results), index, recipe)], []
    pictures: list[Sample] = []
    if not evaluations or evaluations[0].results is None:
        problem = "The run has kept no detections" + (": nothing was evaluated yet." if not evaluations else ".")
        problem = damaged[0] if damaged else problem
    elif index is not None:
        unusable = {name for data_set, name, _ in history.skipped if data_set == "val"}
        try:
            pictures = _samples(index, recipe, evaluations[0], samples, unusable)
        except InputError as error:
            if results is not None:
                raise
            problem = str(error)
    page = page_template("detect.reporting", "report.html").render(
        name=work_dir.resolve().name,
        tiles=tiles(history, evaluations, value_of(recipe, "train", "epochs")),
        charts=_charts(history),
        parts=_parts(history),
        evaluations=evaluations,
        damaged=damaged,
        metric_tables=metric_tables(evaluations),
        classes=class_table(evaluations[0], index) if evaluations else None,
        samples=pictures,
        by_class=bool(evaluations) and evaluations[0].by_class,
        without_samples="" if pictures else problem,
        score_thr=SCORE_THR,
        skipped=history.skipped[:MOST_SKIPPED],
        more_skipped=max(0, len(history.skipped) - MOST_SKIPPED),
        recipe=text,
        environment=_environment(work_dir),
    )
    write_whole(out, page)
    for line in _lacks(pictures, damaged, problem if samples else ""):
        say(line)
    return out


def read_recipe(work_dir: Path) -> tuple[str, Mapping[str, Any]]:
    """Reads the resolved recipe of a run, as text and as what it says.

    Nothing that it names is imported, so that a run of other versions and without its own parts can be told of.

    Raises:
        InputError: If there is none, or it is not one.
    """
    path = work_dir / "config.yaml"
    if not path.is_file():
        raise InputError(f"{work_dir}: is not the work directory of a training run: it has no config.yaml")
    try:
        text = path.read_text(encoding="utf-8")
        recipe = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: is not a recipe")
    return text, recipe


def value_of(recipe: Mapping[str, Any], *keys: str) -> Any:
    """A value of a recipe; None where it has none."""
    value: Any = recipe
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _lacks(pictures: Sequence[Sample], damaged: Sequence[str], problem: str) -> list[str]:
    """Lines on what the page tells in place of what it should show."""
    unread = [sample.problem for sample in pictures if sample.problem]
    if unread:
        return [*damaged, f"{len(unread)} of {len(pictures)} pictures cannot be shown, such as {unread[0]}"]
    return [*damaged, *([f"no samples: {problem}"] if problem and not pictures and problem not in damaged else [])]


def _validation_set(recipe: Mapping[str, Any]) -> tuple[CocoIndex | None, str]:
    """The validation set, or why it cannot be read."""
    path, classes = value_of(recipe, "data", "val", "annotations"), value_of(recipe, "data", "classes")
    if not isinstance(path, str):
        return None, "the recipe names no data.val.annotations"
    try:
        return CocoIndex.load(path, classes=classes), ""
    except InputError as error:
        return None, str(error)


def _evaluated(path: Path, index: CocoIndex, recipe: Mapping[str, Any]) -> Evaluation:
    """Detections that are given, with what they score."""
    try:
        section = EvaluationSection.model_validate(value_of(recipe, "evaluation") or {})
    except ValidationError as error:
        raise InputError(f"the run's recipe: evaluation: {error.errors()[0]['msg']}") from None
    all_scores = evaluate_results(path, index, section.kinds or (), section.options)
    record = evaluation_record(0, 0, all_scores)
    kept = Kept(path, {**record, "settings": {scores.kind: scores.settings for scores in all_scores}})
    return evaluation_of(path.name, kept)


def _samples(
    index: CocoIndex, recipe: Mapping[str, Any], evaluation: Evaluation, count: int, unusable: set[str]
) -> list[Sample]:
    assert evaluation.results is not None
    path, rows = evaluation.results, read_rows(evaluation.results)
    folder = str(value_of(recipe, "data", "val", "images") or "")

    def samples_of(numbers: Sequence[int], with_masks: bool) -> Samples:
        found = results_of(
            [rows[number] for number in numbers],
            index,
            lambda place: f"{path}: detection {numbers[place]}",
            with_masks=with_masks,
        )
        return Samples(index, folder, found, by_class=evaluation.by_class)

    chosen = samples_of(range(len(rows)), with_masks=False).choose(count, unusable)
    # Masks of the whole data set would take gigabytes.
    ids = {int(index.image_ids[number]) for number, _ in chosen}
    samples = samples_of([number for number, row in enumerate(rows) if row["image_id"] in ids], with_masks=True)
    return [samples.draw(number, why) for number, why in chosen]


def _charts(history: History) -> list[Chart]:
    """Loss, learning rates, and the main numbers of each kind of evaluation."""
    end = _last_iteration(history)
    whole = [curve for curve in history.losses if curve.name == "loss"]
    charts = [
        draw_chart("Loss", whole, end, smooth=True, may_be_log=True),
        draw_chart("Learning rate", history.rates, end, may_be_log=True),
    ]
    kinds = dict.fromkeys(
        kind for record in history.evaluations for kind in evaluation_of("", Kept(Path(), record)).kinds
    )
    for kind in kinds:
        curves = [_percent(curve) for curve in history.metrics(kind)[:CURVES]]
        charts.append(draw_chart(f"{kind}, in percent", curves, end, marked=True, from_zero=True))
    return [chart for chart in charts if chart is not None]


def _parts(history: History) -> list[Chart]:
    """A small chart of each number that training tells beside the loss."""
    end = _last_iteration(history)
    curves = [curve for curve in history.losses if curve.name != "loss"]
    charts = [draw_chart(curve.name, [curve], end, smooth=True, size=SMALL_CHART) for curve in curves]
    return [chart for chart in charts if chart is not None]


def _percent(curve: Curve) -> Curve:
    return Curve(curve.name, curve.iterations, [100 * value for value in curve.values])


def _last_iteration(history: History) -> int:
    return max((record["iteration"] for record in (*history.training, *history.evaluations)), default=0)


def _environment(work_dir: Path) -> list[tuple[str, str]]:
    """Names and texts of what ``environment.json`` tells; nothing where it cannot be read."""
    try:
        content = json.loads((work_dir / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(content, dict):
        return []
    packages = content.pop("packages", None)
    rows = [(str(name), _text(value)) for name, value in content.items()]
    if isinstance(packages, dict):
        rows += [(str(name), _text(version)) for name, version in packages.items()]
    return rows


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
