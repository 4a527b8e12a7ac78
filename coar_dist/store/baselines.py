"""Shards of gradient baselines: ``baselines/<method>/<start>-<stop>.parquet``, one file per range of examples.

Columns: ``example_id`` int64; ``weights`` fixed_size_list of float32, one per component. Settings that change the
weights are part of the folder's name, so that weights of other settings stay beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.errors import NonFiniteMarginError
from coar_dist.store.columns import matrix_column, matrix_of, matrix_type
from coar_dist.store.parquet import write_table
from coar_dist.store.shards import ShardFolder


@dataclass(frozen=True)
class BaselineStore(ShardFolder):
    """Reader and writer of the shards of one gradient baseline; ``num_masks`` counts its examples.

    Attributes:
        method: the baseline's name.
    """

    content: ClassVar[str] = "baseline"
    unit: ClassVar[str] = "examples"
    method: str

    @override
    def bytes_of(self, num_masks: int) -> int:
        return self._overhead(2) + num_masks * (8 + 4 * self.num_components)

    def write(self, start: int, weights: NDArray[np.float32]) -> None:
        """Write the shard of examples ``start .. start + len(weights) - 1``, atomically.

        Args:
            start: first example.
            weights: (num_examples, num_components) float32.

        Raises:
            NonFiniteMarginError: a weight is NaN or infinite.
        """
        assert weights.shape[1] == self.num_components
        finite = np.isfinite(weights)
        if not finite.all():
            row, component = (int(index) for index in np.argwhere(~finite)[0])
            raise NonFiniteMarginError(
                f"{self.method} gives example {start + row} a weight of {weights[row, component]} for component "
                f"{component} ({int((~finite).sum())} such weights in examples {start}..{start + len(weights) - 1}). "
                f"Leave out the example, or the baseline (baselines=[...])."
            )
        stop = start + len(weights)
        columns = {
            "example_id": pa.array(np.arange(start, stop, dtype=np.int64)),
            "weights": matrix_column(weights),
        }
        write_table(self.storage, self.file(start, stop), columns, self._belongs_to(start, stop))

    def read(self, block: tuple[int, int]) -> NDArray[np.float32]:
        """Weights (block length, num_components) float32 of the examples ``block[0] .. block[1] - 1``.

        Raises:
            MissingWorkError: examples are missing.
            DamagedFileError: a shard is damaged.
        """
        first, end = block
        wanted = [(start, stop) for start, stop in self.require_complete() if stop > first and start < end]
        types = {"weights": matrix_type("float32", self.num_components)}
        shards = self._at_once(lambda shard: self._read(*shard, ["weights"], types, shard[1] - shard[0]), wanted)
        parts = [
            matrix_of(found.columns["weights"])[max(first - start, 0) : end - start]
            for (start, _), found in zip(wanted, shards, strict=True)
        ]
        return np.concatenate(parts)
