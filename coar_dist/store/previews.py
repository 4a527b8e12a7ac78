"""Small pictures of the examples: ``previews/<first>-<end>.parquet``, one file per example block.

They are for the eye alone: no result depends on them, and a run without any is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from coar_dist.errors import DamagedFileError
from coar_dist.store.parquet import read_table, set_aside, why_wrong, write_table
from coar_dist.store.run_directory import PREVIEWS, TRAIN_DESIGN, RunDirectory


class PreviewTable:
    """The previews of a run's examples; columns ``example_id``, ``image`` (PNG or JPEG), ``width``, ``height``."""

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._storage = run, run.storage
        self._blocks = run.margins(TRAIN_DESIGN).blocks

    def file(self, block: tuple[int, int]) -> str:
        """The name of the file of one example block."""
        return f"{PREVIEWS}/{block[0]:08d}-{block[1]:08d}.parquet"

    def _belongs_to(self) -> dict[str, Any]:
        return {"content": PREVIEWS, "run": self._run.fingerprint}

    def missing(self) -> list[tuple[int, int]]:
        """The blocks without a file, by one listing: whoever reads a file verifies it, and sets a damaged one aside.

        In a run whose run.json has just been written, files of another run are set aside here.
        """
        sizes = self._listed()
        if self._run.is_new:
            for name, size in list(sizes.items()):
                if why_wrong(self._storage, name, size, self._belongs_to(), read_everything=False) is not None:
                    set_aside(self._storage, name)
                    del sizes[name]
        return [block for block in self._blocks if self.file(block) not in sizes]

    def write(self, block: tuple[int, int], images: Sequence[bytes], width: int, height: int) -> None:
        """Write the previews of one example block.

        Args:
            block: (first example, end).
            images: a PNG or JPEG file per example, in their order.
            width, height: of every one, in pixels.
        """
        assert len(images) == block[1] - block[0]
        columns = {
            "example_id": pa.array(np.arange(*block)),
            "image": pa.array(images, pa.binary()),
            "width": pa.array(np.full(len(images), width, np.int32)),
            "height": pa.array(np.full(len(images), height, np.int32)),
        }
        write_table(self._storage, self.file(block), columns, self._belongs_to())

    def read(self, example_ids: Sequence[int]) -> dict[int, bytes]:
        """The pictures of those of the examples that have one; only their blocks are read.

        Args:
            example_ids: of the run, in any order.

        Returns:
            By example id a whole PNG or JPEG file, told apart by its first bytes.

        Raises:
            DamagedFileError: a file is damaged or of another run; it has been set aside, so that the next call does
                without, and the ablate stage makes it anew.
        """
        sizes = self._listed()
        images: dict[int, bytes] = {}
        for block in self._blocks:
            wanted = [int(i) for i in example_ids if block[0] <= i < block[1]]
            name = self.file(block)
            if not wanted or name not in sizes:
                continue
            try:
                column = read_table(self._storage, name, self._belongs_to(), ["image"])["image"]
            except DamagedFileError as error:
                raise DamagedFileError(
                    f"{error} It was set aside as {set_aside(self._storage, name)}; the ablate stage makes it anew."
                ) from error
            images |= {i: column[i - block[0]].as_py() for i in wanted}
        return images

    def _listed(self) -> dict[str, int]:
        return {f"{PREVIEWS}/{name}": size for name, size in self._storage.files(PREVIEWS).items()}
