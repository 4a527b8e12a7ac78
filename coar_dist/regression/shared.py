"""A factorisation as it travels: arrays, which an object store shows to all processes of a node without a copy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from coar_dist.regression.dual import AnyFactor
from coar_dist.regression.statistics import as_tensor


@dataclass(frozen=True)
class Spectrum:
    """What is small of a factor.

    Attributes:
        rank: of the centred design.
        mean_eigenvalue: trace of S Xc'Xc S over the number of components, the unit of penalties.
    """

    rank: int
    mean_eigenvalue: float

    @classmethod
    def of(cls, factor: AnyFactor) -> Spectrum:
        """Of a factor."""
        return cls(factor.rank, float(factor.values.sum()) / factor.num_components)


@dataclass(frozen=True)
class SharedFactor:
    """A factor whose tensors are arrays.

    Attributes:
        kind: its class.
        parts: its fields.
    """

    kind: type[AnyFactor]
    parts: dict[str, Any]

    @classmethod
    def of(cls, factor: AnyFactor) -> SharedFactor:
        """From the tensors."""
        parts = {field.name: getattr(factor, field.name) for field in fields(factor)}
        arrays = {name: part.cpu().numpy() for name, part in parts.items() if isinstance(part, torch.Tensor)}
        return cls(type(factor), {**parts, **arrays})

    def on(self, device: str) -> AnyFactor:
        """As tensors on ``device``."""
        arrays = {name: part for name, part in self.parts.items() if isinstance(part, np.ndarray)}
        return self.kind(**{**self.parts, **{name: as_tensor(array, device) for name, array in arrays.items()}})
