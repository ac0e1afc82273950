"""Signals that ask a run to end: it finishes its update, and writes down where it is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ASKING = ("SIGINT", "SIGTERM", "SIGHUP")


class Request(threading.Event):
    """Set once a signal has come.

    Attributes
    ----------
    number
        That of the signal; None: none has come.
    """

    number: int | None = None


@contextmanager
def signals_as_request() -> Iterator[Request]:
    """Within the block the first Ctrl-C, SIGTERM or SIGHUP sets the request; a second one raises
    KeyboardInterrupt.

    An exception in the middle of an update would leave a new policy beside an old critic, in the
    checkpoint too. A signal that the caller ignores, as under nohup, stays ignored. Outside the
    main thread, where Python allows no signal handlers, nothing is ever requested.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_signal(number: int, frame: object) -> None:
        if request.is_set():
            raise KeyboardInterrupt
        request.number = number
        request.set()

    before = {}
    for name in ASKING:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, on_signal)
    try:
        yield request
    finally:
        for number, handler in before.items():
            # None: a handler that C code set, which Python cannot put back
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
