"""Loaders of example sets. A user's own is ``task.examples.source=my_module:load`` and returns an ``ExampleSet``."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from coar_dist.errors import TaskError
from coar_dist.tasks.task import ExampleSet

NUM_DIGITS_TEST = 500


def digits(split: str = "test", num_examples: int | None = None) -> ExampleSet:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels scaled to [0, 1]: 1,297 for training, 500 for test.

    The split is a fixed random permutation, because the images of one writer stand together in the original order.

    Args:
        split: ``train`` or ``test``.
        num_examples: take the first so many; None takes all.

    Raises:
        TaskError: the split is unknown, or has fewer examples.
    """
    if split not in ("train", "test"):
        raise TaskError(f"digits has the splits train and test, not {split!r}.")
    images, labels = load_digits(return_X_y=True)
    order = np.argsort(np.random.Philox(key=np.uint64(0)).random_raw(len(labels)), kind="stable")
    chosen = order[:NUM_DIGITS_TEST] if split == "test" else order[NUM_DIGITS_TEST:]
    chosen = _first(chosen, num_examples, "digits")
    inputs = torch.from_numpy((images[chosen] / 16).astype(np.float32).reshape(-1, 1, 8, 8))
    return ExampleSet(inputs, torch.from_numpy(labels[chosen].astype(np.int64)))


def npz_images(
    path: str,
    images: str = "test_images",
    labels: str = "test_labels",
    num_examples: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> ExampleSet:
    """Images and labels from a NumPy .npz file.

    Args:
        path: the file.
        images: key of the images, uint8 (num_images, height, width, channels).
        labels: key(s) of the class labels, integers (num_images,). Several keys joined by ``+`` are concatenated,
            for images too.
        num_examples: take the first so many; None takes all.
        mean: per channel, of pixels scaled to [0, 1]; subtracted.
        std: per channel; divided by.

    Returns:
        Inputs (num_examples, channels, height, width) float32 and targets (num_examples,) int64.

    Raises:
        TaskError: the file or a key is missing, or arrays have other shapes or dtypes.
    """
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
    scaled = torch.from_numpy(pixels[chosen]).permute(0, 3, 1, 2).float() / 255
    num_channels = scaled.shape[1]
    for name, values in [("mean", mean), ("std", std)]:
        if values is not None and len(values) != num_channels:
            raise TaskError(f"{name}={values} must have one value for each of the {num_channels} channels of {path}.")
    centred = scaled - torch.tensor(mean or [0.0] * num_channels).reshape(-1, 1, 1)
    inputs = centred / torch.tensor(std or [1.0] * num_channels).reshape(-1, 1, 1)
    return ExampleSet(inputs.contiguous(), torch.from_numpy(classes[chosen].astype(np.int64)))


EXAMPLES: dict[str, Callable[..., ExampleSet]] = {"digits": digits, "npz_images": npz_images}


def _first(order: np.ndarray, num_examples: int | None, source: str) -> np.ndarray:
    if num_examples is None:
        return order
    if not 0 < num_examples <= len(order):
        raise TaskError(f"num_examples={num_examples}: {source} has {len(order)} examples.")
    return order[:num_examples]
