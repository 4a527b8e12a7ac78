"""What a source of examples is before it is loaded, and how a subset is taken of it without loading the rest.

A source is an ``ExampleSet`` in memory, an ``IndexedSource`` whose examples have numbers, or a ``StreamedSource`` whose
rows come one after the other. The order of examples is the source's own, always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coar_dist.config.schema import SubsetConfig
from coar_dist.errors import ConfigError, TaskError, counted
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.mapped_examples import in_pieces, mapped

SOURCE_ID = "source_id"
_SAMPLE_COUNTER = 2**64 - 1
"""The second word of the sample's Philox key; mask designs use the masks' ids there."""


@dataclass(frozen=True)
class IndexedSource:
    """Examples ``0 .. num_examples - 1``, loaded when asked for.

    Attributes:
        num_examples: how many there are.
        load: the example set of ascending ids (num_chosen,) int64, in their order.
        labels: class labels (num_examples,) int64 of all, read without decoding; None where there are no classes.
    """

    num_examples: int
    load: Callable[[NDArray[np.int64]], ExampleSet]
    labels: Callable[[], NDArray[np.int64]] | None = None


@dataclass(frozen=True)
class StreamedSource:
    """Rows in an order that is always the same, of unknown number.

    Attributes:
        rows: a new pass over all rows.
        load: the example set of (id, row) pairs, in their order.
        label: the class label of a row; None where there are no classes.
    """

    rows: Callable[[], Iterator[Mapping[str, Any]]]
    load: Callable[[Iterable[tuple[int, Mapping[str, Any]]]], ExampleSet]
    label: Callable[[Mapping[str, Any]], int] | None = None


Source = ExampleSet | IndexedSource | StreamedSource


def load_subset(source: Source, subset: SubsetConfig, name: str, key: str) -> ExampleSet:
    """The examples of ``source`` that ``subset`` asks for, each with its ``source_id``.

    Args:
        source: all examples.
        subset: which; ``check_subset`` has passed it.
        name: the source's name, for messages.
        key: the config key of ``subset``, for messages.

    Raises:
        ConfigError: the subset asks for what the source does not have.
    """
    if isinstance(source, StreamedSource):
        return in_pieces(source.load, partial(_streamed, source, subset, name, key))
    if isinstance(source, IndexedSource):
        ids = chosen_ids(subset, source.num_examples, source.labels, name, key)
        load = source.load
        return in_pieces(lambda some: load(np.fromiter(some, np.int64)), lambda: iter(ids))
    columns = {SOURCE_ID: np.arange(len(source)), **source.columns}
    source = replace(source, columns=columns)
    if subset == SubsetConfig():
        return mapped(source)
    targets = source.targets
    has_classes = targets.ndim == 1 and not targets.is_floating_point()
    labels = targets.cpu().numpy().astype(np.int64)
    return mapped(source.select(chosen_ids(subset, len(source), (lambda: labels) if has_classes else None, name, key)))


def chosen_ids(
    subset: SubsetConfig, num_examples: int, labels: Callable[[], NDArray[np.int64]] | None, name: str, key: str
) -> NDArray[np.int64]:
    """The ids (num_chosen,) int64, ascending, that a subset takes of ``num_examples`` examples.

    Raises:
        ConfigError: an id is out of range, a class absent, a number larger than what there is to choose from.
    """
    if num_examples == 0:
        raise TaskError(f"{name} has no examples.")
    ids = np.arange(0, num_examples, subset.every or 1, dtype=np.int64)
    if subset.ids is not None:
        if subset.ids[-1] >= num_examples:
            raise _id_outside(subset, num_examples, name, key)
        ids = np.array(subset.ids, dtype=np.int64)
    if subset.classes is not None:
        if labels is None:
            raise _no_classes(subset, name, key)
        label_of = labels()[ids]
        absent = sorted(set(subset.classes) - set(label_of.tolist()))
        if absent:
            raise _class_absent(absent, subset, name, key)
        ids = ids[np.isin(label_of, subset.classes)]
    if subset.sample is not None:
        if subset.sample > len(ids):
            raise _too_few("sample", subset.sample, len(ids), name, key)
        generator = np.random.Philox(key=np.array([subset.seed, _SAMPLE_COUNTER], dtype=np.uint64))
        words = generator.random_raw(num_examples)[ids]
        ids = np.sort(ids[np.argsort(words, kind="stable")[: subset.sample]])
    if subset.first is not None:
        if subset.first > len(ids):
            raise _too_few("first", subset.first, len(ids), name, key)
        ids = ids[: subset.first]
    return ids


def _streamed(
    source: StreamedSource, subset: SubsetConfig, name: str, key: str
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The chosen rows of a stream, read no further than the last of them."""
    if subset.sample is not None:
        raise ConfigError(
            f"{key}.sample={subset.sample}: a sample needs to know how many examples there are, which a stream does "
            f"not tell. Use streaming=false, or {key}.every and {key}.first."
        )
    if subset.classes is not None and source.label is None:
        raise _no_classes(subset, name, key)
    wanted, classes = None if subset.ids is None else set(subset.ids), set(subset.classes or ())
    absent = set(classes)
    source_id, num_chosen = -1, 0
    for source_id, row in enumerate(source.rows()):
        if wanted is None and source_id % (subset.every or 1):
            continue
        if wanted is None or source_id in wanted:
            label = source.label(row) if classes and source.label is not None else None
            absent.discard(label)
            if not classes or label in classes:
                yield source_id, row
                num_chosen += 1
        if num_chosen == subset.first:
            return  # whether a class comes later is not worth the download
        if subset.ids is not None and source_id == subset.ids[-1]:
            break
    else:
        if source_id < 0:
            raise TaskError(f"{name} has no examples.")
        if subset.ids is not None:
            raise _id_outside(subset, source_id + 1, name, key)
    if absent:
        raise _class_absent(sorted(absent), subset, name, key)
    if subset.first is not None:
        raise _too_few("first", subset.first, num_chosen, name, key)


def tensor_of(values: NDArray[Any]) -> Tensor:
    """A tensor with the values' own dtype and memory where it can be had, else a copy."""
    return torch.from_numpy(np.require(values, requirements=["C", "W", "O"]))


def _id_outside(subset: SubsetConfig, num_examples: int, name: str, key: str) -> ConfigError:
    outside = [i for i in subset.ids or () if i >= num_examples]
    return ConfigError(f"{key}.ids: {outside[:10]} are outside 0..{num_examples - 1}, the examples of {name}.")


def _no_classes(subset: SubsetConfig, name: str, key: str) -> ConfigError:
    return ConfigError(f"{key}.classes={subset.classes}: the examples of {name} have no class labels. Leave it out.")


def _class_absent(absent: list[int], subset: SubsetConfig, name: str, key: str) -> ConfigError:
    among = "the examples chosen by every or ids" if subset.every or subset.ids else f"the examples of {name}"
    return ConfigError(f"{key}.classes={subset.classes}: no example has label {absent[:10]} among {among}.")


def _too_few(option: str, wanted: int, there: int, name: str, key: str) -> ConfigError:
    return ConfigError(
        f"{key}.{option}={wanted}: {name} has {counted(there, 'example')} to choose from. Ask for fewer."
    )
