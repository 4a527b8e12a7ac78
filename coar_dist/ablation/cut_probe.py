"""Which activations may be reused: those behind which masks have the effects of zeroed weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
import torch

from coar_dist.ablation.prefix import Cut, PrefixCuts
from coar_dist.ablation.prepared import PreparedModel
from coar_dist.errors import in_one_line
from coar_dist.tasks.example_set import ExampleSet

_ROWS = 2
"""Rows of the pass that shows what is read behind a cut."""
_log = logging.getLogger(__name__)


def hold_cuts(cuts: PrefixCuts, model: PreparedModel, chosen: Iterable[Cut]) -> None:
    """Hold some cuts to the truth, and forget them for the groups that have other effects behind them.

    Both masks of a group run on the same activations, one after the other: a model may write to them. Then the second
    one runs on some rows of them. It takes about ten rows per group, of a part of the model each.

    Args:
        cuts: ``chosen`` are of these.
        model: has no gates.
        chosen: those to hold; ``held`` is set, whether or not a group can use them from now on.
    """
    effects, groups = model.effects, model.value.components.groups
    pair_rows, masker = effects.pair_rows(), model.value.masker(model.module)
    shared, selected = effects.expected, effects.expected
    tried = set[int]()
    for cut in chosen:
        numbers = cuts.groups_of(cut)
        tried.update(numbers)
        try:
            cut.find_what_is_read(model, model.filled(model.examples, _ROWS))
            for number in numbers:
                masks, pairs = effects.group_masks(number)
                rows, places = np.unique(pair_rows[pairs], return_inverse=True)
                examples = model.laid_out(effects.examples.select(rows))
                all_rows = ExampleSet(model.outputs(cut.before, examples.inputs), examples.targets)
                with masker.ablating() as ablate:
                    for mask, pair, place in zip(masks, pairs, places.reshape(pairs.shape), strict=True):
                        ablate(mask)
                        shared[pair] = model.margins(cut.after, all_rows).double().cpu().numpy()[place]
                    own = model.selected(all_rows, torch.from_numpy(place).to(model.device))
                    selected[pair] = model.margins(cut.after, own).double().cpu().numpy()
        except Exception as error:  # memory runs out, or the user's own code fails when a part of it is not run
            _log.info("activations before %s are not reused: %s", groups[numbers[0]].parameter, in_one_line(error))
            for number in numbers:
                cuts.forget(number)
            tried.difference_update(numbers)
        cut.held = True
    failed = {failure.group for margins in (shared, selected) for failure in effects.failures(margins, model.rounding)}
    for number in sorted(failed & tried):
        _log.info("activations before %s are not reused: they give other effects", groups[number].parameter)
        cuts.forget(number)
