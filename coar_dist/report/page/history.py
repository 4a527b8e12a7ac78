"""How long the stages took, what they said, and what was wrong on the way: from the logs of a run."""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import TypedDict

from coar_dist.config.documents import check_type, parsed
from coar_dist.console.saying import SAID_BY
from coar_dist.store.run_directory import RunDirectory

_CONFIGURATION = "configuration: "
_NOTHING_TO_DO = re.compile(r"(?:[:,]|\bis) (?:all )?there already\.?$|^attributions of [\d,]+ examples?$")
_MAX_WARNINGS = 30


class _Configuration(TypedDict):
    stages: list[str]


@dataclass
class StageHistory:
    """One stage over all commands that worked on the run.

    Attributes:
        stage: its name.
        seconds: of the commands in which it had work to do, from one line of the log to the next.
        said: the last line that it printed in each of them, the latest last; where none had, what the last one printed.
        has_worked: whether one had.
    """

    stage: str
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)
    has_worked: bool = False

    def add(self, seconds: float, said: str) -> None:
        """Add one command. What finds its work done says so, and does not take the place of what the work has cost."""
        has_worked = not _NOTHING_TO_DO.search(said)
        if has_worked and not self.has_worked:
            self.seconds, self.said, self.has_worked = 0.0, [], True
        elif self.has_worked and not has_worked:
            return
        elif not has_worked:
            self.said = []
        self.seconds += seconds
        self.said += [said] * bool(said)


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
        seconds, said = defaultdict[str, float](float), dict[str, str]()
        before: datetime.datetime | None = None
        for entry in _entries(run.storage.read(f"logs/{name}"), found):
            at, text, stage = entry["at"], entry["message"], entry["stage"]
            if text.startswith(_CONFIGURATION):
                configuration = _configuration(text.removeprefix(_CONFIGURATION), found)
                if "ablate" in configuration.get("stages", ()) or not found.configuration:
                    found.configuration = configuration
                before = at
                continue
            seconds[stage] += max((at - before).total_seconds(), 0.0) if before is not None else 0.0
            before = at
            if entry["level"] != "INFO":
                found.num_warnings += 1
                found.warnings.append((at.strftime("%Y-%m-%d %H:%M:%S"), stage, text))
            elif entry["logger"] == SAID_BY and "actor" not in entry:
                said[stage] = text.removesuffix(":")
        for stage, of_stage in seconds.items():
            found.stages.setdefault(stage, StageHistory(stage)).add(of_stage, said.get(stage, ""))
    found.warnings = found.warnings[-_MAX_WARNINGS:]
    return found


def _configuration(text: str, found: History) -> dict[str, Any]:
    try:
        configuration = parsed(text.encode())
        check_type(_Configuration, configuration)
    except ValueError:
        found.num_unreadable += 1
        return {}
    return configuration


def _entries(content: bytes, found: History) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        try:
            entry = parsed(line)
            texts = {name: str(entry[name]) for name in ("time", "level", "logger", "message", "stage")}
            at = datetime.datetime.fromisoformat(texts["time"])
            if at.tzinfo is None:
                raise ValueError("a time without a zone")
        except (ValueError, KeyError):
            found.num_unreadable += 1
        else:
            yield {**entry, **texts, "at": at}
