"""What components look at: ``responses/<first>-<end>.parquet``, one file per range of components.

A row is a component's activation on one of the examples on which it is strongest, or, without an example, the kernel of
a filter that reads the image itself. They are for the eye alone: no result depends on them, and a run without any is
whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coar_dist.errors import DamagedFileError
from coar_dist.store.parquet import read_content, write_table
from coar_dist.store.range_files import RangeFiles
from coar_dist.store.run_directory import RESPONSES, RunDirectory

_COMPONENTS_PER_FILE = 1024
_TYPES = {
    "component_id": pa.int64(),
    "example_id": pa.int64(),
    "strength": pa.float32(),
    "first": pa.int32(),
    "shape": pa.list_(pa.int32()),
    "scale": pa.float32(),
    "activation": pa.binary(),
    "pattern_shape": pa.list_(pa.int32()),
    "pattern_scale": pa.float32(),
    "pattern": pa.binary(),
}
_LARGEST, _LARGEST_PATTERN = 127, 255


@dataclass(frozen=True)
class Response:
    """A component on one of the examples on which it is strongest.

    Attributes:
        example_id: the example.
        strength: the greatest activation at any position, as it was before anything was scaled down.
        activation: float32, its sign kept: (height, width) where positions are those of an image, at most 16 x 16 of
            them, each the mean over its part; (num_positions,) where they stand in a row, such as tokens, without
            padding, at most 256 around the strongest; () where there are none. Read from a file it has 8 bits.
        first: the position in the input of the first of ``activation`` where they stand in a row, else 0.
        pattern: (queries, keys) float32 attention of the head, at most 32 x 32: how much each query attends to each
            key, rows sum to 1; longer ones in equal parts, the mean over queries and the sum over keys. None where it
            is no head, or the model does not show it.
    """

    example_id: int
    strength: float
    activation: NDArray[np.float32]
    first: int = 0
    pattern: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Responses:
    """What a component looks at.

    Attributes:
        kernel: (in_channels, height, width) float16, the weights of a filter that reads the image itself; else None.
        examples: those on which it is strongest, the strongest first; () where it has no activation but 0.
    """

    kernel: NDArray[np.float16] | None
    examples: tuple[Response, ...]


class ResponseTable(RangeFiles):
    """What the components of a run look at, as the ablate stage found it; only some components may have anything."""

    folder, of = RESPONSES, "components"

    def __init__(self, run: RunDirectory) -> None:
        num = run.components.num_components
        starts = range(0, num, _COMPONENTS_PER_FILE)
        super().__init__(run, [(start, min(start + _COMPONENTS_PER_FILE, num)) for start in starts])

    def write(self, components: tuple[int, int], found: Mapping[int, Responses]) -> None:
        """Write the file of a range of components.

        Args:
            components: (first, end), as of ``missing``.
            found: by component id; those of other ranges are passed over.
        """
        rows = [
            row
            for component_id in range(*components)
            if component_id in found
            for row in _rows(component_id, found[component_id])
        ]
        columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in _TYPES.items()}
        write_table(self._storage, self.file(components), columns, self.belongs_to(components), compress=True)

    def read(self, component_ids: Sequence[int]) -> tuple[dict[int, Responses], list[str]]:
        """What some components look at; only the files of their ranges are read.

        Args:
            component_ids: of the run, in any order.

        Returns:
            By component id, those alone that have something; and, for each file that is damaged or of another run and
            so gives nothing, what is wrong with it and the way out.
        """
        names, wanted = self._listed(), {int(i) for i in component_ids}
        found: dict[int, Responses] = {}
        damaged: list[str] = []
        for components in self._ranges:
            name = self.file(components)
            if name not in names or not any(components[0] <= i < components[1] for i in wanted):
                continue
            try:
                found |= {i: each for i, each in self._read(name, components).items() if i in wanted}
            except DamagedFileError as error:
                damaged.append(str(error))
        return found, damaged

    def _read(self, name: str, components: tuple[int, int]) -> dict[int, Responses]:
        # The ablate stage looks at footers alone, so it does not find every damage.
        content = read_content(
            self._storage, name, "ablate", self.belongs_to(components), list(_TYPES), is_found=False, types=_TYPES
        )
        if content is None:
            return {}
        try:
            return _decoded(content.columns.to_pylist(), components, self._run.num_examples)
        except (ValueError, TypeError) as error:  # right checksums, but no writer here has made it
            where = self._storage.where(name)
            raise DamagedFileError.of(where, f"{where} is damaged: {error}.", "ablate", is_found=False) from None


def _rows(component_id: int, responses: Responses) -> list[dict[str, Any]]:
    rows = []
    nothing = dict.fromkeys(_TYPES)
    if responses.kernel is not None:
        kernel = np.ascontiguousarray(responses.kernel, np.float16)
        about = {"shape": kernel.shape, "scale": 1.0, "activation": kernel.tobytes()}
        rows.append({**nothing, "component_id": component_id, "first": 0, **about})
    for each in responses.examples:
        scale, activation = _quantised(each.activation, np.int8, _LARGEST)
        row = {
            **nothing,
            "component_id": component_id,
            "example_id": each.example_id,
            "strength": each.strength,
            "first": each.first,
            "shape": each.activation.shape,
            "scale": scale,
            "activation": activation,
        }
        if each.pattern is not None:
            row["pattern_shape"] = each.pattern.shape
            row["pattern_scale"], row["pattern"] = _quantised(each.pattern, np.uint8, _LARGEST_PATTERN)
        rows.append(row)
    return rows


def _quantised(values: NDArray[np.float32], kind: type[np.integer[Any]], largest: int) -> tuple[float, bytes]:
    """What one step is worth, and the steps."""
    scale = float(np.abs(values).max(initial=0)) / largest or 1.0
    return scale, np.rint(values / scale).astype(kind).tobytes()


def _decoded(rows: list[dict[str, Any]], components: tuple[int, int], num_examples: int) -> dict[int, Responses]:
    """What the rows of a file say.

    Raises:
        ValueError, TypeError: they cannot be of this run.
    """
    kernels: dict[int, NDArray[np.float16]] = {}
    examples: dict[int, list[Response]] = {}
    for row in rows:
        component_id, example_id = row["component_id"], row["example_id"]
        if component_id is None or not components[0] <= component_id < components[1]:
            raise ValueError(f"it has a component {component_id} outside {components[0]}..{components[1] - 1}")
        if example_id is None:
            kernels[component_id] = _array(row["activation"], row["shape"], np.float16)
            examples.setdefault(component_id, [])
            continue
        if not 0 <= example_id < num_examples:
            raise ValueError(f"it has an example {example_id} outside 0..{num_examples - 1}")
        pattern = None
        if row["pattern"] is not None:
            steps = _array(row["pattern"], row["pattern_shape"], np.uint8)
            pattern = steps * np.float32(_finite(row["pattern_scale"]))
        activation = _array(row["activation"], row["shape"], np.int8) * np.float32(_finite(row["scale"]))
        strength, first = _finite(row["strength"]), int(row["first"])
        response = Response(example_id, strength, np.asarray(activation, np.float32), first, pattern)
        examples.setdefault(component_id, []).append(response)
    return {i: Responses(kernels.get(i), tuple(found)) for i, found in examples.items()}


def _finite(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a number is {value}")
    return float(value)


def _array(content: bytes, shape: Sequence[int], kind: Any) -> NDArray[Any]:
    if any(length < 0 for length in shape) or math.prod(shape) * np.dtype(kind).itemsize != len(content):
        raise ValueError(f"an array of shape {tuple(shape)} has {len(content)} bytes")
    return np.frombuffer(content, kind).reshape(shape)
