from __future__ import annotations

import os
import signal
import threading

import pytest

from converters.running.signals import exit_on_sigterm, signals_held_back


def test_sigterm_runs_clean_up_and_exits_143():
    cleaned = []

    def work():
        with exit_on_sigterm():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.pause()
            finally:
                cleaned.append(True)

    with pytest.raises(SystemExit) as caught:
        work()
    assert caught.value.code == 143
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_signals_are_left_alone_outside_the_main_thread():
    handlers = []

    def work():
        with exit_on_sigterm():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signals_wait_for_the_end_of_the_block(number, error):
    done = []

    def work():
        with exit_on_sigterm(), signals_held_back():
            os.kill(os.getpid(), number)
            done.append(True)

    handler = signal.getsignal(number)
    with pytest.raises(error):
        work()
    assert done
    assert signal.getsignal(number) is handler


def test_nothing_happens_where_no_signal_came():
    handler = signal.getsignal(signal.SIGINT)
    with signals_held_back():
        assert signal.getsignal(signal.SIGINT) is not handler
    assert signal.getsignal(signal.SIGINT) is handler
