"""The presets on language models, with small random models in the place of those of the hub: the same code."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

import coar_dist
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.circuits import CircuitTable
from tests.config.test_presets import _hydra, preset  # noqa: F401, the fixture that composes presets
from tests.tasks.examples.test_templates import saved_tokenizer

SMALL = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 300, "n_positions": 64},
    "qwen2": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 300,
        "max_position_embeddings": 64,
    },
}


def saved_model(root: Path, model_type: str, digits: int) -> str:
    """A small random model, and its tokenizer beside it, on disk as from the hub."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **SMALL[model_type], bos_token_id=0, eos_token_id=0)
        AutoModelForCausalLM.from_config(config).save_pretrained(root)
    return saved_tokenizer(root / "words", digits)


@pytest.mark.parametrize(
    ("name", "model_type", "digits", "components"),
    [
        ("indirect_objects_gpt2", "gpt2", 2, 6),
        pytest.param("greater_than_gpt2", "gpt2", 2, 6, marks=pytest.mark.slow),
        pytest.param("indirect_objects_qwen", "qwen2", 1, 10, marks=pytest.mark.slow),
        ("greater_than_qwen", "qwen2", 1, 10),
    ],
)
def test_circuits_of_language_models(tmp_path: Path, name: str, model_type: str, digits: int, components: int) -> None:
    tokenizer = saved_model(tmp_path / "model", model_type, digits)
    small = ["design.num_masks=20", "gradients.num_masks=3", "evaluation.num_masks=5", "evaluation.curve_shares=[]"]
    small += ["task.examples.arguments.num_examples=6", "circuit.sizes=[0.0,0.2,0.5,1.0]", "cluster=process"]
    small += ["design.ablation_fraction=0.2", "evaluation.ablation_fractions=[0.2]", "ablation.compile=false"]
    small += [f"task.model.arguments.name={tmp_path / 'model'}", f"task.examples.arguments.tokenizer={tokenizer}"]
    config = preset(name, *small, f"run.dir={tmp_path / 'run'}")
    run_stages(config, Console(file=io.StringIO()))
    run = coar_dist.open_run(tmp_path / "run")
    assert run.components.num_components == components
    assert run.directory.identity["ablation.value"] == "counterfactual"
    assert set(CircuitTable(run.directory).read().scores) == {"gradient_ridge", "coar", "random"}
    if name == "greater_than_gpt2":  # the same with neurons
        config = preset(
            name, *small, "components.selector=neurons", "design.num_masks=60", f"run.dir={tmp_path / 'neurons'}"
        )
        run_stages(config, Console(file=io.StringIO()))
        assert coar_dist.open_run(tmp_path / "neurons").components.num_components == 2 * 64
