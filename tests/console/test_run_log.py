"""A command's log: one JSON object a line, which says what it is of."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from coar_dist.console.run_log import RunLog
from tests.models import local_storage

_log = logging.getLogger("coar_dist.tests")


def lines_of(root: Path) -> list[dict[str, Any]]:
    (path,) = (root / "logs").iterdir()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_an_object_with_its_run_and_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "very-secret-value")
    storage = local_storage(tmp_path / "digits")
    log = RunLog(storage, "train")
    with log:
        _log.info("two lines\nin one, with very-secret-value and %s", "{braces}")
        log.stage = "ablate"
        _log.warning("slow", extra={"shard": "margins/train/a.parquet", "actor": "actor-3", "node": "gpu-7"})
        _log.info("of another stage", extra={"stage": "plan"})
        _log.debug("not kept")
    first, second, third = lines_of(tmp_path / "digits")
    assert set(first) == {"time", "level", "logger", "message", "run", "stage"}
    assert first["message"] == "two lines\nin one, with *** and {braces}"
    assert (first["level"], first["stage"], first["run"]) == ("INFO", "train", storage.label)
    assert first["time"].endswith("+00:00")
    assert (second["level"], second["stage"]) == ("WARNING", "ablate")
    assert (second["shard"], second["actor"], second["node"]) == ("margins/train/a.parquet", "actor-3", "gpu-7")
    assert third["stage"] == "plan"


def test_what_ended_the_command_is_the_last_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mistake"), RunLog(local_storage(tmp_path), "fit"):
        raise ValueError("a mistake")
    (line,) = lines_of(tmp_path)
    assert (line["level"], line["message"]) == ("ERROR", "ended by ValueError: a mistake")
    assert line["traceback"].startswith("Traceback")
    assert line["traceback"].endswith("ValueError: a mistake")


def test_labels_tell_directories_of_one_name_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = local_storage(tmp_path / "a" / "digits"), local_storage(tmp_path / "b" / "digits")
    assert one.label.startswith("digits-")
    assert one.label != other.label
    monkeypatch.chdir(tmp_path / "a")
    assert local_storage(Path("digits")).label == one.label
