"""How long the stages took, what they said, and what was wrong on the way: from the logs of a run."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from coar_dist.console.saying import SAID_BY
from coar_dist.store.run_directory import RunDirectory

_CONFIGURATION = "configuration: "
_MAX_WARNINGS = 30


@dataclass
class StageHistory:
    """One stage over all commands that worked on the run.

    Attributes:
        stage: its name.
        seconds: of all commands together, from one line of the log to the next.
        said: the last line that it printed.
    """

    stage: str
    seconds: float = 0.0
    said: str = ""


@dataclass
class History:
    """All commands that worked on a run.

    Attributes:
        num_commands: how many there were.
        stages: in the order of their beginning.
        configuration: what the last command that ablated, or else the last one, was asked for.
        warnings: (time, stage, text) of the latest warnings and errors.
        num_warnings: how many there were in all.
        num_unreadable: lines of the logs that are not what this version writes.
    """

    num_commands: int = 0
    stages: dict[str, StageHistory] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    warnings: list[tuple[str, str, str]] = field(default_factory=list)
    num_warnings: int = 0
    num_unreadable: int = 0


def history_of(run: RunDirectory) -> History:
    """Read the logs of a run.

    The time between two lines of a log belongs to the stage of the second one, whose work it reports.

    Raises:
        StorageError: a log cannot be read.
    """
    found = History()
    for name in sorted(run.storage.files("logs")):
        if not name.endswith(".log"):
            continue
        found.num_commands += 1
        before: datetime.datetime | None = None
        for entry in _entries(run.storage.read(f"logs/{name}"), found):
            at = datetime.datetime.fromisoformat(entry["time"])
            text, stage = str(entry["message"]), str(entry["stage"])
            if text.startswith(_CONFIGURATION):
                configuration = json.loads(text.removeprefix(_CONFIGURATION))
                if "ablate" in configuration["stages"] or not found.configuration:
                    found.configuration = configuration
                before = at
                continue
            history = found.stages.setdefault(stage, StageHistory(stage))
            if before is not None:
                history.seconds += max((at - before).total_seconds(), 0.0)
            before = at
            if entry["level"] != "INFO":
                found.num_warnings += 1
                found.warnings.append((at.strftime("%Y-%m-%d %H:%M:%S"), stage, text))
            elif entry["logger"] == SAID_BY and "actor" not in entry:
                history.said = text.removesuffix(":")
    found.warnings = found.warnings[-_MAX_WARNINGS:]
    return found


def _entries(content: bytes, found: History) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        try:
            entry = json.loads(line)
            whole = isinstance(entry, dict) and {"time", "level", "logger", "message", "stage"} <= entry.keys()
        except ValueError:
            whole = False
        if whole:
            yield entry
        else:
            found.num_unreadable += 1
