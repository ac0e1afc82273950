"""Small networks of every kind that a curvature operator must cope with.

Each has at most 60 parameters: an operator's dense matrix is cheap, and a defect shows in a few
entries. ``network.inputs(generator)`` draws a batch of inputs; the outputs are (N, 3).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.nn import functional as F

CLASSES = 3
DOUBLE = torch.float64


class Mlp(nn.Module):
    """Linear, tanh, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5, dtype=DOUBLE)
        self.second = nn.Linear(5, CLASSES, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.first(x).tanh())
        return outputs

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(7, 3, generator=generator, dtype=DOUBLE)


class Convolution(nn.Module):
    """A 2-D convolution with stride and padding, then a 1-D one with dilation and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.plane = nn.Conv2d(1, 2, (2, 3), stride=(2, 1), padding=(1, 1), dtype=DOUBLE)
        self.line = nn.Conv1d(2, 3, 2, dilation=2, padding="same", bias=False, dtype=DOUBLE)
        self.head = nn.Linear(3, CLASSES, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.plane(x).tanh().flatten(2)
        outputs: Tensor = self.head(self.line(pixels).sigmoid().mean(-1))
        return outputs

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(5, 1, 3, 4, generator=generator, dtype=DOUBLE)


class Words(nn.Module):
    """An embedding and a mean over words.

    Parameters
    ----------
    padding
        The index of the padding; None for an embedding without.
    """

    def __init__(self, padding: int | None = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4, padding_idx=padding, dtype=DOUBLE)
        self.head = nn.Linear(4, CLASSES, dtype=DOUBLE)

    def forward(self, words: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.embedding(words).tanh().mean(1))
        return outputs

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randint(0, 5, (6, 3), generator=generator)


class Recurrent(nn.Module):
    """A recurrent layer, and a linear layer on its last output.

    Parameters
    ----------
    kind
        ``nn.LSTM`` or ``nn.GRU``.
    """

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.recurrent = kind(2, 1, batch_first=True, dtype=DOUBLE)
        self.head = nn.Linear(1, CLASSES, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.recurrent(x)[0][:, -1])
        return outputs

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(5, 4, 2, generator=generator, dtype=DOUBLE)


class Attention(nn.Module):
    """Causal attention by the fused kernel, which has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.queries_keys_values = nn.Linear(2, 6, dtype=DOUBLE)
        self.norm = nn.LayerNorm(2, dtype=DOUBLE)
        self.head = nn.Linear(2, CLASSES, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.queries_keys_values(x).unsqueeze(1).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        outputs: Tensor = self.head(self.norm(x + mixed).tanh().mean(1))
        return outputs

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(4, 3, 2, generator=generator, dtype=DOUBLE)


class Linear(nn.Module):
    """Two linear layers without a nonlinearity: Kronecker factors are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False, dtype=DOUBLE)
        self.second = nn.Linear(4, CLASSES, bias=False, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.first(x))
        return outputs

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(6, 3, generator=generator, dtype=DOUBLE)


class Tied(nn.Module):
    """Two layers that share weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(CLASSES, CLASSES, dtype=DOUBLE))
        self.bias = nn.Parameter(torch.empty(CLASSES, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight, self.bias).tanh(), self.weight, self.bias)

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(6, CLASSES, generator=generator, dtype=DOUBLE)


class Unused(nn.Module):
    """Two layers, and a third that the outputs do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2, dtype=DOUBLE)
        self.idle = nn.Linear(2, 2, dtype=DOUBLE)
        self.head = nn.Linear(2, CLASSES, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.first(x).tanh())
        return outputs

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(5, 3, generator=generator, dtype=DOUBLE)


class Stateful(nn.Module):
    """A layer that writes buffers or draws random numbers in training mode.

    Parameters
    ----------
    normalised
        Whether the layer is batch normalisation; dropout otherwise.
    """

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, dtype=DOUBLE)
        self.state = nn.BatchNorm1d(4, dtype=DOUBLE) if normalised else nn.Dropout(0.5)
        self.head = nn.Linear(4, CLASSES, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.state(self.first(x)).tanh())
        return outputs

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(6, 3, generator=generator, dtype=DOUBLE)


class Shapes(nn.Module):
    """A parameter of shape () and one that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.empty((), dtype=DOUBLE))
        self.weight = nn.Parameter(torch.empty(4, CLASSES, dtype=DOUBLE).mT)

    def forward(self, x: Tensor) -> Tensor:
        return self.temperature.exp() * F.linear(x, self.weight).tanh()

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(5, 4, generator=generator, dtype=DOUBLE)


class Free(nn.Module):
    """Outputs that are the parameters themselves, the same for every input."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs = nn.Parameter(torch.empty(CLASSES, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs.expand(len(x), CLASSES)

    def inputs(self, generator: torch.Generator) -> Tensor:
        return torch.randn(3, 1, generator=generator, dtype=DOUBLE)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": Mlp,
    "convolution": Convolution,
    "embedding": Words,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "attention": Attention,
}
# Each of these has one property that operators get wrong.
SPECIAL: dict[str, Callable[[], nn.Module]] = {
    "tokens": lambda: Words(padding=None),
    "linear": Linear,
    "tied": Tied,
    "unused": Unused,
    "dropout": lambda: Stateful(normalised=False),
    "normalised": lambda: Stateful(normalised=True),
    "shapes": Shapes,
    "free": Free,
}


def make_network(kind: str, generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    """A network with float64 weights of standard deviation one half, and inputs for it.

    Parameters
    ----------
    kind
        A key of :data:`NETWORKS` or :data:`SPECIAL`.
    generator
        The only source of weights and inputs.

    Raises
    ------
    KeyError
        If there is no such kind.
    """
    with torch.random.fork_rng():  # torch initialises from the global generator
        network = (NETWORKS | SPECIAL)[kind]()
    with torch.no_grad():
        for parameter in network.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)
            parameter.copy_(0.5 * values)
    inputs: Tensor = network.inputs(generator)  # type: ignore[operator]
    return network, inputs


def categorical(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Distribution]:
    """The categorical distribution whose logits are a network's outputs.

    Parameters
    ----------
    network
        Maps inputs to outputs (N, classes).
    """
    return lambda x: Categorical(logits=network(x))


def gaussian(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Distribution]:
    """The normal distribution in R² whose mean and deviation are a network's outputs.

    Parameters
    ----------
    network
        Maps inputs to outputs (N, 3): the first two are the mean, softplus of the last two the
        standard deviation.
    """

    def forward(x: Tensor) -> Distribution:
        outputs = network(x)
        return Independent(Normal(outputs[:, :2], F.softplus(outputs[:, 1:])), 1)

    return forward
