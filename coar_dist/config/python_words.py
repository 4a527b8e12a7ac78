"""Messages in the words of the Python face, where they name what is an option of the command line."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import ParamSpec, TypeVar

from coar_dist.config.schema import CircuitConfig, EditConfig
from coar_dist.errors import CoarDistError, words_of_face

P = ParamSpec("P")
R = TypeVar("R")

OF_ATTRIBUTE = {
    "run.dir": "run_dir",
    "run.previews": "previews",
    "run.responses_mb": "responses_mb",
    "components.selector": "components",
    "components.include": "include",
    "components.exclude": "exclude",
    "design.kind": "design",
    "design.num_masks": "num_masks",
    "design.ablation_fraction": "ablation_fraction",
    "design.seed": "seed",
    "gradients.num_masks": "num_gradient_masks",
    "task.output_function": "output_function",
    "task.class_names": "class_names",
    "ablation.value": "ablation_value",
    "ablation.constants": "ablation_value",
    "ablation.reference": "reference",
    "task.output_function=module:function": "output_function=your_function",
    "run the ablate stage, which makes one": "make one with coar_dist.attribute",
    "run the edit stage": "make it with run.edit",
    "estimator=coar": "num_gradient_masks=0",
    "estimator=budget": "num_gradient_masks=None",
}
"""What the command line calls an argument of ``attribute``, and its name there."""
OF_ABLATED_OUTPUTS = {
    "components.selector": "components",
    "components.include": "include",
    "components.exclude": "exclude",
    "task.output_function": "output_function",
    "ablation.mode=weights": "plan=None",
    "ablation.precision": "precision",
    "ablation.value": "ablation_value",
    "ablation.constants": "ablation_value",
    "ablation.reference": "reference",
}
"""The same for ``ablated_outputs``."""
OF_EDIT = {f"edit.{entry.name}": entry.name for entry in fields(EditConfig)} | {"(edit.examples)": "(held_out)"}
"""The same for ``Run.edit``."""
OF_CIRCUIT = {f"circuit.{entry.name}": entry.name for entry in fields(CircuitConfig)}
"""The same for ``Run.circuit``."""
_EVERYWHERE = {"null": "None", "cluster=local": "cluster=None"}


def in_python_words(names: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: errors, warnings and printed lines of the function name its arguments as it does.

    Args:
        names: by what an argument is called on the command line, its name.
    """
    words = {**names, **_EVERYWHERE}
    alternatives = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w./'])({alternatives})(?!\w)")

    def translated(text: str) -> str:
        return pattern.sub(lambda found: words[found[0]], text)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapped(*arguments: P.args, **keywords: P.kwargs) -> R:
            before = words_of_face.set(translated)
            try:
                return function(*arguments, **keywords)
            except CoarDistError as error:
                error.args = (translated(str(error)),)
                raise
            finally:
                words_of_face.reset(before)

        return wrapped

    return decorate
