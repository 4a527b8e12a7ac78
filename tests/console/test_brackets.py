"""Square brackets in paths and names are no markup of the terminal: they are printed as they are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import coar_dist
from coar_dist.config.schema import AblationConfig, EvaluationConfig
from coar_dist.console.saying import Terminal
from coar_dist.console.tables import new_table, print_whole
from coar_dist.report.inspection import inspect_run
from coar_dist.store.locations import storage_at
from tests.models import small_task
from tests.small_run import without_ray

NAME = "[red]x[/bold] :smile:"


def test_a_run_s_path_columns_and_groups_may_hold_brackets(tmp_path: Path) -> None:
    root, column, task, output = tmp_path / "[red]x", "[/column]", small_task(), io.StringIO()
    console = Console(file=output, width=200)
    with without_ray():
        run = coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            run_dir=root,
            num_masks=60,
            ablation_fraction=0.2,
            columns={column: np.array(["[/a]", "[b]", "[/a]", "[b]", "[/a]", "[b]", "[/a]"])},
            stages=("ablate", "fit", "evaluate", "report"),
            evaluation=EvaluationConfig(num_masks=20, ablation_fractions=[0.2], seed=7, curve_shares=[]),
            ablation=AblationConfig(mode="weights", rows_per_forward=7, compile=False),
            console=console,
        )
        run.edit([1], reference=[2], groups={NAME: {"where": {column: "[b]"}}}, improve=["all"], console=console)
        (root / "margins" / "train" / "0000000000-0000000060.parquet").write_bytes(b"damaged")
        assert not inspect_run(storage_at(root), False, Terminal(console))
        coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            run_dir=root,
            num_masks=60,
            ablation_fraction=0.2,
            stages=["ablate"],
            ablation=AblationConfig(mode="weights", rows_per_forward=7, compile=False),
            console=console,
        )
    text = output.getvalue()
    assert f"Report: {root}/report/index.html" in text
    assert f"{root}/edits/edit: curve.parquet" in text
    assert f"{NAME} " in text
    assert f"{root}/margins/train/0000000000-0000000060.parquet is damaged" in text
    assert f"{root}: run made at" in text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_lines_tables_and_bars_print_what_they_are_given(is_terminal: bool) -> None:
    class File(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    file = File()
    console = Console(file=file, width=80, force_terminal=is_terminal, no_color=True, color_system=None)
    terminal = Terminal(console, "fit")
    terminal.say(f"said {NAME}")
    terminal.warn(f"warned {NAME}")
    terminal.print(f"printed {NAME}")
    table = new_table(f"header {NAME}")
    table.add_row(f"cell {NAME}")
    print_whole(console, table)
    with terminal.progress(2, NAME) as progress:
        progress.update(1, f"note {NAME}")
    for what in ("said", "warned", "printed", "header", "cell"):
        assert f"{what} {NAME}" in file.getvalue()
    if is_terminal:
        assert "note [red]x[/bold]" in file.getvalue()
