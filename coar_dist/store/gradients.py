"""Gradient shards: ``gradients/<design>/<first example>-<end>/<start>-<stop>.parquet``, one folder per example block.

Rows are the block's examples. Columns: ``example_id`` int64; ``margins`` fixed_size_list of float32, one per mask;
``kept`` and ``ablated`` fixed_size_list of float32, one sum per component. The metadata carry the packed mask bits and,
per component, the sums of squares over masks and examples.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.errors import NonFiniteMarginError, RunMismatchError
from coar_dist.store.columns import matrix_column, matrix_of, matrix_type
from coar_dist.store.parquet import Content, write_table
from coar_dist.store.shards import ShardFolder


@dataclass(frozen=True)
class GateGradients:
    """What passes with gradients under some masks give for the n examples of a block.

    A gate gradient of an example, a mask and a component estimates how much the margin is higher with the component
    kept than with it ablated, all others as in the mask (``coar_dist.ablation.secants``).

    Attributes:
        margins: (num_masks, n) float32.
        kept: (n, num_components) float32, sums of the gate gradients over the masks that keep the component.
        ablated: (n, num_components) float32, sums over the masks that ablate it.
        kept_squares: (num_components,) float64, sums of their squares over these masks and all n examples.
        ablated_squares: (num_components,) float64.
        known: (num_components,) bool, the components that have gate gradients; the sums of others are zero.
    """

    margins: NDArray[np.float32]
    kept: NDArray[np.float32]
    ablated: NDArray[np.float32]
    kept_squares: NDArray[np.float64]
    ablated_squares: NDArray[np.float64]
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class GradientStore(ShardFolder):
    """Reader and writer of the gradient shards of one design and one example block.

    Attributes:
        block: (first example, end).
    """

    content: ClassVar[str] = "gradients"
    block: tuple[int, int]

    @override
    def bytes_of(self, num_masks: int) -> int:
        num_examples = self.block[1] - self.block[0]
        rows = num_examples * (8 + 4 * num_masks + 2 * 4 * self.num_components)
        metadata = num_masks * -(-self.num_components // 8) + 2 * 8 * self.num_components  # in base64
        return self._overhead(4) + rows + metadata * 4 // 3

    def write(self, start: int, masks: NDArray[np.bool_], gradients: GateGradients, made_by: Mapping[str, Any]) -> None:
        """Write the shard of masks ``start .. start + len(masks) - 1``, atomically.

        Args:
            start: first mask id.
            masks: (num_masks, num_components) bool.
            gradients: of these masks.
            made_by: how they were computed; kept in the file's metadata.

        Raises:
            NonFiniteMarginError: a margin or a gradient is NaN or infinite.
        """
        stop = start + len(masks)
        for name in ("margins", "kept", "ablated", "kept_squares", "ablated_squares"):
            values = getattr(gradients, name)
            if not np.isfinite(values).all():
                at = [int(index) for index in np.argwhere(~np.isfinite(values))[0]]
                what = {"margins": "(mask, example)"}.get(
                    name, "(component,)" if len(at) == 1 else "(example, component)"
                )
                raise NonFiniteMarginError(
                    f"a pass with gradients under masks {start}..{stop - 1} gives {name} of {values[tuple(at)]} at "
                    f"{what} {tuple(at)} of the examples from {self.block[0]}. Leave the example out, or use "
                    f"estimator=coar, which needs no gradients."
                )
        columns = {
            "example_id": pa.array(np.arange(*self.block, dtype=np.int64)),
            "margins": matrix_column(np.ascontiguousarray(gradients.margins.T)),
            "kept": matrix_column(gradients.kept),
            "ablated": matrix_column(gradients.ablated),
        }
        arrays = {
            "masks": np.packbits(masks, axis=1, bitorder="little"),
            "kept_squares": gradients.kept_squares.astype("<f8"),
            "ablated_squares": gradients.ablated_squares.astype("<f8"),
            "known": np.packbits(gradients.known, bitorder="little"),
        }
        encoded = {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}
        belongs_to = self._belongs_to(start, stop)
        write_table(self.storage, self.file(start, stop), columns, {**made_by, **encoded, **belongs_to})

    def masks(self) -> NDArray[np.bool_]:
        """All masks, from the shards' footers: (num_masks, num_components) bool.

        Raises:
            MissingWorkError: masks are missing.
            DamagedFileError: a shard's footer is damaged.
        """
        shards = self._whole_shards()
        return np.concatenate([self._masks_of(*masks, self._read_metadata(*masks)) for masks in shards])

    def read(self) -> Iterator[tuple[NDArray[np.bool_], GateGradients]]:
        """The masks (num_masks, num_components) and the gate gradients of every shard, in mask order.

        Raises:
            MissingWorkError: masks are missing.
            DamagedFileError: a shard is damaged.
        """
        shards = self._whole_shards()
        yield from self._at_once(lambda masks: self._read_shard(*masks), shards)

    def read_margins(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float32]]]:
        """The masks (num_masks, num_components) and margins (num_masks, n) of every shard, in mask order; of the sums,
        which are most of a shard, nothing is read.

        Raises:
            MissingWorkError, DamagedFileError: as ``read``.
        """
        yield from self._at_once(lambda masks: self._read_margins(*masks), self._whole_shards())

    def _whole_shards(self) -> list[tuple[int, int]]:
        shards = [masks for masks in self.require_complete() if masks[0] < self.num_masks]
        if shards and shards[-1][1] > self.num_masks:
            start, stop = shards[-1]
            raise RunMismatchError(
                f"gradients.num_masks={self.num_masks} ends within {self._where(start, stop)}, whose sums cannot be "
                f"taken apart. Use {start} or {stop}."
            )
        return shards

    def _read_margins(self, start: int, stop: int) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        found = self._read(start, stop, ["margins"], self._types(start, stop), self.block[1] - self.block[0])
        return self._masks_of(start, stop, found.metadata), self._margins_of(found)

    def _read_shard(self, start: int, stop: int) -> tuple[NDArray[np.bool_], GateGradients]:
        types, d = self._types(start, stop), self.num_components
        found = self._read(start, stop, None, types, self.block[1] - self.block[0])  # every byte is checked
        metadata, table = found.metadata, found.columns
        masks = self._masks_of(start, stop, metadata)
        kept, ablated = (matrix_of(table[name]) for name in ("kept", "ablated"))
        return masks, GateGradients(
            margins=self._margins_of(found),
            kept=kept,
            ablated=ablated,
            kept_squares=self._decoded(start, stop, metadata, "kept_squares", "<f8", d),
            ablated_squares=self._decoded(start, stop, metadata, "ablated_squares", "<f8", d),
            known=_unpacked(self._decoded(start, stop, metadata, "known", np.uint8, -(-d // 8))[None], d)[0],
        )

    def _types(self, start: int, stop: int) -> dict[str, pa.DataType]:
        sums = matrix_type("float32", self.num_components)
        return {"margins": matrix_type("float32", stop - start), "kept": sums, "ablated": sums}

    def _masks_of(self, start: int, stop: int, metadata: Mapping[str, Any]) -> NDArray[np.bool_]:
        num_bytes = -(-self.num_components // 8)
        bits = self._decoded(start, stop, metadata, "masks", np.uint8, (stop - start) * num_bytes)
        return _unpacked(bits.reshape(stop - start, num_bytes), self.num_components)

    def _margins_of(self, found: Content) -> NDArray[np.float32]:
        return matrix_of(found.columns["margins"]).T.copy()  # of one example torch takes a view only with a warning

    def _decoded(
        self, start: int, stop: int, metadata: Mapping[str, Any], name: str, dtype: Any, size: int
    ) -> NDArray[Any]:
        """An array (size,) of the metadata."""
        try:
            found = np.frombuffer(base64.b64decode(metadata[name]), dtype=dtype)
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(start, stop, f"{name} of its metadata cannot be read") from error
        if len(found) != size:
            raise self._damaged(start, stop, f"{name} of its metadata has {len(found)} values, not {size}")
        return found

    @override
    def _belongs_to(self, start: int, stop: int) -> dict[str, Any]:
        return {**super()._belongs_to(start, stop), "examples": list(self.block)}


def _unpacked(bits: NDArray[np.uint8], num_components: int) -> NDArray[np.bool_]:
    return np.unpackbits(bits, axis=1, count=num_components, bitorder="little").astype(np.bool_)
