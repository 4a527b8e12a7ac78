"""Where a run lies that nobody gave a place: in the platform's cache, in a folder named by what is explained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from coar_dist.components.index import ComponentIndex
from coar_dist.config.function_identity import identity_of
from coar_dist.config.schema import BALANCED, Config
from coar_dist.store.locations import cache_folder
from coar_dist.store.record import fingerprint_of
from coar_dist.tasks.example_set import ExampleSet, fingerprint_of_tensors
from coar_dist.tasks.task import Task


def cache_location(
    config: Config,
    task: Task,
    components: ComponentIndex,
    reference: ExampleSet | None,
    values: Mapping[str, Tensor] | None,
) -> str:
    """The folder of a run: another one for everything that a run directory would refuse to mix.

    Args:
        config: whose numbers of masks do not count, so that a run with more extends one with fewer.
        task: what is explained.
        components: the component index.
        reference: the examples whose activations take the place of others, where they were given.
        values: what takes the place of activations, by site, where it was given.
    """
    ablation, kinds = config.ablation, [config.design.kind, config.gradients.kind or BALANCED, config.evaluation.kind]
    identity = {
        **task.identity(),
        "components": components.fingerprint,
        "num_examples": len(task.examples),
        "ablation": [ablation.value, ablation.mean_over, repr(ablation.reference), ablation.constants],
        "numbers": [ablation.precision, ablation.margins_dtype, ablation.examples_per_block],
        "reference": None if reference is None else reference.fingerprint(),
        "values": None if values is None else fingerprint_of_tensors(sorted(values.items())),
        "counterfactual": task.examples.counterfactual_fingerprint(),
        "masks": [kind if isinstance(kind, str) else identity_of("design", kind) for kind in kinds],
        "fraction": config.design.ablation_fraction,
        "seeds": [config.design.seed, config.gradients.seed, config.evaluation.seed],
    }
    return str(cache_folder() / fingerprint_of(identity).partition(":")[2][:16])
