"""The order and names that the arguments of ``ablated_outputs`` had, for one more version."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from coar_dist.errors import warn

P = ParamSpec("P")
R = TypeVar("R")
_ORDER = (
    "components",
    "masks",
    "inputs",
    "targets",
    "output_function",
    "precision",
    "plan",
    "ablation_value",
    "reference",
    "counterfactual",
)
_MOST_IN_PLACE = 3
"""Arguments without their names that the present order has."""


def takes_former_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: the former order and the former name ``output`` still work, with a warning."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **keywords: Any) -> R:
        if "output" in keywords:
            warn("output is called output_function now; the next version drops the former name.", FutureWarning)
            keywords["output_function"] = keywords.pop("output")
        if len(arguments) > _MOST_IN_PLACE or (len(arguments) > 1 and "inputs" in keywords):
            warn(
                "the order of the arguments is ablated_outputs(model, inputs, targets, masks=..., components=...) now; "
                "the next version drops the former one.",
                FutureWarning,
            )
            keywords |= dict(zip(_ORDER, arguments[1:], strict=False))
            arguments = arguments[:1]
        given: Any = function
        result: R = given(*arguments, **keywords)
        return result

    return wrapped
