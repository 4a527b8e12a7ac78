"""What the sections find: rows with their limits, on the disk as they come, as JSON lines and as one Markdown table."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_TOO_SHORT_S = 0.1
"""Below it nobody waits for the difference."""


@dataclass(frozen=True)
class Row:
    """One number and its limit.

    Attributes:
        section: where it comes from.
        what: what was measured.
        value: the number; None where there is none, and ``note`` says why.
        unit: of value and limit.
        limit: what it cannot, or must not, pass; None where there is no such thing.
        limit_name: what the limit is.
        kind: ``rate`` (higher is better, up to the limit), ``cost`` (lower is better, down to the limit) or ``error``
            (must not be above the limit).
        note: more, in words.
        group: rows of one group are forms of the same work: the best of them counts.
    """

    section: str
    what: str
    value: float | None
    unit: str
    limit: float | None = None
    limit_name: str = ""
    kind: str = "rate"
    note: str = ""
    group: str = ""

    @property
    def share(self) -> float | None:
        """How much of the limit is reached, 1 is all; None for errors and where there is no limit."""
        if self.value is None or self.limit is None or self.kind == "error" or not self.value:
            return None
        return self.value / self.limit if self.kind == "rate" else self.limit / self.value

    @property
    def fails(self) -> bool:
        """Whether an error is above its limit (NaN is)."""
        return self.kind == "error" and self.value is not None and not self.value <= (self.limit or 0.0)


class Results:
    """What is found, by events in ``gpu.jsonl``: whoever measures appends to it, whoever watches reads it.

    A line is on the disk before the next number is measured, so that nothing is lost with the process or the machine.

    Args:
        folder: made if need be; the events that are there are read.

    Attributes:
        folder: as given.
        machine: what the numbers were measured on.
        limits: what the machine was measured at: operations/s by dtype name, ``copy`` and ``upload`` in bytes/s.
        rows: the numbers.
        allowed: seconds that each section begun was given.
        seconds: that each section ended took.
        failed: what failed, and why.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.machine: dict[str, str] = {}
        self.limits: dict[str, float] = {}
        self.rows: list[Row] = []
        self.allowed: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self._events, self._read = folder / "gpu.jsonl", 0
        self._events.touch()
        self.follow()

    def say(self, **event: Any) -> None:
        """Append an event, and take it in."""
        with self._events.open("a") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.follow()

    def follow(self) -> bool:
        """Take in what was appended by others; whether there was anything."""
        with self._events.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # a line that is being written is read the next time
        self._read += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))
        return bool(whole)

    def _take(self, event: dict[str, Any]) -> None:
        if "row" in event:
            self.rows.append(Row(**event["row"]))
        if "ended" in event:
            self.seconds[event["ended"]] = event["seconds"]
        for name, known in (
            ("machine", self.machine),
            ("limits", self.limits),
            ("allowed", self.allowed),
            ("failed", self.failed),
        ):
            known.update(event.get(name, {}))

    def add(self, section: str, what: str, value: float | None, unit: str = "", **more: Any) -> None:
        row = Row(section, what, value, unit, **more)
        self.say(row=asdict(row))
        print("  " + " | ".join(_cells(row)), flush=True)

    def skip(self, section: str, what: str, why: str) -> None:
        self.add(section, what, None, note=f"skipped: {why}")

    def fail(self, what: str, why: str) -> None:
        self.say(failed={what: why})
        print(f"  {what} FAILED: {why}", flush=True)

    @property
    def is_sound(self) -> bool:
        """Whether every section ran and every error is within its limit."""
        return not self.failed and not any(row.fails for row in self.rows)

    def largest_gap(self) -> str:
        """The row that is furthest from its limit, in words."""
        best: dict[str, tuple[float, Row]] = {}
        for row in self.rows:
            too_short = row.unit == "s" and row.value is not None and row.value < _TOO_SHORT_S
            if row.share is not None and not too_short:
                group = f"{row.section}, {row.group or row.what}"
                best[group] = max(best.get(group, (0.0, row)), (row.share, row), key=lambda pair: pair[0])
        if not best:
            return "No number has a limit to be compared with."
        share, row = min(best.values(), key=lambda pair: pair[0])
        return (
            f"Largest gap of the best forms: {row.section}, {row.what}: {share:.0%} of its limit "
            f"({row.value:,.4g} against {row.limit:,.4g} {row.unit}, {row.limit_name})."
        )

    def write(self) -> None:
        """Make ``gpu.md`` and ``gpu.json`` of what is known; each is there whole."""
        content = {
            "machine": self.machine,
            "seconds": self.seconds,
            "failed": self.failed,
            "rows": [{**asdict(row), "share": row.share, "fails": row.fails} for row in self.rows],
            "largest_gap": self.largest_gap(),
        }
        self._replace("gpu.json", json.dumps(content, indent=1))
        lines = ["# GPU paths of coar_dist", "", *(f"- {key}: {value}" for key, value in self.machine.items()), ""]
        lines += ["| section | what | value | limit | share | note |", "|---|---|---:|---:|---:|---|"]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in self.rows]
        lines += ["", self.largest_gap()]
        lines += ["", "Seconds: " + ", ".join(f"{name} {took:.0f}" for name, took in self.seconds.items())]
        lines += [f"\n**{name} failed**: {why}" for name, why in self.failed.items()]
        self._replace("gpu.md", "\n".join(lines) + "\n")

    def _replace(self, name: str, text: str) -> None:
        new = self.folder / f".{name}"
        new.write_text(text)
        new.replace(self.folder / name)


def _cells(row: Row) -> list[str]:
    value = "" if row.value is None else f"{row.value:,.4g} {row.unit}".strip()
    limit = "" if row.limit is None else f"{row.limit:,.4g} {row.limit_name}".strip()
    share = "" if row.share is None else f"{row.share:.0%}"
    if row.kind == "error" and row.value is not None:
        share = "FAILS" if row.fails else "holds"
    return [row.section, row.what, value, limit, share, row.note]
