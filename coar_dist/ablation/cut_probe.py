"""Which activations may be reused: those behind which masks have the effects of zeroed weights."""

from __future__ import annotations

import logging

import numpy as np
import torch

from coar_dist.ablation.prefix import PrefixCuts
from coar_dist.ablation.prepared import PreparedModel
from coar_dist.errors import in_one_line
from coar_dist.tasks.task import ExampleSet

_log = logging.getLogger(__name__)


def hold_cuts(cuts: PrefixCuts, model: PreparedModel) -> bool:
    """Hold every cut to the truth, twice in a row on the same activations, and forget those that do not give it.

    Returns:
        Whether any holds.
    """
    effects, groups = model.effects, model.value.components.groups
    examples, masker = model.laid_out(effects.examples), model.value.masker(model.module)
    shared, selected = effects.expected, effects.expected
    tried = set[int]()
    for number, group in enumerate(groups):
        cut = cuts.of_group(number)
        if cut is None:
            continue
        tried.add(number)
        masks, pairs = effects.group_masks(number)
        rows = torch.from_numpy(effects.pair_rows()[pairs]).to(model.device)
        try:
            all_rows = ExampleSet(model.outputs(cut.before, examples.inputs), examples.targets)
            with masker.ablating() as ablate:
                for mask, places, chosen in (*zip(masks, pairs, rows, strict=True),) * 2:
                    ablate(mask)
                    shared[places] = model.margins(cut.after, all_rows)[chosen].double().cpu().numpy()
                    own = model.selected(all_rows, chosen)
                    selected[places] = model.margins(cut.after, own).double().cpu().numpy()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the user's own code may raise anything when a part of it is not run
            _log.info("activations before %s are not reused: %s", group.parameter, in_one_line(error))
            shared[pairs] = np.nan
    failed = {failure.group for margins in (shared, selected) for failure in effects.failures(margins, model.rounding)}
    for number in sorted(failed & tried):
        _log.info("activations before %s are not reused: they give other effects", groups[number].parameter)
        cuts.forget(number)
    return bool(tried - failed)
