"""The data sets of ``torchvision.datasets``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.folders import image_files
from coar_dist.tasks.examples.pixels import Geometry, decode, missing
from coar_dist.tasks.examples.source import SOURCE_ID, IndexedSource, tensor_of


def torchvision_dataset(
    name: str,
    root: str | None = None,
    arguments: dict[str, Any] | None = None,
    image_size: int | None = None,
    resize: int | list[int] | None = None,
    interpolation: str = "bilinear",
    mode: str = "RGB",
) -> IndexedSource:
    """Images and class labels of ``torchvision.datasets.<name>(root, **arguments)``, in its order.

    Args:
        name: the class, e.g. ``CIFAR10``.
        root: where its files lie; None for a data set without.
        arguments: further arguments of the class, e.g. ``{train: false, download: true}``.
        image_size, resize, interpolation, mode: see ``Geometry``; by default images stay as they are.

    Returns:
        Inputs (num_examples, channels, height, width) uint8, targets (num_examples,) int64; ``source_id`` is the index,
        or the path below ``root`` where the data set is a folder of files.

    Raises:
        ConfigError: there is no such data set.
        TaskError: torchvision is not there, or the items are not pairs of an image and an integer label.
    """
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: of another build than torch
        raise missing("torchvision", "vision", error) from error
    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    if kind is None:
        raise ConfigError(f"name={name!r}: torchvision.datasets has {', '.join(sorted(datasets.__all__))}.")
    dataset = kind(**({} if root is None else {"root": root}), **(arguments or {}))
    geometry = Geometry(image_size, resize, interpolation, mode)
    if isinstance(dataset, datasets.DatasetFolder):  # its files can be decoded in parallel
        top = Path(dataset.root)
        files = [str(Path(path).relative_to(top)) for path, _ in dataset.samples]
        return image_files(top, files, [label for _, label in dataset.samples], {}, geometry)

    def load(ids: NDArray[np.int64]) -> ExampleSet:
        labels: list[int] = []

        def images() -> Iterator[tuple[str, Any]]:
            for i in ids.tolist():
                image, label = _item(dataset, i, name)
                labels.append(label)
                yield f"example {i} of {name}", image

        pixels = decode(images(), geometry, len(ids))
        return ExampleSet(tensor_of(pixels), tensor_of(np.array(labels, dtype=np.int64)), {SOURCE_ID: ids})

    def labels_of_all() -> NDArray[np.int64]:
        listed = np.asarray(getattr(dataset, "targets", None))
        if listed.shape == (len(dataset),) and listed.dtype.kind in "iu":
            return listed.astype(np.int64)
        return np.array([_item(dataset, i, name)[1] for i in range(len(dataset))], dtype=np.int64)

    return IndexedSource(len(dataset), load, labels_of_all)


def _item(dataset: Any, example_id: int, name: str) -> tuple[Any, int]:
    """Image and label; the data set's own code is called by one thread alone."""
    item = dataset[example_id]
    if isinstance(item, tuple | list) and len(item) == 2 and hasattr(item[0], "convert"):
        label = np.asarray(item[1])
        if label.shape == () and label.dtype.kind in "iu":
            return item[0], int(label)
    kinds = [type(part).__name__ for part in item] if isinstance(item, tuple | list) else type(item).__name__
    raise TaskError(
        f"example {example_id} of torchvision's {name} is {kinds}, not an image and an integer class label. Write a "
        f"loader of your own for it (task.examples.source=module:function)."
    )
