"""What selects components: attributions of targets and references, predictions step by step, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.schema import GREEDY, MAGNITUDE, RANDOM, EditConfig
from coar_dist.editing.scores import Moments, at_random, by_magnitude, by_score, greedily, moments_of, t_scores
from coar_dist.errors import ConfigError
from coar_dist.store.methods import fitted_methods
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import TRAIN_DESIGN
from coar_dist.store.tables import AttributionTable


@dataclass(frozen=True)
class Orders:
    """In which order a selection ablates components.

    Attributes:
        order: (at least max_components,) int64 component ids.
        scores: (num_components,) float64 t-statistics; None where the selection has none.
    """

    order: NDArray[np.int64]
    scores: NDArray[np.float64] | None = None


class Selector:
    """The selections of an edit, over the attributions of one run.

    Attributes:
        main: the selection that the edit is made with.
        names: all selections, ``main`` first.
    """

    def __init__(self, reader: RunReader, edit: EditConfig) -> None:
        self._reader, self._edit = reader, edit
        self.main = edit.method or self._best
        self.names = [self.main, *(name for name in edit.compare if name != self.main)]
        self._references: tuple[bytes, dict[str, Moments]] = (b"", {})

    @classmethod
    def of(cls, reader: RunReader, edit: EditConfig) -> Selector:
        """The selections that an edit asks for.

        Raises:
            ConfigError: one of them is unknown, or has no attributions in the run.
        """
        selector = cls(reader, edit)
        there = fitted_methods(reader.directory)
        for key, name in [("method", selector.main), *(("compare", name) for name in selector.names[1:])]:
            if name not in (*there, GREEDY, MAGNITUDE, RANDOM):
                raise ConfigError(
                    f"edit.{key}={name!r}: the run has attributions of {', '.join(there) or 'no method'}. Use one of "
                    f"these, {GREEDY}, {MAGNITUDE} or {RANDOM}, or run the stages ablate and fit for it."
                )
        return selector

    @cached_property
    def _best(self) -> str:
        """Whose attributions are read for selections that have none of their own: the same for the whole edit."""
        return self._reader.best_method

    @property
    def _methods(self) -> list[str]:
        """The methods whose attributions are read."""
        names = [self._best if name in (GREEDY, RANDOM) else name for name in self.names if name != MAGNITUDE]
        return list(dict.fromkeys(names))

    @property
    def fingerprint(self) -> dict[str, str]:
        """What the selection depends on: attributions may be fitted again."""
        blocks = self._reader.directory.margins(TRAIN_DESIGN).blocks
        directory = self._reader.directory
        return {name: AttributionTable(directory, name).settings_fingerprint(blocks) for name in self._methods}

    def orders(
        self,
        magnitudes: NDArray[np.float64] | None,
        targets: NDArray[np.int64],
        references: NDArray[np.int64],
        max_components: int,
    ) -> dict[str, Orders]:
        """The order of every selection, by name.

        Args:
            magnitudes: (num_components,) of the unedited model; None where nothing is selected by them.
            targets: example ids.
            references: example ids.
            max_components: of every order's entries, how many count.
        """
        found: dict[str, Orders] = {}
        for method in self._methods:
            scores = t_scores(moments_of(self._reader, targets, method), self._moments_of(references)[method])
            found[method] = Orders(by_score(scores, self._edit.direction), scores)
        if GREEDY in self.names:
            weights, intercepts = (
                (self._reader.weights(ids.tolist(), self._best), self._reader.intercepts(ids.tolist(), self._best))
                for ids in (targets, references)
            )
            found[GREEDY] = Orders(greedily(*weights, *intercepts, self._edit.direction, max_components))
        if MAGNITUDE in self.names:
            assert magnitudes is not None
            found[MAGNITUDE] = Orders(by_magnitude(magnitudes))
        if RANDOM in self.names:
            like = found[self.main].order if self.main in found else found[self._best].order
            found[RANDOM] = Orders(at_random(like, self._reader.components.offsets, self._edit.seed))
        return {name: found[name] for name in self.names}

    def _moments_of(self, references: NDArray[np.int64]) -> Mapping[str, Moments]:
        """Moments of the references' weights, computed once for all targets."""
        key = references.tobytes()
        if self._references[0] != key:
            moments = {method: moments_of(self._reader, references, method) for method in self._methods}
            self._references = key, moments
        return self._references[1]
