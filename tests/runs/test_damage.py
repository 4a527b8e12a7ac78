"""Whatever happens to a file of a run directory: it is named, never used, and made anew."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import damage_and_repair
from tests.small_run import files_of, run_small, without_ray

NUM_CASES = 16


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A finished run, and one of another model with the same files."""
    folder = tmp_path_factory.mktemp("damage")
    with without_ray():
        run_small(folder / "run")
        run_small(folder / "other", seed=1)
        yield folder / "run", folder / "other"


def test_a_damaged_file_is_named_and_made_anew(runs: tuple[Path, Path], tmp_path: Path) -> None:
    run, other = runs
    whole = files_of(run)
    assert len(whole) == 65 + 6 + 3 + 2 + 1 + 2  # shards, attributions, correlations, curves, ceiling, the rest
    assert files_of(other).keys() == whole.keys()
    for seed in range(NUM_CASES):
        root = tmp_path / str(seed)
        shutil.copytree(run, root)
        damage_and_repair(root, whole, other, random.Random(seed))
        shutil.rmtree(root)


def test_a_lost_run_json_does_not_make_a_foreign_run_of_it(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Without run.json only the shards know what they are of."""
    from coar_dist.errors import RunMismatchError

    root = tmp_path / "run"
    shutil.copytree(runs[0], root)
    (root / "run.json").unlink()
    with pytest.raises(RunMismatchError, match=r"holds 1 shard of another run, whose run\.json is lost"):
        run_small(root, seed=1)
    (root / "run.json").unlink()
    run_small(root)
    assert files_of(root) == files_of(runs[0])
