"""Prints what every form of the engine does on every model of the zoo: ``python -m tests.zoo``."""

from __future__ import annotations

import sys
import warnings
from collections import Counter

from tests.zoo.exactness import FORMS, verdicts
from tests.zoo.habits import HABITS
from tests.zoo.hub import animals

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    totals: Counter[str] = Counter()
    for animal in [*HABITS, *animals()]:
        if len(sys.argv) > 1 and sys.argv[1] not in animal.name:
            continue
        found = verdicts(animal)
        totals.update(verdict.kind for verdict in found.values())
        print(f"{animal.name:50s} " + "  ".join(f"{form}: {found[form].kind:8s}" for form in FORMS), flush=True)
        for form in FORMS:
            if found[form].kind != "exact":
                print(f"    {form}: {found[form].detail[:260]}")
    print(dict(totals))
