"""Where the programs ``dpipe`` and ``detect`` begin, before their imports, which take tenths of a second.

Python answers Ctrl-C with a traceback of whatever it is importing. Here SIGINT gets back what it does to any program:
it ends it, without a word. The body of a command has handling of its own (``dpipe.cli_errors.one_line_errors``).
"""

import signal


def dpipe() -> None:
    """Runs ``dpipe``."""
    _end_at_interrupts()
    from dpipe.cli import main

    main()


def detect() -> None:
    """Runs ``detect``."""
    _end_at_interrupts()
    from detect.cli import main

    main()


def _end_at_interrupts() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the caller wants it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
