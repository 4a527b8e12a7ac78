"""Names that a run's parts had before, for one more version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from coar_dist.errors import warn
from coar_dist.result.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def _warn(former: str, present: str) -> None:
    warn(f"run.{former} is called run.{present} now; the next version drops the former name.", FutureWarning)


class FormerNames(Result):
    """The result of a run, with the names that its parts had."""

    def top_components(
        self, example_ids: int | Sequence[int] | NDArray[Any], num: int = 10, method: str | None = None
    ) -> DataFrame:
        """``top`` now."""
        _warn("top_components", "top")
        return self.by_method(method or self.method).top(example_ids, num)

    def plot_correlation(self, methods: Sequence[str] | None = None) -> Figure:
        """``plot.correlation`` now."""
        _warn("plot_correlation", "plot.correlation")
        return self.plot.correlation(methods)

    def report(self) -> DataFrame:
        """``evaluate`` now, for a run that has been evaluated."""
        from coar_dist.report.notebook import report_frame

        _warn("report", "evaluate")
        return report_frame(self._reader.directory)
