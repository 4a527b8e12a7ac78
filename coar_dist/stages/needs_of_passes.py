"""What stages take that run the model once more: the circuit stage and the edit stage. As in ``stages.needs``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coar_dist.config.schema import NECESSARY, CircuitConfig, EditConfig
from coar_dist.editing.criterion import sizes as tried_sizes
from coar_dist.evaluation.circuit import inner
from coar_dist.evaluation.circuit_scores import num_kept
from coar_dist.evaluation.necessary import num_pairs
from coar_dist.stages.edit_inputs import most_components
from coar_dist.stages.needs import FOOTER_BYTES, PROCESS_BYTES, READ_BYTES, REQUESTS, Need, Sizes, Speed
from coar_dist.store.circuits import RANKINGS

EDIT, EDIT_OF_ONE = "edit", "edit, a target"
"""The edit stage; of one target where nobody knows yet how many have an edit of their own."""
CIRCUIT_IF_ASKED = "circuit, if asked for"
"""The circuit stage, which ``stages`` has to name."""
_SHARD_MASKS, _EDIT_FILES, _CIRCUIT_FILES = 64, 8, 5
"""Masks of a shard, the fewest; and files beside the shards."""
_ENDS, _STARTS = 2, 2
"""Masks of the whole model and of none of it; and how often an actor starts: what the ends decide comes after them."""
_MODELS = 4.0
"""Copies of an edited model while its weights are written."""


@dataclass(frozen=True)
class PassesOfModel:
    """What passes over some examples take.

    Attributes:
        num_examples: under every mask.
        start_s: seconds until an actor can begin.
        seconds_per_pass: of one actor, for one example under one mask.
        model_bytes: of the weights.
        has_values: whether activations are replaced, not weights zeroed.
    """

    num_examples: int
    start_s: float
    seconds_per_pass: float
    model_bytes: float
    has_values: bool = False


def num_circuit_masks(sizes: Sizes, circuit: CircuitConfig) -> int:
    """Masks of the circuit stage, at most: equal rankings share them.

    Args:
        sizes: of the run.
        circuit: the settings.
    """
    d = sizes.num_components
    num_methods = sizes.num_methods if circuit.methods is None else len(circuit.methods)
    num_rankings = len(RANKINGS) * num_methods + circuit.random_draws  # of random weights both rankings are one
    num_sizes = len(inner(num_kept(np.array(circuit.sizes), d), d))
    return _ENDS + num_rankings * num_sizes + (num_pairs(d) if circuit.known == NECESSARY else 0)


def circuit_need(sizes: Sizes, circuit: CircuitConfig, passes: PassesOfModel, speed: Speed) -> Need:
    """Of the circuit stage.

    Args:
        sizes: of the run.
        circuit: the settings.
        passes: over the run's examples.
        speed: of this process.
    """
    num_masks = num_circuit_masks(sizes, circuit)
    num_methods = sizes.num_methods if circuit.methods is None else len(circuit.methods)
    num_designs = len(RANKINGS) * num_methods + circuit.random_draws + 1 + (circuit.known == NECESSARY)
    num_shards = num_designs + num_masks // _SHARD_MASKS
    margins = sizes.bytes_of(num_masks)
    num_passes = (num_masks + 1) * passes.num_examples  # and the model as it is
    openings = num_methods * sizes.num_blocks + num_shards * sizes.num_blocks
    read = num_methods * sizes.attribution_bytes + margins + FOOTER_BYTES * openings
    block = min(sizes.block_size, sizes.num_examples) * sizes.num_components
    return Need(
        CIRCUIT_IF_ASKED,
        _STARTS * passes.start_s
        + num_passes * passes.seconds_per_pass
        + read / speed.verified
        + REQUESTS * openings * speed.request_s,
        PROCESS_BYTES + passes.model_bytes + READ_BYTES * block,
        read,
        margins,
        REQUESTS * openings,
        num_shards + _CIRCUIT_FILES,
        passes=num_passes,
    )


def edit_need(sizes: Sizes, edit: EditConfig, passes: PassesOfModel, speed: Speed) -> Need:
    """Of the edit stage; with ``edit.each``, of as many targets as are known beforehand, else of one.

    Args:
        sizes: of the run.
        edit: the settings.
        passes: what is run.
        speed: of this process.
    """
    known_targets = edit.target.sample or len(edit.target.ids or [])
    num_targets = max(known_targets, 1) if edit.each else 1
    num_selections = 1 + len(edit.compare)
    num_sizes = len(tried_sizes(most_components(edit, sizes.num_components))) - 1  # all share the whole model's mask
    num_masks = num_targets * num_selections * num_sizes + 1
    block = min(sizes.block_size, sizes.num_examples) * sizes.num_components
    margins = sizes.bytes_of(num_masks, passes.num_examples)
    num_shards = -(-num_masks // _SHARD_MASKS)
    # Attributions of the targets and of the references, and margins.
    openings = (num_targets + 1) * num_selections * sizes.num_blocks + num_shards
    read = (1 + min(num_targets, sizes.num_blocks)) * num_selections * sizes.attribution_bytes + margins
    read += FOOTER_BYTES * openings
    # As it was, by itself and by the engine; edited, by weights and, where these are to hold values, by activations.
    num_plain = 2 if edit.each else 4 if passes.has_values else 3
    num_passes = (num_masks + num_plain) * passes.num_examples
    return Need(
        EDIT if known_targets or not edit.each else EDIT_OF_ONE,
        passes.start_s
        + num_passes * passes.seconds_per_pass
        + read / speed.verified
        + REQUESTS * openings * speed.request_s,
        PROCESS_BYTES + (1.0 if edit.each else _MODELS) * passes.model_bytes + READ_BYTES * block,
        read,
        margins + (0.0 if edit.each else passes.model_bytes),
        REQUESTS * openings,
        num_shards + _EDIT_FILES,
        passes=num_passes,
    )
