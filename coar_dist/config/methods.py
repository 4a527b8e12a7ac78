"""The registry of attribution methods: their names, what they are called, what makes them, and which is preferred.

A method that is added here is read, evaluated and reported, and a baseline is an allowed value of ``baselines``. Only
the computation of its weights is code of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto


class Origin(Enum):
    """Where a method's weights come from."""

    TRAIN = auto()
    """A regression on the margins of the train design."""
    GRADIENTS = auto()
    """The same regression, with passes with gradients as a second source."""
    IMPORTED = auto()
    """A file of another code."""
    ABLATION = auto()
    """Differences of margins, under a design that has the method's name."""
    GRADIENT = auto()
    """Gradients of the unablated model."""
    PATH = auto()
    """Gradients along a path of inputs, in ``baseline_settings.num_steps`` steps."""


@dataclass(frozen=True)
class Method:
    """One attribution method.

    Attributes:
        label: its name for people.
        origin: where its weights come from.
        regression: which regression fits it, where one does: ``ridge``, ``lasso`` or ``elastic_net``.
    """

    label: str
    origin: Origin
    regression: str | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether a regression on the train design makes it, so that it has a quality and a budget curve."""
        return self.origin in (Origin.TRAIN, Origin.GRADIENTS)


GRADIENT_RIDGE, LEAVE_ONE_OUT, RESEARCH = "gradient_ridge", "leave_one_out", "research"
METHODS = {
    GRADIENT_RIDGE: Method("COAR + gradients", Origin.GRADIENTS, "ridge"),
    "coar": Method("COAR", Origin.TRAIN, "ridge"),
    "coar_lasso": Method("COAR, lasso", Origin.TRAIN, "lasso"),
    "coar_elastic_net": Method("COAR, elastic net", Origin.TRAIN, "elastic_net"),
    RESEARCH: Method("Research code", Origin.IMPORTED),
    LEAVE_ONE_OUT: Method("Leave-one-out", Origin.ABLATION),
    "gradient_x_parameter": Method("Gradient x parameter", Origin.GRADIENT),
    "neuron_conductance": Method("Neuron conductance", Origin.PATH),
    "internal_influence": Method("Internal influence", Origin.PATH),
}
"""All methods, from the one that is read where none is named down. Imported ones are ``research`` and every name that
begins with it."""


def _names(*origins: Origin) -> tuple[str, ...]:
    return tuple(name for name, method in METHODS.items() if method.origin in origins)


PATH_BASELINES = _names(Origin.PATH)
GRADIENT_BASELINES = _names(Origin.GRADIENT, Origin.PATH)
BASELINES = _names(Origin.ABLATION, Origin.GRADIENT, Origin.PATH)


def method_of(name: str) -> Method | None:
    """The method of that name; None where there is none, as for the selections of an edit."""
    if name.startswith(RESEARCH):
        return METHODS.get(name, Method(name, Origin.IMPORTED))
    return METHODS.get(name)


def label_of(name: str) -> str:
    """A method's name for people; what is no method keeps its name."""
    method = method_of(name)
    return name if method is None else method.label


def is_fitted(name: str) -> bool:
    """Whether attributions of that name are fitted by a regression on the train design."""
    method = method_of(name)
    return method is not None and method.is_fitted


def by_preference(names: Iterable[str]) -> list[str]:
    """Names of methods, the preferred first; imported ones stand together, in the order of their names."""
    ranks = list(METHODS)
    return sorted(names, key=lambda name: (ranks.index(RESEARCH if name.startswith(RESEARCH) else name), name))
