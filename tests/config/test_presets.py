"""Every preset composes, is valid, says what it needs, and has the components that it says; no data, no downloads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from coar_dist.app import checked_config, typed_config
from coar_dist.components.discovery import discover
from coar_dist.config.combinations import validate
from coar_dist.config.composition import CODE_KEYS
from coar_dist.config.edit_combinations import code_of
from coar_dist.config.keys import all_keys
from coar_dist.config.schema import (
    Config,
    EditConfig,
    ExampleGroup,
    ExamplesConfig,
    ModelConfig,
    ablation_fraction,
    held_out_fractions,
)
from coar_dist.config.schema.values import NameOrFunction
from coar_dist.errors import ConfigError
from coar_dist.tasks.build import build_examples, build_model
from coar_dist.tasks.models import MODELS
from coar_dist.tasks.outputs import OUTPUT_FUNCTIONS
from tests.hub_models import torchvision_or_skip

CONF = Path(__file__).resolve().parents[2] / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
GIVEN = {
    "boolq_phi2": [],
    "celeba_resnet50": ["task.examples.arguments.path=x", "task.model.checkpoint=x"],
    "cifar10_backdoor": ["task.examples.arguments.arguments.root=x"],
    "cifar10_resnet": ["task.examples.arguments.root=x"],
    "cifar10_resnet20": ["task.examples.arguments.path=x", "task.model.checkpoint=x"],
    "clip_typographic": [
        "task.examples.arguments.arguments.path=x",
        "task.model.arguments.class_names=[cat,dog]",
    ],
    "clip_zero_shot": ["task.examples.arguments.path=x", "task.model.arguments.class_names=[cat,dog]"],
    "digits": [],
    "digits_backdoor": [],
    "digits_cue": [],
    "digits_text": [],
    "digits_vit": [],
    "greater_than_gpt2": [],
    "greater_than_qwen": [],
    "imagenet_resnet50": ["task.examples.arguments.path=x"],
    "indirect_objects_gpt2": [],
    "indirect_objects_qwen": [],
    "induction": [],
    "imagenet_vit_b16": ["task.examples.arguments.path=x"],
    "text_gpt2": ["task.examples.arguments.path=x"],
    "tinystories_gpt2": [],
    "waterbirds_resnet50": ["task.examples.arguments.path=x"],
}
"""What a user must give."""


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def preset(name: str, *overrides: str) -> Config:
    return typed_config(compose("config", [f"experiment={name}", "run.dir=x", *overrides]))


def test_every_preset_is_tested() -> None:
    assert sorted(GIVEN) == EXPERIMENTS


@pytest.mark.parametrize("key", ["design.kind", "gradients.kind", "evaluation.kind", "regression.backend"])
def test_masks_and_solvers_from_a_file_need_leave(key: str) -> None:
    composed = compose("config", ["experiment=digits", "run.dir=x", f"{key}=evil:function"])
    validate(checked_config(composed, [f"{key}=evil:function"]))
    with pytest.raises(ConfigError, match=rf"{key}='evil:function' runs code of the module 'evil', and stands in"):
        checked_config(composed, [])
    allowed = compose("config", ["experiment=digits", "run.dir=x", f"{key}=evil:function", "allow_code=[evil]"])
    validate(checked_config(allowed, ["allow_code=[evil]"]))
    with pytest.raises(ConfigError, match=rf"{key}=5: must be .* module:function of your own"):
        validate(preset("digits", f"{key}=5"))


def test_every_option_that_can_name_code_is_known() -> None:
    """One that is missing would run a configuration file's code without leave."""
    names = {"source", "output_function", "predicate"}
    found = set()
    for key, part in all_keys().items():
        name = key.rpartition(".")[2]
        if name in names or get_type_hints(part, include_extras=True)[name] in (NameOrFunction, NameOrFunction | None):
            found.add(key)
    of_edits = {key for key in found if key.startswith("edit.")}
    assert found - of_edits == set(CODE_KEYS)
    assert of_edits == {f"edit.{key}" for key in code_keys_of_a_full_edit()}


def code_keys_of_a_full_edit() -> set[str]:
    group = ExampleGroup(predicate="mine:f")
    edit = EditConfig(target=group, reference=group, groups={"some": group}, examples=ExamplesConfig("mine:g"))
    return {key.removeprefix("edit.").replace(".some.", ".") for key in code_of(edit)}


EDITS = sorted(path.stem for path in (CONF / "edit").glob("*.yaml"))


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_fits_its_configuration(edit: str) -> None:
    wanted = {"worst_group": ["edit.target.where.group=1"], "custom": ["edit.target.classes=[1]"]}
    group = wanted.get(edit, [])
    config = preset("digits", f"edit={edit}", *group)
    validate(config)
    assert config.edit is not None
    assert config.edit.name == edit
    with pytest.raises(ConfigError, match=r"edit\.direction='up': must be one of raise, lower"):
        validate(preset("digits", f"edit={edit}", *group, "edit.direction=up"))


def test_an_edit_stage_needs_an_edit() -> None:
    validate(preset("digits"))
    with pytest.raises(ConfigError, match=r"there is no edit to make: choose one, e\.g\. edit=forget_class"):
        validate(preset("digits", "stages=[edit]"))


@pytest.mark.parametrize("estimator", ["gradient", "coar", "budget"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_composes_and_is_valid(name: str, estimator: str) -> None:
    config = preset(name, f"estimator={estimator}", *GIVEN[name])
    validate(config)
    assert config.task.model.source in MODELS
    assert config.task.output_function in OUTPUT_FUNCTIONS
    assert bool(config.gradients.num_masks) == (estimator != "coar")
    trained = ablation_fraction(config, 500)
    assert trained in held_out_fractions(config, trained)
    if name not in ("digits", "cifar10_resnet20", "cifar10_resnet", "cifar10_backdoor", "induction"):
        assert not config.baselines  # as many masks as components


@pytest.mark.parametrize("name", [name for name, given in GIVEN.items() if given])
def test_it_says_what_must_be_set(name: str) -> None:
    for left_out in GIVEN[name]:
        key = left_out.partition("=")[0]
        if key != "task.model.checkpoint":  # found missing when the task is built
            with pytest.raises(ConfigError, match=f"{key} must be set"):
                preset(name, *(given for given in GIVEN[name] if given != left_out))


@pytest.mark.parametrize(
    ("name", "num_masks"),
    [
        ("cifar10_resnet", 50_000),
        ("imagenet_resnet50", 100_000),
        ("imagenet_vit_b16", 100_000),
        ("tinystories_gpt2", 100_000),
        ("digits", 4_000),
    ],
)
def test_published_numbers_of_masks_by_estimator(name: str, num_masks: int) -> None:
    affordable = preset(name, *GIVEN[name])
    assert (affordable.gradients.num_masks, affordable.design.num_masks) == (100, 500)
    assert preset(name, "estimator=coar", *GIVEN[name]).design.num_masks == num_masks
    assert preset(name, "estimator=coar", "design.num_masks=7", *GIVEN[name]).design.num_masks == 7


HUB = {
    "gpt2": {"model_type": "gpt2"},
    "Qwen/Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "settings": {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
        },
    },
    "microsoft/phi-2": {
        "model_type": "phi",
        "settings": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32},
    },
}
"""Configurations of published models, which are not downloaded here."""


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cifar10_resnet", 2_304),
        ("cifar10_backdoor", 2_304),
        ("imagenet_resnet50", 22_720),
        ("waterbirds_resnet50", 22_720),
        ("celeba_resnet50", 22_720),
        ("imagenet_vit_b16", 82_944),
        ("tinystories_gpt2", 64_512),
        ("boolq_phi2", 5_120),
        ("clip_zero_shot", 82_944),
        ("clip_typographic", 82_944),
        ("cifar10_resnet20", 688),
        ("digits", 240),
        ("digits_backdoor", 720),
        ("digits_cue", 720),
        ("digits_text", 720),
        ("digits_vit", 1_792),
        ("text_gpt2", 2_016),
        ("induction", 16),
        ("indirect_objects_gpt2", 156),
        ("greater_than_gpt2", 156),
        ("indirect_objects_qwen", 360),
        ("greater_than_qwen", 360),
    ],
)
def test_numbers_of_components(name: str, count: int) -> None:
    config = preset(name, *GIVEN[name])
    model, chosen = config.task.model, config.components
    if model.source == "torchvision":
        torchvision_or_skip()
        model.arguments["weights"] = None  # the same shapes, without a download
    if model.source == "transformers":
        model = ModelConfig("transformers_config", {**HUB[model.arguments["name"]], "kind": model.arguments["kind"]})
    with torch.device("meta"):
        built = clip_image_tower() if model.source == "clip_zero_shot" else build_model(model)
    index = discover(built, chosen.selector, chosen.include, chosen.exclude, chosen.rules)
    assert index.num_components == count


@pytest.mark.parametrize("name", ["digits_backdoor", "digits_cue", "digits_text"])
def test_edits_are_measured_on_images_that_are_neither_trained_on_nor_explained(name: str) -> None:
    config = preset(name)
    assert config.train is not None
    assert config.edit is not None
    assert config.edit.examples is not None
    trained = build_examples(config.train.examples, "train.examples")
    explained = build_examples(config.task.examples, "task.examples")
    held_out = build_examples(config.edit.examples, "edit.examples")
    images = [set(examples.columns["source_id"].tolist()) for examples in (trained, explained, held_out)]
    assert [len(one | other) for one, other in combinations(images, 2)] == [
        len(one) + len(other) for one, other in combinations(images, 2)
    ]
    assert set(explained.columns) == set(held_out.columns)
    assert explained.inputs[0].shape == held_out.inputs[0].shape == trained.inputs[0].shape


def clip_image_tower() -> torch.nn.Module:
    from transformers import CLIPConfig, CLIPModel

    from coar_dist.tasks.models_clip import ClipZeroShot

    sizes = {"patch_size": 16}  # of openai/clip-vit-base-patch16, beside the library's defaults
    clip = CLIPModel(CLIPConfig(vision_config=sizes))
    return ClipZeroShot(clip, torch.zeros(2, 512))


def test_the_paper_as_the_readme_says_it() -> None:
    config = preset("imagenet_resnet50", "estimator=coar", "regression=least_squares", "task.examples.arguments.path=x")
    assert (config.regression.method, config.regression.regularisation) == ("ridge", 0.0)
    assert config.design.num_masks == 100_000
    assert config.evaluation.num_masks == 100
