"""The examples of a task: inputs, targets and what else is known of them, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from coar_dist.config.python_arguments import shown
from coar_dist.errors import TaskError, counted, listed
from coar_dist.store.examples import EXCERPT, TOKEN_END, TOKENS
from coar_dist.tasks.tensor_files import file_of

Inputs = Tensor | dict[str, Any]
"""One tensor, given to the model as its first argument, or several values, given by keyword: tensors with one row per
example, and constants (None, bool, int, float, str), the same for every call."""
_CONSTANTS = (type(None), bool, int, float, str)
RESERVED_COLUMNS = ("example_id", "label", "prediction", "margin")
"""Columns of ``examples.parquet`` that the ablate stage fills itself."""
_fingerprints: dict[Any, str] = {}  # of tensors in files, whose names say what is in them
FOR_THE_EYE = (EXCERPT, TOKENS)
"""Columns on which no result depends."""


@dataclass(frozen=True, repr=False)
class ExampleSet:
    """The examples in their fixed order: example i is row i of every tensor.

    Attributes:
        inputs: (num_examples, ...) tensor, or a dict of such tensors and of constants (``use_cache: False``), given to
            the model by keyword.
        targets: (num_examples, ...) tensor that the output function reads; class labels are int64.
        columns: further values by name, (num_examples,) arrays of numbers, booleans or strings, e.g. ``source_id``
            (what the example is called in its source) and group labels. They end up in ``examples.parquet``; margins
            do not depend on them, and neither does the fingerprint. Of a text ``excerpt`` is what the page shows, and
            ``tokens``, a list of strings for each example, what the page shows position by position.
        counterfactual: inputs like ``inputs``, row by row: with ``ablation.value=counterfactual`` the activations of
            ablated components are those of the row's own counterfactual. The fingerprint does not depend on them.

    Raises:
        TaskError: lengths differ, there are no examples, a column cannot be stored, or a counterfactual is no input
            like its example's; the message names the pair.
    """

    inputs: Inputs
    targets: Tensor
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    counterfactual: Inputs | None = None

    def __post_init__(self) -> None:
        for key in ("inputs", "targets", "counterfactual"):
            _check_tensors(key, getattr(self, key))
        if not isinstance(self.columns, Mapping):
            raise TaskError(
                f"columns is a {type(self.columns).__name__}, but must be a dict of (num_examples,) values by name."
            )
        lengths = {name: len(tensor) for name, tensor in self.tensors()}
        if len(set(lengths.values())) != 1 or len(self.targets) == 0:
            found = ", ".join(f"{number:,} of {name}" for name, number in lengths.items())
            raise TaskError(f"inputs and targets must have the same, positive number of rows, but there are {found}.")
        columns = {name: _column(name, values, len(self.targets)) for name, values in self.columns.items()}
        object.__setattr__(self, "columns", columns)
        if self.counterfactual is not None:
            _check_pairs(self.inputs, self.counterfactual)

    @classmethod
    def of(
        cls, inputs: Any, targets: Any, columns: Mapping[str, Any] | None = None, counterfactual: Any = None
    ) -> ExampleSet:
        """The example set of tensors, NumPy arrays or lists of numbers.

        Raises:
            TaskError: inputs or targets are no tensors and cannot become some; the message says what they are.
        """
        if targets is None:
            raise TaskError(
                "targets=None: every example needs a target. Give its class label, or torch.zeros(num_examples) where "
                "the output function reads none."
            )
        pair = None if counterfactual is None else _inputs("counterfactual", counterfactual)
        return cls(_inputs("inputs", inputs), _tensor("targets", targets), {} if columns is None else columns, pair)

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        parts = [f"{name} {str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for name, t in self.tensors()]
        parts += [f"columns {listed(list(self.columns), 5)}"] if self.columns else []
        parts += ["counterfactuals"] if self.counterfactual is not None else []
        return f"ExampleSet({counted(len(self), 'example')}: {', '.join(parts)})"

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by name, the targets last."""
        if isinstance(self.inputs, dict):
            yield from ((name, value) for name, value in sorted(self.inputs.items()) if isinstance(value, Tensor))
        else:
            yield "inputs", self.inputs
        yield "targets", self.targets

    def counterfactual_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the counterfactuals by name; none where there are none."""
        if isinstance(self.counterfactual, dict):
            pairs = sorted(self.counterfactual.items())
            yield from ((name, value) for name, value in pairs if isinstance(value, Tensor))
        elif self.counterfactual is not None:
            yield "counterfactual", self.counterfactual

    def map(self, function: Callable[[Tensor], Tensor]) -> ExampleSet:
        """The example set with ``function``, which keeps the rows and their order, applied to every tensor."""
        return self._mapped(function, self.columns)

    def rows(self, start: int, stop: int) -> ExampleSet:
        """Examples ``start .. stop - 1`` as views."""
        return self._mapped(
            lambda tensor: tensor[start:stop], {name: values[start:stop] for name, values in self.columns.items()}
        )

    def select(self, example_ids: Sequence[int] | NDArray[np.integer[Any]] | Tensor) -> ExampleSet:
        """These examples in this order, copied; an id may come twice.

        Raises:
            IndexError: an id is out of range, or no whole number.
        """
        ids = torch.as_tensor(np.asarray(_ids_of(example_ids, len(self))), dtype=torch.int64)
        chosen = ids.cpu().numpy()
        return self._mapped(
            lambda tensor: tensor[ids.to(tensor.device)],
            {name: values[chosen] for name, values in self.columns.items()},
        )

    def __deepcopy__(self, _memo: object) -> ExampleSet:
        """Itself: nobody changes examples, and there may be many."""
        return self

    def without_columns(self) -> ExampleSet:
        """Inputs and targets alone."""
        return ExampleSet(self.inputs, self.targets)

    def _mapped(self, function: Callable[[Tensor], Tensor], columns: Mapping[str, NDArray[Any]]) -> ExampleSet:
        def mapped(inputs: Inputs) -> Inputs:
            if isinstance(inputs, Tensor):
                return function(inputs)
            return {name: function(value) if isinstance(value, Tensor) else value for name, value in inputs.items()}

        pair = None if self.counterfactual is None else mapped(self.counterfactual)
        return ExampleSet(mapped(self.inputs), function(self.targets), columns, pair)

    def fingerprint(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of all tensors, and over the constants among the inputs."""
        of_tensors = fingerprint_of_tensors(self.tensors())
        constants = self.constants()
        if not constants:
            return of_tensors
        return "sha256:" + hashlib.sha256(f"{of_tensors} {constants!r}".encode()).hexdigest()

    def counterfactual_fingerprint(self) -> str | None:
        """The same of the counterfactuals; None where there are none."""
        if self.counterfactual is None:
            return None
        return ExampleSet(self.counterfactual, torch.zeros(len(self))).fingerprint()

    def constants(self) -> dict[str, Any]:
        """The inputs that are the same for every example, by name."""
        if not isinstance(self.inputs, dict):
            return {}
        return {name: value for name, value in sorted(self.inputs.items()) if not isinstance(value, Tensor)}


def inputs_alone(inputs: Any) -> ExampleSet:
    """Inputs whose targets nobody reads, as an example set.

    Raises:
        TaskError: as ``ExampleSet.of``.
    """
    tensors = _inputs("inputs", inputs)
    rows = (each for each in (tensors.values() if isinstance(tensors, dict) else [tensors]) if isinstance(each, Tensor))
    num_rows = next((len(each) if each.ndim else 0 for each in rows), 0)
    return ExampleSet.of(inputs, torch.zeros(num_rows))


def _ids_of(given: Any, num_examples: int) -> NDArray[np.int64]:
    ids = given.cpu().numpy() if isinstance(given, Tensor) else given
    array = np.asarray(ids) if isinstance(ids, np.ndarray | list | tuple | range) else None
    if array is None or array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise IndexError(f"example_ids={shown(given)}: must be a list of whole numbers.")
    if not array.size:
        raise IndexError("example_ids=[]: name at least one example.")
    outside = array[(array < -num_examples) | (array >= num_examples)]
    if outside.size:
        raise IndexError(f"example_ids: {outside[0]} is outside 0..{num_examples - 1}.")
    return array.astype(np.int64)


def _inputs(key: str, given: Any) -> Inputs:
    if not isinstance(given, Mapping):
        return _tensor(key, given)
    return {
        name: value if isinstance(value, _CONSTANTS) else _tensor(f"{key}[{name!r}]", value)
        for name, value in given.items()
    }


def _check_tensors(key: str, given: Any) -> None:
    """Every one has a row per example, but a model's constants."""
    parts = {f"{key}[{name!r}]": each for name, each in given.items()} if isinstance(given, Mapping) else {key: given}
    for name, part in parts.items():
        if (name != key and isinstance(part, _CONSTANTS)) or (part is None and key == "counterfactual"):
            continue
        if not isinstance(part, Tensor):
            raise TaskError(f"{name} is a {type(part).__name__}, not a tensor. ExampleSet.of makes tensors of arrays.")
        if not part.ndim:
            raise TaskError(f"{name} is a single number, but must be (num_examples, ...).")


def _check_pairs(inputs: Inputs, counterfactual: Inputs) -> None:
    """A counterfactual is what the model takes in the place of its example, of the same length."""
    one, other = ({"inputs": each} if isinstance(each, Tensor) else each for each in (inputs, counterfactual))
    said = [
        {name: f"{v.dtype} {tuple(v.shape)}" if isinstance(v, Tensor) else repr(v) for name, v in each.items()}
        for each in (one, other)
    ]
    if said[0] != said[1]:
        raise TaskError(
            f"a counterfactual must be an input like its example's, of the same shapes and constants: the inputs are "
            f"{said[0]}, and the counterfactuals {said[1]}."
        )
    for name, value in one.items():
        if not name.endswith("attention_mask") or not isinstance(value, Tensor):
            continue
        pairs = [(each != 0).flatten(1) for each in (value, other[name])]
        different = (pairs[0] != pairs[1]).any(dim=1).nonzero()
        if len(different):
            row = int(different[0])
            lengths = [int(each[row].sum()) for each in pairs]
            raise TaskError(
                f"pair {row}: the example has {lengths[0]} tokens and its counterfactual {lengths[1]} ({name}), "
                f"{'at other positions' if lengths[0] == lengths[1] else 'but both must have as many'}. Leave it out, "
                f"or give another counterfactual."
            )


def _tensor(key: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    found = type(value).__name__
    if isinstance(value, DataLoader | Dataset):
        raise TaskError(f"{key} is a {found}, but all examples are held at once. Give tensors: torch.cat its batches.")
    is_text = isinstance(value, np.ndarray) and value.dtype.kind == "U"
    is_text = is_text or (isinstance(value, list | tuple) and any(isinstance(item, str) for item in value))
    if is_text and key == "targets":
        raise TaskError(
            "targets holds strings. Give class labels as integers, names, labels = np.unique(targets, "
            "return_inverse=True), and the names as class_names."
        )
    if is_text or isinstance(value, str):
        raise TaskError(f"{key} holds strings. Give what the model's tokenizer makes of them, as a dict of tensors.")
    try:
        return torch.as_tensor(value)
    except Exception as error:  # anything may have been given
        raise TaskError(
            f"{key} is a {found} that cannot become a tensor: {error}. Give a tensor or an array of "
            f"(num_examples, ...), or a dict of them by argument name."
        ) from error


def _column(name: str, values: Any, num_examples: int) -> NDArray[Any]:
    """One column as it is stored: numbers, booleans or strings."""
    if not isinstance(name, str) or not name or "." in name or name in RESERVED_COLUMNS:
        raise TaskError(
            f"the column {name!r} cannot be stored: a name is non-empty, has no dot, and is none of "
            f"{', '.join(RESERVED_COLUMNS)}, which a run fills itself. Rename it."
        )
    if name == TOKENS and not isinstance(values, Tensor):
        values = [TOKEN_END.join(each) if _are_texts(each) else each for each in values]
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.reshape(-1)):
        array = array.astype(np.str_)
    if array.shape != (num_examples,) or array.dtype.kind not in "biufU":
        raise TaskError(
            f"the column {name!r} is {array.dtype} of shape {array.shape}, but must be numbers, booleans or strings, "
            f"one for each of the {counted(num_examples, 'example')}, none missing."
        )
    return array


def _are_texts(value: Any) -> bool:
    return not isinstance(value, str) and isinstance(value, Sequence) and all(isinstance(part, str) for part in value)


def fingerprint_of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes; those of tensors in files are read once per process."""
    named = list(tensors)
    files = tuple(file_of(tensor) for _, tensor in named)
    key = tuple(name for name, _ in named), files
    if None not in files and key in _fingerprints:
        return _fingerprints[key]
    digest = hashlib.sha256()
    for (name, tensor), file in zip(named, files, strict=True):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if file is None:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        else:
            for chunk in file.chunks():
                digest.update(chunk)
    fingerprint = "sha256:" + digest.hexdigest()
    if None not in files:
        _fingerprints[key] = fingerprint
    return fingerprint
