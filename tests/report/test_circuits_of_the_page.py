"""What the page says of circuits: of small ones, of defined numbers, and never of random rankings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coar_dist.report.output_names import OutputName
from coar_dist.report.page.circuits import circuits_of
from coar_dist.store.circuits import MAGNITUDE, SCORES, SIGNED, CircuitScores, CircuitTable
from coar_dist.store.run_directory import RunDirectory
from tests.report.synthetic import synthetic_run

NAN = float("nan")
MARGIN = OutputName("margin", "margins")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return synthetic_run(tmp_path_factory.mktemp("circuits") / "run", 10)


def write(
    run: RunDirectory, cpr: dict[str, float], faithful: list[float], reason: str | None = None, sizes: float = 0.5
) -> None:
    shares = np.array([0.0, sizes / 2, sizes, 1.0])
    scores = {method: {**dict.fromkeys(SCORES, NAN), "cpr": value, "cmd": 0.1} for method, value in cpr.items()}
    curves = {(method, ranking): np.array(faithful) for method in cpr for ranking in (SIGNED, MAGNITUDE)}
    numbers = (shares * 24).astype(int)
    CircuitTable(run).write(
        CircuitScores(shares, numbers, 1.5, -0.5, reason, None, scores, curves, curves), {}, ["coar"]
    )


@pytest.mark.parametrize(
    ("cpr", "faithful", "reason", "said"),
    [
        (
            {"coar": 0.8, "random": 0.9},
            [0.0, 0.95, 0.97, 1.0],
            None,
            "The 6 strongest components by COAR (25% of all) alone have a faithfulness of .950 (CPR .800; of "
            "random ones .900).",
        ),
        (
            {"coar": 0.3},
            [0.0, 0.1, 0.4, 1.0],
            None,
            "The 12 strongest components by COAR (50% of all) alone have a faithfulness of .400 (CPR .300).",
        ),
        (
            {"coar": 0.3},
            [0.0, NAN, NAN, 1.0],
            None,
            "The largest CPR of circuits is .300 by COAR.",
        ),
        (
            {"coar": NAN, "random": 0.9},
            [0.0, 0.1, 0.4, 1.0],
            None,
            "How much circuits of the strongest components keep is undefined: no CPR is known.",
        ),
        (
            {"coar": NAN},
            [NAN] * 4,
            "both ends are the same",
            "How much circuits of the strongest components keep is undefined: both ends are the same.",
        ),
    ],
)
def test_the_sentence_is_of_a_small_circuit(
    run: RunDirectory, cpr: dict[str, float], faithful: list[float], reason: str | None, said: str
) -> None:
    write(run, cpr, faithful, reason)
    found = circuits_of(run, MARGIN)
    assert found is not None
    assert found.sentence == said
    assert found.columns == ["CPR", "CMD"]
    assert found.notes == ["The mean margin is 1.50 of the whole model, \N{MINUS SIGN}0.500 without any component."]


def test_of_one_component_it_has(run: RunDirectory) -> None:
    write(run, {"coar": 0.8}, [0.0, 0.5, 0.95, 1.0], sizes=1 / 24)
    found = circuits_of(run, MARGIN)
    assert found is not None
    assert found.sentence.startswith("The 1 strongest component by COAR (4.17% of all) alone has")


def test_without_circuits_nothing_is_said(tmp_path: Path) -> None:
    assert circuits_of(synthetic_run(tmp_path / "run", 3), MARGIN) is None
