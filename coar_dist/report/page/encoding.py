"""Arrays as the page's script reads them: base64 of integers with a scale, a third of the size of JSON numbers.

A packed array is ``{"t": type, "b": base64, "s": scale}``: values are integers times their row's scale. ``t`` names the
integers, ``i8``, ``i16``, ``u8``, ``u16``, ``u32``, or ``f32``; they are little-endian.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = {"i8": "<i1", "i16": "<i2", "u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}


def integers(values: NDArray[Any], largest: int) -> dict[str, Any]:
    """Whole numbers from 0 to ``largest``, in as few bytes as that takes."""
    return _packed(values, "u8" if largest < 2**8 else "u16" if largest < 2**16 else "u32")


def floats(values: NDArray[Any]) -> dict[str, Any]:
    """Numbers as float32; NaN stays NaN."""
    return _packed(values, "f32")


def scaled(values: NDArray[Any], kind: str = "i16") -> dict[str, Any]:
    """Numbers (num_rows, width) as integers with one scale per row, exact to 1/65534 of the row's largest (``i8``: to
    1/254); NaN is the smallest integer, which no number becomes."""
    most = {"i16": 32767, "i8": 127}[kind]
    rows = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    known = np.isfinite(rows)
    largest = np.where(known, np.abs(np.where(known, rows, 0.0)), 0.0).max(axis=1, initial=0.0)
    scales = np.where(largest > 0, largest / most, 1.0)
    whole = np.where(known, np.round(np.where(known, rows, 0.0) / scales[:, None]), -most - 1)
    return _packed(whole, kind) | {"s": _text(scales, "f32")}


def unpacked(packed: dict[str, Any]) -> NDArray[np.float64]:
    """The inverse of the others, flat; the page's script does the same."""
    values = np.frombuffer(base64.b64decode(packed["b"]), _TYPES[packed["t"]]).astype(np.float64)
    if "s" not in packed:
        return values
    scales = np.frombuffer(base64.b64decode(packed["s"]), "<f4").astype(np.float64)
    rows = values.reshape(len(scales), -1)
    nothing = rows == np.iinfo(_TYPES[packed["t"]]).min
    return np.where(nothing, np.nan, rows * scales[:, None]).reshape(-1)


def _packed(values: NDArray[Any], kind: str) -> dict[str, Any]:
    return {"t": kind, "b": _text(values, kind)}


def _text(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=_TYPES[kind]).tobytes()).decode()
