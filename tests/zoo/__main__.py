"""Prints what every form of the engine does on every model of the zoo: ``python -m tests.zoo [part of a name ...]``.

A line per model, then totals and refusals in Markdown.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator

from tests.zoo import hub, timm_models
from tests.zoo.exactness import FORMS, Animal, Verdict, verdicts
from tests.zoo.habits import HABITS
from tests.zoo.weight_habits import WEIGHT_HABITS

_COLUMN = 48


def _sets() -> Iterator[tuple[str, list[Animal]]]:
    yield "nets of one habit", [*HABITS, *WEIGHT_HABITS]
    yield "transformers", hub.animals()
    yield "timm", timm_models.animals()


def _line(animal: Animal, found: dict[str, Verdict]) -> str:
    kinds = " ".join(f"{found[form].kind:9s}" for form in FORMS)
    names = list(found["rows"].in_weights)
    zeroed = f"{len(names)} in the weights: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""
    return f"{animal.name:{_COLUMN}s} {kinds} {zeroed}".rstrip()


def _markdown(totals: dict[str, Counter[str]], refused: dict[str, str]) -> Iterator[str]:
    yield "| set | models and kinds of components | rows exact | refused | wrong |"
    yield "|---|---|---|---|---|"
    for name, counts in totals.items():
        wrong = counts["WRONG"] + counts["RAISED"]
        yield f"| {name} | {counts['models']} | {counts['exact']} | {counts['refused']} | {wrong} |"
    yield ""
    yield "| refused | why |"
    yield "|---|---|"
    for name, why in refused.items():
        yield f"| {name} | {why} |"


def main(parts: list[str]) -> None:
    """Run the models whose name has one of the parts; all where there are none."""
    totals: dict[str, Counter[str]] = {}
    refused: dict[str, str] = {}
    print(f"{'':{_COLUMN}s} " + " ".join(f"{form:9s}" for form in FORMS))
    for name, animals in _sets():
        counts = totals[name] = Counter()
        for animal in animals:
            if parts and not any(part in animal.name for part in parts):
                continue
            found = verdicts(animal)
            print(_line(animal, found), flush=True)
            counts.update(verdict.kind for verdict in found.values())
            counts["models"] += 1
            not_exact = {form: verdict for form, verdict in found.items() if verdict.kind != "exact"}
            for form, verdict in not_exact.items():
                which = "" if len(not_exact) == len(FORMS) else f" ({form})"
                if verdict.kind == "refused":
                    refused[f"{animal.name}{which}"] = verdict.detail
                else:
                    print(f"    {form}: {verdict.detail}")
    print()
    print("\n".join(_markdown(totals, refused)))
    num_rows = sum(counts[kind] for counts in totals.values() for kind in ("exact", "refused", "WRONG", "RAISED"))
    num_refused = sum(counts["refused"] for counts in totals.values())
    print(f"\n{num_refused} of {num_rows} rows are refused: {num_refused / max(num_rows, 1):.1%}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    main(sys.argv[1:])
