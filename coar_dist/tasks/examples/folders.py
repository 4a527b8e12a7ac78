"""Image files in folders: class folders, and the Waterbirds and CelebA data sets with their groups."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import TaskError, counted
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.pixels import Geometry, decode
from coar_dist.tasks.examples.source import SOURCE_ID, IndexedSource, tensor_of

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = {"train": 0, "val": 1, "test": 2}
_WILDS_SQUARE = [256, 256]


def image_folder(
    path: str,
    image_size: int | None = 224,
    resize: int | list[int] | None = 256,
    interpolation: str = "bilinear",
    classes: list[str] | dict[str, int] | None = None,
    mode: str = "RGB",
) -> IndexedSource:
    """Images in one sub-folder per class, in the order and with the labels of torchvision's ``ImageFolder``.

    The class folders are sorted by name, and in each the folders below it and the files, every level by name.

    Args:
        path: the folder of class folders.
        image_size, resize, interpolation, mode: see ``Geometry``; the defaults are torchvision's for ImageNet.
        classes: the folders to take: a list in the order of their labels, or labels by folder, e.g. for ten classes of
            ImageNet under their own labels. None takes all, numbered by name.

    Returns:
        Inputs (num_examples, 3, image_size, image_size) uint8, targets (num_examples,) int64; ``source_id`` is the
        file's path below ``path``.

    Raises:
        TaskError: no such folder, or a class has no images.
    """
    root, geometry = Path(path), Geometry(image_size, resize, interpolation, mode)
    if not root.is_dir():
        raise TaskError(f"path={path!r}: there is no such folder.")
    there = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if classes is None:
        label_of = {name: label for label, name in enumerate(there)}
    else:
        label_of = classes if isinstance(classes, dict) else {name: label for label, name in enumerate(classes)}
        if len(label_of) != len(classes):
            raise TaskError(f"classes={classes} names a folder twice.")
    absent = sorted(set(label_of) - set(there))
    if not label_of:
        raise TaskError(f"{path} has no class folders.")
    if absent:
        raise TaskError(f"{path} has no class folders {absent[:10]}; it has {there[:10]}.")
    names: list[str] = []
    labels: list[int] = []
    for folder in sorted(label_of):
        found = [
            (Path(parent) / name).relative_to(root).as_posix()
            for parent, _, files in sorted(os.walk(root / folder, followlinks=True))
            for name in sorted(files)
            if name.lower().endswith(EXTENSIONS)
        ]
        if not found:
            raise TaskError(f"{root / folder} has no images (files that end in {', '.join(EXTENSIONS)}).")
        names += found
        labels += [label_of[folder]] * len(found)
    return image_files(root, names, labels, {}, geometry)


def waterbirds(
    path: str,
    split: str = "test",
    image_size: int | None = 224,
    resize: int | list[int] | None = _WILDS_SQUARE,
    interpolation: str = "bilinear",
) -> IndexedSource:
    """Waterbirds (Sagawa et al. 2020): birds on backgrounds of land and water, where worst groups are edited.

    Args:
        path: the folder with ``metadata.csv`` (``img_filename, y, place, split``), as WILDS unpacks it.
        split: ``train``, ``val`` or ``test``.
        image_size, resize, interpolation: see ``Geometry``; the defaults are those of WILDS, a square of 256, its
            centre cut out.

    Returns:
        Images (num_examples, 3, image_size, image_size) uint8 in the order of ``metadata.csv``; targets are 1 for water
        birds. Columns: ``place``, 1 for water; ``group``, 2 * target + place; ``source_id``, the file's name.

    Raises:
        TaskError: a file or column is missing, a value is not a label, or the split is unknown or empty.
    """
    root, geometry = Path(path), Geometry(image_size, resize, interpolation, "RGB")
    rows = _of_split(_rows(root / "metadata.csv", ("img_filename", "y", "place", "split")), "split", split, root)
    targets, place = (_binary(rows, name, ("0", "1"), root) for name in ("y", "place"))
    columns = {"place": place, "group": 2 * targets + place}
    return image_files(root, [row["img_filename"] for row in rows], targets, columns, geometry)


def celeba(
    path: str,
    split: str = "test",
    label: str = "Blond_Hair",
    group_by: str = "Male",
    image_size: int | None = 224,
    resize: int | list[int] | None = 224,
    interpolation: str = "bilinear",
) -> IndexedSource:
    """CelebA (Liu et al. 2015), aligned: an attribute is predicted, another makes the groups.

    Args:
        path: the folder with ``list_attr_celeba`` and ``list_eval_partition`` (``.txt`` as published, or ``.csv`` as on
            Kaggle and in WILDS) and the images in ``img_align_celeba``.
        split: ``train``, ``val`` or ``test``.
        label: the attribute that is the target.
        group_by: the attribute that makes the groups.
        image_size, resize, interpolation: see ``Geometry``.

    Returns:
        Images (num_examples, 3, image_size, image_size) uint8 in the order of the attribute list; targets are 1 where
        the attribute is there. Columns: one named as ``group_by``, 0 or 1; ``group``, 2 * target + it; ``source_id``,
        the file's name.

    Raises:
        TaskError: a file or attribute is missing, or the split is unknown or empty.
    """
    root, geometry = Path(path), Geometry(image_size, resize, interpolation, "RGB")
    attributes = _rows(_listed(root, "list_attr_celeba"), ("image_id", label, group_by))
    partition = {
        row["image_id"]: row["partition"]
        for row in _rows(_listed(root, "list_eval_partition"), ("image_id", "partition"))
    }
    unknown = [row["image_id"] for row in attributes if row["image_id"] not in partition]
    if unknown:
        raise TaskError(f"list_eval_partition of {root} lacks {unknown[:10]}, which list_attr_celeba has.")
    rows = _of_split([{**row, "partition": partition[row["image_id"]]} for row in attributes], "partition", split, root)
    folders = [root / "img_align_celeba" / "img_align_celeba", root / "img_align_celeba"]
    images = next((folder for folder in folders if folder.is_dir()), None)
    if images is None:
        raise TaskError(f"{root} has no folder img_align_celeba with the images.")
    targets, other = (_binary(rows, name, ("-1", "1"), root) for name in (label, group_by))
    columns = {group_by: other, "group": 2 * targets + other}
    return image_files(images, [row["image_id"] for row in rows], targets, columns, geometry)


def image_files(
    root: Path,
    names: Sequence[str],
    labels: Sequence[int] | NDArray[np.int64],
    columns: Mapping[str, NDArray[Any]],
    geometry: Geometry,
) -> IndexedSource:
    """Image files below ``root`` with their labels and further columns; they are decoded when they are chosen."""
    paths, targets = np.array(names), np.array(labels, dtype=np.int64)

    def load(ids: NDArray[np.int64]) -> ExampleSet:
        files = ((str(root / name), root / name) for name in paths[ids])
        pixels = decode(files, geometry, len(ids))
        chosen = {SOURCE_ID: paths[ids], **{name: values[ids] for name, values in columns.items()}}
        return ExampleSet(tensor_of(pixels), tensor_of(targets[ids]), chosen)

    return IndexedSource(len(paths), load, lambda: targets)


def _listed(root: Path, name: str) -> Path:
    found = [path for path in (root / f"{name}.csv", root / f"{name}.txt") if path.is_file()]
    if not found:
        raise TaskError(f"{root} has neither {name}.csv nor {name}.txt.")
    return found[0]


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """These columns of a .csv file with a header, or of CelebA's own lists: blanks between values, a count above."""
    if not path.is_file():
        raise TaskError(f"{path} is missing.")
    with path.open(newline="") as file:
        lines = list(csv.reader(file)) if path.suffix == ".csv" else [line.split() for line in file]
    lines = [line for line in lines if line]
    if path.suffix != ".csv":
        if lines and len(lines[0]) == 1:
            lines = lines[1:]
        if lines and len(lines[0]) + 1 == len(lines[-1]):
            lines[0] = ["image_id", *lines[0]]
        elif lines and len(lines[0]) == 2:
            lines = [["image_id", "partition"], *lines]
    header = lines[0] if lines else []
    absent = [name for name in columns if name not in header]
    if absent:
        raise TaskError(f"{path} has no column {absent[0]!r}; it has {', '.join(header)}.")
    wrong = [number for number, line in enumerate(lines) if len(line) != len(header)]
    if wrong:
        raise TaskError(
            f"{path}: row {wrong[0]} has {counted(len(lines[wrong[0]]), 'value')}, the header "
            f"{counted(len(header), 'name')}."
        )
    places = {name: header.index(name) for name in columns}
    return [{name: line[place] for name, place in places.items()} for line in lines[1:]]


def _of_split(rows: list[dict[str, str]], column: str, split: str, root: Path) -> list[dict[str, str]]:
    if split not in SPLITS:
        raise TaskError(f"split={split!r}: must be one of {', '.join(SPLITS)}.")
    chosen = [row for row in rows if row[column] == str(SPLITS[split])]
    if not chosen:
        raise TaskError(f"{root} has no images of the split {split} ({column} {SPLITS[split]}).")
    return chosen


def _binary(rows: list[dict[str, str]], column: str, values: tuple[str, str], root: Path) -> NDArray[np.int64]:
    """A column of two values as 0 and 1."""
    found = [row[column] for row in rows]
    unknown = sorted(set(found) - set(values))
    if unknown:
        raise TaskError(f"{root}: column {column!r} must be {values[0]} or {values[1]}, but holds {unknown[:10]}.")
    return np.array([value == values[1] for value in found], dtype=np.int64)
