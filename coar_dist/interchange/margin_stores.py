"""Margin stores of the research code: a folder of ``masks.npy``, ``<split>_margins.npy`` and ``_completed.npy``.

Made by ``initialize_store.py`` with ``np.lib.format.open_memmap``: masks are (num_models, num_components) bool, True =
kept, margins (num_models, num_examples) float16, completed (num_models,) bool. All begin as zeros; a row is filled by
``make_dataset.py``, and its completed flag set last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from coar_dist.errors import ConfigError, ForeignFileError, MissingWorkError, NonFiniteMarginError
from coar_dist.interchange.ids import examples_without, in_ranges

BLOCK_BYTES = 2**26
"""Bytes of masks and margins in memory at a time."""


@dataclass(frozen=True)
class MarginContent:
    """The part of a store that is used.

    Attributes:
        rows: (num_masks,) int64, the store's rows, ascending.
        examples: (num_examples,) int64, its columns, ascending.
        left_out: rows that are not complete.
        fingerprint: SHA-256 over the packed mask bits, and over the margins, of ``rows``.
        ablated_share: of components, over all masks.
    """

    rows: NDArray[np.int64]
    examples: NDArray[np.int64]
    left_out: NDArray[np.int64]
    fingerprint: str
    ablated_share: float


@dataclass(frozen=True)
class ResearchStore:
    """A store opened for reading through memory maps.

    Attributes:
        folder: where it lies.
        name: of the margins, e.g. ``test_margins``.
        masks: (num_models, num_components) bool.
        margins: (num_models, num_examples) float16 or float32.
        completed: (num_models,) bool.
    """

    folder: Path
    name: str
    masks: NDArray[np.bool_]
    margins: NDArray[Any]
    completed: NDArray[np.bool_]

    @property
    def num_components(self) -> int:
        """Bits of a mask."""
        return int(self.masks.shape[1])

    @property
    def num_examples(self) -> int:
        """Margins of a mask."""
        return int(self.margins.shape[1])

    def rows_at_once(self, block_bytes: int = BLOCK_BYTES) -> int:
        """Rows whose masks and float32 margins fit in ``block_bytes``; at least 1."""
        return max(block_bytes // (self.num_components + 4 * self.num_examples), 1)

    def read(
        self, rows: NDArray[np.int64], examples: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Masks (len(rows), num_components) and margins (len(rows), len(examples)) float32 of some rows."""
        margins = _columns(np.asarray(self.margins[rows]), examples)
        return np.asarray(self.masks[rows]), margins.astype(np.float32)

    def completed_masks(self, num_masks: int | None = None, block_bytes: int = BLOCK_BYTES) -> Iterator[NDArray[Any]]:
        """The masks of completed rows, or of the first of them, in batches.

        Raises:
            MissingWorkError: there are fewer.
        """
        rows = np.flatnonzero(self.completed)
        if num_masks is not None and num_masks > len(rows):
            raise MissingWorkError(f"{self.folder} has {len(rows)} completed masks, not num_masks={num_masks}.")
        step = max(block_bytes // self.num_components, 1)
        for start in range(0, len(rows[:num_masks]), step):
            yield np.asarray(self.masks[rows[:num_masks][start : start + step]])

    def examine(
        self, only_complete: bool = False, leave_out: tuple[int, ...] = (), block_bytes: int = BLOCK_BYTES
    ) -> MarginContent:
        """Read everything once, block after block, and say what can be used.

        Args:
            only_complete: whether incomplete rows are left out, or an error.
            leave_out: example ids that are left out.
            block_bytes: of masks and margins in memory at a time.

        Raises:
            MissingWorkError: rows are not complete: not flagged so, or with a mask or margins that are all zero, which
                is what a row holds before it is written.
            NonFiniteMarginError: margins are NaN or infinite; the message names rows and examples.
            ConfigError: ``leave_out`` names an example that the store does not have.
        """
        examples = examples_without(self.num_examples, leave_out, self.folder)
        num_rows = len(self.masks)
        is_whole = np.zeros(num_rows, dtype=np.bool_)
        num_wrong = np.zeros(self.num_examples, dtype=np.int64)
        wrong_rows: list[NDArray[np.int64]] = []
        of_masks, of_margins = hashlib.sha256(), hashlib.sha256(str((self.margins.dtype, len(examples))).encode())
        num_kept = 0
        step = self.rows_at_once(block_bytes)
        for start in range(0, num_rows, step):
            masks, margins = (np.asarray(array[start : start + step]) for array in (self.masks, self.margins))
            whole = self.completed[start : start + step] & masks.any(axis=1) & margins.any(axis=1)
            is_whole[start : start + step] = whole
            wrong = ~np.isfinite(margins) & whole[:, None]
            num_wrong += wrong.sum(axis=0)
            wrong_rows.append(start + np.flatnonzero(wrong[:, examples].any(axis=1)))
            of_masks.update(np.packbits(masks[whole], axis=1, bitorder="little").data)
            of_margins.update(_columns(margins[whole], examples).data)
            num_kept += int(masks[whole].sum())
        rows, lacking = np.flatnonzero(is_whole), np.flatnonzero(~is_whole)
        if lacking.size and not only_complete:
            num_flagged = int(self.completed[lacking].sum())
            raise MissingWorkError(
                f"{self.folder}: {len(lacking):,} of {num_rows:,} rows are not complete: {in_ranges(lacking)} "
                f"({num_flagged:,} of them are flagged completed, but their mask or their margins are all zero). "
                f"Complete them with make_dataset.py, or use the others alone: rows=complete."
            )
        if not rows.size:
            raise MissingWorkError(f"{self.folder}: none of its {num_rows:,} rows is complete.")
        if num_wrong[examples].any():
            wrong_examples = examples[num_wrong[examples] > 0]
            raise NonFiniteMarginError(
                f"{self.folder}: {num_wrong[examples].sum():,} margins of {self.name} are NaN or infinite, in rows "
                f"{in_ranges(np.concatenate(wrong_rows))}, of examples {in_ranges(wrong_examples)}. Leave these "
                f"examples out (leave_out=3,17-20), or run these rows again with make_dataset.py."
            )
        share = 1.0 - num_kept / (len(rows) * self.num_components)
        return MarginContent(rows, examples, lacking, f"sha256:{of_masks.hexdigest()}+{of_margins.hexdigest()}", share)


def open_store(folder: str | Path, name: str | None = None) -> ResearchStore:
    """Open a store; nothing is read yet.

    Args:
        folder: where it lies, on this machine.
        name: of the margins, e.g. ``test_margins``; None where there is one file ``*_margins.npy``.

    Raises:
        ForeignFileError: a file is missing, damaged, or of another dtype or shape.
        ConfigError: there are several margins, and none is named.
    """
    folder = Path(folder)
    there = sorted(path.stem for path in folder.glob("*_margins.npy"))
    if name is None and len(there) > 1:
        raise ConfigError(f"{folder} has {', '.join(there)}: name one of them, e.g. name={there[0]}.")
    if name is None and not there:
        raise ForeignFileError(f"{folder} is no margin store of the research code: it has no *_margins.npy.")
    name = name or there[0]
    masks, margins, completed = (_open(folder / f"{key}.npy") for key in ("masks", name, "_completed"))
    expected = {
        "masks": (masks, ("bool",), 2),
        name: (margins, ("float16", "float32"), 2),
        "_completed": (completed, ("bool",), 1),
    }
    wrong = {
        key for key, (array, dtypes, ndim) in expected.items() if array.dtype.name not in dtypes or array.ndim != ndim
    }
    if wrong or not len(masks) == len(margins) == len(completed) or 0 in masks.shape or 0 in margins.shape:
        found = ", ".join(f"{key}.npy is {array.dtype} {array.shape}" for key, (array, _, _) in expected.items())
        raise ForeignFileError(
            f"{folder}: {found}, but must be bool (num_models, num_components), float16 or float32 (num_models, "
            f"num_examples) and bool (num_models,), none of them empty."
        )
    return ResearchStore(folder, name, masks, margins, completed)


def open_masks(folder: str | Path) -> ResearchStore:
    """A store of which only the masks will be read: whichever margins it has.

    Raises:
        ForeignFileError: as ``open_store``.
    """
    there = sorted(path.stem for path in Path(folder).glob("*_margins.npy"))
    return open_store(folder, there[0] if there else None)


def _columns(margins: NDArray[Any], examples: NDArray[np.int64]) -> NDArray[Any]:
    return np.ascontiguousarray(margins if len(examples) == margins.shape[1] else margins[:, examples])


def _open(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise ForeignFileError(f"{path} is not there.")
    try:
        return open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise ForeignFileError(f"{path} is damaged, or no array saved by NumPy: {error}") from error
