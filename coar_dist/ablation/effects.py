"""The effects that every form of a model is held to before it is used: what ablated components change.

A form is any other way to compute margins than the plainest on the untouched model: folded, in another layout, with
gates, on reused activations, compiled, recorded. It is compared by the differences that masks make, group by group,
relative to the size of that group's own differences. A tolerance in the units of the margin would let in gates that do
nothing wherever margins are large beside effects, or small beside the tolerance.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.caches import forget_between_passes
from coar_dist.ablation.placement import modules_called
from coar_dist.ablation.rounding import (
    MOST_COPIED_BYTES,
    epsilon_of,
    rounding_of_outputs,
    size_of,
    with_other_last_bits,
)
from coar_dist.ablation.unsuitable import refuse_mixed_rows, refuse_unrepeatable
from coar_dist.ablation.value import AblationValue
from coar_dist.components.gate_places import weights_read
from coar_dist.errors import in_one_line
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import OutputFunction
from coar_dist.tasks.task import call_model

NUM_EXAMPLES = 4
"""Examples of the probe, spread over the example set, so that they are not all alike."""
EXAMPLES_PER_MASK = 2
_RELATIVE_TOLERANCE = 1e-3
"""Share of a group's effects, root mean square, that a form may be off by."""
_ROUNDINGS = 6.0
"""How many times the model's own rounding, root mean square, a single difference may be off by."""
_LEAST_ROUNDING = 4.0
"""In units of the dtype's epsilon at the margin's size: sums in another order differ by so much in any net."""
_FEWER_ROWS = 3
_REPEATED_MASKS, _ROUNDING_MASKS = 9, 17
"""Masks, the one that keeps all among them, that are run a second time, and with other last bits."""
_SAME_MASKS = 9
_log = logging.getLogger(__name__)
_Size = TypeVar("_Size", float, NDArray[np.float64], Tensor)

MarginsOf = Callable[[NDArray[np.bool_], ExampleSet], Tensor]
"""Margins (num_examples,) of a few examples under one mask (num_components,)."""
MarginsOfRows = Callable[[NDArray[np.bool_], ExampleSet], Tensor]
"""Margins (num_rows,) of rows that carry a mask each: masks (num_rows, num_components), examples of as many rows."""


@dataclass(frozen=True)
class Failure:
    """A group whose effects a form does not have.

    Attributes:
        group: its place among ``ComponentIndex.groups``.
        error: root mean square of the differences' errors.
        effect: root mean square of the differences themselves.
    """

    group: int
    error: float
    effect: float


class Effects:
    """Margins of the untouched model under masks that ablate each group alone.

    Every group has two masks, complementary halves of its components at random, so that every component is ablated in
    one of them. Each runs two examples; a form that gives every row a mask of its own is held to the same pairs.

    Args:
        model: the untouched model, in eval mode, on ``device``.
        value: what ablated components are replaced by.
        examples: all of them; a few are used.
        output_function: from outputs and targets to margins.
        device: where the model takes its inputs.

    Attributes:
        value: as given, with the parameters that the model reads itself.
        examples: those of the probe, on ``device``.
        unablated: (num_probe_examples,) float64 margins.
        rounding: the model's own, root mean square, in units of the margin.
        changes_inputs: whether the model works in place on the tensors that it is given.

    Raises:
        TaskError: two equal forward passes differ, a margin is not finite, or rows of a batch depend on each other.
    """

    def __init__(
        self,
        model: nn.Module,
        value: AblationValue,
        examples: ExampleSet,
        output_function: OutputFunction,
        device: torch.device,
    ) -> None:
        self._components, self._output_function = value.components, output_function
        self.changes_inputs = False
        self._device = device
        self.take_from(examples)
        forgotten = forget_between_passes(model, self._components, lambda: self.margins(model, self.examples))
        if forgotten:
            _log.info("%s: computed from weights, and kept by the model; computed in every pass now", forgotten)
        read = weights_read(model, value.components, lambda: self.margins(model, self.examples))
        self.value = replace(value, read=read)
        self.value.check(model, lambda: self.margins(model, self.examples))
        self._halves = [_halves(number, group.num_components) for number, group in enumerate(self._components.groups)]
        ablated = self._ablated(model)
        self._expected = self.run(ablated)
        self.unablated = self._expected[: len(self.examples)]
        least = _LEAST_ROUNDING * epsilon_of(model) * _largest(self._expected)
        of_outputs = self._rounding_of_outputs(model)
        self.rounding = max(least, of_outputs)
        self._check_repeats(ablated, type(model).__name__)
        measured = self._measured_rounding(model, least)
        gaps = refuse_mixed_rows(
            model,
            self.examples,
            self.margins,
            self.unablated,
            doubtful=_ROUNDINGS * min(least, measured),
            allowed=_ROUNDINGS * max(measured, of_outputs),
        )
        self.rounding = max(measured, of_outputs, size_of(gaps))

    def take_from(self, examples: ExampleSet) -> None:
        """Take the probe's examples from these: all of them, whatever else a form gives the model and compares with."""
        chosen = np.unique(np.linspace(0, len(examples) - 1, NUM_EXAMPLES).astype(np.int64))
        self.examples = examples.without_columns().select(chosen).map(lambda tensor: tensor.to(self._device))

    def _ablated(self, model: nn.Module) -> MarginsOf:
        masker = self.value.truth(model)

        def ablated(mask: NDArray[np.bool_], batch: ExampleSet) -> Tensor:
            with masker.ablated(mask):
                if not self.value.differs_by_row:
                    return self.margins(model, batch)
                # One at a time, whatever axis of an activation its rows are.
                return torch.cat([self.margins(model, batch.rows(row, row + 1)) for row in range(len(batch))])

        return ablated

    def margins(self, model: Callable[..., Any], batch: ExampleSet) -> Tensor:
        """Float64 margins of a batch; the model gets tensors of its own, which it may change."""
        own = batch.map(torch.clone)
        before = [tensor._version for _, tensor in own.tensors()]
        with torch.no_grad(), modules_called():
            margins = self._output_function(call_model(model, own.inputs), own.targets).double()
        self.changes_inputs |= [tensor._version for _, tensor in own.tensors()] != before
        return margins

    @property
    def num_pairs(self) -> int:
        """Pairs of a mask and an example, those of the unablated model first."""
        return len(self.examples) + len(self._components.groups) * 2 * EXAMPLES_PER_MASK

    def passes(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
        """Masks (num_components,), the one that keeps all first, each with the rows of ``examples`` that it runs."""
        num_components, num_examples = self._components.num_components, len(self.examples)
        yield np.ones(num_components, np.bool_), np.arange(num_examples)
        for number, halves in enumerate(self._halves):
            for side, half in enumerate(halves):
                mask = np.ones(num_components, np.bool_)
                mask[self._components.offsets[number] + half] = False
                yield mask, (number + side + np.arange(EXAMPLES_PER_MASK)) % num_examples

    def run(self, margins_of: MarginsOf, most: int | None = None) -> NDArray[np.float64]:
        """The pairs' margins (num_pairs,), one mask after the other; of the first ``most`` masks alone."""
        parts = [margins_of(mask, self.examples.select(rows)) for mask, rows in islice(self.passes(), most)]
        return np.asarray(torch.cat([part.double() for part in parts]).cpu().numpy())

    def run_rows(self, margins_of: MarginsOfRows, num_rows: int) -> NDArray[np.float64]:
        """The pairs' margins (num_pairs,), with ``num_rows`` pairs of different masks in a pass; the last is filled up.

        Both halves of a group stand beside each other, on different rows. A pass of fewer rows comes first: an axis
        that has ``num_rows`` entries by chance, and is not the rows, does not fit these.
        """
        margins, fewer = np.empty(0), num_rows - _FEWER_ROWS
        keeps_all = np.ones(self._components.num_components, np.bool_)
        self._rows_margins(margins_of, [keeps_all] * fewer, [row % len(self.examples) for row in range(fewer)])
        masks: list[NDArray[np.bool_]] = []
        rows: list[int] = []
        for mask, chosen in self.passes():
            masks += [mask] * len(chosen)
            rows += chosen.tolist()
            while len(rows) >= num_rows:
                margins = np.append(margins, self._rows_margins(margins_of, masks[:num_rows], rows[:num_rows]))
                masks, rows = masks[num_rows:], rows[num_rows:]
        if rows:
            num_left, num_missing = len(rows), num_rows - len(rows)
            masks, rows = masks + masks[:1] * num_missing, rows + rows[:1] * num_missing
            margins = np.append(margins, self._rows_margins(margins_of, masks, rows)[:num_left])
        return margins

    def _rows_margins(
        self, margins_of: MarginsOfRows, masks: list[NDArray[np.bool_]], rows: list[int]
    ) -> NDArray[np.float64]:
        return np.asarray(margins_of(np.stack(masks), self.examples.select(rows)).double().cpu().numpy())

    def failures(self, margins: NDArray[np.float64], rounding: float | None = None) -> list[Failure]:
        """The groups whose effects are not those of zeroed weights.

        Args:
            margins: (num_pairs,) of a form, from ``run`` or ``run_rows``; NaN fails.
            rounding: of the form, where it runs in another precision; None is the model's own.
        """
        rounding = self.rounding if rounding is None else rounding
        num_examples = len(self.examples)
        rows = np.concatenate([chosen for _, chosen in self.passes()])[num_examples:]
        found = margins[num_examples:] - margins[:num_examples][rows]
        expected = self._expected[num_examples:] - self.unablated[rows]
        effects = self.sizes()
        wrong = np.abs(found - expected).reshape(len(effects), -1).max(axis=1)
        offset = np.abs(margins[:num_examples] - self.unablated).max()
        holds = (wrong <= allowed_error(effects, rounding)) & (offset <= allowed_error(np.median(effects), rounding))
        return [Failure(int(number), float(wrong[number]), float(effects[number])) for number in np.flatnonzero(~holds)]

    def same(self, margins_of: MarginsOf) -> bool:
        """Whether a form has the very margins of the first masks, but for rounding: for forms that leave the ablation
        as it is, whose error would be that of every mask."""
        margins = self.run(margins_of, _SAME_MASKS)
        return bool((np.abs(margins - self._expected[: len(margins)]) <= _ROUNDINGS * self.rounding).all())

    def sizes(self) -> NDArray[np.float64]:
        """(num_groups,) root mean square of each group's effects."""
        num_examples = len(self.examples)
        effects = self._expected[num_examples:] - self.unablated[self.pair_rows()[num_examples:]]
        return np.asarray(np.sqrt((effects.reshape(-1, 2 * EXAMPLES_PER_MASK) ** 2).mean(axis=1)))

    def error(self, margins_of: MarginsOf) -> float:
        """Root mean square of the errors of a form's margins, over the first masks."""
        margins = self.run(margins_of, _ROUNDING_MASKS)
        return size_of(margins - self._expected[: len(margins)])

    def group_masks(self, number: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """The two masks (2, num_components) of a group, and where their pairs (2, EXAMPLES_PER_MASK) stand."""
        first = len(self.examples) + number * 2 * EXAMPLES_PER_MASK
        masks = [mask for mask, _ in islice(self.passes(), 1 + 2 * number, 3 + 2 * number)]
        return np.stack(masks), first + np.arange(2 * EXAMPLES_PER_MASK).reshape(2, -1)

    def pair_rows(self) -> NDArray[np.int64]:
        """(num_pairs,) rows of ``examples`` that the pairs run."""
        return np.concatenate([rows for _, rows in self.passes()])

    @property
    def expected(self) -> NDArray[np.float64]:
        """(num_pairs,) margins of the untouched model with zeroed weights."""
        return self._expected.copy()

    def _check_repeats(self, ablated: MarginsOf, name: str) -> None:
        """Twice in a row: a model may be random, or keep a state."""
        again = self.run(ablated, _REPEATED_MASKS)
        refuse_unrepeatable(self._expected[: len(again)], again, _ROUNDINGS * self.rounding, name)

    def _rounding_of_outputs(self, model: nn.Module) -> float:
        own = self.examples.map(torch.clone)
        with torch.no_grad(), modules_called():
            outputs = call_model(model, own.inputs)
            return rounding_of_outputs(outputs, lambda others: self._output_function(others, own.targets))

    def _measured_rounding(self, model: nn.Module, least: float) -> float:
        """The margins' error by rounding: what other last bits of all weights change, which is about as large.

        A copy in a higher precision would not do: where it is another model, by noise of a fixed seed or a branch on
        the dtype, the difference lets in whatever form there is.
        """
        if sum(parameter.nbytes for parameter in model.parameters()) > MOST_COPIED_BYTES:
            return least
        try:
            other = with_other_last_bits(model)
        except Exception as error:  # a model may not be copied
            _log.info("the model's rounding is not measured: %s", in_one_line(error))
            return least
        changed = self.run(self._ablated(other), _ROUNDING_MASKS)
        return max(least / _LEAST_ROUNDING / 2, size_of(changed - self._expected[: len(changed)]))


def allowed_error(effect: _Size, rounding: float) -> _Size:
    """What a form may be off by in the difference that a mask makes.

    Args:
        effect: root mean square of the differences themselves.
        rounding: of a margin in the form's precision, root mean square.

    Example:
        >>> round(allowed_error(2.0, 1e-5), 6)
        0.00206
    """
    return _RELATIVE_TOLERANCE * effect + _ROUNDINGS * rounding


def _halves(number: int, num_components: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.random.default_rng([7, number]).permutation(num_components)
    middle = (num_components + 1) // 2
    return order[:middle], order[middle:]


def _largest(margins: NDArray[np.float64]) -> float:
    """The largest finite margin; a model may give NaN for some examples or masks, which are named later."""
    return float(np.abs(margins[np.isfinite(margins)]).max(initial=0.0))
