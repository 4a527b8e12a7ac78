"""Hugging Face data sets, from the hub or from disk, whole or streamed: rows of chosen columns, and images of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.pixels import Geometry, decode, missing
from coar_dist.tasks.examples.source import SOURCE_ID, IndexedSource, StreamedSource, tensor_of

Row = Mapping[str, Any]
Pairs = Iterable[tuple[int, Row]]


@dataclass(frozen=True)
class HubRows:
    """Rows of one split, with chosen columns alone.

    Attributes:
        where: the split in words, for messages.
        dataset: a ``datasets.Dataset``, or an ``IterableDataset`` where it is streamed.
    """

    where: str
    dataset: Any

    @classmethod
    def open(
        cls, dataset: str, split: str, config_name: str | None, streaming: bool, columns: Sequence[str]
    ) -> HubRows:
        """Open a split.

        Args:
            dataset: a name on the hub; a folder written by ``save_to_disk``; or a folder of files that
                ``load_dataset`` understands, e.g. ``data/test-*.parquet``.
            split: its name, e.g. ``validation``, or a slice such as ``test[:500]`` where it is not streamed.
            config_name: which of the data set's configurations.
            streaming: read rows as they come, and no more than are asked for.
            columns: which; none twice.

        Raises:
            TaskError: ``datasets`` is not installed, or the folder lacks the split or a column.
        """
        try:
            import datasets
        except ImportError as error:
            raise missing("datasets", "hf", error) from error
        where = f"{dataset} [{split}]"
        folder = Path(dataset)
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
            if split not in splits:
                raise TaskError(f"{dataset} has the splits {', '.join(splits)}, not {split!r}.")
            found = datasets.load_from_disk(str(folder / split))
        elif (folder / "state.json").is_file():
            found = datasets.load_from_disk(dataset)
            if found.split is not None and str(found.split) != split:
                raise TaskError(f"{dataset} is the split {str(found.split)!r}, not {split!r}.")
        else:
            found = datasets.load_dataset(dataset, config_name, split=split, streaming=streaming)
        if streaming and isinstance(found, datasets.Dataset):
            found = found.to_iterable_dataset()
        names = found.column_names
        if names is None:  # a stream of files without a schema: its first row tells
            names = list(next(iter(found.take(1)), {}))
        absent = [name for name in columns if name not in names]
        if absent:
            raise TaskError(f"{where} has no column {absent[0]!r}; it has {', '.join(names)}.")
        return cls(where, found.select_columns(list(dict.fromkeys(columns))))

    def with_encoded(self, image_column: str) -> HubRows:
        """The same with images left as they are stored.

        Raises:
            TaskError: the column holds no images.
        """
        import datasets

        features = self.dataset.features
        if features is None or not isinstance(features[image_column], datasets.Image):
            kind = "of unknown type" if features is None else repr(features[image_column])
            raise TaskError(f"column {image_column!r} of {self.where} is {kind}, not Image.")
        return HubRows(self.where, self.dataset.cast_column(image_column, datasets.Image(decode=False)))

    def source(self, load: Callable[[Pairs], ExampleSet], label_column: str | None) -> IndexedSource | StreamedSource:
        """The source whose examples ``load`` makes of rows with their ids; the label makes the classes."""
        import datasets

        rows = self.dataset
        if isinstance(rows, datasets.IterableDataset):

            def label(row: Row) -> int:
                assert label_column is not None
                return self.label(row, label_column, "a row")

            return StreamedSource(lambda: iter(rows), load, None if label_column is None else label)

        def load_ids(ids: NDArray[np.int64]) -> ExampleSet:
            chosen = rows if len(ids) == rows.num_rows else rows.select(ids)
            return load(zip(ids.tolist(), chosen, strict=True))

        def labels() -> NDArray[np.int64]:
            assert label_column is not None
            pairs = enumerate(rows.select_columns([label_column]))
            return np.array([self.label(row, label_column, f"row {i}") for i, row in pairs], dtype=np.int64)

        return IndexedSource(rows.num_rows, load_ids, None if label_column is None else labels)

    def label(self, row: Row, column: str, name: str) -> int:
        """The class label of a row.

        Raises:
            TaskError: it is not an integer or a truth value.
        """
        value = row[column]
        if not isinstance(value, int):
            raise TaskError(f"{name} of {self.where}: {column!r} is {value!r}, not an integer class label.")
        return int(value)


class Gathered:
    """Ids and further columns of the rows that pass by."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self._ids: list[int] = []
        self._values: dict[str, list[Any]] = {name: [] for name in names or ()}

    def passing(self, pairs: Pairs) -> Iterator[tuple[int, Row]]:
        """The same pairs, remembered."""
        for source_id, row in pairs:
            self._ids.append(source_id)
            for name, values in self._values.items():
                values.append(row[name])
            yield source_id, row

    def columns(self) -> dict[str, Any]:
        """Columns of an example set, ``source_id`` first."""
        return {SOURCE_ID: np.array(self._ids), **self._values}


def huggingface_images(
    dataset: str,
    split: str,
    config_name: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    columns: list[str] | None = None,
    streaming: bool = False,
    image_size: int | None = 224,
    resize: int | list[int] | None = 256,
    interpolation: str = "bilinear",
    mode: str = "RGB",
) -> IndexedSource | StreamedSource:
    """Images and class labels of a Hugging Face data set.

    Args:
        dataset, split, config_name, streaming: see ``HubRows.open``.
        image_column: images, encoded as files.
        label_column: integer class labels.
        columns: further columns to keep with the examples, e.g. group labels.
        image_size, resize, interpolation, mode: see ``Geometry``; the defaults are torchvision's for ImageNet.

    Returns:
        Inputs (num_examples, 3, image_size, image_size) uint8, targets (num_examples,) int64; ``source_id`` is the row
        in the split.

    Raises:
        TaskError: a column is missing or holds something else, or an image cannot be decoded.
    """
    geometry = Geometry(image_size, resize, interpolation, mode)
    rows = HubRows.open(dataset, split, config_name, streaming, [image_column, label_column, *(columns or ())])
    rows = rows.with_encoded(image_column)

    def load(pairs: Pairs) -> ExampleSet:
        gathered, labels = Gathered(columns), []

        def images() -> Iterator[tuple[str, Path | bytes]]:
            for i, row in gathered.passing(pairs):
                name = f"row {i} of {rows.where}"
                labels.append(rows.label(row, label_column, name))
                stored = row[image_column]
                if stored is None or (stored["bytes"] is None and stored["path"] is None):
                    raise TaskError(f"{name} has no image.")
                yield name, stored["bytes"] if stored["bytes"] is not None else Path(stored["path"])

        pixels = decode(images(), geometry, None)
        return ExampleSet(tensor_of(pixels), tensor_of(np.array(labels, dtype=np.int64)), gathered.columns())

    return rows.source(load, label_column)
