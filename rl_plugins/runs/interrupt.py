"""Ctrl-C as a request to stop between two updates."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_as_request() -> Iterator[threading.Event]:
    """Within the block the first Ctrl-C sets the event, a second one raises KeyboardInterrupt.

    An exception in the middle of an update would leave it half done, and the checkpoint with it:
    a new policy beside the old critic, say. Outside the main thread, where Python allows no signal
    handlers, the event is never set.
    """
    request = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_interrupt(number: int, frame: object) -> None:
        if request.is_set():
            raise KeyboardInterrupt
        request.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
