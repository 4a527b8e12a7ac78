"""The images that faults are planted into: a part of another source, with a draw for each image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.functions import call
from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.source import IndexedSource, Source
from coar_dist.tasks.examples.sources import SOURCES

_PART_COUNTER, _CHOICE_COUNTER, CLASS_COUNTER = 2**64 - 2, 2**64 - 3, 2**64 - 4
"""Second words of Philox keys; ``source`` has the one above, mask designs the small ones."""


@dataclass(frozen=True)
class Images:
    """Images of a source, or a part of them, before anything is planted.

    Attributes:
        labels: (num_source,) int64, of all images of the source.
        places: (num_images,) int64 ascending, which of them are in the part.
        load: the example set of ascending places.
    """

    labels: NDArray[np.int64]
    places: NDArray[np.int64]
    load: Callable[[NDArray[np.int64]], ExampleSet]

    @classmethod
    def of(cls, source: str, arguments: dict[str, Any], start: float, stop: float) -> Images:
        """The part of a source's images from ``start`` to ``stop``, as shares, in a random order that never changes.

        Raises:
            ConfigError: no such source, or the shares are not in order.
            TaskError: the source gives no images with labels, or none lies in the part.
        """
        if source not in SOURCES:  # a name that a configuration file could hide code in
            raise ConfigError(f"source={source!r}: must be one of {', '.join(SOURCES)}.")
        if not 0.0 <= start < stop <= 1.0:
            raise ConfigError(f"start={start}, stop={stop}: there must be 0 <= start < stop <= 1.")
        made: Source = call("arguments.arguments", SOURCES[source], arguments)
        if isinstance(made, ExampleSet):
            made = _indexed(made)
        if not isinstance(made, IndexedSource) or made.labels is None:
            why = "has no class labels" if isinstance(made, IndexedSource) else "is a stream (use streaming=false)"
            raise TaskError(f"source={source!r} {why}: faults are planted into a known number of images with labels.")
        num_images = made.num_examples
        ranks = np.argsort(np.argsort(_words(0, _PART_COUNTER, num_images), kind="stable"), kind="stable")
        places = np.flatnonzero((ranks >= round(start * num_images)) & (ranks < round(stop * num_images)))
        if len(places) == 0:
            raise TaskError(f"start={start}, stop={stop}: no image of the {num_images} of {source!r} is left.")
        return cls(made.labels(), places, made.load)

    def labels_of_part(self) -> NDArray[np.int64]:
        """(num_images,) int64."""
        return self.labels[self.places]

    def draws(self, seed: int, counter: int = _CHOICE_COUNTER) -> NDArray[np.float64]:
        """(num_images,) float64 in [0, 1), one for each image of the part."""
        words = _words(seed, counter, len(self.labels))[self.places]
        return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _indexed(examples: ExampleSet) -> IndexedSource:
    """The same examples, chosen by their places."""
    labels = examples.targets
    has_classes = labels.ndim == 1 and not labels.is_floating_point()
    return IndexedSource(
        len(examples), examples.select, (lambda: labels.cpu().numpy().astype(np.int64)) if has_classes else None
    )


def _words(seed: int, counter: int, num_words: int) -> NDArray[np.uint64]:
    """Random words, the one at a place being the same for any number of them."""
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed={seed}: must be in 0..2**64-1.")
    return np.random.Philox(key=np.array([seed, counter], dtype=np.uint64)).random_raw(num_words)
