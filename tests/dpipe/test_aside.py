from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from dpipe.index import aside
from dpipe.index.aside import computed_aside

two_cores = pytest.mark.skipif(not aside._can_fork(), reason="there is one core, or no memory files")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle threads that other tests left do not count."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)


def work() -> list[np.ndarray]:
    return [np.array(os.getpid()), np.zeros((0, 2), dtype=np.float32), np.arange(1_000_000), np.array("name")]


def check(result: Callable[[], object]) -> int:
    arrays = result()
    assert isinstance(arrays, list)
    for array, expected in zip(arrays[1:], work()[1:], strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    return int(arrays[0])


@two_cores
@pytest.mark.usefixtures("alone")
def test_arrays_come_from_another_process() -> None:
    with computed_aside(work) as result:
        number = check(result)
    assert number != os.getpid()
    with pytest.raises(ChildProcessError):  # it was waited for
        os.waitpid(number, os.WNOHANG)


@pytest.mark.parametrize("missing", ["core", "process", "memory"])
def test_work_is_done_here_where_no_other_process_can_be_had(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    if missing == "core":
        monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    else:
        monkeypatch.setattr({"process": "os.fork", "memory": "os.memfd_create"}[missing], fail)
    with computed_aside(work) as result:
        assert check(result) == os.getpid()


def test_nothing_is_forked_beside_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fork", lambda: pytest.fail("was forked"))
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with computed_aside(work) as result:
            assert check(result) == os.getpid()
    finally:
        done.set()
        thread.join()


def test_errors_are_those_of_the_work() -> None:
    def bad() -> list[np.ndarray]:
        raise ValueError("no number")

    with computed_aside(bad) as result, pytest.raises(ValueError, match="no number"):
        result()


@two_cores
@pytest.mark.usefixtures("alone")
def test_a_process_that_dies_is_replaced() -> None:
    parent = os.getpid()

    def dying() -> list[np.ndarray]:
        if os.getpid() != parent:
            os.kill(os.getpid(), 9)
        return work()

    with computed_aside(dying) as result:
        assert check(result) == parent


@two_cores
@pytest.mark.usefixtures("alone")
def test_a_process_whose_result_is_not_wanted_is_ended() -> None:
    begin = time.monotonic()
    with pytest.raises(KeyError), computed_aside(lambda: time.sleep(60) or []):  # type: ignore[func-returns-value]
        raise KeyError
    assert time.monotonic() - begin < 30
