"""The transformer that a compiler made of the program ``reverse``; its weights are those of ``compile_reverse.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.components.index import ComponentIndex
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task

WEIGHTS = Path(__file__).with_name("reverse.safetensors")
_NOT_COUNTED = -100


class Attention(nn.Module):
    """Attention to all tokens that are no padding, with biases."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.num_heads = 1
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, head_width) for _ in range(3))
        self.o_proj = nn.Linear(head_width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (projection(x)[:, None] for projection in (self.q_proj, self.k_proj, self.v_proj))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())
        return self.o_proj(mixed[:, 0])


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, head_width), Mlp(width, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(x, mask)
        return x + self.mlp(x)


class Compiled(nn.Module):
    """Four layers of one head and an MLP each, without LayerNorm."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        head_width, width = state["layers.0.attention.q_proj.weight"].shape
        hidden = len(state["layers.0.mlp.fc1.weight"])
        num_layers = len({name.split(".")[1] for name in state if name.startswith("layers.")})
        self.tokens = nn.Embedding(len(state["tokens.weight"]), width)
        self.positions = nn.Embedding(len(state["positions.weight"]), width)
        self.layers = nn.ModuleList(Block(width, head_width, hidden) for _ in range(num_layers))
        self.unembed = nn.Linear(width, len(state["unembed.weight"]), bias=False)
        self.load_state_dict(state)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        for layer in self.layers:
            x = layer(x, attention_mask)
        return self.unembed(x)


def reversed_margin(outputs: Any, targets: Tensor) -> Tensor:
    """Mean over positions of the right token's logit less the largest other one."""
    right = functional.one_hot(targets.clamp(min=0), outputs.shape[-1]).bool()
    others = outputs.masked_fill(right, -torch.inf).amax(dim=-1)
    margins = outputs.masked_fill(~right, 0.0).sum(dim=-1) - others
    is_counted = targets != _NOT_COUNTED
    return (margins * is_counted).sum(dim=1) / is_counted.sum(dim=1)


def reverse_task(num_examples: int = 60) -> Task:
    """Sequences of 2 to 6 tokens after a first one that begins every text."""
    with safe_open(WEIGHTS, "pt") as file:
        ids = json.loads(file.metadata()["token_ids"])
    state = load_file(WEIGHTS)
    model, letters = Compiled(state).eval(), torch.tensor([ids[name] for name in "abcd"])
    generator = torch.Generator().manual_seed(0)
    longest = len(state["positions.weight"])
    input_ids = torch.full((num_examples, longest), ids["compiler_pad"])
    targets = torch.full((num_examples, longest), _NOT_COUNTED)
    mask = torch.zeros(num_examples, longest, dtype=torch.int64)
    for row in range(num_examples):
        length = int(torch.randint(2, longest, (1,), generator=generator))
        drawn = torch.randint(0, 4, (length,), generator=generator)
        input_ids[row, 0] = ids["BOS"]
        input_ids[row, 1 : 1 + length] = letters[drawn]
        targets[row, 1 : 1 + length] = drawn.flip(0)
        mask[row, : 1 + length] = 1
    examples = ExampleSet({"input_ids": input_ids, "attention_mask": mask}, targets)
    return Task(model, examples, output_function(reversed_margin))


def used_by_the_compiler(task: Task, components: ComponentIndex) -> list[str]:
    """Names of the components whose weights the compiler has set: heads and MLPs, or neurons, that give anything."""
    state = task.model.state_dict()
    return [
        component.name
        for component in components
        if all(
            state[part].narrow(axis, start, size).any()
            for part, axis, start, size in component.slices
            if part.endswith("weight")
        )
    ]
