"""What a run's output function is called for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_KEY = "output_function"


class OutputName(NamedTuple):
    """``one`` output, and ``many``."""

    one: str
    many: str


_MARGIN = OutputName("margin", "margins")
_KNOWN = {
    "margin": _MARGIN,
    "next_token_margin": _MARGIN,
    "answer_token_margin": _MARGIN,
    "answer_probability_difference": OutputName("probability difference", "probability differences"),
    "label_margin": _MARGIN,
    "logsumexp_margin": OutputName("log-odds", "log-odds"),
    "logit": OutputName("logit", "logits"),
    "loss": OutputName("loss", "losses"),
    "value": OutputName("value", "values"),
    "squared_error": OutputName("squared error", "squared errors"),
}


def output_name(identity: Mapping[str, Any], class_names: Mapping[int, str] | None = None) -> OutputName:
    """What the outputs of a run are called: of a function of the user's own by its name, if it has one.

    Args:
        identity: the run's.
        class_names: what its classes are called.

    Example:
        >>> output_name({"output_function": "logit:3"})
        OutputName(one='logit of class 3', many='logits of class 3')
        >>> output_name({"output_function": "logit:3"}, {3: "dog"}).one
        'logit of dog'
        >>> output_name({"output_function": "mine:log_probability sha256:0123"}).one
        'log_probability'
    """
    name = str(identity.get(_KEY, "margin")).partition(" ")[0]
    kind, _, rest = name.partition(":")
    if kind in _KNOWN and (not rest or rest.isdecimal()):
        one, many = _KNOWN[kind]
        named = {f"{label}": f" of {name}" for label, name in (class_names or {}).items()}
        of = "" if not rest else named.get(rest, f" of class {rest}") if kind == "logit" else f" {rest}"
        return OutputName(one + of, many + of)
    own = rest.rpartition(".")[2] if rest else name
    return OutputName("output", "outputs") if not own.isidentifier() else OutputName(own, f"outputs of {own}")


def is_prediction(identity: Mapping[str, Any]) -> bool:
    """Whether the outputs of a run are what a regression predicts, to be held against its targets.

    Example:
        >>> is_prediction({"output_function": "value"}), is_prediction({"output_function": "squared_error"})
        (True, False)
    """
    return str(identity.get(_KEY, "")).partition(" ")[0].partition(":")[0] == "value"


def classes_of_output(identity: Mapping[str, Any]) -> list[int]:
    """The class that the outputs of a run are of, whatever an example's own; none where they are of no class.

    Example:
        >>> classes_of_output({"output_function": "logit:3"}), classes_of_output({"output_function": "logit"})
        ([3], [])
    """
    kind, _, label = str(identity.get(_KEY, "")).partition(" ")[0].partition(":")
    return [int(label)] if kind == "logit" and label.isdecimal() else []
