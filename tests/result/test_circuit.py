"""What a run's circuits say of themselves."""

from __future__ import annotations

import numpy as np
import pytest

from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.result.circuit import Circuit
from coar_dist.store.circuits import CircuitScores

NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"coar": 0.7, "leave_one_out": 0.6}, "largest CPR: COAR 0.700)"),
        ({"coar": 0.5, "leave_one_out": 0.50001, "random": NAN}, "largest CPR: tie of COAR, Leave-one-out at 0.500)"),
        ({"coar": NAN, "leave_one_out": -0.2}, "largest CPR: Leave-one-out -0.200)"),
        ({"coar": NAN}, "largest CPR: undefined)"),
    ],
)
def test_a_tie_has_no_winner_and_what_is_undefined_does_not_win(scores: dict[str, float], said: str) -> None:
    sizes, nothing = np.array([0.0, 1.0]), np.array([0, 3])
    found = CircuitScores(
        sizes, nothing, 1.0, 0.0, None, None, {of: {"cpr": cpr} for of, cpr in scores.items()}, {}, {}
    )
    components = ComponentIndex((ComponentGroup.of("conv.weight", 0, 3),))
    assert repr(Circuit(found, components)).endswith(said)
