from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from coar_dist.store.previews import PreviewTable
from coar_dist.store.run_directory import RunDirectory
from tests.store.test_store import new_run

BLOCKS = [(0, 3), (3, 6), (6, 8)]
IMAGES = [bytes([i]) * (i + 1) for i in range(8)]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = new_run(tmp_path / "run")
    for block in BLOCKS:
        PreviewTable(run).write(block, IMAGES[slice(*block)], 5, 4)
    return run


def reopened(run: RunDirectory) -> PreviewTable:
    return PreviewTable(RunDirectory.open(run.storage))


def test_only_the_blocks_that_are_asked_for_are_read(run: RunDirectory, tmp_path: Path) -> None:
    table = reopened(run)
    assert table.missing() == []
    assert table.read(range(8)) == (dict(enumerate(IMAGES)), [])
    (tmp_path / "run" / table.file(BLOCKS[0])).write_bytes(b"damaged")
    assert table.read([7, 3, 7]) == ({3: IMAGES[3], 7: IMAGES[7]}, [])
    columns = pq.read_table(tmp_path / "run" / table.file(BLOCKS[2])).to_pydict()
    assert columns == {"example_id": [6, 7], "image": IMAGES[6:], "width": [5, 5], "height": [4, 4]}


def test_what_is_not_there_is_missing(run: RunDirectory, tmp_path: Path) -> None:
    table = reopened(run)
    (tmp_path / "run" / table.file(BLOCKS[1])).unlink()
    assert table.missing() == [BLOCKS[1]]
    assert table.read([2, 4]) == ({2: IMAGES[2]}, [])
    shutil.rmtree(tmp_path / "run" / "previews")
    assert table.missing() == BLOCKS
    assert table.read([2, 4]) == ({}, [])


@pytest.mark.parametrize("is_foreign", [False, True])
def test_damaged_or_foreign_files_are_named_and_passed_over(
    run: RunDirectory, tmp_path: Path, is_foreign: bool
) -> None:
    table = reopened(run)
    path = tmp_path / "run" / table.file(BLOCKS[0])
    if is_foreign:
        PreviewTable(new_run(tmp_path / "other", output_function="loss")).write(BLOCKS[0], IMAGES[:3], 5, 4)
        shutil.copy(tmp_path / "other" / table.file(BLOCKS[0]), path)
    else:
        content = path.read_bytes()
        at = content.index(IMAGES[2])
        path.write_bytes(content[:at] + b"x" + content[at + 1 :])
    images, (damaged,) = table.read([1, 3])
    assert images == {3: IMAGES[3]}
    assert re.search(rf"{path.name} (is damaged|belongs to).*Remove the file and run the ablate stage", damaged)
    table.set_aside_wrong()
    assert table.missing() == ([BLOCKS[0]] if is_foreign else [])  # of others only the footers are looked at


def test_where_run_json_was_lost_files_of_another_run_do_not_count(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "run" / "run.json").unlink()
    PreviewTable(new_run(tmp_path / "run")).set_aside_wrong()
    assert reopened(run).missing() == []
    (tmp_path / "run" / "run.json").unlink()
    table = PreviewTable(new_run(tmp_path / "run", output_function="loss"))
    table.set_aside_wrong()
    assert table.missing() == BLOCKS
    assert len(list((tmp_path / "run" / "previews").glob("*.damaged"))) == 3
