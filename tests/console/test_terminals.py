"""What is printed to terminals of all kinds, and to files."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from coar_dist.config.schema import Config, RegressionConfig, RunConfig
from coar_dist.console import progress
from coar_dist.console.saying import Terminal
from coar_dist.report.inspection import inspect_run
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.locations import storage_at
from coar_dist.store.reader import RunReader

STYLE = re.compile(r"\x1b\[[\d;]*m")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(file: io.StringIO, run: RunReader, root: Path) -> str:
    """All stages that need no model, a warning among their lines, and a look at what they leave."""
    shutil.copytree(run.directory.storage.location, root)
    shutil.rmtree(root / "attributions")
    console = Console(file=file, width=80)
    with Terminal(console, "ablate").progress(3, "masks") as bar:
        bar.update(2, "1 actor")
    run_stages(Config(stages=["fit", "evaluate", "report"], run=RunConfig(str(root))), console)
    inspect_run(storage_at(root), False, Terminal(Console(file=file, width=40)))
    console.print("[yellow]yellow[/yellow]")
    return file.getvalue()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)


def test_a_terminal_shows_bars_and_colours(small_run: RunReader, tmp_path: Path) -> None:
    text = shown(Tty(), small_run, tmp_path / "run")
    assert COLOUR.search(text)
    assert STYLE.sub("", text).count("\x1b")
    assert "ablate: 2/3 masks" not in text


def test_no_color_is_respected(small_run: RunReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(Tty(), small_run, tmp_path / "run")
    assert not COLOUR.search(text)
    assert "yellow" in text


@pytest.mark.parametrize("kind", ["dumb terminal", "file", "file with FORCE_COLOR"])
def test_elsewhere_there_are_plain_whole_lines(
    small_run: RunReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "dumb terminal":
        monkeypatch.setenv("TERM", "dumb")
    if kind == "file with FORCE_COLOR":
        monkeypatch.setenv("FORCE_COLOR", "1")
    root = tmp_path / "a folder with a name so long that no line with it has room in the 80 columns"
    text = shown(Tty() if kind == "dumb terminal" else io.StringIO(), small_run, root)
    assert bool(COLOUR.search(text)) == (kind == "file with FORCE_COLOR")
    text = STYLE.sub("", text)
    assert not set(text) & set("\x1b\r\b…")
    lines = text.splitlines()
    assert any(line.startswith("ablate: 2/3 masks, ") and line.endswith(" s left, 1 actor") for line in lines)
    assert f"Report: {root}/report/index.html, and its figures beside it as .png and .svg" in lines
    for name in small_run.directory.designs:
        assert any(line.split()[0] == name and "100.0%" in line for line in lines if line)


def test_every_fit_is_a_row_and_a_log_line(small_run: RunReader, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(small_run.directory.storage.location, root)
    output = io.StringIO()
    config = Config(stages=["fit", "evaluate"], run=RunConfig(str(root)), regression=RegressionConfig("lasso"))
    run_stages(config, Console(file=output, width=80))
    rows = {line.split()[0]: line.split() for line in output.getvalue().splitlines() if line}
    header = next(line for line in output.getvalue().splitlines() if line.strip().startswith("method"))
    assert re.split(r"\s{2,}", header.strip()) == [
        *("method", "solver", "mean R2", "median penalty", "duality gap")  # R2 on new masks takes more masks
    ]
    quality = RunReader(small_run.directory.open(storage_at(root))).quality(method="coar_lasso")
    assert re.search(r"^ *fit +attributions of 7 examples in [0-9.]+ s:$", output.getvalue(), re.MULTILINE)
    lasso = next(line for line in output.getvalue().splitlines() if "lasso, torch" in line)
    assert f"{quality['r2'].mean():.3f}" in lasso
    assert "leave_one_out  is there already" in output.getvalue()
    log = max((root / "logs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    messages = [json.loads(line)["message"] for line in log.read_text().splitlines()]
    assert any(
        message.startswith(f"coar_lasso; lasso, torch; mean R2 {quality['r2'].mean():.3f}, ") for message in messages
    )
    means = small_run.evaluation("leave_one_out", "evaluation_0.1")["correlation"].mean()
    assert rows["leave_one_out"][-1] == f"{means:.3f}"  # no report follows
    with_report = io.StringIO()
    run_stages(Config(stages=["evaluate", "report"], run=RunConfig(str(root))), Console(file=with_report, width=80))
    assert "mean correlation" not in with_report.getvalue()
