"""SIGINT, SIGTERM, a notice of the end and a loss of Ray, noted when they come and raised where it is safe."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interruption:
    """SIGINT and SIGTERM as a flag: an exception raised by a handler can be swallowed in Ray's callbacks.

    The second signal raises at once. SIGUSR1 gives notice: what is under way may be finished, and nothing begun.

    Attributes:
        is_noticed: whether SIGUSR1 has come.
    """

    def __init__(self) -> None:
        self.is_noticed = False
        self._is_set = False
        self._error: Exception | None = None
        self._is_main = threading.current_thread() is threading.main_thread()
        self._handlers = {signal.SIGINT: self._handle, signal.SIGTERM: self._handle, signal.SIGUSR1: self._notice}
        self._previous = {number: signal.getsignal(number) for number in self._handlers}

    def install(self) -> None:
        """Handle the signals; to be called again after ray.init, which installs handlers of its own."""
        if self._is_main:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def remove(self) -> None:
        """Restore the handlers that were there before."""
        if self._is_main:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_set:
            raise KeyboardInterrupt
        self._is_set = True

    def _notice(self, _number: int, _frame: FrameType | None) -> None:
        self.is_noticed = True

    def end_with(self, error: Exception) -> None:
        """Have ``raise_if_set`` raise this error from now on."""
        self._error = error

    def raise_if_set(self) -> None:
        """Raise KeyboardInterrupt if a signal has come, or the error of ``end_with``."""
        if self._is_set:
            raise KeyboardInterrupt
        if self._error is not None:
            raise self._error
