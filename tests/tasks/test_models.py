"""Sources of models and the forms of checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.components.discovery import discover
from coar_dist.config.schema import ModelConfig, TaskConfig
from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.build import build_model, build_task
from coar_dist.tasks.checkpoints import load_checkpoint
from coar_dist.tasks.examples import digits
from coar_dist.tasks.models import cifar_resnet, mini_resnet
from coar_dist.tasks.models_clip import ClipZeroShot
from tests.hub_models import MODELS, save_tiny_clip, torchvision_or_skip
from tests.models import SmallResNet, randomise

GPT2 = MODELS["gpt2"][0]


@pytest.mark.parametrize(("depth", "count"), [(20, 688), (32, 1136), (56, 2032)])
def test_cifar_resnets_by_depth(depth: int, count: int) -> None:
    model = cifar_resnet(depth)
    assert discover(model, "conv_filters").num_components == count
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == depth - 1
    with pytest.raises(TaskError, match="has 6 n \\+ 2 layers"):
        cifar_resnet(depth + 1)


def test_the_net_of_setup_a_layer_by_layer() -> None:
    """As the research code has it: its published weights take 19.1 MB."""
    model = randomise(mini_resnet(width=4, num_blocks=2))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    w = dict(model.named_modules())
    with torch.no_grad():
        x = torch.relu(w["bn1"](w["conv1"](images)))
        for i in range(2):
            inner = torch.relu(w[f"layer.{i}.bn1"](w[f"layer.{i}.conv1"](x)))
            x = torch.relu(w[f"layer.{i}.bn2"](w[f"layer.{i}.conv2"](inner)) + x)
        expected = w["linear"](functional.avg_pool2d(x, 8).reshape(3, 4 * 16))
        torch.testing.assert_close(model(images), expected)
    with torch.device("meta"):
        size = sum(tensor.numel() for tensor in mini_resnet().state_dict().values()) * 4
    assert 19.0e6 < size < 19.2e6


def save(state: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(state, folder / "weights.pt")
        return folder / "weights.pt"

    return write


def split_over_files(state: dict[str, Tensor]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        names = list(state)
        parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
        for part, of_part in parts.items():
            save_file({name: state[name].clone() for name in of_part}, folder / part)
        where = {name: part for part, of_part in parts.items() for name in of_part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        return folder

    return write


SAVED = randomise(SmallResNet(), seed=5).state_dict()


@pytest.mark.parametrize(
    "write",
    [
        save(SAVED),
        save({"state_dict": SAVED, "epoch": 3}),
        save({"model": SAVED, "optimizer": {"lr": 0.1}}),
        save({"model_state_dict": {f"module.{name}": tensor for name, tensor in SAVED.items()}}),
        save({f"module._orig_mod.{name}": tensor for name, tensor in SAVED.items()}),
        split_over_files(SAVED),
    ],
)
def test_forms_of_checkpoints(write: Callable[[Path], Path], tmp_path: Path) -> None:
    model = SmallResNet()
    load_checkpoint(model, write(tmp_path))
    assert all(torch.equal(tensor, SAVED[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_without_the_counters_of_batch_norm(tmp_path: Path) -> None:
    """As CIFAR ResNets are published; torch, too, takes them."""
    model = randomise(SmallResNet(), seed=6)
    load_checkpoint(model, save({k: v for k, v in SAVED.items() if not k.endswith("num_batches_tracked")})(tmp_path))
    assert all(torch.equal(v, SAVED[k]) for k, v in model.state_dict().items() if not k.endswith("tracked"))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({k: v for k, v in SAVED.items() if "conv" not in k}, r"does not fit SmallResNet: it lacks conv1\.weight"),
        ({**SAVED, "fc.weight": torch.zeros(2)}, r"^(?!.*does not fit.*does not fit).*the model has no fc\.weight"),
        ({**SAVED, "conv1.weight": torch.zeros(2)}, r"size mismatch for conv1\.weight"),
        ({"net": SAVED}, r"there is no tensor under net.*may stand under state_dict, model_state_dict, model"),
        ([1, 2], "holds a list, not a state dict"),
        ({}, "not a state dict"),
    ],
)
def test_checkpoints_that_do_not_fit_say_why(state: Any, message: str, tmp_path: Path) -> None:
    model = SmallResNet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(TaskError, match=message):
        load_checkpoint(model, save(state)(tmp_path))
    if "mismatch" not in message:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"a folder without model\.safetensors or pytorch_model\.bin"):
        load_checkpoint(SmallResNet(), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(TaskError, match="names files outside its folder"):
        load_checkpoint(SmallResNet(), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(TaskError, match="weight_map"):
        load_checkpoint(SmallResNet(), tmp_path)


def test_a_transformers_model_from_a_folder_and_as_a_checkpoint(tmp_path: Path) -> None:
    saved = build_model(ModelConfig("transformers_config", {**GPT2, "seed": 3}))
    saved.save_pretrained(tmp_path / "gpt2")
    arguments = {"name": str(tmp_path / "gpt2"), "kind": "AutoModelForCausalLM"}
    loaded = build_model(ModelConfig("transformers", arguments))
    other = build_model(ModelConfig("transformers_config", {**GPT2, "seed": 4}))
    assert not torch.equal(other.transformer.wte.weight, saved.transformer.wte.weight)
    load_checkpoint(other, tmp_path / "gpt2")  # the file has the tied output layer once
    for model in (loaded, other):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True))
        assert model.lm_head.weight is model.transformer.wte.weight
        assert model.config.use_cache is False
    in_half = build_model(ModelConfig("transformers", {**arguments, "dtype": "bfloat16"}))
    assert in_half.dtype == torch.bfloat16
    classifier = {**arguments, "kind": "AutoModelForSequenceClassification"}
    with pytest.raises(TaskError, match=r"no weights for score\.weight.*new_layers=true"):
        build_model(ModelConfig("transformers", classifier))
    assert build_model(ModelConfig("transformers", {**classifier, "new_layers": True})).score.weight.shape == (2, 8)


def test_random_transformers_models_are_those_of_their_seed() -> None:
    first, second, other = (
        build_model(ModelConfig("transformers_config", {**GPT2, "seed": seed})) for seed in (3, 3, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    examples = digits(num_examples=2)
    with pytest.raises(ConfigError, match=r"checkpoint must be set: 'transformers_config' alone has random weights"):
        build_task(TaskConfig(ModelConfig("transformers_config", GPT2)), None, lambda: examples)
    assert build_task(TaskConfig(ModelConfig("transformers_config", {**GPT2, "seed": 0})), None, lambda: examples)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("transformers_config", {**GPT2, "settings": {"n_layers": 2}}, r"settings\.n_layers: GPT2Config has no such"),
        (
            "transformers_config",
            {"model_type": "clip", "kind": "CLIPModel", "settings": {"vision_config": {"width": 2}}},
            r"settings\.vision_config\.width: CLIPVisionConfig has no such",
        ),
        ("transformers_config", {"model_type": "gpt7"}, "model_type='gpt7': transformers has no such architecture"),
        ("transformers_config", {**GPT2, "kind": "AutoModelForEverything"}, "transformers has no such class"),
        ("transformers_config", {**GPT2, "dtype": "float8"}, "must be one of float32, bfloat16, float16"),
        ("transformers", {"name": "/no/such/folder"}, "no/such/folder"),
        ("small_vit", {"patch_size": 3}, "image_size=8 must be a multiple of patch_size=3"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(source: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, TaskError), match=message):
        build_model(ModelConfig(source, arguments))


def test_clip_zero_shot_against_its_definition(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    folder, names = str(tmp_path / "clip"), ["cat", "dog", "bird"]
    save_tiny_clip(Path(folder))
    templates = ["a photo of a {}.", "{}"]
    model = build_model(ModelConfig("clip_zero_shot", {"name": folder, "class_names": names, "templates": templates}))
    assert isinstance(model, ClipZeroShot)
    assert "text_features" in model.state_dict()
    assert not any("text_model" in name for name, _ in model.named_parameters())
    clip, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # transformers itself, one text at a time, so without padding
        unit = []
        for name in names:
            texts = [
                clip(**tokenizer(template.format(name), return_tensors="pt"), pixel_values=images[:1]).text_embeds[0]
                for template in templates
            ]
            mean = sum(text.double() / text.double().norm() for text in texts) / len(texts)
            unit.append(mean / mean.norm())
        whole = clip(**tokenizer(names, padding=True, return_tensors="pt"), pixel_values=images)
        image = whole.image_embeds.double()
        expected = 100 * (image / image.norm(dim=1, keepdim=True)) @ torch.stack(unit).T
        torch.testing.assert_close(model.eval()(images).double(), expected, rtol=1e-4, atol=1e-4)
        assert model.half()(images.half()).dtype == torch.float16
    for arguments, message in [
        ({"class_names": ["cat"]}, "at least two different names"),
        ({"class_names": ["cat", "cat"]}, "at least two different names"),
        ({"class_names": names, "templates": ["a photo"]}, "every template must have one"),
        ({"class_names": names, "templates": []}, "every template must have one"),
    ]:
        with pytest.raises(TaskError, match=message):
            build_model(ModelConfig("clip_zero_shot", {"name": folder, **arguments}))


def test_torchvision_and_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = torchvision_or_skip()
    pytest.importorskip("timm")
    with torch.device("meta"):
        resnet = build_model(ModelConfig("torchvision", {"name": "resnet18", "num_classes": 3}))
        assert resnet.fc.weight.shape == (3, 512)
        vit = build_model(ModelConfig("torchvision", {"name": "vit_b_16", "settings": {"image_size": 32}}))
        assert vit.encoder.pos_embedding.shape == (1, 5, 768)
        small = {"name": "vit_tiny_patch16_224", "num_classes": 3, "settings": {"img_size": 32}}
        timm_vit = build_model(ModelConfig("timm", small))
        assert discover(timm_vit, "heads").num_components == 12 * 3
    for arguments, message in [
        ({"name": "resnet1"}, "torchvision has no 'resnet1'|resnet1"),
        ({"name": "resnet18", "weights": "IMAGENET9K"}, "IMAGENET9K"),
        ({"name": "resnet18", "settings": {"depth": 3}}, "depth"),
    ]:
        with pytest.raises(TaskError, match=message):
            build_model(ModelConfig("torchvision", arguments))
    published = randomise(torchvision.models.resnet18()).state_dict()
    weights = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **options: published)
    whole = build_model(ModelConfig("torchvision", {"name": "resnet18", "weights": "IMAGENET1K_V1"}))
    assert all(torch.equal(tensor, published[name]) for name, tensor in whole.state_dict().items())
    fine = ModelConfig("torchvision", {"name": "resnet18", "weights": "IMAGENET1K_V1", "num_classes": 2})
    model = build_model(fine)
    assert model.fc.weight.shape == (2, 512)
    assert all(torch.equal(t, published[name]) for name, t in model.state_dict().items() if not name.startswith("fc."))
    with pytest.raises(ConfigError, match="'torchvision' alone has random weights"):
        build_task(TaskConfig(fine), None, lambda: digits(num_examples=2))


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm cannot be imported.*pip install 'coar-dist\[vision\]'"):
        build_model(ModelConfig("timm", {"name": "resnet18"}))
