"""Example sets that lie as arrays in NumPy and Parquet files, and scikit-learn's digits."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coar_dist.errors import ConfigError, TaskError, counted
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.parquet_table import ParquetTable
from coar_dist.tasks.examples.source import SOURCE_ID, IndexedSource, tensor_of

NUM_DIGITS_TEST = 500


def digits(split: str = "test", num_examples: int | None = None, scale: int = 1) -> ExampleSet:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of values in [0, 1]: 1,297 for training, 500 for test.

    The split is a fixed random permutation, because the images of one writer stand together in the original order.

    Args:
        split: ``train`` or ``test``.
        num_examples: how many to take, from the start; None takes all.
        scale: the side of the square that every pixel becomes.

    Raises:
        ConfigError: the scale is not positive.
        TaskError: the split is unknown, or has fewer examples.
    """
    if scale < 1:
        raise ConfigError(f"scale={scale}: must be at least 1.")
    if split not in ("train", "test"):
        raise TaskError(f"digits has the splits train and test, not {split!r}.")
    from sklearn.datasets import load_digits  # scikit-learn takes seconds to load

    images, labels = load_digits(return_X_y=True)
    order = np.argsort(np.random.Philox(key=np.uint64(0)).random_raw(len(labels)), kind="stable")
    chosen = order[:NUM_DIGITS_TEST] if split == "test" else order[NUM_DIGITS_TEST:]
    chosen = _first(chosen, num_examples, "digits")
    inputs = torch.from_numpy((images[chosen] / 16).astype(np.float32).reshape(-1, 1, 8, 8))
    inputs = inputs.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return ExampleSet(inputs, torch.from_numpy(labels[chosen].astype(np.int64)), {SOURCE_ID: chosen})


def npz_images(
    path: str,
    images: str = "test_images",
    labels: str = "test_labels",
    num_examples: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    dtype: str = "float32",
) -> ExampleSet:
    """Images and labels from a NumPy .npz file.

    Args:
        path: the file.
        images: key of the images, uint8 (num_images, height, width, channels).
        labels: key(s) of the class labels, integers (num_images,). Several keys joined by ``+`` are concatenated,
            for images too.
        num_examples: how many to take, from the start; None takes all.
        mean: per channel, of pixels scaled to [0, 1]; subtracted.
        std: per channel; divided by.
        dtype: ``float32``, or ``uint8`` for the pixels as they are, which the model normalises.

    Returns:
        Inputs (num_examples, channels, height, width) and targets (num_examples,) int64; ``source_id`` is the row.

    Raises:
        ConfigError: the dtype is neither, or cannot hold what mean and std would give.
        TaskError: the file or a key is missing, or arrays have other shapes or dtypes.
    """
    if dtype not in ("float32", "uint8"):
        raise ConfigError(f"dtype={dtype!r}: must be float32 or uint8.")
    if dtype == "uint8" and (mean is not None or std is not None):
        raise ConfigError(
            f"mean={mean} and std={std} have no effect on dtype=uint8. Leave them out, and let the model normalise "
            f"(task.model.input_mean, task.model.input_std)."
        )
    if not Path(path).is_file():
        raise TaskError(f"task.examples.arguments.path={path!r}: there is no such file.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            pixels = np.concatenate([archive[key] for key in images.split("+")])
            classes = np.concatenate([archive[key] for key in labels.split("+")])
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise TaskError(f"{path} does not hold the arrays {images!r} and {labels!r}: {error}") from error
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or classes.shape != pixels.shape[:1]:
        raise TaskError(
            f"{path}: {images!r} is {pixels.dtype} {pixels.shape} and {labels!r} is {classes.dtype} {classes.shape}, "
            f"but must be uint8 (num_images, height, width, channels) and integers (num_images,)."
        )
    chosen = _first(np.arange(len(classes)), num_examples, path)
    targets, columns = torch.from_numpy(classes[chosen].astype(np.int64)), {SOURCE_ID: chosen}
    if dtype == "uint8":
        return ExampleSet(torch.from_numpy(pixels[chosen]).permute(0, 3, 1, 2).contiguous(), targets, columns)
    scaled = torch.from_numpy(pixels[chosen]).permute(0, 3, 1, 2).float() / 255
    num_channels = scaled.shape[1]
    for name, values in [("mean", mean), ("std", std)]:
        if values is not None and len(values) != num_channels:
            raise TaskError(f"{name}={values} must have one value for each of the {num_channels} channels of {path}.")
    centred = scaled - torch.tensor(mean or [0.0] * num_channels).reshape(-1, 1, 1)
    inputs = centred / torch.tensor(std or [1.0] * num_channels).reshape(-1, 1, 1)
    return ExampleSet(inputs.contiguous(), targets, columns)


def numpy_arrays(
    path: str,
    inputs: str | dict[str, str],
    targets: str,
    columns: list[str] | None = None,
    counterfactual: str | dict[str, str] | None = None,
) -> IndexedSource:
    """Arrays as they are stored, row i of each being example i.

    Args:
        path: an .npz file, or a folder of .npy files, of which only the chosen rows are read.
        inputs: the array's name, or names by the keywords under which the model takes them.
        targets: the targets' name; one-dimensional integers are class labels.
        columns: further one-dimensional arrays to keep with the examples, e.g. group labels.
        counterfactual: as ``inputs``: the paired inputs of ``ablation.value=counterfactual``.

    Returns:
        Tensors of the arrays' own dtypes; ``source_id`` is the row.

    Raises:
        TaskError: the file or an array is missing or damaged, or numbers of rows differ.
    """
    names = [*_names(inputs), *_names(counterfactual), targets, *(columns or ())]
    arrays = {name: _numpy_array(Path(path), name) for name in names}
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise TaskError(f"{path}: the arrays must have the same number of rows, but have {lengths}.")

    def read(names: list[str], ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        # What has been read of a memory map stays in this process for as long as the map is open.
        opened = {name: _numpy_array(Path(path), name) for name in names} if Path(path).is_dir() else arrays
        return {name: np.array(opened[name][ids]) for name in names}

    may_be_labels = arrays[targets].ndim == 1
    return _of_columns(
        lengths[targets], read, inputs, targets, columns or [], may_be_labels, None, path, counterfactual
    )


def parquet_table(
    path: str,
    inputs: str | list[str] | dict[str, str],
    targets: str,
    columns: list[str] | None = None,
    shape: list[int] | None = None,
    counterfactual: str | list[str] | dict[str, str] | None = None,
) -> IndexedSource:
    """Columns of Parquet files, row i being example i.

    Args:
        path: a file, or a folder whose .parquet files are read in the order of their names.
        inputs: a column of lists or numbers; several columns of numbers, side by side; or columns by the keywords
            under which the model takes them.
        targets: the targets' column; integers are class labels.
        columns: further columns to keep with the examples.
        shape: of one example's input, where its list is flat, e.g. ``[3, 32, 32]``; for one input column.
        counterfactual: as ``inputs``: the paired inputs of ``ablation.value=counterfactual``.

    Returns:
        Tensors of the columns' own dtypes; ``source_id`` is the row, counted through all files.

    Raises:
        TaskError: a file or column is missing, or a column holds empty values, other types or lists of other lengths.
    """
    table = ParquetTable(path)
    if shape is not None and not isinstance(inputs, str):
        raise ConfigError(f"shape={shape} is the shape of one input column, but inputs={inputs}.")
    return _of_columns(table.num_rows, table.read, inputs, targets, columns or [], True, shape, path, counterfactual)


def _names(inputs: str | list[str] | dict[str, str] | None) -> list[str]:
    if isinstance(inputs, str):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, dict) else inputs or ())


def _of_columns(
    num_examples: int,
    read: Callable[[list[str], NDArray[np.int64]], dict[str, NDArray[Any]]],
    inputs: str | list[str] | dict[str, str],
    targets: str,
    columns: list[str],
    may_be_labels: bool,
    shape: list[int] | None,
    path: str,
    counterfactual: str | list[str] | dict[str, str] | None,
) -> IndexedSource:
    """The source whose tensors are named arrays of rows."""
    names = list(dict.fromkeys([*_names(inputs), *_names(counterfactual), targets]))
    if not _names(inputs):
        raise ConfigError("inputs=[]: name at least one.")

    def inputs_of(
        given: str | list[str] | dict[str, str], tensors: dict[str, Tensor], num_rows: int
    ) -> Tensor | dict[str, Any]:
        if isinstance(given, dict):
            return {keyword: tensors[name] for keyword, name in given.items()}
        if isinstance(given, str):
            found = tensors[given]
        else:
            uneven = [name for name in given if tensors[name].ndim != 1]
            if uneven:
                raise TaskError(f"{path}: columns side by side must hold numbers, but {uneven[0]!r} holds lists.")
            found = torch.stack([tensors[name] for name in given], dim=1)
        if shape is None:
            return found
        if found[0].numel() != np.prod(shape):
            raise TaskError(f"{path}: {given!r} has {counted(found[0].numel(), 'value')} per row; shape={shape}.")
        return found.reshape(num_rows, *shape)

    def load(ids: NDArray[np.int64]) -> ExampleSet:
        arrays = read(list(dict.fromkeys([*names, *columns])), ids)
        tensors = {name: _tensor(arrays[name], name, path) for name in names}
        pairs = None if counterfactual is None else inputs_of(counterfactual, tensors, len(ids))
        kept = {SOURCE_ID: ids, **{name: arrays[name] for name in columns}}
        return ExampleSet(inputs_of(inputs, tensors, len(ids)), tensors[targets], kept, pairs)

    def labels() -> NDArray[np.int64]:
        values = read([targets], np.arange(num_examples))[targets]
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise TaskError(f"{path}: {targets!r} is {values.dtype} {values.shape}, which are no class labels.")
        return values.astype(np.int64)

    return IndexedSource(num_examples, load, labels if may_be_labels else None)


def _numpy_array(path: Path, name: str) -> NDArray[Any]:
    try:
        if path.is_dir():
            return np.asanyarray(np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        with np.load(path, allow_pickle=False) as archive:
            if name not in archive:
                raise TaskError(f"{path} has no array {name!r}; it has {', '.join(archive)}.")
            return np.asarray(archive[name])
    except (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, TaskError):
            raise
        raise TaskError(f"{path}: the array {name!r} cannot be read: {error}") from error


def _tensor(values: NDArray[Any], name: str, path: str) -> Tensor:
    if values.dtype.kind not in "biufc":
        raise TaskError(f"{path}: {name!r} holds {values.dtype}, of which no tensor can be made.")
    return tensor_of(values)


def _first(order: np.ndarray, num_examples: int | None, source: str) -> np.ndarray:
    if num_examples is None:
        return order
    if not 0 < num_examples <= len(order):
        raise TaskError(f"num_examples={num_examples}: {source} has {counted(len(order), 'example')}.")
    return order[:num_examples]
