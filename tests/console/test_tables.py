from __future__ import annotations

import io

from rich.console import Console

from coar_dist.console.tables import new_table, print_whole


def test_a_table_wider_than_the_console_loses_nothing() -> None:
    printed = io.StringIO()
    table = new_table("method", *(f"column {i}" for i in range(12)))
    table.add_row("Neuron conductance", *(f".{i}23±.004" for i in range(12)))
    print_whole(Console(file=printed, width=40), table)
    header, rule, row = printed.getvalue().splitlines()
    assert "…" not in printed.getvalue()
    assert header.split()[-2:] == ["column", "11"]
    assert row.split()[-1] == ".1123±.004"
    assert set(rule) == {"─"}
    assert printed.getvalue().endswith("\n")
    assert not printed.getvalue().endswith("\n\n")
