"""How the forward passes of a run are run, and what the user fixed of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EnginePlan:
    """How the forward passes are run; chosen once per run, so that results do not depend on who computes them.

    Attributes:
        mode: ``weights`` or ``rows``.
        rows_per_forward: rows of one forward pass at most.
        compiled: whether the model is compiled.
    """

    mode: str
    rows_per_forward: int
    compiled: bool

    def __str__(self) -> str:
        return f"mode={self.mode}, {self.rows_per_forward} rows per forward, {'compiled' if self.compiled else 'eager'}"

    def to_json(self) -> dict[str, Any]:
        """As in ``run.json``."""
        return asdict(self)


@dataclass(frozen=True)
class PlanPins:
    """What the user fixed of the plan; None is chosen by trial."""

    mode: str | None = None
    rows_per_forward: int | None = None
    compiled: bool | None = None

    def allow(self, plan: EnginePlan) -> bool:
        """Whether ``plan`` has everything that is fixed."""
        return (
            self.mode in (None, plan.mode)
            and self.rows_per_forward in (None, plan.rows_per_forward)
            and self.compiled in (None, plan.compiled)
        )
