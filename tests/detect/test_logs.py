"""The log of a run: lines, the bar, and the file that a resumed run goes on with."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from detect.metrics.scores import Scores
from detect.running import logs
from detect.running.logs import LOG_NAME, RunLog, logged_evaluation, read_log


def make_console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, markup=False, highlight=False, soft_wrap=True)


def log_one(log: RunLog, iteration: int) -> None:
    log.advance()
    log.training(1, 2, iteration, 0.01, {}, {"loss": 2.5, "loss_rpn_cls": 0.5}, data=0.25, step=3.0)


TOLD = "lr 1.000e-02  loss 2.5000  loss_rpn_cls 0.5000  data 0.250s  time 3.000s  mem 321 MiB"


def test_lines_tell_losses_times_memory_and_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "peak_memory_mib", lambda: 321)
    console = make_console(False)
    log = RunLog(tmp_path, 0, 100, console)
    with log.running():
        log_one(log, 20)
        with log.counting(5) as on_images:
            on_images(5)
    assert console.file.getvalue() == f"epoch 1/2  iter 20/100  {TOLD}  eta 0:04:00\n"
    (record,) = read_log(tmp_path / LOG_NAME)
    assert record["memory_mib"] == 321


@pytest.mark.parametrize("width", [60, 200])
def test_a_terminal_has_all_of_it_in_the_bar(tmp_path, monkeypatch, width):
    monkeypatch.setattr(logs, "peak_memory_mib", lambda: 321)
    console = make_console(True)
    console.width = width
    log = RunLog(tmp_path, 19, 100, console)
    with log.running():
        log_one(log, 20)
        log._bar.refresh()
        with log.counting(5) as on_images:
            for _ in range(3):
                on_images(2)  # of two processes, the last of which has seen one
            log._bar.refresh()
    printed = console.file.getvalue()
    assert "\x1b" in printed
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed)
    assert re.search(r"epoch 1/2 .* 20/100 .*eta 0:04:00", plain) or width < 100
    assert "".join(TOLD.split()) in "".join(plain.split())  # in several lines where one is too narrow
    assert "5/5" in plain
    assert "6/5" not in plain
    assert "iter 20/100" not in plain  # no line for it besides


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_is_that_of_the_process_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert logs.peak_memory_mib() == pytest.approx(int(peak[1]) / 1024, abs=2)


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    log = RunLog(tmp_path, 0, 100, make_console(False))
    with log.running():
        for iteration in (10, 20, 30):
            log_one(log, iteration)
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write('{"kind": "train", "itera')  # a killed run's last words
    assert [record["iteration"] for record in read_log(tmp_path / LOG_NAME)] == [10, 20, 30]

    log = RunLog(tmp_path, 20, 100, make_console(False))
    with log.running():
        log_one(log, 25)
    lines = (tmp_path / LOG_NAME).read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [10, 20, 25]


def test_damaged_lines_are_left_out_and_told(tmp_path):
    log = RunLog(tmp_path, 0, 100, make_console(False))
    with log.running():
        log_one(log, 10)
        log_one(log, 20)
    path = tmp_path / LOG_NAME
    damaged = [
        b"\0\0",
        b"[1]",
        b"{}",
        b'{"kind": "evaluation", "iteration": 5}',
        b'{"kind": "train", "iteration": "1"}',
    ]
    path.write_bytes(b"\n".join(damaged) + b"\n" + path.read_bytes() + b'{"kind')
    assert [record["iteration"] for record in read_log(path)] == [10, 20]
    console = make_console(False)
    with RunLog(tmp_path, 20, 100, console).running():
        pass
    assert console.file.getvalue() == f"{path}: damaged lines left out: 5\n"
    assert len(path.read_text().splitlines()) == 2


def test_a_new_run_begins_a_new_log(tmp_path):
    for _ in range(2):
        log = RunLog(tmp_path, 0, 100, make_console(False))
        with log.running():
            log_one(log, 10)
    assert len(read_log(tmp_path / LOG_NAME)) == 1


def test_evaluations_are_found_again(tmp_path):
    scores = Scores("bbox", {"AP": 0.25, "AP50": 0.5}, {"box": {"AP": 0.25}, "disc": {"AP": float("nan")}})
    log = RunLog(tmp_path, 0, 100, make_console(False))
    with log.running():
        log.evaluation(1, 50, [scores])
    found = logged_evaluation(tmp_path / LOG_NAME, 50)
    assert found == {
        "kind": "evaluation",
        "epoch": 1,
        "iteration": 50,
        "bbox": {"AP": 0.25, "AP50": 0.5, "per_class": {"box": {"AP": 0.25}, "disc": {"AP": None}}},
    }
    assert logged_evaluation(tmp_path / LOG_NAME, 49) is None
    assert logged_evaluation(tmp_path / "nothing", 50) is None


def test_other_processes_write_nothing(tmp_path):
    console = make_console(False)
    log = RunLog(tmp_path, 0, 100, console, active=False)
    with log.running(), log.counting(3) as on_images:
        on_images(1)
        log_one(log, 10)
        log.say("something")
        log.evaluation(1, 10, [])
    assert list(tmp_path.iterdir()) == []
    assert console.file.getvalue() == ""
