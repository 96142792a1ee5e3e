"""The best checkpoint by a number of one's choice, and runs that end when they get no better."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from typer.testing import CliRunner

from detect.cli import app
from detect.metrics.names import metric_names
from detect.metrics.scores import KINDS, MAIN_METRICS, Options, Scores
from detect.running.best import Evaluations, Measure
from detect.running.logs import read_log
from detect.running.run import Run
from detect.running.state import STATE, checkpoint_folders
from detect.running.validation import Validation
from detect.sections.evaluation import Evaluation
from detect.training import train
from dpipe.errors import InputError

EACH = ("train.eval_every=1", "train.keep=1")


def measure(metric: str = "AP", data: str = "0") -> Measure:
    return Measure("bbox", metric, "", data)


@pytest.fixture
def scores(monkeypatch):
    """A function that says what the evaluations of a run give, one after another."""

    def arm(*values: float) -> None:
        left = iter(values)

        def evaluate(self):
            value = next(left)
            names = {"AP": value, "AP50": value}
            self.log.evaluation(self.epoch, self.iteration, [Scores("bbox", names)])
            return value

        monkeypatch.setattr(Run, "evaluate", evaluate)

    return arm


def best_of(work_dir: Path) -> str:
    return (work_dir / "checkpoints" / "best").resolve().name


def iterations(work_dir: Path) -> list[str]:
    return [folder.name for folder in checkpoint_folders(work_dir / "checkpoints")]


class TestEvaluations:
    def test_the_first_of_equal_ones_is_best(self):
        evaluations = Evaluations(measure())
        assert [evaluations.add(i, value) for i, value in enumerate([0.5, 0.5, 0.6, 0.1])] == [True, False, True, False]
        assert evaluations.best.iteration == 2

    def test_only_gains_above_min_delta_count(self):
        evaluations = Evaluations(measure())
        for iteration, value in enumerate([0.5, 0.51, 0.52, 0.53]):
            evaluations.add(iteration, value)
        assert [evaluations.without_gain(delta) for delta in (0.0, 0.015, 0.2)] == [0, 1, 3]  # creeping up counts once
        evaluations.add(3, 0.53)  # evaluated again after a crash
        assert evaluations.without_gain(0.2) == 3

    def test_come_back_as_they_were(self):
        evaluations = Evaluations(measure())
        for iteration, value in enumerate([-1.0, 0.25, 0.125]):
            evaluations.add(iteration, value)
        state = json.loads(json.dumps(evaluations.state_dict()))
        again = Evaluations(measure())
        again.load_state_dict(state, None)
        assert again.change() is None
        assert again.state_dict() == evaluations.state_dict()
        assert again.without_gain(0) == 1

    @pytest.mark.parametrize("metric", ["AP", "AP50"])
    def test_know_what_came_after_their_checkpoint_from_the_log(self, metric):
        evaluations = Evaluations(measure())
        evaluations.add(1, 0.5)
        again = Evaluations(measure(metric))
        record = {"kind": "evaluation", "iteration": 2, "bbox": {"AP": 0.6, "AP50": 0.9}}
        again.load_state_dict(evaluations.state_dict(), record)
        assert (again.best.iteration, again.best.value, again.best.key[0]) == (2, 0.6, "bbox/AP")
        assert (2 in again) == (metric == "AP")

    @pytest.mark.parametrize(
        ("other", "told"), [(measure("AP50"), "bbox/AP,"), (measure(data="1"), "bbox/AP on other annotations,")]
    )
    def test_of_another_measure_are_not_compared(self, other, told):
        evaluations = Evaluations(measure())
        evaluations.add(1, 0.9)
        evaluations.add(2, 0.8)
        again = Evaluations(other)
        again.load_state_dict(evaluations.state_dict(), None)
        assert 2 not in again
        assert f"the best checkpoint, of iteration 1, is so by {told}" in again.change()
        assert again.without_gain(0) == 0
        assert again.best.iteration == 1  # which keeps its checkpoint
        assert again.add(3, 0.1)
        assert again.best.iteration == 3
        assert again.change() is None


class TestMeasure:
    def test_is_the_main_metric_of_the_first_kind_or_what_the_recipe_says(self, tmp_path):
        path = tmp_path / "val.json"
        path.write_text("{}")

        def name(proposes: bool = False, **section) -> str:
            return Measure.of_recipe(Evaluation(**section), path, proposes).key[0]

        assert name() == "bbox/AP"
        assert name(proposes=True) == "proposal/AR1000"
        assert name(kinds=["proposal_fast", "bbox"]) == "proposal_fast/AR1000"
        assert name(best="segm/APs") == "segm/APs"
        assert name(kinds=["voc"], voc_ious=[0.5, 0.75]) == "voc/mAP (area, IoU 0.5, 0.75)"
        assert name(best="voc/AP75", voc_ious=[0.5, 0.75], voc_mode="11points") == "voc/AP75 (11points)"

    def test_changes_with_the_annotations(self, tmp_path):
        keys = set()
        for content in ("{}", "[]", "{}"):
            (tmp_path / "val.json").write_text(content)
            keys.add(Measure.of_recipe(Evaluation(), tmp_path / "val.json", False).key)
        assert len(keys) == 2


class TestRecipe:
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("evaluation.best=bbox", 'evaluation.best: bbox has no ""; expected one of: AP, AP50, '),
            ("evaluation.best=bbox/AP55", 'evaluation.best: bbox has no "AP55"; did you mean \'AP'),
            ("evaluation.best=AP50", "evaluation.best: expected one of bbox, segm, "),
            (
                "evaluation={kinds: [voc], best: bbox/AP}",
                "evaluation.best: expected one of voc before a slash, such as",
            ),
            ("evaluation={kinds: [voc], best: voc/AP75}", 'evaluation.best: voc has no "AP75"'),
            ("train.early_stopping={}", "train.early_stopping: the key 'patience' is missing"),
            ("train.early_stopping={patience: 0}", "train.early_stopping.patience: expected a value greater than or"),
            ("train.early_stopping={patience: 1, min_delta: -1}", "train.early_stopping.min_delta: expected a value"),
            ("train.early_stopping={patience: 1, delta: 0}", "train.early_stopping.delta: unknown key"),
        ],
    )
    def test_mistakes_are_told_in_one_line(self, shapes, override, message):
        with pytest.raises(InputError) as caught:
            shapes.config(override)
        (line,) = str(caught.value).splitlines()
        assert message in line

    def test_early_stopping_needs_evaluations(self, shapes):
        with pytest.raises(InputError, match=r"train\.early_stopping: needs train\.eval_every above 0"):
            shapes.config("train.eval_every=0", "train.early_stopping={patience: 1}")

    def test_what_the_data_lack_is_told_before_training(self, shapes, tmp_path):
        result = CliRunner().invoke(
            app, ["train", str(shapes.recipe), "evaluation.best=cityscapes/AP50", "--work-dir", str(tmp_path / "run")]
        )
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "run" / "train.jsonl").exists()


def test_every_kind_has_its_main_metric_among_its_names():
    for kind in KINDS:
        assert MAIN_METRICS[kind] in metric_names(kind, Options(voc_ious=(0.5, 0.75)))


def test_the_number_of_ones_choice_tells_the_best_checkpoint(shapes, tmp_path):
    # The kind is not among those that the model and the data set choose.
    options = ("evaluation={best: proposal_fast/R100@50}", "train.epochs=3", *EACH, "model.roi_head.score_thr=0")
    train(shapes.config(*options), tmp_path)
    records = [record for record in read_log(tmp_path / "train.jsonl") if record["kind"] == "evaluation"]
    assert [list(record)[3:] for record in records] == [["bbox", "segm", "proposal_fast"]] * 3
    values = [record["proposal_fast"]["R100@50"] for record in records]
    state = torch.load(tmp_path / "checkpoints" / "last" / STATE, weights_only=True)["evaluations"]
    assert state["best"][:2] == [records[values.index(max(values))]["iteration"], max(values)]
    names = metric_names("proposal_fast")
    assert list(records[0]["proposal_fast"])[: len(names)] == list(names)
    assert list(records[0]["bbox"])[:12] == list(metric_names("bbox"))


def test_a_resumed_run_does_not_compare_numbers_of_different_kinds(shapes, tiny, tmp_path, scores, capsys):
    scores(0.5, 0.9)
    train(shapes.config(tiny, "train.epochs=2", *EACH), tmp_path)
    other = "evaluation.best=bbox/AP50"
    scores(0.2, 0.1, 0.3)  # the second epoch is evaluated again, as nothing knows its AP50
    capsys.readouterr()
    train(shapes.config(tiny, "train.epochs=3", *EACH, other), tmp_path, resume=True)
    assert (
        "the best checkpoint, of iteration 4, is so by bbox/AP, which is not compared with bbox/AP50: "
        "the next evaluation is best"
    ) in capsys.readouterr().out.splitlines()
    assert best_of(tmp_path) == "iter_00000004"
    train(shapes.config(tiny, "train.epochs=4", *EACH, other), tmp_path, resume=True)
    assert "is not compared" not in capsys.readouterr().out
    assert best_of(tmp_path) == "iter_00000008"


def test_the_best_of_another_kind_keeps_its_checkpoint_until_there_is_one(shapes, tiny, tmp_path, scores):
    scores(0.9, 0.1)
    train(shapes.config(tiny, "train.epochs=2", *EACH), tmp_path)
    scores(0.2)
    options = ("train.epochs=4", "train.keep=1", "train.eval_every=4", "evaluation.best=bbox/AP50")
    seen = []
    original = Run.train_epoch

    def train_epoch(self):
        original(self)
        seen.append(iterations(tmp_path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "train_epoch", train_epoch)
        train(shapes.config(tiny, *options), tmp_path, resume=True)
    assert seen == [["iter_00000002", "iter_00000004"], ["iter_00000002", "iter_00000006"]]
    assert iterations(tmp_path) == ["iter_00000008"]
    assert best_of(tmp_path) == "iter_00000008"


def test_a_run_that_gets_no_better_ends(shapes, tiny, tmp_path, scores, capsys):
    options = ("train.checkpoint_every=9", *EACH)
    scores(0.5, 0.505, 0.4)
    stopping = "train.early_stopping={patience: 2, min_delta: 0.01}"
    last = train(shapes.config(tiny, "train.epochs=9", stopping, *options), tmp_path)
    line = (
        "stopped early after epoch 3 of 9: 2 evaluations in a row have not raised bbox/AP by more than 0.01; "
        "the best is 0.5050, of iteration 4"
    )
    assert line in capsys.readouterr().out.splitlines()
    assert last.name == "iter_00000006"
    assert iterations(tmp_path) == ["iter_00000004", "iter_00000006"]
    assert best_of(tmp_path) == "iter_00000004"

    # It stays ended when it is resumed, and goes on with more patience.
    train(shapes.config(tiny, "train.epochs=9", stopping, *options), tmp_path, resume=True)
    assert line in capsys.readouterr().out.splitlines()
    scores(0.6, 0.5, 0.5, 0.5)
    patient = "train.early_stopping={patience: 3}"
    last = train(shapes.config(tiny, "train.epochs=9", patient, *options), tmp_path, resume=True)
    assert last.name == "iter_00000014"
    assert best_of(tmp_path) == "iter_00000008"


def test_a_best_checkpoint_that_is_gone_is_told(shapes, tiny, tmp_path, scores):
    scores(0.9, 0.1)
    train(shapes.config(tiny, "train.epochs=2", *EACH), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "iter_00000002")
    train(shapes.config(tiny, "train.epochs=3", "train.eval_every=0"), tmp_path, resume=True)
    assert not (tmp_path / "checkpoints" / "best").is_symlink()


def test_all_processes_have_the_score_of_the_first(shapes, tiny, tmp_path, monkeypatch):
    added = []
    monkeypatch.setattr(Validation, "_score", lambda *_: 0.5)
    monkeypatch.setattr(Fabric, "broadcast", lambda self, value: 0.25 if value == 0.5 else value)
    monkeypatch.setattr(Evaluations, "add", lambda self, iteration, value: added.append(value))
    train(shapes.config(tiny, "train.epochs=1", *EACH), tmp_path)
    assert added == [0.25]


def test_processes_agree_on_a_best_checkpoint_that_is_gone(shapes, tiny, tmp_path):
    train(shapes.config(tiny, "train.epochs=2", *EACH), tmp_path)
    assert iterations(tmp_path) == ["iter_00000002", "iter_00000004"]  # of equal ones the first is best
    shutil.rmtree(tmp_path / "checkpoints" / "iter_00000002")
    command = [
        sys.executable,
        "-m",
        "detect",
        "train",
        str(shapes.recipe),
        tiny,
        "train.epochs=3",
        *EACH,
        "train.ema={}",
        "train.early_stopping={patience: 1}",  # of which they would not agree on when it is up
    ]
    done = subprocess.run(
        [*command, "--resume", "--devices", "2", "--accelerator", "cpu", "--work-dir", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the best checkpoint, of iteration 2, is not there; the next evaluation is best" in done.stdout
    assert len(iterations(tmp_path)) == 1
    assert best_of(tmp_path) == iterations(tmp_path)[0]
