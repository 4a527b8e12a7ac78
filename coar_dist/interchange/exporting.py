"""From a run directory to files that the research code reads: attributions, and margins for its regression."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from coar_dist.errors import ConfigError, NonFiniteMarginError, StorageError
from coar_dist.interchange.attribution_files import OWN_KEY
from coar_dist.interchange.units import MaskUnits
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable
from coar_dist.store.values import VALUE

DTYPES = ("float32", "float16")
_MASKS_PER_BATCH = 1024
_ROWS_PER_UNIT_CHANGE = 128
Progress = Callable[[int], None]


def export_attributions(
    run: RunDirectory,
    path: str | Path,
    method: str,
    units: MaskUnits,
    dtype: str = "float32",
    on_progress: Progress = lambda _: None,
) -> None:
    """Write a method's attributions as the research code's regression does: ``weight``, ``bias`` and ``lam``.

    Args:
        run: a run with these attributions.
        path: the file; it must not be there yet.
        method: the attributions.
        units: of the weights in the file; ``coar_dist`` in it says which, so that they can be imported again.
        dtype: of ``weight``: float32, or float16 as in most files that the research code's authors released.
        on_progress: called with the number of examples done.

    Raises:
        MissingWorkError: the attributions are not there.
        NonFiniteMarginError: a weight is beyond the range of float16.
        ConfigError: the file already exists, or the dtype is unknown.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    _check_value(run)
    _check_new(path, dtype)
    table = AttributionTable(run, method)
    blocks, num_components = run.margins(TRAIN_DESIGN).blocks, run.components.num_components
    table.settings_fingerprint(blocks)  # all of them are there
    bias = np.empty(run.num_examples, dtype=np.float32)
    lam = np.empty(run.num_examples, dtype=np.float32)
    with _beside(path) as folder:
        # The matrix is written column block by column block, and never whole in memory.
        weight = np.memmap(folder / "weight", dtype=dtype, mode="w+", shape=(num_components, run.num_examples))
        for first, end in blocks:
            weights, intercepts = table.read((first, end))
            for start in range(0, end - first, _ROWS_PER_UNIT_CHANGE):
                rows = slice(start, start + _ROWS_PER_UNIT_CHANGE)
                part, bias[first:end][rows] = units.from_bits(weights[rows], intercepts[rows])
                with np.errstate(over="ignore"):
                    stored = part.astype(dtype)
                if not np.isfinite(stored).all():
                    raise NonFiniteMarginError(
                        f"weights of {method} in examples {first}..{end - 1} are beyond the range of {dtype}. Use "
                        f"dtype=float32."
                    )
                weight[:, first:end][:, rows] = stored.T
            lam[first:end] = table.read_quality((first, end))[0]["regularisation"]
            on_progress(end)
        own = {
            "method": method,
            "run": run.fingerprint,
            "components": run.components.fingerprint,
            "mask_mean": torch.from_numpy(units.mean),
            "mask_deviation": torch.from_numpy(units.deviation),
        }
        content = {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias), "lam": torch.from_numpy(lam)}
        torch.save({**content, OWN_KEY: own}, folder / "file")
        with (folder / "file").open("rb") as file:
            os.fsync(file.fileno())
        (folder / "file").replace(path)


def export_margins(
    run: RunDirectory,
    folder: str | Path,
    design_name: str = TRAIN_DESIGN,
    name: str = "test_margins",
    dtype: str | None = None,
    on_progress: Progress = lambda _: None,
) -> None:
    """Write the margins of a design as a store of the research code: ``masks.npy``, ``<name>.npy``, ``_completed.npy``.

    Args:
        run: a run with all margins of the design.
        folder: of the store; it must not be there yet.
        design_name: which design.
        name: of the margins: ``test_margins`` or ``val_margins`` in the research code.
        dtype: of the margins: float16 in the research code; None is the run's own.
        on_progress: called with the number of examples done.

    Raises:
        MissingWorkError: margins are missing; the message lists the ranges.
        NonFiniteMarginError: a margin is beyond the range of float16.
        ConfigError: the folder already exists, or the name or the dtype is unknown.
        StorageError: the folder cannot be written.
    """
    folder = Path(folder)
    _check_value(run)
    store = run.margins(design_name)
    chosen = dtype or store.dtype
    _check_new(folder, chosen)
    if not name.endswith("_margins") or "/" in name:
        raise ConfigError(f"name={name!r}: must end in _margins, as test_margins does.")
    if run.designs[design_name].role == "gradients":
        raise ConfigError(f"design={design_name!r} was run with gradients, which the research code does not know.")
    store.require_complete()
    with _beside(folder) as temporary:
        target = temporary / "store"
        target.mkdir()
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {
            "masks": ("bool", (store.num_components,)),
            name: (chosen, (store.num_examples,)),
            "_completed": ("bool", ()),
        }
        maps = {
            key: open_memmap(target / f"{key}.npy", mode="w+", dtype=kind, shape=(store.num_masks, *shape))
            for key, (kind, shape) in arrays.items()
        }
        for first, end in store.blocks:
            start = 0
            for masks, margins in store.read((first, end), _MASKS_PER_BATCH):
                rows = slice(start, start + len(masks))
                with np.errstate(over="ignore"):
                    stored = margins.astype(chosen)
                if not np.isfinite(stored).all():
                    raise NonFiniteMarginError(
                        f"margins of masks {start}..{start + len(masks) - 1} are beyond the range of {chosen}. Use "
                        f"dtype=float32."
                    )
                maps[name][rows, first:end] = stored
                maps["masks"][rows] = masks
                maps["_completed"][rows] = True
                start += len(masks)
            on_progress(end)
        for array in maps.values():
            array.flush()
        target.replace(folder)


def _check_value(run: RunDirectory) -> None:
    if VALUE in run.identity:
        raise ConfigError(
            f"{run.storage} was made with ablation.value={run.identity[VALUE]}: the research code's files are of "
            f"zeroed weights alone. Export a run with ablation.value=zero_weights."
        )


def _check_new(path: Path, dtype: str) -> None:
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}.")
    if path.exists():
        raise ConfigError(f"{path} already exists. Remove it, or name another.")


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the same file system, whatever comes of it removed in the end."""
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        yield folder
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}. Name another place.") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
