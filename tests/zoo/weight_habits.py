"""Small nets that make, share or read weights in ways of their own, or whose rows do not stay where they were."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from tests.zoo.exactness import Animal
from tests.zoo.habits import habit_of, images, sequences, tokens, vectors


class Recurrent(nn.Module):
    """An LSTM, whose weights no gate stands in for."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x)[0][:, -1])
        return logits


class Hypernetwork(nn.Module):
    """A layer whose weights another layer makes, for each example its own."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.head = nn.Linear(6, 24), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(torch.bmm(self.maker(x).view(-1, 4, 6), x[:, :, None])[:, :, 0]))
        return logits


class OwnFilters(nn.Module):
    """A convolution with filters of each example's own: the examples are its groups."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.head = nn.Linear(3, 4 * 3 * 9), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        filters = self.maker(x.mean(dim=(2, 3))).view(-1, 3, 3, 3)
        maps = functional.conv2d(x.flatten(0, 1)[None], filters, groups=len(x)).view(len(x), 4, -1)
        logits: Tensor = self.head(functional.relu(maps).mean(dim=2))
        return logits


class FusedProjections(nn.Module):
    """The weights of three layers are put together and read once."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.q, self.k, self.v)
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        q, k, v = functional.linear(x, weight, bias).chunk(3, dim=-1)
        logits: Tensor = self.head(functional.scaled_dot_product_attention(q, k, v).mean(dim=1))
        return logits


class HeadsByEinsum(nn.Module):
    """Attention with a weight of three axes per projection: heads, width, width of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.empty(2, 8, 4)) for _ in range(3))
        self.o, self.head = nn.Parameter(torch.empty(2, 4, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bpd,hde->bhpe", x, weight) for weight in (self.q, self.k, self.v))
        attended = functional.scaled_dot_product_attention(q, k, v)
        logits: Tensor = self.head(torch.einsum("bhpe,hed->bpd", attended, self.o).mean(dim=1))
        return logits


class Autoencoder(nn.Module):
    """Reads one weight twice, the second time transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(6, 8), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = functional.relu(self.encoder(x))
        logits: Tensor = self.head(functional.linear(features, self.encoder.weight.t()))
        return logits


class OtherParameters(nn.Module):
    """Calls a layer with other parameters than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        scaled = {name: parameter * 1.1 for name, parameter in self.fc.named_parameters()}
        logits: Tensor = self.head(functional.relu(functional_call(self.fc, scaled, (x,))))
        return logits


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.t() @ x


class OwnFunction(nn.Module):
    """Reads a weight in an autograd function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.empty(8, 6)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(functional.relu(_Product.apply(x, self.weight)))
        return logits


class Force(nn.Module):
    """Its output is the gradient of an energy, taken within the pass."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.energy, self.head = nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            place = x.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.energy(torch.tanh(self.fc(place))).sum(), place, create_graph=True)
        logits: Tensor = self.head(force)
        return logits


class Detached(nn.Module):
    """Its first layers get no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.more, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = functional.relu(self.more(functional.relu(self.fc(x))))
        logits: Tensor = self.head(x)
        return logits


class Packed(nn.Module):
    """Runs the tokens that count alone, so that no axis is the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        counts = ids > 2
        features = torch.zeros(*ids.shape, 8)
        features[counts] = functional.relu(self.fc(self.embed(ids[counts])))
        logits: Tensor = self.head(features.mean(dim=1))
        return logits


class SharedNorm(nn.Module):
    """One BatchNorm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.c1, self.c2, self.head = (
            nn.BatchNorm2d(4),
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 4, 1),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.c1(x)))
        logits: Tensor = self.head(functional.relu(self.norm(self.c2(x))).mean(dim=(2, 3)))
        return logits


class FixedNoise(nn.Module):
    """The same noise in every pass, by the row: an example's margin depends on where it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(len(x), 8, generator=torch.Generator().manual_seed(0))
        logits: Tensor = self.head(functional.relu(self.fc(x)) + 0.5 * noise)
        return logits


WEIGHT_HABITS: list[Animal] = [
    habit_of("LSTM", Recurrent, sequences),
    habit_of("weights made by a layer", Hypernetwork, vectors),
    habit_of("filters of each example's own", OwnFilters, images),
    habit_of("weights put together", FusedProjections, sequences),
    habit_of("heads as an axis of the weights", HeadsByEinsum, sequences),
    habit_of("tied to its transpose", Autoencoder, vectors),
    habit_of("functional_call within the pass", OtherParameters, vectors),
    habit_of("an autograd function of its own", OwnFunction, vectors),
    habit_of("a gradient within the pass", Force, vectors),
    habit_of("layers without gradients", Detached, vectors),
    habit_of("packed tokens", Packed, tokens),
    habit_of("one BatchNorm behind two convolutions", SharedNorm, images),
    habit_of("noise of a fixed seed", FixedNoise, vectors),
]
