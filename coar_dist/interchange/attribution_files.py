"""Attribution files of the research code: ``torch.save({"weight": ..., "bias": ..., "lam": ...}, path)``.

``weight`` is (num_components, num_examples) float32 or float16, ``bias`` and ``lam`` are (num_examples,). Files written
here add the key ``coar_dist``, which the research code does not read: the units of the weights, and whose they are.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coar_dist.errors import ConfigError, ForeignFileError, counted
from coar_dist.interchange.ids import examples_without, in_ranges
from coar_dist.interchange.units import MaskUnits

OWN_KEY = "coar_dist"
_KEYS = {"weight", "bias", "lam", OWN_KEY}
_VALUES_AT_ONCE = 2**24


@dataclass(frozen=True)
class AttributionFile:
    """An attribution file opened for reading; its weights stay on the disk until they are asked for.

    Attributes:
        path: the file.
        weight: (num_components, num_examples), any float dtype.
        bias: (num_examples,).
        lam: (num_examples,) penalties of the research code's lasso; NaN where the file has none.
        own: what a file written here says of itself; empty in others.
    """

    path: Path
    weight: Tensor
    bias: Tensor
    lam: Tensor
    own: dict[str, Any]

    @property
    def num_components(self) -> int:
        """Rows of ``weight``."""
        return self.weight.shape[0]

    @property
    def num_examples(self) -> int:
        """Columns of ``weight``."""
        return self.weight.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the file's bytes."""
        with self.path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def units(self) -> MaskUnits | None:
        """The units of the weights, where the file says them."""
        if not self.own:
            return None
        return MaskUnits(self.own["mask_mean"].double().numpy(), self.own["mask_deviation"].double().numpy())


class ResearchAttributions:
    """The attributions of a file in this package's units, example after example.

    Args:
        file: the file.
        units: of its weights.
        leave_out: example ids of the file that are passed over; the others move up.
        nan_is_zero: whether a NaN weight or bias counts as 0, as in the research code's notebooks.

    Raises:
        ForeignFileError: the file holds NaN or infinity; the message says of how many examples, and which.
        ConfigError: ``leave_out`` names an example that the file does not have.
    """

    def __init__(
        self, file: AttributionFile, units: MaskUnits, leave_out: tuple[int, ...] = (), nan_is_zero: bool = False
    ) -> None:
        self.file, self.units = file, units
        self.example_ids = examples_without(file.num_examples, leave_out, file.path)
        self.nan_is_zero = nan_is_zero
        if len(units.mean) != file.num_components:
            raise ForeignFileError(
                f"{file.path} has {counted(file.num_components, 'component')}, but the masks that its weights are "
                f"standardised by have {len(units.mean)}."
            )
        self._check_finite()

    @property
    def num_examples(self) -> int:
        """Examples that are not left out."""
        return len(self.example_ids)

    def read(self, first: int, end: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Weights (end - first, num_components) per mask bit and intercepts (end - first,) of some examples."""
        ids = self.example_ids[first:end]
        weights = np.empty((len(ids), self.file.num_components), dtype=np.float32)
        intercepts = np.empty(len(ids))
        step = max(_VALUES_AT_ONCE // self.file.num_components, 1)
        for start in range(0, len(ids), step):
            rows = slice(start, start + step)
            columns = torch.from_numpy(ids[rows])
            parts = self.file.weight[:, columns].T.double(), self.file.bias[columns].double()
            numbers = [part.nan_to_num(nan=0.0) if self.nan_is_zero else part for part in parts]
            weights[rows], intercepts[rows] = self.units.to_bits(numbers[0].numpy(), numbers[1].numpy())
        return weights, intercepts

    def lam(self, first: int, end: int) -> NDArray[np.float64]:
        """The file's penalties (end - first,); NaN where it has none."""
        return np.asarray(self.file.lam[torch.from_numpy(self.example_ids[first:end])].double().numpy())

    def predict(self, masks: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The component model's outputs under masks (num_masks, num_components): (num_masks, num_examples) float64."""
        weights, intercepts = self.read(0, self.num_examples)
        return np.asarray(masks.astype(np.float64) @ weights.T.astype(np.float64) + intercepts)

    def _check_finite(self) -> None:
        weight, columns = self.file.weight, torch.from_numpy(self.example_ids)
        num_wrong = (~torch.isfinite(self.file.bias)).long()
        num_infinite = torch.isinf(self.file.bias).long()
        num_components = 0
        step = max(_VALUES_AT_ONCE // self.file.num_examples, 1)
        for start in range(0, self.file.num_components, step):
            rows = weight[start : start + step]
            wrong = ~torch.isfinite(rows)
            if wrong.any():
                num_wrong += wrong.sum(dim=0)
                num_infinite += torch.isinf(rows).sum(dim=0)
                num_components += int(wrong[:, columns].any(dim=1).sum())
        counts = (num_infinite if self.nan_is_zero else num_wrong)[columns].numpy()
        if not counts.any():
            return
        wrong_ids = self.example_ids[counts > 0]
        what, way = "NaN or infinite", ", or count NaN as 0 as the research code does (nan=zero)"
        if self.nan_is_zero:
            what, way = "infinite", ""
        raise ForeignFileError(
            f"{self.file.path} holds {counted(int(counts.sum()), f'{what} value')}, of {len(wrong_ids):,} of "
            f"{len(columns):,} examples ({in_ranges(wrong_ids)}); {num_components:,} of {self.file.num_components:,} "
            f"components have weights that are not finite. Leave these examples out (leave_out=3,17-20; the run's "
            f"examples must be the others){way}."
        )


def open_attributions(path: str | Path) -> AttributionFile:
    """Open an attribution file; no code in it is run.

    Raises:
        ForeignFileError: it cannot be read, or is something else; the message says what it holds.
    """
    path = Path(path)
    if not path.is_file():
        raise ForeignFileError(f"{path} is not there.")
    try:
        # Only files in torch's zip format can stay on the disk.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ForeignFileError(
            f"{path} is damaged, or is no file of tensors saved by torch.save: {type(error).__name__}: {reason}"
        ) from error
    if not isinstance(found, dict):
        raise ForeignFileError(f"{path} holds a {type(found).__name__}, but a dict of weight, bias and lam is needed.")
    unknown, missing = sorted(map(str, found.keys() - _KEYS)), sorted({"weight", "bias"} - found.keys())
    if unknown or missing:
        raise ForeignFileError(
            f"{path} has the keys {sorted(map(str, found))}, {f'of which {unknown} are unknown' if unknown else ''}"
            f"{' and ' if unknown and missing else ''}{f'without {missing}' if missing else ''}. An attribution file "
            f"has weight, bias and perhaps lam."
        )
    shapes = {key: _shape(found[key]) for key in ("weight", "bias", "lam") if key in found}
    weight = found["weight"]
    is_matrix = isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point() and weight.numel() > 0
    vector = [found[key] for key in shapes if key != "weight"]
    if not is_matrix or any(
        not isinstance(tensor, Tensor) or tensor.shape != weight.shape[1:] or not tensor.is_floating_point()
        for tensor in vector
    ):
        raise ForeignFileError(
            f"{path} has {', '.join(f'{key} {shape}' for key, shape in shapes.items())}, but weight must be floats of "
            f"shape (num_components, num_examples), and bias and lam of shape (num_examples,)."
        )
    lam = found.get("lam", torch.full(weight.shape[1:], torch.nan))
    return AttributionFile(path, weight, found["bias"], lam, _checked_own(path, found.get(OWN_KEY, {}), len(weight)))


def _shape(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _checked_own(path: Path, own: Any, num_components: int) -> dict[str, Any]:
    if own and (
        not isinstance(own, dict)
        or not {"components", "mask_mean", "mask_deviation"} <= own.keys()
        or any(_shape(own[key]) != f"torch.float64 ({num_components},)" for key in ("mask_mean", "mask_deviation"))
    ):
        raise ForeignFileError(f"{path}: what stands under {OWN_KEY!r} was not written by this version.")
    return dict(own)


def read_attributions(
    path: str | Path,
    units: MaskUnits | None = None,
    leave_out: tuple[int, ...] = (),
    nan_is_zero: bool = False,
) -> ResearchAttributions:
    """Open an attribution file by itself, without a run.

    Args:
        path: the file.
        units: of its weights; None where a file written here says them.
        leave_out: example ids of the file that are passed over.
        nan_is_zero: whether NaN counts as 0.

    Raises:
        ForeignFileError: it cannot be read, or holds values that are not finite.
        ConfigError: ``units`` are missing, or the file says others.

    Example:
        >>> attributions = read_attributions("cifar.pt", MaskUnits.of_fraction(0.05, 2304))  # doctest: +SKIP
        >>> weights, intercepts = attributions.read(0, 100)  # doctest: +SKIP
    """
    file = open_attributions(path)
    own = file.units
    if units is None and own is None:
        raise ConfigError(
            f"{path} does not say what its weights are standardised by: the research code fits on masks less their "
            f"mean over their standard deviation, and saves neither. Set standardised_by to the folder of its "
            f"masks.npy (exact), to train where the run's train masks are those, to the ablation fraction of its masks "
            f"(as they are in expectation), or to nothing where the weights are per mask bit."
        )
    if units is not None and own is not None and units.fingerprint != own.fingerprint:
        raise ConfigError(f"{path} says itself what its weights are standardised by. Leave standardised_by out.")
    chosen = own if units is None else units
    assert chosen is not None
    return ResearchAttributions(file, chosen, leave_out, nan_is_zero)
