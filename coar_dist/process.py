"""The process of a command: signals, warnings, errors on standard error, exit codes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import warnings
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from coar_dist.config.secrets import without_secrets
from coar_dist.errors import CoarDistError, CoarWarning, UsageError

INTERRUPTED = 130
"""The exit code after SIGINT or SIGTERM."""
_TEXT = "Interrupted. What is finished is kept; the same command continues."
_STOP_WITHIN_S = 2.0
_has_said_so = threading.Event()


def end_when_nobody_reads() -> None:
    """From now on a reader of standard output that goes away, as head does, ends the process."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def prepare_process() -> None:
    """SIGTERM interrupts as SIGINT does, either ends the process in time, SIGUSR1 is heeded by actors' work alone,
    warnings of this package are shown without their place in the code, and modules in the working directory can be
    imported."""
    signal.signal(signal.SIGTERM, _interrupt)  # what `ray job stop` sends
    signal.signal(signal.SIGUSR1, lambda *_: None)  # notice of a SIGTERM to come
    _stop_in_time()
    warnings.showwarning = _show_warning
    sys.path.insert(0, os.getcwd())  # a user's own module:function


def end_interrupted() -> NoReturn:
    """Say that the command was interrupted, and exit."""
    Console(stderr=True).print(_TEXT)
    _has_said_so.set()
    sys.exit(INTERRUPTED)


def show_error(error: CoarDistError) -> int:
    """Print an error on standard error, without secrets.

    Returns:
        The exit code: 2 of wrong arguments, as of the shell's own commands, else 1.
    """
    text = Text.assemble((type(error).__name__, "bold red"), f": {without_secrets(str(error))}")
    Console(stderr=True).print(text, soft_wrap=True)
    return 2 if isinstance(error, UsageError) else 1


def _stop_in_time() -> None:
    """End the process some seconds after SIGINT or SIGTERM, even where it is deep in a long computation.

    Every file appears whole or not at all, so there is nothing that an orderly end would save. The operating system
    wakes a thread through a socket, because Python's own handlers wait for the main thread.
    """
    sockets = socket.socketpair()
    sockets[1].setblocking(False)
    signal.set_wakeup_fd(sockets[1].fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch_signals, args=sockets, name="stop in time", daemon=True).start()


def _watch_signals(numbers: socket.socket, _kept_open: socket.socket) -> None:
    while numbers.recv(1) not in (bytes([signal.SIGINT]), bytes([signal.SIGTERM])):
        pass
    time.sleep(_STOP_WITHIN_S)
    if not _has_said_so.is_set():
        print(_TEXT, file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    del filename, lineno, file, line  # the standard library's signature
    if issubclass(category, CoarWarning):
        Console(stderr=True).print(Text.assemble(("Warning:", "yellow"), f" {message}"), soft_wrap=True)
