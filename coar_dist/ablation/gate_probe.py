"""Which groups may be gated: those whose gates have the effects of zeroed weights, found out group by group."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.effects import Effects, Failure
from coar_dist.ablation.value import AblationValue, ZeroWeights
from coar_dist.components.gate_places import places_of
from coar_dist.components.mixture_sites import MixtureSites
from coar_dist.errors import ConfigError, in_one_line
from coar_dist.tasks.example_set import ExampleSet

_ROWS = 8
"""Rows of a pass, each with a mask of its own."""
GatedMargins = Callable[[Collection[int]], NDArray[np.float64]]
"""From the groups that get no gates to the margins of the probe's pairs, every row with gates of its own."""


def ungated_groups(
    effects: Effects,
    value: AblationValue,
    model: nn.Module,
    device: torch.device,
    uncalled: bool = False,
    known: Mapping[int, str] = MappingProxyType({}),
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    rounding: float | None = None,
) -> dict[int, str]:
    """The groups that gates cannot stand in for, with the reason.

    Args:
        effects: of the untouched model.
        value: what an ablated component is replaced by.
        model: the prepared model; it is as before on every exit.
        device: where the gates lie.
        uncalled: whether gates are let in whose module no example of the probe comes to; other examples may.
        known: groups that are known to have none, with the reason.
        autocast: the precision in which passes run.
        rounding: of a margin in that precision; None is the model's own.
    """
    called: set[int] = set()
    components = value.components

    def gated_margins(without: Collection[int]) -> NDArray[np.float64]:
        called.clear()

        def margins_of(masks: NDArray[np.bool_], batch: ExampleSet) -> Tensor:
            gated_model = value.gated(model, len(masks), device, without=without, called=called)
            try:
                gated_model.gates.copy_(torch.from_numpy(masks))
                with autocast():
                    return effects.margins(model, batch)
            finally:
                gated_model.remove()

        return effects.run_rows(margins_of, _ROWS)

    found = places_of(model, components, value.read)
    reasons = {
        number: f"axis {part.axis} of a {type(model.get_submodule(part.module)).__name__} has no gated form"
        for number, (part, places) in enumerate(
            zip((group.slices[0] for group in components.groups), found, strict=True)
        )
        if not places
    }
    if isinstance(value, ZeroWeights):  # the examples of the probe may not come to such an expert
        of_mixtures = MixtureSites(model).leaving_biases(found)
        reasons |= dict.fromkeys(of_mixtures, "zeroed weights leave a bias of its experts")
    reasons = failing_groups(effects, len(components.groups), gated_margins, {**reasons, **known}, rounding)
    if not uncalled:  # an expert that no example came to, say
        missed = sorted(set(range(len(components.groups))) - set(reasons) - called)
        reasons |= dict.fromkeys(missed, "its module is not called on the examples of the probe")
    return reasons


def failing_groups(
    effects: Effects,
    num_groups: int,
    gated_margins: GatedMargins,
    known: Mapping[int, str],
    rounding: float | None = None,
) -> dict[int, str]:
    """The groups of which a form with gates does not have the effects, with the reason, besides those ``known``.

    All are tried together; where that raises, or changes what no mask ablates, each is tried alone, and what is left
    once more together: the form as it will be used is what is held to the truth last.
    """
    reasons = dict(known)
    while True:
        candidates = [number for number in range(num_groups) if number not in reasons]
        if not candidates:
            return reasons
        found = _failures(effects, gated_margins, set(reasons), rounding)
        failed = {failure.group for failure in found} if isinstance(found, list) else set(candidates)
        failed &= set(candidates)
        if not failed:
            return reasons
        if failed != set(candidates) or len(candidates) == 1:
            reasons |= {number: _reason(found, number) for number in failed}
            continue
        alone = {}
        for number in candidates:
            try:
                found_alone = _failures(effects, gated_margins, set(range(num_groups)) - {number}, rounding)
            except ConfigError as error:  # not of all together: no gradient comes to these gates
                found_alone = in_one_line(error)
            if isinstance(found_alone, str) or any(failure.group == number for failure in found_alone):
                alone[number] = _reason(found_alone, number)
        reasons |= alone or {number: _reason(found, number) for number in failed}


def _failures(
    effects: Effects, gated_margins: GatedMargins, without: Collection[int], rounding: float | None
) -> list[Failure] | str:
    """The failing groups, or why the form does not run at all."""
    try:
        return effects.failures(gated_margins(without), rounding)
    except (ConfigError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the user's own forward may raise anything when a layer is not what it was
        return in_one_line(error)


def _reason(found: list[Failure] | str, number: int) -> str:
    if isinstance(found, str):
        return f"a pass with its gates fails: {found}"
    failure = next(failure for failure in found if failure.group == number)
    return (
        f"its gates have other effects than zeroed weights: they differ by {failure.error:.2g}, and the effects are of "
        f"size {failure.effect:.2g}"
    )
