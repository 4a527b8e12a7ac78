"""Pages and tables speak of a run's outputs by their name."""

from __future__ import annotations

import pytest

from coar_dist.report.output_names import output_name
from coar_dist.tasks.outputs import OUTPUT_FUNCTIONS


@pytest.mark.parametrize(
    ("function", "one", "many"),
    [
        ("margin", "margin", "margins"),
        ("answer_token_margin", "margin", "margins"),
        ("answer_probability_difference", "probability difference", "probability differences"),
        ("logit:12", "logit of class 12", "logits of class 12"),
        ("value:0", "value 0", "values 0"),
        ("loss", "loss", "losses"),
        ("mine:log_probability sha256:12", "log_probability", "outputs of log_probability"),
        ("mine:Outputs.price sha256:12", "price", "outputs of price"),
        ("<lambda> sha256:12", "output", "outputs"),
        ("__main__:<lambda> sha256:12", "output", "outputs"),
        ("a_name", "a_name", "outputs of a_name"),
    ],
)
def test_names(function: str, one: str, many: str) -> None:
    assert output_name({"output_function": function}) == (one, many)


def test_every_registered_function_has_one() -> None:
    for name in OUTPUT_FUNCTIONS:
        assert not output_name({"output_function": name}).many.startswith("outputs")


def test_runs_without_one_are_of_margins() -> None:
    assert output_name({}) == ("margin", "margins")
