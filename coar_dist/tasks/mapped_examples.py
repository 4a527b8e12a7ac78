"""Large example sets: once on the disk of a node, mapped into memory by each of its processes.

They are loaded in pieces, so that no process ever holds them all, and other nodes load them from the same source by
themselves. Only a node that does not see the source, or finds something else there, is sent the values.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coar_dist.errors import CoarDistError, NotOnThisNodeError
from coar_dist.tasks import tensor_files
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.tensor_files import TensorFile, file_of

LARGE_BYTES = 64 * 2**20
"""Smaller example sets stay in memory, and go to actors as they are."""
_PIECE_BYTES = 16 * 2**20
_FIRST = 64  # examples that show how large one is
_Row = TypeVar("_Row")
_log = logging.getLogger(__name__)
_rebuild: dict[Path, Callable[[], ExampleSet]] = {}  # by the folder of the files


def in_pieces(load: Callable[[Iterable[_Row]], ExampleSet], rows: Callable[[], Iterator[_Row]]) -> ExampleSet:
    """``load(rows())``; where that is large, loaded in pieces and mapped.

    Args:
        load: the examples of some rows, in their order.
        rows: a new pass over all of them, however many they are. There is a second one only where pieces do not fit
            together, or do not fit on the disk.
    """
    stream = rows()
    taken = list(islice(stream, _FIRST))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        first = load(taken)
    per_example = max(num_bytes(first) // len(taken), 1)
    fewest = -(-LARGE_BYTES // per_example)
    taken += islice(stream, max(fewest - len(taken), 0))
    if _FIRST < len(taken) < fewest:
        return load(taken)  # at once, which warns again
    for warning in said:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if len(taken) < fewest:
        return first
    others = _batches(chain(taken[_FIRST:], stream), max(_PIECE_BYTES // per_example, 1))
    del taken
    found = from_pieces(chain([first], map(load, others)))
    return load(rows()) if found is None else found


def _batches(rows: Iterator[_Row], size: int) -> Iterator[list[_Row]]:
    while batch := list(islice(rows, size)):
        yield batch


def from_pieces(pieces: Iterable[ExampleSet]) -> ExampleSet | None:
    """The examples of all pieces, in their order, mapped; None where the node has no room for them, or the pieces are
    no rows of the same tensors: texts, say, each padded to the longest of its piece."""
    folder = None
    try:
        folder = tensor_files.new_folder()
        with _Writer(folder) as writer:
            for piece in pieces:
                writer.add(piece)
        return writer.adopted()
    except _UnevenError:
        return None
    except OSError as error:
        if isinstance(error, CoarDistError):  # of the source
            raise
        _log.warning("large examples stay in memory: %s. Set TMPDIR to a disk with more room.", error)
        return None
    finally:
        if folder is not None and folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            tensor_files.release(folder.name)


def mapped(examples: ExampleSet) -> ExampleSet:
    """The same examples, mapped where they are large and on the CPU; their memory is free once nobody else holds it."""
    tensors = _tensors(examples)
    if num_bytes(examples) < LARGE_BYTES or is_mapped(examples) or any(t.device.type != "cpu" for t in tensors):
        return examples
    step = max(_PIECE_BYTES * len(examples) // num_bytes(examples), 1)
    found = from_pieces(examples.rows(start, start + step) for start in range(0, len(examples), step))
    return examples if found is None else replace(found, columns=examples.columns)


def built_by(examples: ExampleSet, rebuild: Callable[[], ExampleSet]) -> ExampleSet:
    """The examples; other nodes may call ``rebuild``, which can be pickled, for the same."""
    if is_mapped(examples):
        _rebuild[_folder(examples)] = rebuild
    return examples


def num_bytes(examples: ExampleSet) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(examples))


def is_mapped(examples: ExampleSet) -> bool:
    """Whether every tensor lies in a file of one folder."""
    folders = {None if (file := file_of(tensor)) is None else file.path.parent for tensor in _tensors(examples)}
    return len(folders) == 1 and None not in folders


@dataclass(frozen=True)
class MappedExamples:
    """What goes to a node in the place of examples that are mapped here.

    Attributes:
        files: of the tensors, in the order of ``_tensors``, with the paths that they have here.
        form: the example set, a number in the place of each tensor.
        rebuild: loads the examples where they come from; None where nobody can.
        values: of the tensors, for a node that has no other way to them; empty at first.
    """

    files: Sequence[TensorFile]
    form: dict[str, Any]
    rebuild: Callable[[], ExampleSet] | None
    values: Sequence[NDArray[np.uint8]] = field(default=(), repr=False)

    @classmethod
    def of(cls, examples: ExampleSet) -> MappedExamples:
        """What stands for mapped examples."""
        files = [file for tensor in _tensors(examples) if (file := file_of(tensor)) is not None]
        return cls(files, _form(examples), _rebuild.get(_folder(examples)))

    def with_values(self) -> MappedExamples:
        """The same with the values, read from the files."""
        nothing = np.empty(0, np.uint8)
        maps = [np.memmap(file.path, np.uint8, "r") if file.num_bytes else nothing for file in self.files]
        return replace(self, values=[each.view(np.ndarray) for each in maps])  # pickle copies memory maps

    def make(self) -> ExampleSet:
        """The examples, mapped on this node.

        Raises:
            NotOnThisNodeError: the node has them not yet, and cannot load them from where they come from.
        """
        key = self.files[0].path.parent.name
        for folder in (self.files[0].path.parent, tensor_files.root() / key):
            if self._is_in(folder):
                tensor_files.hold(key)
                if self._is_in(folder):  # it was not removed just before
                    return self._mapped(folder)
        if self.values:
            return self._written_values(key)
        return self._rebuilt(key)

    def _is_in(self, folder: Path) -> bool:
        return all(file.is_there for file in self._files_in(folder))

    def _mapped(self, folder: Path) -> ExampleSet:
        return _of_form(self.form, [file.mapped() for file in self._files_in(folder)])

    def _files_in(self, folder: Path) -> list[TensorFile]:
        return [replace(file, path=folder / file.path.name) for file in self.files]

    def _written_values(self, key: str) -> ExampleSet:
        folder = tensor_files.new_folder()
        for file, values in zip(self._files_in(folder), self.values, strict=True):
            with file.path.open("wb") as out:
                out.write(values.data)
        return self._mapped(tensor_files.adopt(folder, key))

    def _rebuilt(self, key: str) -> ExampleSet:
        if self.rebuild is None:
            raise NotOnThisNodeError("the examples were given in memory")
        with tensor_files.alone(key):  # one actor of the node loads them, and the others wait
            if not self._is_in(tensor_files.root() / key):
                try:
                    found = self.rebuild()
                except (CoarDistError, OSError) as error:
                    raise NotOnThisNodeError(f"the examples cannot be loaded there: {error}") from error
                if not is_mapped(found) or _folder(found).name != key:
                    raise NotOnThisNodeError("the examples that are found there are others")
        tensor_files.hold(key)
        return self._mapped(tensor_files.root() / key)


class _UnevenError(Exception):
    """A piece is no rows of the tensors of those before it."""


class _Writer:
    """Appends the rows of pieces to files, one for each tensor."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first: ExampleSet | None = None
        self._num_rows = 0
        self._open: list[BinaryIO] = []
        self._digests: list[Any] = []
        self._columns: list[dict[str, NDArray[Any]]] = []

    def add(self, piece: ExampleSet) -> None:
        """Append a piece.

        Raises:
            _UnevenError: its rows are of another shape or dtype than those before, or its constants are others.
        """
        if self._first is None:
            self._first = piece.rows(0, 1)
            self._open = [(self._folder / str(number)).open("wb") for number in range(len(_tensors(piece)))]
            self._digests = [hashlib.sha256() for _ in self._open]
        if _kind(piece) != _kind(self._first):
            raise _UnevenError
        for file, digest, tensor in zip(self._open, self._digests, _tensors(piece), strict=True):
            if tensor.numel():
                content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
                file.write(content)
                digest.update(content)
        self._columns.append(dict(piece.columns))
        self._num_rows += len(piece)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open:
            file.close()

    def adopted(self) -> ExampleSet:
        """All that was added, mapped, in a folder named by its content."""
        assert self._first is not None
        columns = {name: np.concatenate([each[name] for each in self._columns]) for name in self._columns[0]}
        names = [name for name, _ in (*self._first.tensors(), *self._first.counterfactual_tensors())]
        content = [each.hexdigest() for each in self._digests]
        kind = repr((names, content, self._num_rows, *_kind(self._first)[:2]))
        place = tensor_files.adopt(self._folder, hashlib.sha256(kind.encode()).hexdigest()[:32])
        files = [
            TensorFile(place / str(number), row.dtype, (self._num_rows, *row.shape[1:]))
            for number, row in enumerate(_tensors(self._first))
        ]
        return _of_form({**_form(self._first), "columns": columns}, [file.mapped() for file in files])


def _tensors(examples: ExampleSet) -> list[Tensor]:
    """All tensors: inputs by name, targets, then those of the counterfactuals by name."""
    return [tensor for _, tensor in examples.tensors()] + [tensor for _, tensor in examples.counterfactual_tensors()]


def _kind(examples: ExampleSet) -> Any:
    """What all rows have in common."""
    shapes = [(tensor.dtype, tuple(tensor.shape[1:])) for tensor in _tensors(examples)]
    return shapes, examples.constants(), sorted(examples.columns)


def _folder(examples: ExampleSet) -> Path:
    file = file_of(examples.targets)
    assert file is not None
    return file.path.parent


@dataclass(frozen=True)
class _Number:
    """Stands for a tensor of ``_tensors``."""

    value: int


def _form(examples: ExampleSet) -> dict[str, Any]:
    """The fields of an example set, with a ``_Number`` in the place of each tensor."""
    numbers = {id(tensor): _Number(number) for number, tensor in enumerate(_tensors(examples))}

    def numbered(inputs: Any) -> Any:
        if isinstance(inputs, dict):
            return {name: numbered(value) for name, value in inputs.items()}
        return numbers[id(inputs)] if isinstance(inputs, Tensor) else inputs

    return {
        "inputs": numbered(examples.inputs),
        "targets": numbered(examples.targets),
        "columns": examples.columns,
        "counterfactual": numbered(examples.counterfactual),
    }


def _of_form(form: dict[str, Any], tensors: Sequence[Tensor]) -> ExampleSet:
    def filled(inputs: Any) -> Any:
        if isinstance(inputs, dict):
            return {name: filled(value) for name, value in inputs.items()}
        return tensors[inputs.value] if isinstance(inputs, _Number) else inputs

    return ExampleSet(filled(form["inputs"]), filled(form["targets"]), form["columns"], filled(form["counterfactual"]))


atexit.register(tensor_files.release_all)
