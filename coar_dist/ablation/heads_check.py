"""Heads that the model's modules name are held to what a forward pass shows; where the two differ, none is ablated."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from coar_dist.ablation.traced_heads import HeadsRead, heads_read
from coar_dist.components.attention_sites import attention_sites
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex
from coar_dist.errors import ComponentMismatchError, counted, in_one_line, listed

_HEAD, _SEVERAL = "head", "key-value group"
_log = logging.getLogger(__name__)


def check_heads(model: nn.Module, components: ComponentIndex, run: Callable[[], object]) -> None:
    """Check that components called heads, or key-value groups, are the heads that a forward pass computes.

    The log says how many projections the pass confirms, and which attention it shows that has no such component by any
    selector.

    Args:
        model: whose heads they are.
        components: all components; those of other kinds are not looked at.
        run: runs the model on a few examples.

    Raises:
        ComponentMismatchError: a head is a part of one, parts of several, or along another axis.
    """
    groups = [group for group in components.groups if group.kind in (_HEAD, _SEVERAL)]
    if not groups:
        return
    try:
        found = heads_read(model, run)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an operator of the user's own may not run where operators are followed
        _log.info("heads are not confirmed by a forward pass: %s", in_one_line(error))
        return
    by_parameter: dict[str, list[HeadsRead]] = {}
    for read in found:
        by_parameter.setdefault(read.parameter, []).append(read)
    confirmed = []
    for group in groups:
        for part in group.slices:
            reads = by_parameter.get(part.parameter, [])
            for read in reads:
                _check(group, part, read)
            confirmed += [part.parameter] * bool(reads)
    _log.info("heads: %d of %s confirmed by a forward pass", len(confirmed), counted(len(groups), "projection"))
    known = {site.parameter for site in attention_sites(model)}
    without = [f"{name} ({reads[0]})" for name, reads in by_parameter.items() if name not in known and reads[0].several]
    if without:
        _log.warning("attention that no selector finds: %s; take it by components.rules", listed(without))


def _check(group: ComponentGroup, part: Slices, read: HeadsRead) -> None:
    are_whole = read.are_one if group.kind == _HEAD else read.are_whole
    if read.axis == part.axis and all(are_whole(start, part.size) for start in part.starts):
        return
    raise ComponentMismatchError(
        f"{group.kind}s of {part.parameter}: by the modules' names and numbers they are {group.num_components} of "
        f"{part.size} along axis {part.axis}, and a forward pass reads heads there that are {read} along axis "
        f"{read.axis}. Leave it out (components.exclude), or cut it as the model does (components.rules)."
    )
