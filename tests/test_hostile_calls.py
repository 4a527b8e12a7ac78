"""Every public function, with what nobody should give it: an error that names the argument, or the value, and never one
from inside. A list that is a number, a number that is a text, NaN, below 0, out of range, unknown names."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import coar_dist
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.config.python_arguments import shown
from coar_dist.errors import CoarDistError
from tests.models import small_task
from tests.small_run import without_ray

pytestmark = pytest.mark.usefixtures("no_fsync")

TASK = small_task(9)
TOKENS = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", "a", "b"])}, unk_token="<unk>"))
TOKENS.pre_tokenizer = pre_tokenizers.Whitespace()
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=TOKENS, unk_token="<unk>", eos_token="<unk>")
MODEL, IMAGES, LABELS = TASK.model, TASK.examples.inputs, TASK.examples.targets
HOSTILE: dict[str, Any] = {
    "number": 0.5,
    "negative": -1,
    "nan": math.nan,
    "infinity": math.inf,
    "large": 10**7,
    "text": "nonsense",
    "no text": "",
    "mixed": [0.5, "x"],
    "negatives": [-1],
    "nans": [math.nan],
    "large ids": [10**6],
    "nothing": [],
    "dict": {"a": 1},
    "object": object(),
    "truth": True,
    "matrix": np.zeros((2, 3)),
    "set": {1.5},
    "bytes": b"x",
    "class": int,
}
FINE: dict[str, set[str]] = {
    "edit.choice_fraction": {"number"},
    "edit.seed": {"large"},
    "edit.compare": {"nothing"},
    "edit.name": {"text"},
    "edit.groups": {"dict", "nothing"},
    "weights.example_ids": {"nothing"},
    "intercepts.example_ids": {"nothing"},
    "quality.example_ids": {"nothing"},
    "evaluation.example_ids": {"nothing"},
    "ExampleSet.inputs": {"dict"},  # which a model may take besides tensors
    "ExampleSet.of.inputs": {"dict"},
    "predict.off": {"nothing"},
    "predict of some.off": {"nothing"},
    "ablate.off": {"nothing"},
    "top.num": {"large"},
    "nearest.num": {"large"},
    "plot.waterfall.num": {"large"},
    "plot.components.num": {"large"},
    "getitem.key": {"negative", "negatives", "nothing"},
    "ablated_outputs.exclude": {"nothing"},
    "attribute.exclude": {"nothing"},
    "attribute.seed": {"large"},
    "attribute.run_dir": {"text"},
    "attribute.num_masks": {"large"},  # hours
    "attribute.num_gradient_masks": {"large"},
    "attribute.budget": {"large", "number"},
    "attribute.ablation_fraction": {"number"},
    "attribute.responses_mb": {"large", "number"},
    "attribute.previews": {"truth"},
    "attribute.baselines": {"nothing"},
    "attribute.tracking": {"nothing"},
    "Slices.parameter": {"text"},
    "Slices.axis": {"large"},
    "Slices.size": {"large"},
    "Slices.starts": {"large ids"},
    "ComponentGroup.name": {"text"},
    "ComponentGroup.kind": {"text"},
    "ComponentGroup.layer": {"negative", "large"},
    "ComponentGroup.units_of": {"text"},
    "ComponentGroup.of.parameter": {"text"},
    "ComponentGroup.of.kind": {"text"},
    "ComponentGroup.of.axis": {"large"},
    "ComponentGroup.of.num_components": {"large"},
    "ComponentGroup.of.block_size": {"large"},
    "prompts.add_special_tokens": {"truth"},
    "prompts.max_length": {"large"},
    "prompts.tokenizer.tokenizer": {"text"},  # a name may be on the hub
    "select.example_ids": {"negatives"},
}
"""What is allowed of these after all."""
SAID = {
    "target": "group of examples",
    "reference": "group of examples",
    "example_ids": "example ids",
    "key": "example",
    "inputs": "got an unexpected keyword argument 'a'",
    "numbers": "as many starts",
    "targets": "give model and inputs as well",
    "held_out": "every example needs a target",
    "output_function": "output function",
}
"""What else names an argument."""
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, tuple[Call, tuple[str, ...]]]]:
    """By name a call with good arguments of which some are replaced, and which."""
    folder = tmp_path_factory.mktemp("hostile")
    silent = Console(file=io.StringIO())
    with without_ray():
        run = coar_dist.attribute(
            MODEL,
            IMAGES,
            LABELS,
            run_dir=folder / "run",
            num_masks=60,
            num_gradient_masks=0,
            ablation_fraction=0.2,
            console=silent,
            baselines=["leave_one_out"],
            ablation={"mode": "weights", "rows_per_forward": 9, "compile": False},
        )
        edit = run.edit([0, 1], max_components=2, progress=False)
        yield _calls(run, edit, folder)


def _calls(run: coar_dist.Run, edit: coar_dist.Edit, folder: Path) -> dict[str, tuple[Call, tuple[str, ...]]]:
    def calling(function: Call, *names: str, **good: Any) -> tuple[Call, tuple[str, ...]]:
        return lambda **wrong: function(**{**good, **wrong}), names

    def applied(**arguments: Any) -> None:
        with edit.applied(**arguments):
            pass

    of_method = "example_ids", "method"
    quiet: dict[str, Any] = {"progress": False}
    group = {"slices": (Slices("conv1.weight", 0, 1, range(2)),), "numbers": range(2), "name": "a{}"}
    masked = {"model": MODEL, "inputs": IMAGES, "targets": LABELS, "masks": np.ones((2, 12), bool)}
    asked = {"model": MODEL, "inputs": IMAGES, "targets": LABELS, "run_dir": folder / "other", "stages": ["ablate"]}
    ruled = {**masked, "masks": np.ones((2, 4), bool)}
    return {
        "circuit": calling(
            run.circuit,
            *("sizes", "known", "methods", "model", "inputs", "targets", "output_function", "counterfactual"),
            *("reference", "settings", "cluster", "console"),
            sizes=[0.5, 1.0],
            **quiet,
        ),
        "edit": calling(
            run.edit,
            *("target", "reference", "direction", "max_components", "model", "inputs", "columns", "output_function"),
            *("held_out", "settings", "cluster", "name", "method", "compare", "groups", "improve", "keep", "metric"),
            *("seed", "choice_fraction"),
            target=[0, 1],
            max_components=2,
            name="other",
            **quiet,
        ),
        "refit": calling(run.refit, "regression", **quiet),
        "predict": calling(run.predict, "off"),
        "predict of masks": calling(run.predict, "masks"),
        "predict of some": calling(run[:3].predict, "off"),
        "ablate": calling(run.ablate, "off", "model", "inputs", "targets", "output_function", off=[1]),
        "weights": calling(run.weights, *of_method),
        "intercepts": calling(run.intercepts, *of_method),
        "quality": calling(run.quality, *of_method),
        "r2_new_error": calling(run.r2_new_error, "method"),
        "evaluation": calling(run.evaluation, "design_name", *of_method),
        "standard_errors": calling(run.standard_errors, "method"),
        "ceiling": calling(run.ceiling, "design_name"),
        "margins": calling(run.margins, "design_name"),
        "by_method": calling(run.by_method, "method"),
        "top": calling(run.top, "example", "num"),
        "by": calling(lambda key: run.by(key), "key"),
        "nearest": calling(run.nearest, "example", "num", example=3),
        "getitem": calling(lambda key: run[key], "key"),
        "plot.waterfall": calling(run.plot.waterfall, "example", "num", example=3),
        "plot.components": calling(run.plot.components, "example", "num"),
        "plot.predictions": calling(run.plot.predictions, "example"),
        "applied": calling(applied, "model", "example_id", model=MODEL),
        "edited": calling(edit.edited, "model", "example_id", model=MODEL),
        "open_run": calling(coar_dist.open_run, "run_dir"),
        "load_edit": calling(coar_dist.load_edit, "folder"),
        "compare": calling(
            coar_dist.compare, "a", "b", "methods", "examples", a=run, b=run, methods=("coar", "leave_one_out")
        ),
        "find_components": calling(coar_dist.find_components, "model"),
        "ablated_outputs": calling(
            coar_dist.ablated_outputs,
            *("model", "inputs", "targets", "masks", "components", "include", "exclude", "ablation_value", "reference"),
            *("counterfactual", "output_function", "precision", "plan"),
            **masked,
        ),
        "ComponentRule": calling(
            lambda **rule: coar_dist.ablated_outputs(**ruled, components=coar_dist.ComponentRule(**rule)),
            *("parameter", "axis", "block_size"),
            parameter="conv1.weight",
        ),
        "attribute": calling(
            coar_dist.attribute,
            *("model", "inputs", "targets", "run_dir", "components", "include", "exclude", "num_masks"),
            *("num_gradient_masks", "budget", "ablation_fraction", "seed", "design", "ablation_value", "reference"),
            *("counterfactual", "output_function", "columns", "class_names", "stages", "baselines"),
            *("baseline_settings", "evaluation", "ablation", "regression", "cluster", "tracking", "console"),
            *("responses_mb", "previews"),
            **asked,
        ),
        "where": calling(run.components.where, "layer", "kind", "name"),
        "name_of": calling(run.components.name_of, "component_id"),
        "Slices": calling(
            Slices, "parameter", "axis", "size", "starts", parameter="conv1.weight", axis=0, size=1, starts=[0, 1]
        ),
        "ComponentGroup": calling(ComponentGroup, "slices", "numbers", "name", "kind", "layer", "units_of", **group),
        "ComponentGroup.of": calling(
            ComponentGroup.of,
            *("parameter", "axis", "num_components", "block_size", "kind"),
            parameter="conv1.weight",
            axis=0,
            num_components=4,
        ),
        "ComponentIndex": calling(coar_dist.ComponentIndex, "groups"),
        "ExampleSet": calling(
            coar_dist.ExampleSet, "inputs", "targets", "columns", "counterfactual", inputs=IMAGES, targets=LABELS
        ),
        "ExampleSet.of": calling(
            coar_dist.ExampleSet.of, "inputs", "targets", "columns", "counterfactual", inputs=IMAGES, targets=LABELS
        ),
        "select": calling(TASK.examples.select, "example_ids"),
        "prompts": calling(
            coar_dist.prompts,
            *("texts", "answers", "against", "counterfactual", "columns", "max_length", "add_special_tokens"),
            tokenizer=TOKENIZER,
            texts=["a b", "b a"],
            answers=" a",
            against=" b",
        ),
        "prompts.tokenizer": calling(
            coar_dist.prompts, "tokenizer", tokenizer=TOKENIZER, texts=["a b"], answers=" a", against=" b"
        ),
        "plot.heads": calling(run.plot.heads, "example"),
    }


NAMES = [
    *("circuit", "edit", "refit", "predict", "predict of masks", "predict of some", "ablate", "weights", "intercepts"),
    *("quality", "r2_new_error", "evaluation", "standard_errors", "ceiling", "margins", "by_method", "top", "by"),
    *("nearest", "getitem", "plot.waterfall", "plot.components", "plot.predictions", "applied", "edited", "open_run"),
    *("load_edit", "compare", "find_components", "ablated_outputs", "ComponentRule", "attribute", "where", "name_of"),
    *("Slices", "ComponentGroup", "ComponentGroup.of", "ComponentIndex", "ExampleSet", "ExampleSet.of", "select"),
    *("prompts", "prompts.tokenizer", "plot.heads"),
]


@pytest.mark.parametrize("name", NAMES)
def test_what_nobody_should_give(
    name: str, calls: Mapping[str, tuple[Call, tuple[str, ...]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert calls.keys() == set(NAMES)
    call, arguments = calls[name]
    for argument in arguments:
        fine = FINE.get(f"{name}.{argument}", set())
        for what, value in HOSTILE.items():
            if what in fine:
                continue
            where = f"{name}({argument}={value!r})"
            try:
                call(**{argument: value})
            except (CoarDistError, IndexError) as error:
                message = str(error)
                assert len(message.splitlines()) <= 6, where
                named = {argument, argument.removeprefix("num_"), argument.rstrip("s"), shown(value)[:12]} | {
                    SAID.get(argument, argument)
                }
                assert any(word in message for word in named), f"{where}: {message}"
            except Exception as error:
                raise AssertionError(f"{where} raises {type(error).__name__}: {error}") from error
            else:
                raise AssertionError(f"{where} is accepted")
    assert not list(tmp_path.iterdir())
