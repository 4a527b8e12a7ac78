from __future__ import annotations

import pytest

from coar_dist.config.python_words import OF_ABLATED_OUTPUTS, OF_ATTRIBUTE, OF_EDIT, in_python_words
from coar_dist.errors import ConfigError, RunNotFoundError


@pytest.mark.parametrize(
    ("names", "text", "expected"),
    [
        (OF_ATTRIBUTE, "design.num_masks=1: must be at least 2.", "num_masks=1: must be at least 2."),
        (OF_ATTRIBUTE, "gradients.num_masks=1, or null", "num_gradient_masks=1, or None"),
        (OF_ATTRIBUTE, "Use another run.dir, or undo it.", "Use another run_dir, or undo it."),
        (OF_ATTRIBUTE, "evaluation.seed=0 is design.seed too", "evaluation.seed=0 is seed too"),
        (OF_ATTRIBUTE, "of run.directory, design.seeds, x.run.dir", "of run.directory, design.seeds, x.run.dir"),
        (OF_ATTRIBUTE, "Use regression.method=ridge, or estimator=coar.", "Use regression.method=ridge, or num_grad"),
        (OF_ATTRIBUTE, "leave it out (components.exclude)", "leave it out (exclude)"),
        (OF_ABLATED_OUTPUTS, "leave it out (components.exclude)", "leave it out (exclude)"),
        (OF_ABLATED_OUTPUTS, "Use ablation.mode=weights, or", "Use plan=None, or"),
        (OF_ABLATED_OUTPUTS, "task.output_function='x'", "output_function='x'"),
        (OF_EDIT, "Take more held-out examples (edit.examples), or", "Take more held-out examples (held_out), or"),
        (OF_EDIT, "edit.target.classes=[7] leaves none", "target.classes=[7] leaves none"),
        (OF_EDIT, "runs/a/edits/edit.json and 'edit.name.parquet'", "runs/a/edits/edit.json and 'edit.name.parquet'"),
    ],
)
def test_messages_name_the_arguments(names: dict[str, str], text: str, expected: str) -> None:
    @in_python_words(names)
    def fails() -> None:
        raise ConfigError(text)

    with pytest.raises(ConfigError) as caught:
        fails()
    assert str(caught.value).startswith(expected)


def test_what_is_returned_passes_and_the_kind_of_error_stays() -> None:
    @in_python_words(OF_ATTRIBUTE)
    def halves(number: int, fails: bool = False) -> float:
        if fails:
            raise RunNotFoundError(f"{number} is no run.dir")
        return number / 2

    assert halves(3) == 1.5
    assert halves.__name__ == "halves"
    with pytest.raises(RunNotFoundError, match="3 is no run_dir"):
        halves(3, fails=True)
    with pytest.raises(TypeError):
        halves("3")  # type: ignore[arg-type]
