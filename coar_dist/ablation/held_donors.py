"""Donors' activations at sites, computed once where memory allows, so that passes need no donors of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.ablation.placement import modules_called
from coar_dist.components.gate_places import GatePlace
from coar_dist.components.row_values import EXAMPLE
from coar_dist.components.sites import Sites, site_name

_NUM_ROWS = 16


def held_donors(
    model: nn.Module, places: Iterable[GatePlace], donors: Mapping[str, Any], device: torch.device, most_bytes: float
) -> dict[str, list[Tensor]] | None:
    """The activations of all donors at sites.

    Args:
        model: with a ``RowForward``, on ``device``; nothing ablates it.
        places: of the sites.
        donors: inputs by keyword, (num_donors, ...) each.
        device: where the model takes its inputs.
        most_bytes: that the activations may take.

    Returns:
        Per site one tensor (num_donors * k, ...) for each time that a pass comes by; None where they take more than
        ``most_bytes``, or where a donor's activations cannot be told from another's.
    """
    by_name = {site_name(place): place for place in places}
    num_donors = next(len(each) for each in donors.values() if isinstance(each, Tensor))
    found: dict[str, list[list[Tensor]]] = {name: [] for name in by_name}
    sites = Sites(model)
    try:
        calls: dict[str, list[Tensor]] = {}
        for name, place in by_name.items():
            sites.stand(place, partial(_noted, calls, name))
        for start in range(0, num_donors, _NUM_ROWS):
            batch = {
                name: each[start : start + _NUM_ROWS].to(device, copy=True) if isinstance(each, Tensor) else each
                for name, each in donors.items()
            }
            num_rows = min(_NUM_ROWS, num_donors - start)
            calls.clear()
            with torch.no_grad(), modules_called():
                model(**batch, **{EXAMPLE: torch.zeros(num_rows, dtype=torch.int64, device=device)})
            activations = [each for of_site in calls.values() for each in of_site]
            if any(len(each) % num_rows or not len(each) for each in activations):
                return None
            if sum(each.nbytes for each in activations) / num_rows * num_donors > most_bytes:
                return None
            for name, of_site in calls.items():
                if start == 0:
                    found[name] = [[] for _ in of_site]
                if len(found[name]) != len(of_site):
                    return None
                for parts, each in zip(found[name], of_site, strict=True):
                    if parts and _of_one(parts[0], _NUM_ROWS) != _of_one(each, num_rows):
                        return None
                    parts.append(each)
        return {name: [torch.cat(parts) for parts in each] for name, each in found.items()}
    finally:
        sites.remove()


def _of_one(activation: Tensor, num_rows: int) -> tuple[int, ...]:
    """The shape of one row's part."""
    return (len(activation) // num_rows, *activation.shape[1:])


def _noted(calls: dict[str, list[Tensor]], name: str, activation: Tensor, _channel_axis: int, _part: slice) -> Tensor:
    calls.setdefault(name, []).append(activation.clone())  # the model may change it in place
    return activation
