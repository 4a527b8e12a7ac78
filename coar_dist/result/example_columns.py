"""What is known of examples, as arrays by name that a notebook shows as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame


class ExampleColumns(dict[str, NDArray[Any]]):
    """A dict of the columns, (num_examples,) each, ``example_id`` among them.

    Example:
        >>> examples = run.examples()
        >>> examples["label"].shape, examples.to_pandas().columns[:3].tolist()
        ((7,), ['label', 'prediction', 'margin'])
    """

    def __init__(self, columns: Mapping[str, NDArray[Any]], class_names: Mapping[int, str]) -> None:
        super().__init__(columns)
        self._class_names = class_names

    def to_pandas(self) -> DataFrame:
        """The columns as a data frame by ``example_id``. Where classes have names, ``label_name`` and
        ``prediction_name`` stand beside their numbers; ``tokens`` are lists."""
        from coar_dist.report.notebook import example_frame

        return example_frame(self, self._class_names)

    def __repr__(self) -> str:
        return f"{self.to_pandas()!r}\nA dict of these columns as arrays; .to_pandas() is the table."

    def _repr_html_(self) -> str:
        found: str = self.to_pandas().to_html(max_rows=10, notebook=True)
        return f"{found}<p>A dict of these columns as arrays; <code>.to_pandas()</code> is the table.</p>"
