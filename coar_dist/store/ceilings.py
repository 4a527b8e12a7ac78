"""The ceiling of linear component models on a held-out design: evaluation/ceiling.<design>.parquet.

Columns as of every evaluation table, ``correlation`` being the best that a linear model can reach; what is known of all
examples together stands in the file's metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import TypedDict

from coar_dist.config.documents import Finite
from coar_dist.config.schema import MIN_CEILING_MASKS
from coar_dist.config.schema.values import Count
from coar_dist.designs.design import MaskDesign
from coar_dist.errors import MissingWorkError
from coar_dist.store.fingerprints import KnownFingerprints
from coar_dist.store.parquet import is_made_with, read_current, read_metadata, write_table
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.tables import AttributionTable

CEILING, CEILING_LABEL = "ceiling", "Ceiling, linear"


class _Settings(TypedDict):
    num_masks: Count
    num_pairs: int
    method: str


class _Numbers(TypedDict):
    mean: Finite | None
    standard_error: Finite | None
    lower: Finite | None
    lower_standard_error: Finite | None
    upper: Finite | None
    upper_standard_error: Finite | None


class _Metadata(TypedDict):
    settings: _Settings
    ceiling: _Numbers


_NUMBERS = tuple(_Numbers.__annotations__)


@dataclass(frozen=True)
class Ceiling:
    """Correlation of the best linear component model, estimated without fitting it.

    Attributes:
        mean: over examples; NaN where no example has one.
        standard_error: of ``mean`` over draws of the masks, with these examples.
        lower: a bound on ``mean`` from pairs of correlated masks, what it is if the rest of the margins is of degree 2;
            NaN without pairs.
        lower_standard_error: of ``lower``.
        upper: the other bound, what it is if the rest is of infinite degree.
        upper_standard_error: of ``upper``.
        correlations: (num_examples,) float64, NaN for constant margins; noisy ones drawn towards the mean.
        num_masks: held-out masks.
        num_pairs: those of them with a partner.
        method: the attributions that were taken away first, to which the estimate owes precision alone.
    """

    mean: float
    standard_error: float
    lower: float
    lower_standard_error: float
    upper: float
    upper_standard_error: float
    correlations: NDArray[np.float64]
    num_masks: int
    num_pairs: int
    method: str


def partners_of(design_name: str) -> str:
    """The name of the design with the partners of a held-out design's masks."""
    return f"{CEILING}_{design_name}"


def why_no_ceiling(design: MaskDesign) -> str | None:
    """Why there is no estimate on the masks of a design; None if there is one."""
    if not design.are_independent:
        how = "may not be" if design.are_independent is None else "are not"
        return f"{design.kind} masks {how} independent of each other; use evaluation.kind=bernoulli"
    if design.num_masks < MIN_CEILING_MASKS:
        return f"it takes {MIN_CEILING_MASKS} held-out masks, there are {design.num_masks}"
    return None


class CeilingTable:
    """The ceiling on one held-out design, estimated with the attributions of one method taken away."""

    def __init__(
        self,
        run: RunDirectory,
        design_name: str,
        method: str | None = None,
        fingerprints: KnownFingerprints | None = None,
    ) -> None:
        """``method``: of the attributions; None reads what is there, whichever it was made with. ``fingerprints``: of
        the attributions, for who reads many tables."""
        self._run, self._storage = run, run.storage
        self._fingerprints = fingerprints or KnownFingerprints()
        self.design_name, self.method = design_name, method
        self.file = f"evaluation/{CEILING}.{design_name}.parquet"

    def _belongs_to(self, method: str) -> dict[str, Any]:
        store = self._run.margins(self.design_name)
        partners = partners_of(self.design_name)
        attributions = AttributionTable(self._run, method)
        pairs = self._run.margins(partners) if partners in self._run.designs else None
        settings = {
            "design": store.fingerprint,
            "num_masks": store.num_masks,
            "partners": None if pairs is None else pairs.fingerprint,
            "num_pairs": 0 if pairs is None else pairs.num_masks,
            "method": method,
            "attributions": self._fingerprints.of(method, lambda: attributions.settings_fingerprint(store.blocks)),
        }
        return {**self._run.belongs_to("evaluation"), "settings": settings}

    def is_complete(self) -> bool:
        """Whether the table is there, whole, and of the masks and attributions as they are now."""
        assert self.method is not None
        return is_made_with(self._storage, self.file, self._belongs_to(self.method))

    def set_aside_wrong(self) -> None:
        """For the process that holds the run: set the file aside if it is damaged or of another run."""
        self._run.set_aside_wrong("evaluation", self.file)

    def write(self, ceiling: Ceiling) -> None:
        """Write the table."""
        size = len(ceiling.correlations)
        fraction = self._run.design(self.design_name).ablation_fraction
        columns = {
            "example_id": pa.array(np.arange(size)),
            "method": pa.array([CEILING] * size),
            "design": pa.array([self.design_name] * size),
            "ablation_fraction": pa.array(np.full(size, fraction)),
            "correlation": pa.array(ceiling.correlations, from_pandas=True),
        }
        numbers = {name: getattr(ceiling, name) for name in _NUMBERS}
        known = {name: value if np.isfinite(value) else None for name, value in numbers.items()}
        write_table(self._storage, self.file, columns, {**self._belongs_to(ceiling.method), CEILING: known})

    def read(self) -> Ceiling:
        """The ceiling.

        Raises:
            MissingWorkError: there is none on masks of this design, or it is not there, or of masks or attributions
                that have changed since.
            DamagedFileError: the file is damaged.
        """
        where = self._storage.where(self.file)
        reason = why_no_ceiling(self._run.design(self.design_name))
        if reason is not None:
            raise MissingWorkError(f"{where}: no ceiling of linear models is estimated, because {reason}.")
        found = self._fingerprints.tried(
            lambda: read_current(
                self._storage,
                self.file,
                "evaluate",
                self._expected,
                kind=_Metadata,
                types={"correlation": pa.float64()},
                num_rows=self._run.num_examples,
            )
        )
        if found is None:
            raise MissingWorkError(f"{where} is missing or of earlier attributions: run the evaluate stage.")
        settings, numbers = found.metadata["settings"], found.metadata[CEILING]
        known = {name: float("nan") if numbers[name] is None else float(numbers[name]) for name in _NUMBERS}
        return Ceiling(
            **known,
            correlations=np.asarray(found.columns["correlation"].to_numpy()),
            num_masks=int(settings["num_masks"]),
            num_pairs=int(settings["num_pairs"]),
            method=str(settings["method"]),
        )

    def _expected(self) -> dict[str, Any]:
        """What the file must belong to, with the method that it names where none was asked for."""
        method = self.method
        if method is None:
            there = read_metadata(self._storage, self.file, "evaluate", self._run.belongs_to("evaluation"), _Metadata)
            method = None if there is None else there["settings"]["method"]
        if method is None:
            return {**self._run.belongs_to("evaluation"), "settings": None}  # which no file has
        return self._belongs_to(str(method))
