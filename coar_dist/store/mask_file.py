"""Masks that no rule makes: ``designs/<name>.parquet``, one row per mask.

Columns: ``mask_id`` int64; ``mask`` fixed_size_binary (packed bits, 1 = kept), as in the margin shards. ``run.json``
holds the fingerprint of the masks, not the masks: they may be millions of bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from coar_dist.designs.given import PackedMasks
from coar_dist.errors import MissingWorkError
from coar_dist.store.aside import set_aside_wrong
from coar_dist.store.columns import bytes_column, bytes_of
from coar_dist.store.parquet import read_content, write_table
from coar_dist.store.storage import Storage

MASK_FILES = "designs"
_STAGE = "edit"


class MaskFile:
    """The masks of one design, read at the first call and kept in memory; pickled, it is small."""

    def __init__(self, storage: Storage, design_name: str, belongs_to: Mapping[str, Any]) -> None:
        self._storage, self._belongs_to = storage, dict(belongs_to)
        self.name = f"{MASK_FILES}/{design_name}.parquet"
        self._masks: PackedMasks | None = None

    def __call__(self) -> PackedMasks:
        """The masks as ``coar_dist.designs.given.packed`` makes them.

        Raises:
            MissingWorkError: the file is not there.
            DamagedFileError: it is damaged, or of other masks.
        """
        if self._masks is None:
            found = read_content(self._storage, self.name, _STAGE, self._belongs_to, ["mask"])
            if found is None:
                raise MissingWorkError(f"{self._storage.where(self.name)} is missing: run the {_STAGE} stage.")
            self._masks = bytes_of(found.columns["mask"])
        return self._masks

    def write(self, masks: PackedMasks) -> None:
        """For the process that holds the run: write the file where it is missing, damaged or of other masks."""
        set_aside_wrong(self._storage, self.name, self._belongs_to)
        if self._storage.size(self.name) is None:
            columns = {"mask_id": pa.array(np.arange(len(masks))), "mask": bytes_column(masks)}
            write_table(self._storage, self.name, columns, self._belongs_to)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_masks": None}
