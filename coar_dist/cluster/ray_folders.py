"""The folders that Ray writes to when it starts here: it names no variable where it cannot, and may try for long."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from coar_dist.errors import ClusterError

_LONGEST_SOCKET = 107
"""Bytes of the path of a Unix socket."""


def check_folders() -> None:
    """Check that Ray can start with this environment, as far as files go; leaves none behind.

    Raises:
        ClusterError: it cannot; names the variable to set.
    """
    _check_temporary()
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and not (
        os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    ):
        _check_home()


def _check_temporary() -> None:
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "")
    folder = os.environ.get(variable, "/tmp")
    named = f"{variable}={folder}" if variable else folder
    session = f"session_2026-01-01_00-00-00_000000_{os.getpid()}"  # as long as Ray's
    num_own = len(os.fsencode(f"/ray/{session}/sockets/plasma_store"))
    if len(os.fsencode(folder)) + num_own > _LONGEST_SOCKET:
        raise ClusterError(
            f"Ray cannot start here: {named} is too long. Ray's sockets lie in it, and the path of a socket has at "
            f"most {_LONGEST_SOCKET} bytes, which leaves {_LONGEST_SOCKET - num_own} for the folder. Set RAY_TMPDIR to "
            f"a shorter one, such as /tmp."
        )
    try:
        _try_to_write(Path(folder) / "ray")
    except OSError as error:
        raise ClusterError(
            f"Ray cannot start here: it cannot write to {named} ({error.strerror}). Set RAY_TMPDIR to a folder on this "
            f"machine that can be written, with a short path."
        ) from error


def _check_home() -> None:
    try:
        home = Path.home()
    except RuntimeError as error:
        raise _no_home("this user has none") from error
    try:
        token = home / ".ray" / "auth_token"
        if not token.exists():
            _try_to_write(token.parent)
    except OSError as error:
        raise _no_home(f"HOME={home}: {error.strerror}") from error


def _no_home(why: str) -> ClusterError:
    return ClusterError(
        f"Ray cannot start here: it keeps its token in the home directory, in .ray/auth_token ({why}). Set HOME to a "
        f"folder that can be written, or RAY_AUTH_TOKEN to any secret text."
    )


def _try_to_write(folder: Path) -> None:
    """Write a file to the folder, or to the one in which it would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass
