"""Small pictures of the examples: ``previews/<first>-<end>.parquet``, one file per example block.

They are for the eye alone: no result depends on them, and a run without any is whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from coar_dist.errors import DamagedFileError
from coar_dist.store.parquet import read_content, write_table
from coar_dist.store.range_files import RangeFiles
from coar_dist.store.run_directory import PREVIEWS, TRAIN_DESIGN, RunDirectory

_TYPES = {"image": pa.binary()}


class PreviewTable(RangeFiles):
    """The previews of a run's examples; columns ``example_id``, ``image`` (PNG or JPEG), ``width``, ``height``."""

    folder, of = PREVIEWS, "examples"

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(run, run.margins(TRAIN_DESIGN).blocks)

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
        write_table(self._storage, self.file(block), columns, self.belongs_to(block))

    def read(self, example_ids: Sequence[int]) -> tuple[dict[int, bytes], list[str]]:
        """The pictures of those of the examples that have one; only their blocks are read.

        Args:
            example_ids: of the run, in any order.

        Returns:
            By example id a whole PNG or JPEG file, told apart by its first bytes; and, for each file that is damaged or
            of another run and so gives no pictures, what is wrong with it and the way out.
        """
        names = self._listed()
        images: dict[int, bytes] = {}
        damaged: list[str] = []
        for block in self._ranges:
            wanted = [int(i) for i in example_ids if block[0] <= i < block[1]]
            name = self.file(block)
            if not wanted or name not in names:
                continue
            try:
                # The ablate stage looks at footers alone, so it does not find every damage.
                found = read_content(
                    self._storage, name, "ablate", self.belongs_to(block), ["image"], is_found=False, types=_TYPES
                )
            except DamagedFileError as error:
                damaged.append(str(error))
                continue
            if found is not None:
                images |= {i: found.columns["image"][i - block[0]].as_py() for i in wanted}
        return images, damaged
