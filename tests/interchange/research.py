"""What the research code does with its files, in its own order: stores, attributions, predictions, component ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import nn


def initialize_store(folder: Path, num_models: int, schema: dict[str, tuple[str, int]]) -> None:
    """``initialize_store.py``: arrays of zeros as the spec says, and ``_completed``."""
    folder.mkdir()
    for key, (dtype, size) in schema.items():
        open_memmap(folder / f"{key}.npy", mode="w+", dtype=getattr(np, dtype), shape=(num_models, size)).flush()
    open_memmap(folder / "_completed.npy", mode="w+", dtype=np.bool_, shape=(num_models,)).flush()


def update_row(folder: Path, index: int, out: dict[str, np.ndarray]) -> None:
    """``update_mmapped_file`` of ``ndm_utils.py``: one row, the flag last."""
    for key, value in {**out, "_completed": np.True_}.items():
        array = open_memmap(folder / f"{key}.npy", mode="r+")
        array[index] = value
        array[index : index + 1].flush()


def write_store(folder: Path, masks: np.ndarray, margins: np.ndarray, dtype: str = "float16") -> Path:
    """A finished store of ``make_dataset.py``."""
    initialize_store(
        folder, len(masks), {"masks": ("bool_", masks.shape[1]), "test_margins": (dtype, margins.shape[1])}
    )
    for index in range(len(masks)):
        update_row(folder, index, {"masks": masks[index], "test_margins": margins[index]})
    return folder


def standardised(masks: np.ndarray, of: np.ndarray) -> np.ndarray:
    """``calc_stats`` and ``normalize`` of fast_l1: statistics of the masks ``of``, in float32."""
    x = torch.from_numpy(of).float()
    mean = x.sum(dim=0) / len(x)
    deviation = (x.pow(2).sum(dim=0) / len(x) - mean.pow(2)).pow(0.5)
    return ((torch.from_numpy(masks).float() - mean) / (deviation + 1e-32)).numpy()


def regress(masks: np.ndarray, margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What SAGA converges to with lambda 0: weight (num_components, num_examples) and bias (num_examples,)."""
    x = np.column_stack([standardised(masks, masks).astype(np.float64), np.ones(len(masks))])
    solution = np.linalg.lstsq(x, margins.astype(np.float64), rcond=None)[0]
    return solution[:-1].astype(np.float32), solution[-1].astype(np.float32)


def predict(weight: np.ndarray, bias: np.ndarray, masks: np.ndarray, of: np.ndarray) -> np.ndarray:
    """``eval_saga``: the model's outputs (num_masks, num_examples)."""
    return standardised(masks, of).astype(np.float64) @ weight.astype(np.float64) + bias


def save(path: Path, weight: np.ndarray, bias: np.ndarray, **others: object) -> Path:
    """The last lines of ``run_regression.py``."""
    content = {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias), "lam": torch.zeros(len(bias))}
    torch.save({**content, **others}, path)
    return path


def load(path: Path) -> torch.Tensor:
    """``get_attributions`` of the notebooks: (num_examples, num_components) float32."""
    return torch.load(path)["weight"].T.float()


def attribution_margins(attributions: torch.Tensor, mask: np.ndarray) -> np.ndarray:
    """``get_attb_margins`` of ``evaluate.py``."""
    return attributions[:, mask].sum(axis=1).numpy()


def components_of_convolutions(model: nn.Module) -> dict[str, int]:
    """``get_model_components`` of the ResNets."""
    return {f"{name}.weight": module.out_channels for name, module in model.named_modules() if "conv" in name}


def components_of_vit(model: nn.Module) -> dict[str, int]:
    """``get_model_components`` of the ViT."""
    found = {}
    for name, module in model.named_modules():
        if name.startswith("heads"):
            continue
        if isinstance(module, nn.Linear):
            found[f"{name}.weight"] = module.weight.shape[0]
        elif isinstance(module, nn.MultiheadAttention):
            found[f"{name}.in_proj_weight"] = module.in_proj_weight.shape[0]
    return found


def components_of_gpt2(model: nn.Module) -> dict[str, int]:
    """``get_model_components`` of GPT-2."""
    suffixes = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    return {
        f"{name}.weight": module.weight.shape[0] for name, module in model.named_modules() if name.endswith(suffixes)
    }
