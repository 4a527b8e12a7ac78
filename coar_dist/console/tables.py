"""Tables in the terminal: all of one look, and never with a digit cut off."""

from __future__ import annotations

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segments
from rich.style import StyleType
from rich.table import Table
from rich.text import Text
from typing_extensions import override

_WIDEST = 10_000


class _PlainTable(Table):
    """A table whose cells are plain text: brackets in them are no markup."""

    @override
    def add_row(
        self, *renderables: RenderableType | None, style: StyleType | None = None, end_section: bool = False
    ) -> None:
        cells = (Text(cell) if isinstance(cell, str) else cell for cell in renderables)
        super().add_row(*cells, style=style, end_section=end_section)


def new_table(*columns: str, num_text: int = 1) -> Table:
    """A table whose first ``num_text`` columns are text and whose others are numbers."""
    table = _PlainTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(Text(name), justify="left" if i < num_text else "right", no_wrap=True)
    return table


def print_whole(console: Console, table: Table, indent: int = 0) -> None:
    """Print a table at the width that it needs, ``indent`` columns from the left: on a narrower terminal its lines
    wrap."""
    indented = Padding.indent(table, indent) if indent else table
    needed = Measurement.get(console, console.options.update(width=_WIDEST), indented).maximum
    options = console.options.update(width=max(needed, console.width))
    console.print(Segments(console.render(indented, options)), crop=False, end="")
