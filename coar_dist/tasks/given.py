"""Inputs and targets as a Python caller gives them, also in a Dataset or a DataLoader, as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate

from coar_dist.errors import TaskError
from coar_dist.tasks.example_set import inputs_alone

_LABELS = ("labels", "label")
"""Keys of the targets where an item is a dict, as in Hugging Face's data sets."""
_ITEMS_AT_ONCE = 256
_NEXT_TOKENS, _TOKENS = "next_token_margin", "input_ids"
_VALUE, _OF_COLUMNS = "value", ("value", "logit")
"""Output functions that read no targets: ``value``, ``value:0``, ``logit:3``."""


def gathered(inputs: Any, targets: Any) -> tuple[Any, Any]:
    """Inputs and targets; those of a Dataset, a DataLoader or a list of pairs are put together, in their order.

    Args:
        inputs: anything; of a dict the targets may be under ``labels`` or ``label``; of a Dataset the items, and of a
            DataLoader the batches, are ``(input, target)``, such a dict, or inputs alone.
        targets: where they are given, they take the place of those in ``inputs``.

    Raises:
        TaskError: the order is random, items are no tensors, or there are none.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> pairs = TensorDataset(torch.zeros(5, 3), torch.arange(5))
        >>> images, labels = gathered(DataLoader(pairs, batch_size=2), None)
        >>> images.shape, labels.tolist()
        (torch.Size([5, 3]), [0, 1, 2, 3, 4])
    """
    if isinstance(inputs, Mapping) and targets is None:
        return _parted(inputs)
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], Tensor):
        inputs = _stacked(inputs)
    if not isinstance(inputs, DataLoader | Dataset) and not _are_pairs(inputs):
        return inputs, targets
    kind = type(inputs).__name__
    if isinstance(inputs, DataLoader) and isinstance(inputs.sampler, RandomSampler):
        raise TaskError(f"inputs is a {kind} in random order, but an example is known by its place. Use shuffle=False.")
    parts = [_parted(batch) for batch in (inputs if isinstance(inputs, DataLoader) else _batches(inputs, kind))]
    if not parts:
        raise TaskError(f"inputs is a {kind} without items.")
    try:
        found = _joined([part[1] for part in parts])
        return _joined([part[0] for part in parts]), found if targets is None else targets
    except (TypeError, RuntimeError, KeyError) as error:
        raise TaskError(f"the batches of the {kind} do not fit together: {error}. Pad them to one length.") from error


def targets_or_none(inputs: Any, targets: Any, function: object) -> Any:
    """The targets; where none are given, those that the output function can do with.

    They are (num_examples, 0) float32 for one that reads none, or may read none, as a function of the user's own; and
    the tokens, -100 at padding, for ``next_token_margin``.

    Args:
        inputs: as ``ExampleSet.of`` takes them.
        targets: as they were given.
        function: the output function as it was given.
    """
    kind, _, column = function.partition(":") if isinstance(function, str) else ("", "", "")
    if targets is not None:
        return targets
    if function == _NEXT_TOKENS and isinstance(inputs, Mapping) and _TOKENS in inputs:
        tokens = torch.as_tensor(inputs[_TOKENS])
        mask = inputs.get("attention_mask")
        return tokens if mask is None else tokens.masked_fill(torch.as_tensor(mask) == 0, -100)
    reads_none = (kind in _OF_COLUMNS and column.isdecimal()) or function == _VALUE or callable(function)
    return torch.zeros(len(inputs_alone(inputs)), 0) if reads_none else None


def _are_pairs(inputs: Any) -> bool:
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], tuple) and len(inputs[0]) == 2


def _stacked(items: list[Tensor]) -> Tensor:
    try:
        return torch.stack(items)
    except (TypeError, RuntimeError) as error:
        raise TaskError(f"the tensors of the list do not fit together: {error}. Pad them to one shape.") from error


def _batches(dataset: Dataset[Any], kind: str) -> Iterator[Any]:
    items: Sequence[Any] = dataset  # type: ignore[assignment]
    if not hasattr(dataset, "__len__"):
        raise TaskError(f"inputs is a {kind} of unknown length. Give it in a DataLoader.")
    for start in range(0, len(items), _ITEMS_AT_ONCE):
        some = [items[i] for i in range(start, min(start + _ITEMS_AT_ONCE, len(items)))]
        try:
            yield default_collate(some)
        except (TypeError, RuntimeError) as error:
            raise TaskError(
                f"the items of the {kind} do not fit together: {error}. Give it in a DataLoader whose collate_fn can."
            ) from error


def _parted(batch: Any) -> tuple[Any, Any]:
    """The inputs of a batch, and its targets; None where there are none."""
    if isinstance(batch, Mapping):
        key = next((key for key in _LABELS if key in batch), None)
        return {name: value for name, value in batch.items() if name != key}, None if key is None else batch[key]
    if isinstance(batch, list | tuple):
        if len(batch) > 2:
            raise TaskError(
                f"a batch has {len(batch)} parts, but is (inputs, targets) or a dict of inputs by the names of the "
                f"model's arguments, with labels."
            )
        return (batch[0], batch[1]) if len(batch) == 2 else (batch[0], None)
    return batch, None


def _joined(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: _joined([part[name] for part in parts]) for name in first}
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if first is None:
        return None
    raise TypeError(f"they hold a {type(first).__name__}, not tensors")
