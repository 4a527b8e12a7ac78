"""What components look at, in a run: written once, by the ablate stage, and left out where it is not wanted."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import coar_dist
from coar_dist.config.schema import AblationConfig
from coar_dist.console.saying import Terminal
from coar_dist.errors import ConfigError
from coar_dist.report.inspection import inspect_run
from coar_dist.store.reader import RunReader
from coar_dist.store.responses import ResponseTable
from tests.models import local_storage, small_task
from tests.small_run import files_of, without_ray

FILE = "00000000-00000012.parquet"


def attribute(run_dir: Path, **changes: Any) -> RunReader:
    task = small_task()
    with without_ray():
        return coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            run_dir=run_dir,
            num_masks=16,
            ablation_fraction=0.2,
            stages=("ablate",),
            ablation=AblationConfig(mode="weights", rows_per_forward=7, compile=False, examples_per_block=4),
            console=Console(file=io.StringIO()),
            **changes,
        )


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "coar_dist.stages.responses"]


def test_they_are_written_once_and_the_same_in_another_directory(tmp_path: Path) -> None:
    run = attribute(tmp_path / "run")
    path = tmp_path / "run" / "responses" / FILE
    before = path.stat().st_mtime_ns, path.read_bytes()
    found, damaged = ResponseTable(run.directory).read([0, 5])
    assert damaged == []
    np.testing.assert_array_equal(found[0].kernel, small_task().model.conv1.weight[0].detach().half())
    assert sorted(each.example_id for each in found[5].examples) == list(range(7))
    strengths = [each.strength for each in found[5].examples]
    assert strengths == sorted(strengths, reverse=True)
    attribute(tmp_path / "run", num_gradient_masks=4)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    path.unlink()
    attribute(tmp_path / "run")
    attribute(tmp_path / "other")
    for root in ("run", "other"):
        assert (tmp_path / root / "responses" / FILE).read_bytes() == before[1]


def test_no_other_file_depends_on_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, changes in (("off", {"responses_mb": 0}), ("private", {"previews": False}), ("little", {})):
        with caplog.at_level(logging.INFO, "coar_dist.stages.responses"):
            attribute(tmp_path / name, **({"responses_mb": 0.001} if name == "little" else changes))
        assert not (tmp_path / name / "responses").exists()
    assert said(caplog) == [
        "what the components look at is not kept: it would take 0.00814 MB, and run.responses_mb is 0.001"
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, "coar_dist.stages.responses"):
        attribute(tmp_path / "off")  # the same run, so that it goes on
    assert said(caplog)[0].startswith("what 12 of 12 components look at, at most 0.00814 MB, in ")
    attribute(tmp_path / "on")
    assert (tmp_path / "off" / "responses" / FILE).read_bytes() == (tmp_path / "on" / "responses" / FILE).read_bytes()
    assert files_of(tmp_path / "off") == files_of(tmp_path / "on") == files_of(tmp_path / "little")


def test_a_size_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"responses_mb=-1.*at least 0"):
        attribute(tmp_path / "run", responses_mb=-1)
    assert not (tmp_path / "run").exists()


def test_inspect_checks_them(tmp_path: Path) -> None:
    attribute(tmp_path / "run")
    printed = io.StringIO()
    assert inspect_run(local_storage(tmp_path / "run"), False, Terminal(Console(file=printed, width=200)))
    assert "responses: 1 file\n" in printed.getvalue()
    path = tmp_path / "run" / "responses" / FILE
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    assert not inspect_run(local_storage(tmp_path / "run"), False, Terminal(Console(file=printed, width=200)))
    assert f"{path} is damaged" in printed.getvalue()
