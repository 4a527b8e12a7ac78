"""How long the stages took, what they said, and what was wrong on the way: from the logs of a run."""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import TypedDict

from coar_dist.config.documents import check_type, parsed
from coar_dist.console.saying import SAID_BY
from coar_dist.store.run_directory import RunDirectory

_CONFIGURATION = "configuration: "
_TOOK = re.compile(r"\bin [\d,.]+ s\b")
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
        said: what it had done at the end of each of them, the latest last; where none had work, what the last one said.
        has_worked: whether one had.
    """

    stage: str
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)
    has_worked: bool = False

    def add(self, seconds: float, lines: Sequence[str]) -> None:
        """Add one command, of which the stage printed these lines. What finds its work done says so, and does not take
        the place of what the work has cost."""
        has_worked, said = _done(lines)
        if has_worked and not self.has_worked:
            self.seconds, self.said, self.has_worked = 0.0, [], True
        elif self.has_worked and not has_worked:
            return
        elif not has_worked:
            self.said = []
        self.seconds += seconds
        self.said += [said] * bool(said)


def _done(lines: Sequence[str]) -> tuple[bool, str]:
    """Whether a stage had work to do, and what it had done in the end: the lines that say how long something took, and
    not the remarks that may follow them; of a stage without them the last."""
    took = [line.removesuffix(".") for line in lines if _TOOK.search(line)]
    found = [line for line in lines if _NOTHING_TO_DO.search(line)]
    if took or not found:
        return True, f"{'; '.join(took)}." if took else "".join(lines[-1:])
    return False, found[-1]


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
        seconds, said = defaultdict[str, float](float), defaultdict[str, list[str]](list)
        before: datetime.datetime | None = None
        for entry in _entries(run.storage.read(f"logs/{name}"), found):
            at, text, stage = entry["at"], entry["message"], entry["stage"]
            if text.startswith(_CONFIGURATION):
                configuration = _configuration(text.removeprefix(_CONFIGURATION), found)
                if "ablate" in configuration.get("stages", ()) or not found.configuration:
                    found.configuration = configuration
                before = at
                continue
            before = before or at
            if at > before:  # lines of several threads may stand a little out of order
                seconds[stage] += (at - before).total_seconds()
                before = at
            seconds.setdefault(stage, 0.0)
            if entry["level"] != "INFO":
                found.num_warnings += 1
                found.warnings.append((at.strftime("%Y-%m-%d %H:%M:%S"), stage, text))
            elif entry["logger"] == SAID_BY and "actor" not in entry:
                said[stage].append(text.removesuffix(":"))
        for stage, of_stage in seconds.items():
            found.stages.setdefault(stage, StageHistory(stage)).add(of_stage, said[stage])
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
