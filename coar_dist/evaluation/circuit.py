"""Rankings of components, the circuits that they make, and what these came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.schema.edit import RANDOM
from coar_dist.designs.given import Listed, packed
from coar_dist.evaluation.circuit_scores import (
    Ends,
    auroc,
    average_precision,
    cmd,
    cpr,
    faithfulness,
    num_kept,
    strongest_first,
)
from coar_dist.store.circuits import MAGNITUDE, RANKINGS, SCORES, SIGNED, CircuitScores
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

_COUNTER = 2**64 - 5
"""The second word of the random rankings' Philox keys, less the draw; mask designs use the masks' ids there."""
Key = tuple[str, str, int]
"""Method, ranking and draw; the draw of what is not random is 0."""


@dataclass(frozen=True)
class Weights:
    """What a ranking is made from, of one method.

    Attributes:
        mean: (num_components,) float64 mean weights over examples.
        mean_magnitude: (num_components,) float64 mean absolute weights over examples.
        known: scores of known components by every example's own weights, the mean over examples; empty without any.
    """

    mean: NDArray[np.float64]
    mean_magnitude: NDArray[np.float64]
    known: Mapping[str, float]

    @classmethod
    def of(cls, run: RunDirectory, method: str, is_known: NDArray[np.bool_] | None) -> Weights:
        """Read them, one block of examples after the other.

        Args:
            run: with attributions of the method.
            method: whose.
            is_known: (num_components,); None where none are.

        Raises:
            MissingWorkError, DamagedFileError: attributions are missing or damaged.
        """
        d, table = run.components.num_components, AttributionTable(run, method)
        weight_sums, known_sums = np.zeros((2, d)), np.zeros(2)
        for block in run.margins(TRAIN_DESIGN).blocks:
            weights, _ = table.read(block)
            exact = weights.astype(np.float64)
            weight_sums += [exact.sum(axis=0), np.abs(exact).sum(axis=0)]
            if is_known is not None:
                own = np.abs(exact)
                known_sums += auroc(own, is_known).sum(), average_precision(own, is_known).sum()
        names = ("auroc_per_example", "average_precision_per_example")
        known = {} if is_known is None else dict(zip(names, (known_sums / run.num_examples).tolist(), strict=True))
        means = weight_sums / run.num_examples
        return cls(means[0], means[1], known)

    @classmethod
    def random(cls, num_components: int, seed: int, draw: int, is_known: NDArray[np.bool_] | None) -> Weights:
        """A random ranking: weights above 0, so that both rankings are the same."""
        generator = np.random.Philox(key=np.array([seed, _COUNTER - draw], dtype=np.uint64))
        order = np.random.Generator(generator).permutation(num_components)
        weights: NDArray[np.float64] = order.astype(np.float64) + 1.0
        known = {}
        if is_known is not None:
            known["auroc_per_example"] = float(auroc(weights[None], is_known)[0])
            known["average_precision_per_example"] = float(average_precision(weights[None], is_known)[0])
        return cls(weights, weights, known)

    def scores(self, is_known: NDArray[np.bool_] | None) -> dict[str, float]:
        """All of ``SCORES`` that need no circuit, NaN where no component is known."""
        if is_known is None:
            return dict.fromkeys(SCORES[:4], float("nan"))
        row = self.mean_magnitude[None]
        found = {"auroc": auroc(row, is_known), "average_precision": average_precision(row, is_known)}
        return {name: float(value[0]) for name, value in found.items()} | dict(self.known)


@dataclass(frozen=True)
class Circuits:
    """The masks of all circuits.

    Attributes:
        sizes: (num_sizes,) shares of the components.
        num_components: (num_sizes,) how many these are.
        designs: by name, each the circuits of a ranking, but none and all: equal rankings share a design.
        of_ranking: the design of each ranking.
    """

    sizes: NDArray[np.float64]
    num_components: NDArray[np.int64]
    designs: Mapping[str, Listed]
    of_ranking: Mapping[Key, str]

    @classmethod
    def of(cls, weights: Mapping[tuple[str, int], Weights], sizes: list[float], rises: bool = True) -> Circuits:
        """The circuits of all methods.

        Args:
            weights: by method and draw.
            sizes: shares of the components, ascending.
            rises: whether the whole model's mean output is above that with every component ablated; where it is below,
                as of a loss, the signed ranking begins with the components that lower it most.
        """
        shares = np.array(sizes, dtype=np.float64)
        d = len(next(iter(weights.values())).mean)
        counts = num_kept(shares, d)
        designs: dict[str, Listed] = {}
        of_ranking: dict[Key, str] = {}
        for (method, draw), found in weights.items():
            for ranking in RANKINGS:
                towards_full = found.mean if rises or method == RANDOM else -found.mean
                masks = masks_of(strongest_first(towards_full, ranking == MAGNITUDE), inner(counts, d))
                if len(masks):
                    design = Listed.of(packed(masks), d)
                    name = design_name(design)
                    designs[name] = design
                    of_ranking[method, ranking, draw] = name
        return cls(shares, counts, designs, of_ranking)


def inner(counts: NDArray[np.int64], num_components: int) -> NDArray[np.int64]:
    """The sizes of circuits that hold some components and not all, each once, ascending."""
    return np.unique(counts[(counts > 0) & (counts < num_components)])


def masks_of(order: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Masks (num_counts, num_components) bool that keep the first components of an order alone."""
    masks = np.zeros((len(counts), len(order)), dtype=np.bool_)
    for row, count in enumerate(counts):
        masks[row, order[:count]] = True
    return masks


def masks_of_ends(num_components: int) -> Listed:
    """The masks of the whole model and of none of its components."""
    both = np.stack([np.ones(num_components, np.bool_), np.zeros(num_components, np.bool_)])
    return Listed.of(packed(both), num_components)


def design_name(design: Listed) -> str:
    """The name of a design of circuits: other masks have another."""
    return f"circuit_{design.fingerprint.removeprefix('sha256:')[:12]}"


def scored(
    circuits: Circuits,
    weights: Mapping[tuple[str, int], Weights],
    outputs: Mapping[str, NDArray[np.float64]],
    ends: Ends,
    is_known: NDArray[np.bool_] | None,
) -> CircuitScores:
    """What circuits came to, random rankings averaged over their draws.

    Args:
        circuits: whose masks were run.
        weights: what the rankings were made from, by method and draw.
        outputs: by design (num_masks,) mean outputs over examples.
        ends: of the whole model and of none of it.
        is_known: (num_components,); None where none are.
    """
    d = len(next(iter(weights.values())).mean)
    counts, some = circuits.num_components, inner(circuits.num_components, d)
    scores: dict[str, list[dict[str, float]]] = {}
    curves: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    for (method, draw), found in weights.items():
        values = found.scores(is_known)
        for ranking, name, area in ((SIGNED, "cpr", cpr), (MAGNITUDE, "cmd", cmd)):
            curve = np.where(counts == d, ends.full, ends.none)
            if len(some):
                of_some = outputs[circuits.of_ranking[method, ranking, draw]]
                places = np.searchsorted(some, counts).clip(max=len(some) - 1)
                curve = np.where((counts > 0) & (counts < d), of_some[places], curve)
            curves.setdefault((method, ranking), []).append(curve)
            values[name] = area(circuits.sizes, faithfulness(curve, ends))
        scores.setdefault(method, []).append(values)
    means = {key: np.mean(found, axis=0) for key, found in curves.items()}
    return CircuitScores(
        sizes=circuits.sizes,
        num_components=counts,
        full=ends.full,
        none=ends.none,
        reason=ends.why_undefined,
        known=None if is_known is None else tuple(np.flatnonzero(is_known).tolist()),
        scores={
            method: {name: float(np.mean([values[name] for values in found])) for name in SCORES}
            for method, found in scores.items()
        },
        outputs=means,
        faithfulness={key: faithfulness(curve, ends) for key, curve in means.items()},
    )
