"""Warnings point at the user's line and speak of arguments, however deep they are found."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

import coar_dist
from coar_dist.errors import CoarWarning
from tests.models import small_task
from tests.small_run import without_ray

TASK = small_task()


def line_of(call: Callable[[], Any]) -> tuple[list[tuple[str, int]], list[str]]:
    """Where the warnings of a call point, and what they say."""
    with warnings.catch_warnings(record=True) as caught, without_ray():
        warnings.simplefilter("always")
        call()
    ours = [each for each in caught if issubclass(each.category, CoarWarning | FutureWarning)]
    return [(each.filename, each.lineno) for each in ours], [str(each.message) for each in ours]


def here(text: str) -> tuple[str, int]:
    """The place of the one line of this file with such a text in it, but the one that says so."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if text in line and f'here("{text}' not in line]
    return str(Path(inspect.getfile(here))), number


def test_warnings_point_at_the_line_of_the_caller(tmp_path: Path) -> None:
    targets = TASK.examples.targets
    arguments = {"run_dir": tmp_path, "num_masks": 3, "stages": ["ablate", "fit"], "progress": False}
    found: list[coar_dist.Run] = []

    def attributed() -> None:
        found.append(coar_dist.attribute(TASK.model, TASK.examples.inputs, targets, **arguments))

    places, texts = line_of(attributed)
    assert places == [here("found.append(coar_dist")]
    assert texts[0].startswith("nothing can be said about components that none or all of the 3 masks ablate: ")
    assert texts[0].endswith("Raise num_masks.")
    (run,) = found

    def refitted() -> None:
        run.refit({"method": "ridge", "regularisation": 0.0}, console=Console(file=io.StringIO()))

    places, texts = line_of(refitted)
    assert set(places) == {here("run.refit({")}
    assert "(regression.regularisation=None), predict better." in texts[-1]

    def named_as_before() -> None:
        run.top_components(0)

    assert line_of(named_as_before)[0] == [here("run.top_components(0)")]
