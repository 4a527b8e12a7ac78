"""Whatever happens to a file of a run directory: it is named, never used, and made again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from coar_dist.errors import DamagedFileError, RunMismatchError, RunNotFoundError
from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDirectory
from tests.chaos import DAMAGES, WITHOUT_A_FILE, damage, is_shard, repair
from tests.small_run import files_of, run_small, without_ray


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A finished run, and one of another model with the same files."""
    folder = tmp_path_factory.mktemp("damage")
    with without_ray():
        run_small(folder / "run")
        run_small(folder / "other", seed=1)
        yield folder / "run", folder / "other"


def kinds_of(names: Iterable[str]) -> dict[str, list[str]]:
    """The files of each folder, and in a folder of several methods of each of them."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        kinds.setdefault(f"{folder}/" if file[0].isdigit() else f"{folder}/{file.partition('.')[0]}", []).append(name)
    return kinds


@pytest.mark.parametrize("kind", [*DAMAGES, *WITHOUT_A_FILE])
def test_damage_to_every_kind_of_file_is_named_and_made_again(
    runs: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    """One file of each kind at once; which of them, and where it is damaged, depends on the damage alone."""
    run, other = runs
    whole = files_of(run)
    # Shards, attributions, correlations, statistics, curves, ceiling, the rest.
    assert len(whole) == 65 + 6 + 3 + 6 + 2 + 1 + 3
    assert files_of(other).keys() == whole.keys()
    root, rng = tmp_path / "run", random.Random(kind)
    shutil.copytree(run, root)
    kinds = kinds_of(whole)
    assert len(kinds) >= 12
    chosen = [rng.choice(names) for names in kinds.values()]
    for name, names, following in zip(chosen, kinds.values(), chosen[1:] + chosen[:1], strict=True):
        if kind != "duplicated" or is_shard(name):
            neighbours = [neighbour for neighbour in names if neighbour != name]
            damage(root, name, neighbours[0] if neighbours else following, other, kind, rng)
    repair(root, whole, chosen, kind)


@pytest.mark.parametrize("kind", [*DAMAGES, "deleted"])
def test_a_damaged_run_json_is_made_again(runs: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    run, other = runs
    root = tmp_path / "run"
    shutil.copytree(run, root)
    damage(root, "run.json", "examples.parquet", other, kind, random.Random(kind))
    before = RunDirectory.open(storage_at(run))
    identity = {key: value for key, value in before.identity.items() if key not in ("components", "num_examples")}
    arguments = (storage_at(root), identity, before.components, before.num_examples)
    if kind == "swapped with another run's":
        with pytest.raises(RunMismatchError, match=r"model\.weights is"):
            RunDirectory.create(*arguments)
        return
    with pytest.raises(RunNotFoundError if kind == "deleted" else DamagedFileError, match=r"run\.json"):
        RunDirectory.open(storage_at(root))
    made = RunDirectory.create(*arguments)
    assert made.is_new
    assert made.fingerprint == RunDirectory.open(storage_at(root)).fingerprint == before.fingerprint
    assert (root / "run.json.damaged").exists() == (kind != "deleted")


def test_a_lost_run_json_does_not_make_a_foreign_run_of_it(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Without run.json only the shards know what they are of."""
    root = tmp_path / "run"
    shutil.copytree(runs[0], root)
    (root / "run.json").unlink()
    with pytest.raises(RunMismatchError, match=r"holds 1 shard of another run, whose run\.json is lost"):
        run_small(root, seed=1)
    (root / "run.json").unlink()
    run_small(root)
    assert files_of(root) == files_of(runs[0])
