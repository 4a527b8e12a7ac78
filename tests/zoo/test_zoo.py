"""Every form of the engine on every model of the zoo is exact, or refused by name (table: ``python -m tests.zoo``)."""

from __future__ import annotations

import pytest

from tests.zoo import hub, timm_models
from tests.zoo.exactness import Animal, verdicts
from tests.zoo.habits import HABITS
from tests.zoo.weight_habits import WEIGHT_HABITS

REFUSED = {
    "BatchNorm without statistics",
    "subtracts the batch's mean",
    "state",
    "noise",
    "noise at 1e-3",
    "noise of a fixed seed",
}
"""No example of these has a margin of its own."""
ALL_HABITS = [*HABITS, *WEIGHT_HABITS]
FAMILIES = [*hub.animals(), *timm_models.animals()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("animal", ALL_HABITS, ids=[animal.name for animal in ALL_HABITS])
def test_habits(animal: Animal) -> None:
    found = verdicts(animal)
    assert {verdict.kind for verdict in found.values()} == {"refused" if animal.name in REFUSED else "exact"}, found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("animal", FAMILIES, ids=[animal.name for animal in FAMILIES])
def test_families(animal: Animal) -> None:
    found = verdicts(animal)
    assert {verdict.kind for verdict in found.values()} == {"exact"}, found
