"""Reuse of activations: what runs before a mask's first ablated component gives what it always gives.

A pass is cut where a parameter is first read. Modules that are done by then give their recorded outputs instead of
being run, whatever the model takes and however it is written; what stands between them in its own code runs again. It
pays for leave-one-out masks.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from coar_dist.ablation.liveness import read_and_overwritten
from coar_dist.ablation.module_calls import Answer, Call, answered_by, kinds_of_leaves, placeholder, watched
from coar_dist.ablation.prepared import PreparedModel
from coar_dist.components.gate_places import owners_of
from coar_dist.components.index import ComponentIndex
from coar_dist.errors import in_one_line
from coar_dist.tasks.example_set import ExampleSet

_FEW, _MORE = 2, 3
"""Rows of the passes from which the rows of outputs are told."""
_ONLY_INPUT = "the only input"
_log = logging.getLogger(__name__)


class CutError(RuntimeError):
    """A pass is unlike those that its cut was found by; the text says how."""


class _Reached(BaseException):
    """A pass has come to its cut; no ``except Exception`` of the model's own stops it."""


class Cut:
    """A place where a pass falls into two parts.

    Args:
        model: runs the passes.
        reused: modules that are done there, with the kinds of the leaves of their outputs.
        readers: modules whose first call is the end of the first part.
        saved: share of the layers with parameters in the first part: about what a mask behind it saves.

    Attributes:
        saved: as given.
        held: whether margins behind it have been held to the truth; no other cut is used.
    """

    def __init__(self, model: nn.Module, reused: Mapping[str, list[str]], readers: Iterable[str], saved: float) -> None:
        self.saved, self.held = saved, False
        self._model, self._reused, self._readers = model, reused, readers
        self._unread: set[str] = set()
        self._overwritten: set[str] = set()
        self._inputs: list[str] = []
        self._structures: dict[str, TreeSpec] = {}
        self._fixed: dict[str, Any] = {}
        self._placeholders: dict[str, tuple[Tensor, torch.Size]] = {}

    def find_what_is_read(self, model: PreparedModel, batch: ExampleSet) -> None:
        """Keep no tensors from now on that margins behind the cut do not come from."""
        recorded = model.outputs(self.before, batch.inputs)
        self._fixed = {key: value.clone() if isinstance(value, Tensor) else value for key, value in self._fixed.items()}
        rest = ExampleSet(recorded, batch.targets).map(torch.clone)
        inputs = rest.inputs
        assert isinstance(inputs, dict)
        tensors = {key: value for key, value in (inputs | self._fixed).items() if isinstance(value, Tensor)}
        read, self._overwritten = read_and_overwritten(lambda: model.margins(self.after, rest), tensors)
        self._unread = {
            key
            for key in inputs
            if key in tensors
            and tensors[key].is_floating_point()
            and key not in read | self._overwritten
            and not (model.effects.changes_inputs and key in self._inputs)  # it cannot write to a placeholder
        }

    def before(self, *inputs: Tensor, **named: Any) -> dict[str, Any]:
        """From the model's inputs to the activations, as inputs of ``after``; until the next call it knows the rest.

        Raises:
            CutError: a module's output is not what it was.
        """
        given = {_ONLY_INPUT: inputs[0]} if inputs else named
        num_rows = next(len(value) for value in given.values() if isinstance(value, Tensor))
        activations: dict[str, Any] = {}
        self._inputs, self._structures, self._fixed, self._placeholders = list(given), {}, {}, {}
        for key, value in given.items():
            self._keep(key, value, activations)
        record = {name: partial(self._recorded, name, activations, num_rows) for name in self._reused}
        with answered_by(self._model, {**record, **dict.fromkeys(self._readers, _stop)}), suppress(_Reached):
            self._model(*inputs, **named)
        return activations

    def _recorded(
        self, name: str, activations: dict[str, Any], num_rows: int, forward: Answer, *args: Any, **kwargs: Any
    ) -> Any:
        output = forward(*args, **kwargs)
        leaves, structure = tree_flatten(output)
        kinds = self._reused[name]
        if name in self._structures or len(leaves) != len(kinds):
            raise CutError(f"{name} is called more than once, or gives something else")
        self._structures[name] = structure
        for number, (leaf, kind) in enumerate(zip(leaves, kinds, strict=True)):
            key = f"{name}:{number}"
            if kind == "rows":
                if not isinstance(leaf, Tensor) or leaf.shape[:1] != (num_rows,):
                    raise CutError(f"an output of {name} has not a row per example")
                self._keep(key, leaf, activations)
            else:
                self._fixed[key] = leaf.clone() if key in self._overwritten else leaf
        return output

    def _keep(self, key: str, value: Any, activations: dict[str, Any]) -> None:
        if key in self._unread:
            self._placeholders[key] = placeholder(value)
        else:
            activations[key] = value.clone() if key in self._overwritten else value

    def after(self, **activations: Any) -> Any:
        """The model's outputs from activations of ``before``, or of some rows of them."""
        num_rows = next(len(value) for value in activations.values() if isinstance(value, Tensor))
        waiting = dict(self._structures)

        def value_of(key: str) -> Any:
            if key in self._placeholders:
                nan, shape = self._placeholders[key]
                return nan.expand(num_rows, *shape)
            value = activations[key] if key in activations else self._fixed[key]
            return value.clone() if key in self._overwritten else value

        def replayed(name: str, forward: Answer, *args: Any, **kwargs: Any) -> Any:
            structure = waiting.pop(name, None)
            if structure is None:  # its call came after the cut
                return forward(*args, **kwargs)
            return tree_unflatten(
                [value_of(f"{name}:{number}") for number in range(len(self._reused[name]))], structure
            )

        with answered_by(self._model, {name: partial(replayed, name) for name in self._reused}):
            if self._inputs == [_ONLY_INPUT]:
                return self._model(value_of(_ONLY_INPUT))
            return self._model(**{name: value_of(name) for name in self._inputs})


def _stop(_forward: Answer, *_args: Any, **_kwargs: Any) -> NoReturn:
    raise _Reached


def find_cuts(model: PreparedModel) -> PrefixCuts | None:
    """The cuts of a model, before it has gates; None where there are none, and the log says why.

    It takes two passes, of two and of three rows.
    """
    try:
        few, more = (
            watched(model.module, partial(model.outputs, model.module, model.filled(model.examples, rows).inputs))
            for rows in (_FEW, _MORE)
        )
        cuts = PrefixCuts(model, few, more)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a module may be of a kind that does not let itself be watched
        _log.info("activations are not reused: %s", in_one_line(error))
        return None
    return cuts if cuts.all else None


class PrefixCuts:
    """The cuts of a model, and which of them a mask may use; from ``find_cuts``.

    Args:
        model: the prepared model.
        few: calls in a pass of 2 rows.
        more: calls in a pass of 3 rows.
    """

    def __init__(self, model: PreparedModel, few: list[Call], more: list[Call]) -> None:
        self._model, self._offsets = model, model.value.components.offsets
        by_name = [_single(calls) for calls in (few, more)]
        both = set(by_name[0]) & set(by_name[1])
        kinds = {name: kinds_of_leaves(by_name[0][name], by_name[1][name], _FEW, _MORE) for name in both}
        self._kinds = {name: found for name, found in kinds.items() if found is not None}
        self._spans = {name: (by_name[1][name].start, by_name[1][name].end) for name in self._kinds}
        starts: dict[str, int] = {}
        for call in sorted(more, key=lambda call: call.start):
            starts.setdefault(call.module, call.start)
        readers = _readers(model.module, model.value.components, starts)
        self._readers = {name: starts[name] for names in readers for name in names if name}
        layers = [starts[name] for name in starts if model.module.get_submodule(name)._parameters]
        self._layers = np.sort(np.array(layers, dtype=np.int64))
        firsts = [min((starts.get(name, 0) for name in names), default=0) for names in readers]
        self._cuts = {first: self._cut(first) for first in set(firsts)}
        self._cut_of_group = [None if self._cuts[first] is None else first for first in firsts]

    @property
    def all(self) -> list[Cut]:
        """Those that any group uses, first to last."""
        positions = sorted({position for position in self._cut_of_group if position is not None})
        return [cut for position in positions if (cut := self._cuts[position]) is not None]

    def of_group(self, number: int) -> Cut | None:
        """The cut before a group's parameter, by the group's place among the groups; None where there is none."""
        position = self._cut_of_group[number]
        return None if position is None else self._cuts[position]

    def groups_of(self, cut: Cut) -> list[int]:
        """The groups that use a cut, by their place among the groups."""
        return [number for number in range(len(self._cut_of_group)) if self.of_group(number) is cut]

    def forget(self, number: int) -> None:
        """Reuse nothing before a group's parameter."""
        self._cut_of_group[number] = None

    def split(self, masks: NDArray[np.bool_]) -> tuple[list[int], list[tuple[Cut, list[int]]]]:
        """Rows of ``masks`` (num_masks, num_components) with no cut before what they ablate; the others per cut."""
        whole = np.zeros(len(masks), dtype=np.bool_)  # ablates what no cut comes before, as random masks mostly do
        for number, cut in enumerate(self._cut_of_group):
            if cut is None:
                whole |= ~masks[:, self._offsets[number] : self._offsets[number + 1]].all(axis=1)
        alone: list[int] = []
        by_cut: dict[int, list[int]] = {}
        for row, mask in enumerate(masks):
            position = None if whole[row] else self.of_mask(mask)
            if position is None:
                alone.append(row)
            else:
                by_cut.setdefault(position, []).append(row)
        return alone, [(part, rows) for position, rows in by_cut.items() if (part := self._cuts[position]) is not None]

    def of_mask(self, mask: NDArray[np.bool_]) -> int | None:
        """Where the cut before every component that ``mask`` ablates is, in a pass; None where there is none.

        A mask that ablates nothing uses the last cut of all.
        """
        groups = np.unique(np.searchsorted(self._offsets, np.flatnonzero(~mask), side="right") - 1)
        cuts = [self._cut_of_group[g] for g in groups] if groups.size else self._cut_of_group
        usable = [cut for cut in cuts if cut is not None]
        if groups.size:
            return min(usable) if len(usable) == len(cuts) else None
        return max(usable, default=None)

    def _cut(self, position: int) -> Cut | None:
        """The cut at a position; None where it saves nothing."""
        reused = self._reused(position)
        saved = self._saved(reused)
        readers = [name for name, start in self._readers.items() if start >= position]
        kinds = {name: self._kinds[name] for name in reused}
        return Cut(self._model.module, kinds, readers, saved) if saved > 0 else None

    def _reused(self, position: int) -> list[str]:
        """The outermost modules that are done at a position of a pass, in their order."""
        reused, end = [], -1
        for name, span in sorted(self._spans.items(), key=lambda item: item[1]):
            if end < span[0] and span[1] < position:
                reused.append(name)
                end = span[1]
        return reused

    def _saved(self, reused: list[str]) -> float:
        """Share of the layers with parameters that lie in some modules."""
        spans = np.array([self._spans[name] for name in reused], dtype=np.int64).reshape(-1, 2)
        within = np.searchsorted(self._layers, spans[:, 1]) - np.searchsorted(self._layers, spans[:, 0])
        return float(within.sum() / max(len(self._layers), 1))


def _single(calls: list[Call]) -> dict[str, Call]:
    """The calls of modules that are called once, by name."""
    counts = Counter(call.module for call in calls)
    return {call.module: call for call in calls if counts[call.module] == 1}


def _readers(model: nn.Module, components: ComponentIndex, starts: Mapping[str, int]) -> list[set[str]]:
    """Per group the modules that read its parameters: their owners, or what is called around them; "" is the model."""
    owners = owners_of(model)
    return [
        {
            _called(name, starts)
            for parameter in group.parameters
            for name, _ in owners[id(model.get_parameter(parameter))]
        }
        for group in components.groups
    ]


def _called(name: str, starts: Mapping[str, int]) -> str:
    """The innermost module around ``name``, or itself, that is called."""
    while name and name not in starts:
        name = name.rpartition(".")[0]
    return name
