"""Edits: which examples change, which stay, and what chooses the components."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from coar_dist.config.schema.task import ExamplesConfig
from coar_dist.config.schema.values import (
    Count,
    Distinct,
    FolderName,
    Labels,
    NonNegative,
    Part,
    Rule,
    Seed,
    Share,
    one_of,
)

GREEDY, MAGNITUDE, RANDOM = "greedy", "magnitude", "random"
TARGETS, OTHERS, ALL = "targets", "others", "all"
"""Measured groups that an edit has of itself."""
Predicate = Annotated[
    Any,
    Rule(
        lambda value: callable(value) or (isinstance(value, str) and all(value.partition(":"))),
        "module:function, or in Python a function",
    ),
]


@dataclass
class ExampleGroup(Part):
    """The examples that meet every condition that is set; of ``examples.parquet``'s columns."""

    ids: Labels | None = None
    """Example ids of the run."""
    classes: Labels | None = None
    """Class labels."""
    correct: bool | None = None
    """Whether the unablated model predicts the label."""
    where: dict[str, Any] = field(default_factory=dict)
    """Column: a value, a list of values, or {min: ..., max: ...}, ends included."""
    predicate: Predicate | None = None
    """``module:function``, or in Python a function, of the columns, a dict of (num_examples,) arrays: (num_examples,)
    bool."""
    matching: str | None = None
    """Of a reference: only examples whose value in this column a target has, e.g. the same image without a trigger."""
    sample: Count | None = None
    """So many of them at random."""
    seed: Seed = 0
    """Of ``sample``."""


@dataclass
class EditConfig(Part):
    """COAR-Edit (Shah et al. 2024, section 5): components whose ablation raises or lowers the targets' outputs and
    leaves the references' alone, as many as a criterion on held-out examples says."""

    name: FolderName = "edit"
    """Of its folder: ``edits/<name>`` in the run directory."""
    target: ExampleGroup = field(default_factory=ExampleGroup)
    """Explained examples whose outputs are to change."""
    reference: ExampleGroup = field(default_factory=ExampleGroup)
    """Explained examples whose outputs are to stay; without conditions those that do not meet the conditions of the
    targets, half of them where ``examples`` is None, so that the others measure the edit."""
    direction: Annotated[str, one_of("raise", "lower")] = "raise"
    each: bool = False
    """Every target is a target of its own, with an edit of its own, which is to make it right."""
    method: str | None = None
    """What selects the components: a method with attributions, ``greedy`` (by the linear model's predictions, one
    component after the other), ``magnitude`` or ``random``. None: the run's best attributions."""
    compare: Annotated[list[str], Distinct] = field(default_factory=list)
    """Other selections, measured beside it."""
    max_components: Count | None = None
    """Components that are ablated at most; None: a twentieth of all."""
    examples: ExamplesConfig | None = None
    """Held-out examples on which the number of components is chosen and the edit is measured; None: the run's own that
    are neither targets nor references."""
    groups: dict[str, ExampleGroup] = field(default_factory=dict)
    """Measured groups of the held-out examples, besides ``all``, ``targets`` (those that meet the conditions of
    ``target``, but ids and sample; where there is no other condition, the targets themselves) and ``others``."""
    metric: str | None = None
    """``accuracy`` or ``output``, the mean of the output function; None: accuracy where outputs are margins of one
    prediction, else output."""
    improve: list[str] = field(default_factory=lambda: [TARGETS])
    """Groups whose metric is to rise or fall; the worst of them counts."""
    keep: dict[str, NonNegative] = field(default_factory=dict)
    """Groups, and by how much their accuracy may fall, or their output change, whatever the direction. {}: ``others``
    by .01, or ``all`` with ``each``."""
    pairs: str | None = None
    """Column of the held-out examples whose equal values are two forms of one image, as with and without a trigger, of
    which the first group of ``improve`` holds one: both are chosen on or measured on, and the correlation of their
    margins is measured."""
    choice_fraction: Share = 0.5
    """Share of the held-out examples on which the number of components is chosen; the others measure the edit."""
    seed: Seed = 0
    """Of the split, and of ``random``."""


def kept_groups(edit: EditConfig) -> dict[str, float]:
    """The groups whose metric an edit is to keep, and by how much it may fall or change."""
    return dict(edit.keep) or {ALL if edit.each else OTHERS: 0.01}
