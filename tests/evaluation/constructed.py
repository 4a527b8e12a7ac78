"""Models whose circuits are known because their weights are written by hand."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.repeated import repeated_tokens
from coar_dist.tasks.models_attention import AttentionOnly
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task

VOCABULARY, LENGTH, NUM_HEADS = 16, 24, 8
PREVIOUS_TOKEN, INDUCTION = "L0H2", "L1H5"
DECOYS = ("L0H6", "L1H1")
_SHARP = 60.0


def induction_model() -> AttentionOnly:
    """Two layers of eight heads: one that looks at the token before, one that looks for the last token there and copies
    what came after it; a decoy of each, which looks the same way and gives nothing; the others are noise.

    The stream holds one-hot token, one-hot position, the token before, and logits, side by side.
    """
    v, width = VOCABULARY, 3 * VOCABULARY + LENGTH
    head_width = LENGTH
    ends = [0, v, v + LENGTH, 2 * v + LENGTH, width]
    token, position, before, logits = (slice(*pair) for pair in pairwise(ends))
    model = AttentionOnly(v, LENGTH, width, 2, NUM_HEADS, head_width)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for layer in model.layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                weight = getattr(layer, name).weight
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
        model.tokens.weight[:, token] = torch.eye(v)
        model.positions.weight[:, position] = torch.eye(LENGTH)
        model.unembed.weight[:, logits] = torch.eye(v)
        sharp = _SHARP * head_width**0.5
        one_before = torch.diag(torch.ones(LENGTH - 1), 1)  # queries of position i are the key of i - 1
        for head, gain in ((PREVIOUS_TOKEN, 1.0), (DECOYS[0], 0.0)):
            q, k, value, o = _of_head(model, head)
            q[:, position], k[:, position] = sharp * one_before, torch.eye(LENGTH)
            value[:v, token], o[before, :v] = torch.eye(v), gain * torch.eye(v)
            if not gain:
                o.zero_()
        for head, gain in ((INDUCTION, 4.0), (DECOYS[1], 0.0)):
            q, k, value, o = _of_head(model, head)
            q[:v, token], k[:v, before] = sharp * torch.eye(v), torch.eye(v)
            k[:v, position.start] = -1.0  # the first position has looked at itself, for want of one before
            value[:v, token], o[logits, :v] = torch.eye(v), gain * torch.eye(v)
            if not gain:
                o.zero_()
    return model.eval()


def _of_head(model: AttentionOnly, head: str) -> list[Tensor]:
    """Views of one head's q, k, v (head_width, width) and o (width, head_width), all 0."""
    layer, number = int(head[1]), int(head[3:])
    module = model.layers[layer]
    rows = slice(number * LENGTH, (number + 1) * LENGTH)
    views = [getattr(module, f"{name}_proj").weight.data[rows] for name in "qkv"]
    views.append(module.o_proj.weight.data[:, rows])
    for view in views:
        view.zero_()
    return views


def induction_task(num_examples: int = 64) -> Task:
    examples = repeated_tokens(num_examples, VOCABULARY, LENGTH, (4, 8), answers=True, seed=1)
    return Task(induction_model(), examples, output_function("answer_token_margin"))


class Switches(nn.Module):
    """A sum of units that are on for every input, put together by ``combine``: a circuit of any logic.

    Unit i is neuron i of one hidden layer, with value 1 + noise of the example while it is kept and 0 when its row of
    weights is zeroed; ``combine`` gets (num_rows, num_units) and gives (num_rows,).
    """

    def __init__(self, num_units: int, combine: object) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, num_units, bias=False)
        self.combine = combine
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.hidden.weight[:, 0] = 1.0
            self.hidden.weight[:, 1] = torch.randn(num_units, generator=generator) * 0.1

    def forward(self, inputs: Tensor) -> Tensor:
        """(num_rows, 2), the first column ones, to (num_rows,)."""
        return self.combine(self.hidden(inputs))  # type: ignore[operator,no-any-return]


def switches_task(num_units: int, combine: object, num_examples: int = 40) -> Task:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.stack([torch.ones(num_examples), torch.randn(num_examples, generator=generator)], dim=1)
    return Task(
        Switches(num_units, combine).eval(), ExampleSet(inputs, torch.zeros(num_examples)), output_function("value")
    )
