"""SIGINT, SIGTERM and a loss of Ray, noted when they come and raised where it is safe."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interruption:
    """SIGINT and SIGTERM as a flag: an exception raised by a handler can be swallowed in Ray's callbacks.

    The second signal raises at once.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._error: Exception | None = None
        self._is_main = threading.current_thread() is threading.main_thread()
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def install(self) -> None:
        """Handle the signals; to be called again after ray.init, which installs handlers of its own."""
        if self._is_main:
            for number in self._previous:
                signal.signal(number, self._handle)

    def remove(self) -> None:
        """Restore the handlers that were there before."""
        if self._is_main:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_set:
            raise KeyboardInterrupt
        self._is_set = True

    def end_with(self, error: Exception) -> None:
        """Have ``raise_if_set`` raise this error from now on."""
        self._error = error

    def raise_if_set(self) -> None:
        """Raise KeyboardInterrupt if a signal has come, or the error of ``end_with``."""
        if self._is_set:
            raise KeyboardInterrupt
        if self._error is not None:
            raise self._error
