"""The mask designs that a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping

from coar_dist.config.combinations import check_ceiling_fraction
from coar_dist.config.methods import LEAVE_ONE_OUT
from coar_dist.config.schema import (
    BALANCED,
    Config,
    DesignConfig,
    EvaluationConfig,
    GradientsConfig,
    ablation_fraction,
    held_out_fractions,
)
from coar_dist.designs.design import MaskDesign
from coar_dist.designs.given import LeaveOneOut
from coar_dist.designs.independent import Correlated
from coar_dist.designs.own import OwnDesign
from coar_dist.designs.registry import check_kind, design_of
from coar_dist.designs.subsets import can_be_balanced
from coar_dist.errors import ConfigError
from coar_dist.store.ceilings import partners_of
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDesign

_BERNOULLI = "bernoulli"
ROLE_WORDS = {
    "gradients": "with gradients",
    "train": "without gradients",
    "evaluation": "held out",
    "ceiling": "partners of held-out masks",
    "baseline": "leave-one-out",
}
"""What a design's masks are for, by its role."""


def check_kinds(config: Config) -> None:
    """Check the kinds of mask design that a configuration asks for.

    Raises:
        ConfigError: one is unknown, or a user's own cannot be imported.
    """
    for key in ("design", "gradients", "evaluation"):
        check_kind(f"{key}.kind", getattr(config, key).kind or BALANCED)


def designs_of(config: Config, num_components: int) -> dict[str, RunDesign]:
    """The mask designs that a configuration asks for, by name.

    Raises:
        ConfigError: a kind is unknown, or two designs have the same masks.
    """
    design, evaluation = config.design, config.evaluation
    trained = ablation_fraction(config, num_components)
    check_ceiling_fraction(config, trained)

    def masks_of(key: str, settings: DesignConfig | GradientsConfig | EvaluationConfig, fraction: float) -> MaskDesign:
        kind = settings.kind or (BALANCED if can_be_balanced(num_components, fraction) else _BERNOULLI)
        return design_of(f"{key}.kind", kind, num_components, settings.num_masks, fraction, settings.seed)

    designs = {TRAIN_DESIGN: RunDesign("train", masks_of("design", design, trained))}
    if config.gradients.num_masks:
        masks = masks_of("gradients", config.gradients, trained)
        designs[GRADIENT_DESIGN] = RunDesign("gradients", masks)
    if LEAVE_ONE_OUT in config.baselines:
        designs[LEAVE_ONE_OUT] = RunDesign("baseline", LeaveOneOut.of(num_components))
    for fraction in held_out_fractions(config, trained):
        held_out = masks_of("evaluation", evaluation, fraction)
        designs[f"evaluation_{fraction!r}"] = RunDesign("evaluation", held_out)
        if evaluation.ceiling_pairs and fraction == trained:
            pairs, correlation = evaluation.ceiling_pairs, evaluation.ceiling_correlation
            partners = Correlated(num_components, pairs, fraction, evaluation.seed, correlation)
            designs[partners_of(f"evaluation_{fraction!r}")] = RunDesign("ceiling", partners)
    _check_distinct(designs)
    if config.gradients.kind is None and GRADIENT_DESIGN in designs:
        _check_seed_of_gradients(designs)
    return designs


def _check_seed_of_gradients(designs: Mapping[str, RunDesign]) -> None:
    """Where the kind of design was chosen here, which the check of the configuration cannot know."""
    gradients = designs[GRADIENT_DESIGN].design
    for name, entry in designs.items():
        if name != GRADIENT_DESIGN and (entry.design.kind, entry.design.seed) == (gradients.kind, gradients.seed):
            raise ConfigError(
                f"gradients.seed={gradients.seed} is that of the masks {name!r} too, which are {gradients.kind} as "
                f"well. Use another gradients.seed."
            )


def _check_distinct(designs: Mapping[str, RunDesign]) -> None:
    """A user's own rule that ignores the seed would give held-out masks that are not held out."""
    names: dict[str, str] = {}
    own = {name: entry.design for name, entry in designs.items() if isinstance(entry.design, OwnDesign)}
    for name, design in own.items():
        other = names.setdefault(design.fingerprint, name)
        if other != name:
            raise ConfigError(
                f"design {name!r} has the masks of {other!r}: the rule {design.kind!r} must depend on "
                f"design.seed and on design.ablation_fraction. Draw from np.random.default_rng([design.seed, mask_id])."
            )
