"""What the shown components look at, as the page's script reads it: of the strongest, as many as there is room for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.report.page.encoding import floats, scaled
from coar_dist.store.responses import Response, Responses, ResponseTable
from coar_dist.store.run_directory import RunDirectory

_NUM_EXAMPLES = 4
_BUDGET = 500_000
"""Letters of all of them together."""
_READ_AT_ONCE = 64


def looks_of(run: RunDirectory, component_ids: NDArray[np.int64]) -> tuple[dict[int, Responses], list[str]]:
    """What components look at, as far as the page has room for it, and what is wrong with damaged files.

    Args:
        run: whose they are.
        component_ids: of the shown components, the strongest first.
    """
    table, left = ResponseTable(run), _BUDGET
    kept: dict[int, Responses] = {}
    damaged: dict[str, None] = {}
    for start in range(0, len(component_ids), _READ_AT_ONCE):
        some = component_ids[start : start + _READ_AT_ONCE].tolist()
        found, wrong = table.read(some)
        damaged |= dict.fromkeys(wrong)
        for component_id in some:
            if component_id in found:
                of_component = Responses(found[component_id].kernel, found[component_id].examples[:_NUM_EXAMPLES])
                left -= _letters(of_component)
                if left < 0:
                    return kept, list(damaged)
                kept[component_id] = of_component
    return kept, list(damaged)


def packed_looks(found: dict[int, Responses]) -> dict[str, Any]:
    """By component id its ``kernel`` and ``examples``; arrays have their ``shape`` beside them."""
    return {
        str(component_id): {
            "kernel": None if of.kernel is None else _array(of.kernel),
            "examples": [_of_example(each) for each in of.examples],
        }
        for component_id, of in found.items()
    }


def _of_example(response: Response) -> dict[str, Any]:
    return {
        "id": response.example_id,
        "strength": float(f"{response.strength:.4g}"),
        "first": response.first,
        "activation": _array(response.activation),
        "pattern": None if response.pattern is None else _array(response.pattern),
    }


def _array(values: NDArray[Any]) -> dict[str, Any]:
    if not values.size:
        return {"shape": list(values.shape), **floats(values)}
    return {"shape": list(values.shape), **scaled(values.reshape(1, -1).astype(np.float64), "i8")}


def _letters(of: Responses) -> int:
    """How long they are as text, nearly."""
    arrays = [of.kernel, *(each.activation for each in of.examples), *(each.pattern for each in of.examples)]
    return sum(100 + values.size * 4 // 3 for values in arrays if values is not None)
