"""What a notebook's cell shows: one output, which a stub in the place of IPython's records."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from coar_dist.console import cell
from coar_dist.console.cell import console_of
from coar_dist.console.saying import Terminal
from coar_dist.console.tables import new_table


class Cell:
    """The outputs of a cell: what every one has shown, one bundle after the other."""

    def __init__(self) -> None:
        self.outputs: list[list[dict[str, str]]] = []

    def display(self, bundle: dict[str, str], raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        shown = [bundle]
        self.outputs.append(shown)

        class Handle:
            def update(self, bundle: dict[str, str], raw: bool) -> None:
                assert raw
                shown.append(bundle)

        return Handle()


def plain(html: str) -> str:
    return re.sub(r"<[^>]*>", "", html)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Cell:
    found = Cell()
    module: Any = ModuleType("IPython.display")
    module.display = found.display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(cell, "_DRAW_EVERY_S", 0.0)
    return found


def test_a_call_has_one_output_whose_bar_moves_and_goes(notebook: Cell) -> None:
    console = console_of(Console(force_jupyter=True))
    terminal = Terminal(console, "ablate")
    terminal.say("to a < b & [bold]c")
    with terminal.progress(40, "masks") as bar:
        for done in (10, 30):
            bar.update(done, "2 actors")
    terminal.warn("late")
    Terminal(console, "fit").say("done")
    (shown,) = notebook.outputs
    moved = [re.search(r"ablate .* (\d+/40) masks .* 2 actors", each["text/plain"]) for each in shown]
    assert [found[1] for found in moved if found] == ["10/40", "30/40"]
    assert all("to a < b & [bold]c" in each["text/plain"] for each in shown)
    lines = ["   ablate  to a < b & [bold]c", "   ablate  late", "      fit  done"]
    assert shown[-1]["text/plain"].splitlines() == lines
    assert "to a &lt; b &amp; [bold]c" in shown[-1]["text/html"]
    assert re.search(r'<span style="color: #\w+[^>]*>late</span>', shown[-1]["text/html"])


def test_a_bar_goes_with_the_error_that_ends_it(notebook: Cell) -> None:
    terminal = Terminal(Console(force_jupyter=True), "ablate")
    terminal.say("begins")

    def fails() -> None:
        with terminal.progress(4, "masks") as bar:
            bar.update(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert notebook.outputs[0][-1]["text/plain"] == "   ablate  begins\n"
    assert "1/4" in notebook.outputs[0][-2]["text/plain"]


def test_a_table_wider_than_the_cell_keeps_its_lines(notebook: Cell) -> None:
    table = new_table("method", *(f"held-out fraction {i:02}" for i in range(12)))
    table.add_row("Neuron conductance", *(f".{i}23±.004" for i in range(12)))
    terminal = Terminal(Console(force_jupyter=True))
    terminal.print_table(table)
    terminal.print("word " * 60)
    html = notebook.outputs[0][-1]["text/html"]
    header, rule, row, *prose = plain(html).splitlines()
    assert (header.split()[-1], row.split()[-1], set(rule)) == ("11", ".1123±.004", {"─"})
    assert len(header) > cell.WIDTH
    assert max(len(line) for line in prose) <= cell.WIDTH
    assert "white-space:pre;overflow-x:auto" in html


def test_a_quiet_console_shows_nothing(notebook: Cell) -> None:
    terminal = Terminal(Console(force_jupyter=True, quiet=True), "ablate")
    terminal.say("hidden")
    with terminal.progress(4, "masks") as bar:
        bar.update(1)
    assert notebook.outputs == []
