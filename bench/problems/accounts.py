"""Steps that claim a KL divergence, on networks and policies of every kind, and what it was.

A seed says everything: sizes, weights, data, likelihood, dtype, bound. ``Account`` holds the claim
beside the divergence that a float64 formula of its own finds in the outputs before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal
from torch.nn import functional as F

from natgrad import LineSearchStatus
from natgrad.optim import KFAC, NaturalGradient, OptimizerStatus
from rl_plugins import NPG, TRPO

CLASSES = 3
BOUNDS = (1e-4, 1e-2, 1.0)
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid)
# Their losses.
LIKELIHOODS: dict[str, Callable[..., Tensor]] = {
    "categorical": F.cross_entropy,
    "bernoulli": F.binary_cross_entropy_with_logits,
    "normal": F.mse_loss,
}


@dataclass(frozen=True)
class Account:
    """One step: what it was allowed, what it says, and what is so. ``rounding`` is what the dtype
    of the outputs explains of the difference between the last two."""

    accepted: bool
    bound: float
    reported: float = math.nan
    measured: float = math.nan
    rounding: float = 0.0

    @property
    def kept(self) -> bool:
        """Whether the bound holds, of the report without any slack."""
        return self.reported <= self.bound and self.measured <= self.bound + self.rounding

    @property
    def true(self) -> bool:
        """Whether the report is what was measured."""
        return abs(self.reported - self.measured) <= self.rounding


def natural_gradient(model: nn.Module, likelihood: str, max_kl: float) -> NaturalGradient:
    return NaturalGradient(
        model, likelihood=likelihood, max_kl=max_kl, lr=math.inf, damping=1e-4, max_iterations=20
    )


def kfac(model: nn.Module, likelihood: str, max_kl: float) -> KFAC:
    return KFAC(
        model, likelihood=likelihood, max_kl=max_kl, lr=0.5, damping=1e-3, refresh_every=2,
        weight_decay=1e-2,
    )  # fmt: skip


def corrected_kfac(model: nn.Module, likelihood: str, max_kl: float) -> KFAC:
    return KFAC(
        model, likelihood=likelihood, max_kl=max_kl, lr=0.5, damping=1e-3, corrected=True,
        momentum=0.0,
    )  # fmt: skip


OPTIMIZERS: dict[str, Callable[[nn.Module, str, float], Any]] = {
    "NaturalGradient": natural_gradient, "KFAC": kfac, "KFAC, corrected": corrected_kfac,
}  # fmt: skip
# name: (plugin, how many times max_kl its rule allows)
PLUGINS: dict[str, tuple[Any, float]] = {"TRPO": (TRPO, 1.0), "NPG": (NPG, 2.0)}


def drawn(generator: torch.Generator, *among: Any) -> Any:
    return among[int(torch.randint(len(among), (), generator=generator))]


def network(
    generator: torch.Generator, outputs: int, seed: int, size: float
) -> tuple[nn.Sequential, Tensor]:
    """One to three layers of any width, weights ``size`` times torch's own, and inputs."""
    depth, width, inputs = (
        int(torch.randint(1, most, (), generator=generator)) for most in (4, 13, 6)
    )
    activation = drawn(generator, *ACTIVATIONS)
    widths = [inputs, *[width] * (depth - 1), outputs]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), activation()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(size)
    samples = int(torch.randint(1, 61, (), generator=generator))
    return model, torch.randn(samples, inputs, generator=generator)


def targets(likelihood: str, x: Tensor, generator: torch.Generator) -> Tensor:
    if likelihood == "categorical":
        return torch.randint(CLASSES, (len(x),), generator=generator)
    y = torch.randn(len(x), CLASSES, generator=generator).to(x)
    return (y > 0).to(x) if likelihood == "bernoulli" else 3 * y


def rounding(dtype: torch.dtype, size: float, depth: int, *divergences: float) -> float:
    """What outputs of this ``size``, each rounded some times, leave unknown of a divergence, which
    is a square of their changes: 2 √(2 KL) e + e², e their rounding; and the logarithms, some eps
    of float64 each."""
    error = 8 * depth * torch.finfo(dtype).eps * (size + 1)
    of_logarithms = 32 * torch.finfo(torch.float64).eps * (size + 1)
    return 2 * math.sqrt(2 * max(divergences)) * error + error**2 + of_logarithms


def divergence(kind: str, before: Tensor, after: Tensor, log_std: tuple[Tensor, Tensor]) -> float:
    """E[KL] of outputs before and after, float64, by logarithms: torch's is infinite where a
    probability underflows."""
    y, z = before.double(), after.double()
    if kind == "categorical":
        terms = [(y.log_softmax(-1), z.log_softmax(-1))]
    elif kind == "bernoulli":
        terms = [(F.logsigmoid(sign * y), F.logsigmoid(sign * z)) for sign in (1, -1)]
    else:
        a, b = (each.double() for each in log_std)
        pairs = torch.expm1(2 * (a - b)) - 2 * (a - b) + ((y - z) / b.exp()).square()
        return float(pairs.sum(-1).mean() / 2)
    parts = [torch.where(p > -700, p.exp() * (p - q), 0.0).sum(-1) for p, q in terms]
    return float(torch.stack(parts).sum(0).mean())


def optimizer_steps(name: str, seed: int, steps: int = 3) -> Iterator[Account]:
    """So many steps of an optimizer on the network of this seed, with or without a closure."""
    generator = torch.Generator().manual_seed(seed)
    likelihood, max_kl = drawn(generator, *LIKELIHOODS), drawn(generator, *BOUNDS)
    dtype, searching = drawn(generator, torch.float32, torch.float64), drawn(generator, 0, 1)
    size = 4 * float(torch.rand((), generator=generator))
    model, x = network(generator, CLASSES, seed, size)
    model, x = model.to(dtype), x.to(dtype)
    optimizer = OPTIMIZERS[name](model, likelihood, max_kl)
    loss_of = LIKELIHOODS[likelihood]
    for _ in range(steps):
        y = targets(likelihood, x, generator)

        def closure(y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.no_grad():
            before = model(x).double()
        if searching:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        report = optimizer.last_step
        if report.status is not OptimizerStatus.ACCEPTED:
            yield Account(False, max_kl)
            continue
        with torch.no_grad():
            after = model(x).double()
        unit = torch.zeros(CLASSES, dtype=torch.float64)
        true = divergence(likelihood, before, after, (unit, unit))
        largest = float(torch.maximum(before.abs(), after.abs()).amax())
        slack = rounding(dtype, largest, len(model), true, max_kl)
        yield Account(True, max_kl, report.kl, true, slack)


class Policy(nn.Module):
    """A policy over numbers, choices or bits, in some of its states nearly certain."""

    def __init__(self, body: nn.Sequential, kind: str) -> None:
        super().__init__()
        self.body, self.kind = body, kind
        self.log_std = nn.Parameter(torch.zeros(CLASSES, dtype=next(body.parameters()).dtype))

    def forward(self, x: Tensor) -> Distribution:
        y = self.body(x)
        if self.kind == "categorical":
            return Categorical(logits=y, validate_args=False)
        if self.kind == "bernoulli":
            return Independent(Bernoulli(logits=y, validate_args=False), 1, validate_args=False)
        scale = self.log_std.exp().expand_as(y)
        return Independent(Normal(y, scale, validate_args=False), 1, validate_args=False)


def plugin_step(name: str, seed: int) -> Account:
    """A step of NPG or TRPO from a batch that the policy of this ``seed`` has drawn."""
    generator = torch.Generator().manual_seed(seed)
    kind, max_kl = drawn(generator, *LIKELIHOODS), drawn(generator, *BOUNDS)
    dtype = drawn(generator, torch.float32, torch.float64)
    # Up to logits of some hundreds: probabilities far below float32's range.
    size = drawn(generator, 1.0, 3.0, 10.0)
    body, x = network(generator, CLASSES, seed, size)
    policy, x = Policy(body.to(dtype), kind), x.to(dtype)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        actions, before = policy(x).sample(), policy.body(x)
        log_std = policy.log_std.clone()
    advantages = torch.randn(len(x), generator=generator).to(dtype)
    make, times = PLUGINS[name]
    report = make(policy, max_kl=max_kl, damping=1e-3).step(x, actions, advantages)
    if report.status is not LineSearchStatus.ACCEPTED:
        return Account(False, times * max_kl)
    with torch.no_grad():
        after = policy.body(x)
        true = divergence(kind, before, after, (log_std, policy.log_std))
        largest = float(torch.maximum(before.abs(), after.abs()).amax())
    slack = rounding(dtype, largest, len(body), true, max_kl)
    return Account(True, times * max_kl, report.kl, true, slack)
