"""The attributions of a run: attributions/*.parquet, one file per method and example block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import TypedDict

from coar_dist.config.documents import check_type
from coar_dist.config.methods import method_of
from coar_dist.config.schema import RegressionConfig
from coar_dist.errors import ConfigError, DamagedFileError, MissingWorkError
from coar_dist.store.aside import set_aside_wrong
from coar_dist.store.columns import matrix_column, matrix_of, matrix_type
from coar_dist.store.methods import attribution_file, fitted_methods
from coar_dist.store.parquet import (
    Content,
    is_made_with,
    read_content,
    read_in_parts,
    read_metadata,
    write_table,
)
from coar_dist.store.record import fingerprint_of
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory

_CONTENT = "attributions"
_DECIDED = "decided"
_PART_BYTES = 2**25
QUALITY = ("r2", "r2_new", "duality_gap")
_INFLUENCES = "r2_new_influences"
NUM_GROUPS = 16
"""Of the masks that are left out in turn, by their place modulo 16: from their differences follows how well the mean
of ``r2_new`` is known."""


class _Metadata(TypedDict):
    settings: dict[str, Any]
    decided: NotRequired[dict[str, Any]]
    r2_new_influences: NotRequired[list[float]]


@dataclass(frozen=True)
class Attributions:
    """One block of attributions and how good they are; NaN stands for "does not apply" and is stored as null.

    Attributes:
        weights: (n, num_components) float32.
        intercepts: (n,) float64.
        regularisation: (n,) float64, the chosen penalties; the lasso's of margins divided by their standard deviation.
        r2: (n,) share of the margins' variance over the training masks that the linear model explains.
        r2_new: (n,) the same on new masks, estimated without any; NaN where the masks are too few to tell.
        duality_gap: (n,) of the lasso, relative to the margins' variance.
        standard_errors: (n, num_components) float32 of the weights, where they were asked for.
        r2_new_influences: (16,) float64, for every sixteenth of the masks by which ``r2_new`` was estimated, how far
            they alone would move it to first order, summed over the examples; None without such masks.
    """

    weights: NDArray[np.float32]
    intercepts: NDArray[np.float64]
    regularisation: NDArray[np.float64]
    r2: NDArray[np.float64]
    r2_new: NDArray[np.float64]
    duality_gap: NDArray[np.float64]
    standard_errors: NDArray[np.float32] | None = None
    r2_new_influences: NDArray[np.float64] | None = None

    @classmethod
    def of_weights(cls, weights: NDArray[np.float32], intercepts: NDArray[np.float64]) -> Attributions:
        """Attributions of a method that fits nothing."""
        nothing = np.full(len(weights), np.nan)
        return cls(weights, intercepts, nothing, nothing, nothing, nothing)


class AttributionTable:
    """The attributions of one method: per example one weight per component, an intercept, a penalty, their quality.

    Whatever is read of a block is of one fit, also while the block is fitted again. Blocks may be of different fits as
    long as a fit is under way, or after it was interrupted; the fit stage completes it.
    """

    def __init__(self, run: RunDirectory, method: str) -> None:
        self._run, self._storage = run, run.storage
        self.method = method

    def file(self, block: tuple[int, int]) -> str:
        """The name of the file of one example block."""
        return attribution_file(self.method, block)

    def is_complete(self, settings: Mapping[str, Any], blocks: list[tuple[int, int]]) -> bool:
        """Whether all example blocks are there, whole, made with ``settings``."""
        return not self.unfitted(settings, blocks)

    def unfitted(self, settings: Mapping[str, Any], blocks: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The example blocks that are not there, damaged, or made with other ``settings``; every byte is read."""
        wanted = {"settings": dict(settings)}
        return [
            block
            for block in blocks
            if not is_made_with(self._storage, self.file(block), {**self._belongs_to(block), **wanted})
        ]

    def decided(self, block: tuple[int, int]) -> dict[str, Any]:
        """What all examples decided together when one example block was fitted; empty where each stands alone.

        Raises:
            MissingWorkError: the file is not there.
            DamagedFileError: it is damaged.
        """
        return dict(self._metadata([block])[0].get(_DECIDED, {}))

    def set_aside_wrong(self, blocks: list[tuple[int, int]]) -> None:
        """For the process that holds the run: set aside the files that are damaged or of something else."""
        for block in blocks:
            set_aside_wrong(self._storage, self.file(block), self._belongs_to(block))

    def _belongs_to(self, block: tuple[int, int]) -> dict[str, Any]:
        return {**self._run.belongs_to(_CONTENT), "method": self.method, "examples": list(block)}

    def write(
        self,
        block: tuple[int, int],
        settings: Mapping[str, Any],
        attributions: Attributions,
        decided: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the attributions of one example block.

        Args:
            block: (first example, end).
            settings: what the attributions depend on besides the run's identity.
            attributions: of the block's examples.
            decided: what was decided for all examples together, from margins of all blocks; blocks of one fit agree.
        """
        assert np.isfinite(attributions.weights).all()
        assert np.isfinite(attributions.intercepts).all()
        columns = {
            "example_id": pa.array(np.arange(*block)),
            "method": pa.array([self.method] * len(attributions.weights)),
            "intercept": pa.array(attributions.intercepts),
        }
        for name in ("regularisation", *QUALITY):
            columns[name] = pa.array(getattr(attributions, name), from_pandas=True)  # NaN becomes null
        columns["weights"] = matrix_column(attributions.weights)
        if attributions.standard_errors is not None:
            columns["standard_errors"] = matrix_column(attributions.standard_errors)
        is_sparse = int(np.count_nonzero(attributions.weights)) < attributions.weights.size / 2
        belongs_to = {**self._belongs_to(block), "settings": dict(settings)}
        if decided:
            belongs_to[_DECIDED] = dict(decided)
        if attributions.r2_new_influences is not None:
            belongs_to[_INFLUENCES] = attributions.r2_new_influences.tolist()
        write_table(self._storage, self.file(block), columns, belongs_to, compress=is_sparse)

    def read(self, block: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Weights (block length, num_components) and intercepts (block length,) of one example block.

        Raises:
            MissingWorkError: the file is not there.
            DamagedFileError: it is damaged or of another run.
        """
        table = self._read(block, ["intercept", "weights"]).columns
        return matrix_of(table["weights"]), table["intercept"].to_numpy()

    def read_in_parts(self, block: tuple[int, int]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64]]]:
        """``read``, some rows after the other: the file is read and verified now, and decoded as rows are asked for.

        Raises:
            MissingWorkError, DamagedFileError: as ``read``.
        """
        name, num_rows = self.file(block), block[1] - block[0]
        parts = read_in_parts(
            *(self._storage, name, "fit", self._belongs_to(block), ["intercept", "weights"]),
            *(self._types, num_rows, _PART_BYTES),
        )
        if parts is None:
            raise self.missing(name)
        return ((matrix_of(part["weights"]), part["intercept"].to_numpy()) for part in parts)

    def read_quality(self, block: tuple[int, int]) -> tuple[dict[str, NDArray[np.float64]], list[float] | None]:
        """``regularisation`` and the quality numbers of one example block, (block length,) each; NaN for null. And the
        influences on ``r2_new``, as in ``Attributions``.

        Raises:
            MissingWorkError, DamagedFileError: as ``read``.
        """
        names = ["regularisation", *QUALITY]
        found = self._read(block, names)
        return {name: np.asarray(found.columns[name].to_numpy()) for name in names}, found.metadata.get(_INFLUENCES)

    def has_standard_errors(self, block: tuple[int, int]) -> bool:
        """Whether the attributions of one example block were fitted with standard errors.

        Raises:
            MissingWorkError, DamagedFileError: as ``read``.
        """
        return "standard_errors" in self._metadata([block])[0]["sha256"]

    def read_standard_errors(self, block: tuple[int, int]) -> NDArray[np.float32]:
        """Standard errors of the weights (block length, num_components).

        Raises:
            MissingWorkError: the file is not there, or was fitted without them.
            DamagedFileError: as ``read``.
        """
        table = self._read(block, [], ["standard_errors"]).columns
        if not table.column_names:
            raise MissingWorkError(
                f"{self._storage.where(self.file(block))} has no standard errors: run the fit stage with "
                f"regression.standard_errors=true."
            )
        return matrix_of(table["standard_errors"])

    def _read(self, block: tuple[int, int], columns: list[str], optional: Sequence[str] = ()) -> Content:
        name = self.file(block)
        found = read_content(
            *(self._storage, name, "fit", self._belongs_to(block), columns, optional),
            kind=_Metadata,
            types=self._types,
            num_rows=block[1] - block[0],
        )
        if found is None:
            raise self.missing(name)
        return found

    @property
    def _types(self) -> dict[str, pa.DataType]:
        of_weights = matrix_type("float32", self._run.design(TRAIN_DESIGN).num_components)
        numbers = dict.fromkeys(("intercept", "regularisation", *QUALITY), pa.float64())
        return {"weights": of_weights, "standard_errors": of_weights, **numbers}

    def missing(self, file: str | None = None) -> ConfigError | MissingWorkError:
        """The error where ``file`` is missing, or all of this method; it says which methods there are."""
        there = ", ".join(fitted_methods(self._run))
        if method_of(self.method) is None:
            return ConfigError(f"method={self.method!r}: must be one that the run has: {there or 'none yet'}.")
        others = f" There are attributions of {there}: name one of these as method, or" if there else ""
        what = f"{self._storage} has no attributions of {self.method!r}" if file is None else self._storage.where(file)
        ends = "" if file is None else " is missing"
        return MissingWorkError(f"{what}{ends}.{others} run the fit stage for {self.method!r}.")

    def settings(self, block: tuple[int, int]) -> dict[str, Any]:
        """What the attributions of one example block were made with; what the regression was asked for is of its type.

        Raises:
            MissingWorkError: the file is not there.
            DamagedFileError: it is damaged.
        """
        settings = dict(self._metadata([block])[0]["settings"])
        for name, kind in get_type_hints(RegressionConfig, include_extras=True).items():
            if name in settings and name != "backend":
                try:
                    check_type(kind, settings[name])
                except ValueError as error:
                    where = self._storage.where(self.file(block))
                    reason = f"{where} is damaged: in its metadata, settings.{name}: {error}."
                    raise DamagedFileError.of(where, reason, "fit", is_found=False) from None
        return settings

    def settings_fingerprint(self, blocks: list[tuple[int, int]]) -> str:
        """SHA-256 over method, settings and joint decisions of all blocks: another one for other attributions.

        Raises:
            MissingWorkError: a block is not there; the message names all that are not.
            DamagedFileError: one is damaged.
        """
        settings = [{**metadata["settings"], **metadata.get(_DECIDED, {})} for metadata in self._metadata(blocks)]
        return fingerprint_of({"method": self.method, "settings": settings})

    def _metadata(self, blocks: list[tuple[int, int]]) -> list[dict[str, Any]]:
        found = {
            self.file(block): read_metadata(self._storage, self.file(block), "fit", self._belongs_to(block), _Metadata)
            for block in blocks
        }
        missing = [file for file, metadata in found.items() if metadata is None]
        if missing:
            raise MissingWorkError(f"attributions of {self.method!r} lack {', '.join(missing)}: run the fit stage.")
        return [metadata for metadata in found.values() if metadata is not None]
