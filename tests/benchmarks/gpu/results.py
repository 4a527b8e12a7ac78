"""What the sections find: rows with their limits, written after every section as JSON and as one Markdown table."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_TOO_SHORT_S = 0.1
"""Below it nobody waits for the difference."""
_PACKAGES = ("torch", "numpy", "pyarrow", "triton", "ray", "hydra-core", "cuml-cu13", "transformers")


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
    """Collects rows and writes them.

    Args:
        folder: made if need be.
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, folder: Path, device: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.machine = machine(device)
        self.rows: list[Row] = []
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    def add(self, section: str, what: str, value: float | None, unit: str = "", **more: Any) -> None:
        row = Row(section, what, value, unit, **more)
        self.rows.append(row)
        print("  " + " | ".join(_cells(row)), flush=True)

    def skip(self, section: str, what: str, why: str) -> None:
        self.add(section, what, None, note=f"skipped: {why}")

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
        content = {
            "machine": self.machine,
            "seconds": self.seconds,
            "failed": self.failed,
            "rows": [{**asdict(row), "share": row.share, "fails": row.fails} for row in self.rows],
            "largest_gap": self.largest_gap(),
        }
        (self.folder / "gpu.json").write_text(json.dumps(content, indent=1))
        lines = ["# GPU paths of coar_dist", "", *(f"- {key}: {value}" for key, value in self.machine.items()), ""]
        lines += ["| section | what | value | limit | share | note |", "|---|---|---:|---:|---:|---|"]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in self.rows]
        lines += ["", self.largest_gap()]
        lines += ["", "Seconds: " + ", ".join(f"{name} {took:.0f}" for name, took in self.seconds.items())]
        lines += [f"\n**{name} failed**: {why}" for name, why in self.failed.items()]
        (self.folder / "gpu.md").write_text("\n".join(lines) + "\n")


def _cells(row: Row) -> list[str]:
    value = "" if row.value is None else f"{row.value:,.4g} {row.unit}".strip()
    limit = "" if row.limit is None else f"{row.limit:,.4g} {row.limit_name}".strip()
    share = "" if row.share is None else f"{row.share:.0%}"
    if row.kind == "error" and row.value is not None:
        share = "FAILS" if row.fails else "holds"
    return [row.section, row.what, value, limit, share, row.note]


def machine(device: str) -> dict[str, str]:
    """What the numbers were measured on."""
    found = {"cpu": platform.processor() or platform.machine(), "threads": str(torch.get_num_threads())}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["device"] = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
        )
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            found["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]
        except (OSError, subprocess.CalledProcessError) as error:
            found["driver"] = f"unknown ({error})"
        found["CUDA"] = str(torch.version.cuda)
    else:
        found["device"] = "cpu: nothing here is a claim about a GPU"
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
