"""Which activations may be reused: those behind which masks have the effects of zeroed weights."""

from __future__ import annotations

import logging

import numpy as np
import torch

from coar_dist.ablation.prefix import PrefixCuts
from coar_dist.ablation.prepared import PreparedModel
from coar_dist.ablation.weights_form import WeightsForm
from coar_dist.errors import in_one_line

_log = logging.getLogger(__name__)


def hold_cuts(cuts: PrefixCuts, model: PreparedModel) -> bool:
    """Hold every cut to the truth, twice in a row on the same activations, and forget those that do not give it.

    Returns:
        Whether any holds.
    """
    effects, form, groups = model.effects, WeightsForm(model, len(model.examples)), model.value.components.groups
    rows = effects.pair_rows()
    examples = model.laid_out(effects.examples)
    margins, tried = effects.expected, set[int]()
    for number, group in enumerate(groups):
        if group.parameter in model.value.read:
            cuts.forget(number)  # a cut's part holds the parameter itself, whatever gates stand in its place
        masks, pairs = effects.group_masks(number)
        cut = cuts.of_group(number)
        if cut is None:
            continue
        tried.add(number)
        try:
            found = form.behind(cut, np.concatenate([masks, masks]), examples)[2:].double().cpu().numpy()
            margins[pairs] = np.take_along_axis(found, rows[pairs], axis=1)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the traced parts may fail where the model does not
            _log.info("activations before %s are not reused: %s", group.parameter, in_one_line(error))
            margins[pairs] = np.nan
    for failure in effects.failures(margins, model.rounding):
        name = groups[failure.group].parameter
        _log.info("activations before %s are not reused: they give other effects", name)
        cuts.forget(failure.group)
        tried.discard(failure.group)
    return bool(tried)
