"""How the forward passes of a run are run, and what the user fixed of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class EnginePlan:
    """How the forward passes are run; chosen once per run, so that results do not depend on who computes them.

    Attributes:
        mode: ``weights`` or ``rows``.
        rows_per_forward: rows of one forward pass at most.
        compiled: whether the model is compiled.
        gradient_rows: rows of one gradient pass at most; None where none was planned.
        gradients_compiled: whether gradient passes are compiled.
    """

    mode: str
    rows_per_forward: int
    compiled: bool
    gradient_rows: int | None = None
    gradients_compiled: bool = False

    def __str__(self) -> str:
        text = f"mode={self.mode}, {self.rows_per_forward} rows per forward, {_how(self.compiled)}"
        if self.gradient_rows is None:
            return text
        return f"{text}; {self.gradient_rows} rows per gradient pass, {_how(self.gradients_compiled)}"

    def margins_as(self, other: EnginePlan) -> bool:
        """Whether margins are computed as by ``other``, whatever gradient passes do."""
        return replace(self, gradient_rows=None, gradients_compiled=False) == replace(
            other, gradient_rows=None, gradients_compiled=False
        )

    def to_json(self) -> dict[str, Any]:
        """As in ``run.json``."""
        return asdict(self)


def _how(compiled: bool) -> str:
    return "compiled" if compiled else "eager"


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
