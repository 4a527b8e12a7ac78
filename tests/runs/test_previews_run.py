"""Previews of a run: written once, by the ablate stage, and left out where they are not wanted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image
from rich.console import Console

import coar_dist
from coar_dist.config.schema import AblationConfig
from coar_dist.console.saying import Terminal
from coar_dist.errors import CoarDistError
from coar_dist.report.inspection import inspect_run
from coar_dist.store.previews import PreviewTable
from coar_dist.store.reader import RunReader
from tests.models import local_storage, small_task
from tests.small_run import files_of, without_ray

TEXTS = list("abcdefg")


def attribute(run_dir: Path, **changes: Any) -> RunReader:
    task = small_task()
    with without_ray():
        return coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            columns={"excerpt": TEXTS},
            run_dir=run_dir,
            num_masks=16,
            ablation_fraction=0.2,
            stages=("ablate",),
            ablation=AblationConfig(mode="weights", rows_per_forward=7, compile=False, examples_per_block=4),
            console=Console(file=io.StringIO()),
            **changes,
        )


def previews_of(root: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (root / "previews").iterdir()}


def test_they_are_written_once_and_the_same_in_another_directory(tmp_path: Path) -> None:
    run = attribute(tmp_path / "run")
    images, _ = PreviewTable(run.directory).read([2, 6])
    assert [Image.open(io.BytesIO(images[i])).size for i in (2, 6)] == [(6, 6), (6, 6)]
    before = previews_of(tmp_path / "run")
    assert sorted(before) == ["00000000-00000004.parquet", "00000004-00000007.parquet"]
    attribute(tmp_path / "run", num_gradient_masks=4)
    assert previews_of(tmp_path / "run") == before
    (tmp_path / "run" / "previews" / "00000004-00000007.parquet").unlink()
    attribute(tmp_path / "run")
    attribute(tmp_path / "other")
    for root in ("run", "other"):
        found = previews_of(tmp_path / root)
        assert {name: content for name, (_, content) in found.items()} == {
            name: content for name, (_, content) in before.items()
        }
    assert previews_of(tmp_path / "run")["00000000-00000004.parquet"] == before["00000000-00000004.parquet"]


def test_private_examples_leave_neither_pictures_nor_texts(tmp_path: Path) -> None:
    run = attribute(tmp_path / "run", previews=False)
    assert not (tmp_path / "run" / "previews").exists()
    assert "excerpt" not in run.examples()
    assert PreviewTable(run.directory).read([0]) == ({}, [])
    margins = {name: content for name, content in files_of(tmp_path / "run").items() if name != "examples.parquet"}
    shown = attribute(tmp_path / "run")  # the same run, so that it goes on
    assert shown.examples()["excerpt"].tolist() == TEXTS
    assert len(previews_of(tmp_path / "run")) == 2
    assert margins.items() <= files_of(tmp_path / "run").items()


def test_margins_are_there_before_any_preview(tmp_path: Path) -> None:
    with (
        mock.patch.object(PreviewTable, "write", side_effect=CoarDistError("no room")),
        pytest.raises(CoarDistError, match="no room"),
    ):
        attribute(tmp_path / "run")
    assert coar_dist.open_run(tmp_path / "run").margins()[0].shape == (16, 12)


def test_inspect_checks_them(tmp_path: Path) -> None:
    attribute(tmp_path / "run")
    printed = io.StringIO()
    assert inspect_run(local_storage(tmp_path / "run"), False, Terminal(Console(file=printed, width=200)))
    assert "previews: 2 files\n" in printed.getvalue()
    path = tmp_path / "run" / "previews" / "00000000-00000004.parquet"
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAX"))
    assert not inspect_run(local_storage(tmp_path / "run"), False, Terminal(Console(file=printed, width=200)))
    assert f"{path} is damaged" in printed.getvalue()
