"""Small nets with one nasty habit each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from coar_dist.components.discovery import by_rules, discover
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import ComponentRule
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.zoo.exactness import Animal

NUM_EXAMPLES = 6


def images(seed: int = 1) -> ExampleSet:
    generator = torch.Generator().manual_seed(seed)
    return ExampleSet(torch.randn(NUM_EXAMPLES, 3, 6, 6, generator=generator) + 0.3, torch.arange(NUM_EXAMPLES) % 3)


def vectors(width: int = 6, seed: int = 2) -> ExampleSet:
    generator = torch.Generator().manual_seed(seed)
    return ExampleSet(torch.randn(NUM_EXAMPLES, width, generator=generator) + 0.3, torch.arange(NUM_EXAMPLES) % 3)


def tokens(seed: int = 3) -> ExampleSet:
    generator = torch.Generator().manual_seed(seed)
    return ExampleSet(torch.randint(0, 11, (NUM_EXAMPLES, 5), generator=generator), torch.arange(NUM_EXAMPLES) % 3)


def sequences(seed: int = 4) -> ExampleSet:
    generator = torch.Generator().manual_seed(seed)
    return ExampleSet(torch.randn(NUM_EXAMPLES, 5, 8, generator=generator) + 0.2, torch.arange(NUM_EXAMPLES) % 3)


def rows_of_all(model: nn.Module) -> ComponentIndex:
    """Every row of every weight with two axes or more."""
    weights = [name for name, p in model.named_parameters() if p.ndim > 1]
    return ComponentIndex(tuple(by_rules(model, [ComponentRule(name, 0, 1) for name in weights])))


def selected(selector: str) -> Callable[[nn.Module], ComponentIndex]:
    return lambda model: discover(model, selector)


class Shortcut(nn.Module):
    """The activation works in place on what the shortcut still reads."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.c1, self.c2, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), act
        self.c3, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x)
        x = self.c2(self.act(x)) + x
        x = self.c3(self.act(x)) + x
        return self.head(x.mean((2, 3)))


class InPlaceScale(Shortcut):
    """A method that works in place behind the first layer."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x)
        y = self.c2(x.relu())
        x.mul_(1.5)
        x = torch.relu_(y.add_(x))
        x += self.c3(x)
        return self.head(x.mean((2, 3)))


class InPlaceInput(Shortcut):
    """Changes the caller's tensor."""

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return super().forward(x)


class Offset(nn.Module):
    """A regression whose output is large and whose effects are small; the second layer is read by a function."""

    def __init__(self, bias: float, scale: float, functional_read: bool) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.bias, self.scale, self.functional_read = bias, scale, functional_read

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).tanh()
        x = functional.linear(x, self.b.weight, self.b.bias) if self.functional_read else self.b(x)
        return self.bias + self.scale * self.head(x.tanh())


class Three(nn.Module):
    """Three layers, the third read by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        return self.head(functional.linear(x, self.c.weight, self.c.bias).relu())


class Matrices(nn.Module):
    """Parameters of its own, without a module, one of them read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(8, 6)), nn.Parameter(torch.zeros(6, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = (x @ self.a).relu()
        x = (torch.matmul(x, self.b) + functional.linear(x, self.b)).tanh()
        return self.head(x.mean(1))


class Experts(nn.Module):
    """Weights of all experts in one parameter, as in language models; each token goes to two of four."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(4, 6, 8)), nn.Parameter(torch.zeros(4, 8, 6))

    def forward(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        outputs = torch.einsum("td,tknd->tkn", tokens, self.up[chosen]).relu()
        return (torch.einsum("tkn,tkdn->tkd", outputs, self.down[chosen]) * weights.unsqueeze(-1)).sum(1)


class Mixture(nn.Module):
    """A block of experts behind a router, and beside it a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts, self.head = nn.Linear(8, 4), Experts(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 8)
        weights, chosen = self.router(tokens).softmax(-1).topk(2)
        mixed = self.experts(tokens, chosen, weights / weights.sum(-1, keepdim=True))
        return self.head((tokens + mixed).reshape(x.shape).mean(1))


def three_layers(model: nn.Module) -> ComponentIndex:
    del model
    return ComponentIndex(tuple(ComponentGroup.of(f"{name}.weight", 0, 1, 8) for name in "abc"))


class Encoder(nn.Module):
    """``nn.TransformerEncoder``, whose fast path calls no module."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head, self.scale = nn.Linear(8, 3), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1)) * self.scale


class Plain(nn.Module):
    """A convolutional net of named layers, for habits of its parts."""

    def __init__(
        self, conv: Callable[..., nn.Module] = nn.Conv2d, norm: Callable[[int], nn.Module] = nn.Identity
    ) -> None:
        super().__init__()
        self.c1, self.n1 = conv(3, 4, 3), norm(4)
        self.c2, self.head = conv(4, 5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n1(self.c1(x)).relu()
        return self.head(self.c2(x).relu().mean((2, 3)))


class Unnormalised(Plain):
    """Subtracts the mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x).relu()
        return self.head(self.c2(x - x.mean(0, keepdim=True)).relu().mean((2, 3)))


class View(nn.Module):
    """``view`` behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.head(x.view(x.size(0), -1))


class Strided(View):
    """``as_strided`` behind a convolution: another layout gives other numbers."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.head(torch.as_strided(x, (len(x), 64), (64, 1)))


class FiveAxes(View):
    """A parameter of five axes beside a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Parameter(torch.zeros(1, 2, 2, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.volume.sum()


class Cached(nn.Module):
    """Keeps what it computes from a weight for later passes, as some models do in eval mode."""

    def __init__(self, in_a_dictionary: bool) -> None:
        super().__init__()
        self.table, self.a, self.head = nn.Parameter(torch.zeros(8, 4)), nn.Linear(6, 8), nn.Linear(8, 3)
        self.by_device: dict[str, Tensor] = {}
        self.kept: Tensor | None = None
        self.in_a_dictionary = in_a_dictionary

    def bias(self, device: torch.device) -> Tensor:
        if self.in_a_dictionary:
            if str(device) not in self.by_device:
                self.by_device[str(device)] = self.table.sum(1)
            return self.by_device[str(device)]
        if self.kept is None:
            self.kept = self.table.sum(1)
        return self.kept

    def train(self, mode: bool = True) -> nn.Module:
        self.by_device, self.kept = {}, None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.a(x) + self.bias(x.device)).relu())


class EightLong(nn.Module):
    """Length first and padded to eight, as many as the probe has rows; the layer has no effect on the probe."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (0, 0, 0, 3)).transpose(0, 1)
        return self.head(self.a(padded).transpose(0, 1).relu().mean(1) * 0 + x.mean(1))


class Routed(nn.Module):
    """Sends every example to one of its experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(6, 3), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(1)
        hidden = x.new_zeros(len(x), 8)
        for number, expert in enumerate(self.experts):
            rows = torch.where(chosen == number)[0]
            if len(rows):
                hidden[rows] = expert(x[rows])
        return self.head(hidden.relu())


class Wide(nn.Module):
    """More components than may be squared."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x).relu()) / 50


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: the weight that is used is not the parameter."""

    def forward(self, input: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        return functional.conv2d(input, (self.weight - mean) / (std + 1e-5), self.bias)


class PaddedConv(nn.Conv2d):
    """Pads by hand."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(input, (1, 2, 0, 1)), self.weight, self.bias)


class TextNet(nn.Module):
    """Embedding, one layer, a head; variants of how the embedding is read."""

    def __init__(self, habit: str) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(11, 8), nn.Embedding(5, 8)
        self.mlp, self.head, self.habit = nn.Linear(8, 8), nn.Linear(8, 3), habit

    def forward(self, ids: Tensor) -> Tensor:
        if self.habit == "length first":
            x = self.embedding(ids.T)
            return self.head(self.mlp(x).relu().mean(0))
        x = self.embedding(ids)
        if self.habit == "scaled":
            x = x * 8**0.5
        if self.habit == "one row of positions":
            x = x + self.position(torch.arange(ids.shape[1])[None])
        if self.habit == "folded":
            rows = self.mlp(x.reshape(-1, 8)).relu()
            return self.head(rows.reshape(*ids.shape, 8).mean(1))
        x = self.mlp(x).relu()
        if self.habit == "tied":
            return (x.mean(1) @ self.embedding.weight.T)[:, :3]
        if self.habit == "tied by a layer":
            return functional.linear(x.mean(1), self.embedding.weight)[:, :3]
        return self.head(x.mean(1))


class Twice(nn.Module):
    """One layer at two depths."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.inner(self.first(x).tanh()).tanh()).tanh())


class Checkpointed(Twice):
    """Recomputes its middle in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        x = checkpoint(lambda y: self.inner(y).tanh(), x, use_reentrant=False)
        return self.head(x)


class Stateful(Twice):
    """Its output depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1 + 0.01 * self.calls)


class Random(Twice):
    """Noise in eval mode, at outputs that are small."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return (x + 0.2 * torch.randn_like(x)) * self.scale


class Unused(Twice):
    """A layer that nothing depends on, and one that some examples do not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.rare = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        h = self.first(x).tanh()
        late = (torch.arange(len(x)) >= 0)[:, None] & (x[:, :1] > 0.3)
        return self.head(torch.where(late, self.rare(h).tanh(), h))


class Einsum(nn.Module):
    """Heads read by einsum from a reshaped weight."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.proj.weight.view(8, 2, 4)
        x = torch.einsum("blhd,ehd->ble", x.unflatten(-1, (2, 4)), weight)
        return self.head(x.relu().mean(1))


class Hooked(Twice):
    """Has hooks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner.register_forward_hook(lambda module, inputs, output: output * 1.7 + inputs[0])


class Probabilities(Twice):
    """Gives probabilities whose size is about 1e-3."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1) * 1e-3


class Windows(nn.Module):
    """Folds windows of a sequence into the batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        windows = functional.pad(x, (0, 0, 0, 1)).reshape(len(x) * 3, 16)
        return self.head(self.a(windows).relu().reshape(len(x), 3, 8).mean(1))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, biases and statistics of no special value, of about the size that keeps activations in range."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = max(parameter[0].numel() if parameter.ndim > 1 else 1, 1)
            size = 1.3 / fan_in**0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * size + (0.02 if "norm" not in name else 1)
            )
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.4)
    return model.eval()


def logits(outputs: Any, targets: Tensor) -> Tensor:
    return outputs.gather(1, targets[:, None]).squeeze(1).float()


def value(outputs: Any, targets: Tensor) -> Tensor:
    del targets
    return outputs.reshape(len(outputs), -1)[:, 0].float()


def _model(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    model = randomised(make())
    return model.to(dtype)


def habit_of(
    name: str,
    make: Callable[[], nn.Module],
    examples: Callable[[], ExampleSet],
    components: Callable[[nn.Module], ComponentIndex] = rows_of_all,
    output: Any = logits,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Animal:
    def task() -> Task:
        torch.manual_seed(0)  # spectral_norm starts at random
        found = examples()
        cast = found.map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor.clone())
        return Task(_model(make, dtype), cast, output_function(output))

    return Animal(name, task, components, **options)


def _wrapped(wrap: Callable[[nn.Module], object], make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        model = randomised(make())
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                wrap(module)
        return model

    return made


def _unparametrised(model: nn.Module) -> nn.Module:
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return plain


HABITS: list[Animal] = [
    habit_of("in-place LeakyReLU on a shortcut", lambda: Shortcut(nn.LeakyReLU(0.2, inplace=True)), images),
    habit_of("in-place Hardswish on a shortcut", lambda: Shortcut(nn.Hardswish(inplace=True)), images),
    habit_of("in-place SiLU on a shortcut", lambda: Shortcut(nn.SiLU(inplace=True)), images),
    habit_of("x.mul_ behind a layer", lambda: InPlaceScale(nn.ReLU()), images),
    habit_of("changes its input", lambda: InPlaceInput(nn.ReLU()), images),
    habit_of("output around 290", lambda: Offset(290.0, 0.1, False), vectors, output=value),
    habit_of("output around 290, functional", lambda: Offset(290.0, 0.1, True), vectors, output=value),
    habit_of("outputs of 1e-3, functional", lambda: Offset(0.0, 1e-3, True), vectors, output=value),
    habit_of("probabilities of 1e-3", Probabilities, vectors),
    habit_of("three layers, the third functional", Three, vectors, three_layers),
    habit_of("nn.TransformerEncoder, heads", Encoder, sequences, selected("heads")),
    habit_of("nn.TransformerEncoder x 1e-3, heads", lambda: Encoder(1e-3), sequences, selected("heads")),
    habit_of("nn.TransformerEncoder, rows", Encoder, sequences, selected("linear_rows")),
    habit_of("float64", lambda: Shortcut(nn.ReLU()), images, dtype=torch.float64),
    habit_of("bfloat16", lambda: Shortcut(nn.ReLU()), images, dtype=torch.bfloat16),
    habit_of("float16", lambda: Shortcut(nn.ReLU()), images, dtype=torch.float16),
    habit_of("bfloat16 autocast", lambda: Shortcut(nn.ReLU()), images, precision="bfloat16"),
    habit_of(
        "BatchNorm without statistics",
        lambda: Plain(norm=lambda n: nn.BatchNorm2d(n, track_running_stats=False)),
        images,
    ),
    habit_of("BatchNorm", lambda: Plain(norm=nn.BatchNorm2d), images),
    habit_of("GroupNorm", lambda: Plain(norm=lambda n: nn.GroupNorm(2, n)), images),
    habit_of("subtracts the batch's mean", Unnormalised, images),
    habit_of("view behind a convolution", View, images),
    habit_of("as_strided behind a convolution", Strided, images),
    habit_of("a parameter of five axes", FiveAxes, images, selected("conv_filters")),
    habit_of("routing to experts", Routed, vectors),
    habit_of("matrices without a module", Matrices, sequences),
    habit_of("experts in one parameter", Mixture, sequences),
    habit_of("wide layer", lambda: Wide(20_000), vectors, selected("linear_rows")),
    habit_of("standardised convolution", lambda: Plain(StandardisedConv), images),
    habit_of("padded convolution", lambda: Plain(PaddedConv), images),
    *(
        habit_of(f"text: {habit}", lambda habit=habit: TextNet(habit), tokens)
        for habit in ("plain", "scaled", "one row of positions", "length first", "folded", "tied", "tied by a layer")
    ),
    habit_of("one layer at two depths", Twice, vectors),
    habit_of("checkpointing", Checkpointed, vectors),
    habit_of("a dictionary of what a weight gives", lambda: Cached(True), vectors),
    habit_of("an attribute of what a weight gives", lambda: Cached(False), vectors),
    habit_of("eight long, length first, without effect", EightLong, sequences),
    habit_of("state", Stateful, vectors),
    habit_of("noise", lambda: Random(1.0), vectors),
    habit_of("noise at 1e-3", lambda: Random(1e-3), vectors),
    habit_of("an unused layer, and one that is rarely used", Unused, vectors),
    habit_of("einsum on a reshaped weight", Einsum, sequences),
    habit_of("hooks of its own", Hooked, vectors),
    habit_of("windows in the batch axis", Windows, sequences),
    habit_of(
        "weight_norm",
        _wrapped(parametrizations.weight_norm, Plain),
        images,
        selected("conv_filters"),
        plain=_unparametrised,
    ),
    habit_of(
        "spectral_norm",
        _wrapped(parametrizations.spectral_norm, Plain),
        images,
        selected("conv_filters"),
        plain=_unparametrised,
    ),
    habit_of(
        "pruned", _wrapped(lambda m: prune.l1_unstructured(m, "weight", 0.3), Plain), images, selected("conv_filters")
    ),
]
