"""``coar-dist`` in processes forked from one that has imported it: all of a command but the seconds of its imports."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["coar_dist.app", "coar_dist.stages.pipeline", "coar_dist.cluster.connection", "sklearn.datasets"]
)


def run_forked(folder: Path, *arguments: str) -> CompletedProcess[str]:
    """What ``coar-dist ARGUMENTS`` prints in a folder, and its exit code."""
    with tempfile.TemporaryDirectory() as outputs:
        paths = [Path(outputs, name) for name in ("stdout", "stderr")]
        process = _CONTEXT.Process(target=_main, args=(folder, arguments, dict(os.environ), paths))
        process.start()
        process.join(timeout=170)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"coar-dist {' '.join(arguments)}: {[path.read_text() for path in paths]}")
        return CompletedProcess(arguments, process.exitcode, *(path.read_text() for path in paths))


def _main(folder: Path, arguments: tuple[str, ...], environment: dict[str, str], outputs: list[Path]) -> None:
    from coar_dist.app import main

    for descriptor, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["coar-dist", *arguments]
    main()
