"""The primitives against their yardsticks, on one thread: `make bench`.

Each group has a yardstick: one gradient of the same model and batch for the Fisher products,
`cg` for the solvers. Read the ratios inside a group, never the times.
"""

from __future__ import annotations

import itertools

import pytest
import scipy.sparse.linalg
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

import natgrad
from natgrad.flat import flatten, unflatten

BATCH = 2048
NETWORKS = {"17-64-64-6": (17, 64, 64, 6), "17-256-256-6": (17, 256, 256, 6)}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Policy(nn.Module):
    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.network = nn.Sequential(*layers[:-1])
        self.log_std = nn.Parameter(torch.zeros(sizes[-1]))

    def forward(self, x: Tensor) -> Independent[Normal]:
        mean = self.network(x)
        scale = self.log_std.exp().expand_as(mean)
        return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


# The network's name, the policy, its parameters, a batch of inputs and a vector to multiply.
Problem = tuple[str, Policy, list[nn.Parameter], Tensor, Tensor]
System = tuple[Tensor, Tensor]


@pytest.fixture(params=NETWORKS)
def problem(request: pytest.FixtureRequest) -> Problem:
    policy = Policy(NETWORKS[request.param])
    x = torch.randn(BATCH, 17)
    parameters = list(policy.parameters())
    return request.param, policy, parameters, x, torch.randn_like(flatten(parameters))


def test_gradient(benchmark: BenchmarkFixture, problem: Problem) -> None:
    name, policy, parameters, x, _ = problem
    actions = policy(x).sample()
    benchmark.group = f"Fisher {name}"
    benchmark(lambda: torch.autograd.grad(policy(x).log_prob(actions).mean(), parameters))


def test_fisher_set_up(benchmark: BenchmarkFixture, problem: Problem) -> None:
    name, policy, parameters, x, _ = problem
    benchmark.group = f"Fisher {name}"
    benchmark(lambda: natgrad.Fisher(policy, parameters, data=x))


def test_fisher_product(benchmark: BenchmarkFixture, problem: Problem) -> None:
    name, policy, parameters, x, v = problem
    F = natgrad.Fisher(policy, parameters, data=x)
    benchmark.group = f"Fisher {name}"
    benchmark(lambda: F @ v)


def test_fisher_product_in_chunks_of_256(benchmark: BenchmarkFixture, problem: Problem) -> None:
    name, policy, parameters, x, v = problem
    F = natgrad.Fisher(policy, parameters, data=x, chunk_size=256)
    benchmark.group = f"Fisher {name}"
    benchmark(lambda: F @ v)


def test_double_backward_of_the_kl_with_its_graph_kept(
    benchmark: BenchmarkFixture, problem: Problem
) -> None:
    """The field's form, at its best: one graph of the KL's gradient for all products."""
    name, policy, parameters, x, v = problem
    with torch.no_grad():
        old = policy(x)
    kl = kl_divergence(old, policy(x)).mean()
    gradients = torch.autograd.grad(kl, parameters, create_graph=True)
    pieces = unflatten(v, parameters)
    benchmark.group = f"Fisher {name}"
    benchmark(
        lambda: flatten(torch.autograd.grad(gradients, parameters, pieces, retain_graph=True))
    )


SOLVERS = "20 iterations, dense, n = 1,500"


@pytest.fixture
def system() -> System:
    n = 1500
    basis, _ = torch.linalg.qr(torch.randn(n, n))
    A = (basis * torch.logspace(0, -2, n)) @ basis.mT
    return (A + A.mT) / 2, torch.randn(n)


def test_natgrad_cg(benchmark: BenchmarkFixture, system: System) -> None:
    A, b = system
    benchmark.group = SOLVERS
    benchmark(lambda: natgrad.cg(A, b, rtol=0.0, max_iterations=20))


def test_natgrad_cg_with_eight_columns(benchmark: BenchmarkFixture, system: System) -> None:
    A, b = system
    B = b.unsqueeze(1) * torch.linspace(1, 2, 8) + 0.1 * torch.randn(len(b), 8)
    benchmark.group = SOLVERS
    benchmark(lambda: natgrad.cg(A, B, rtol=0.0, max_iterations=20))


def test_natgrad_minres(benchmark: BenchmarkFixture, system: System) -> None:
    A, b = system
    benchmark.group = SOLVERS
    benchmark(lambda: natgrad.minres(A, b, rtol=0.0, max_iterations=20))


def test_natgrad_steihaug(benchmark: BenchmarkFixture, system: System) -> None:
    A, b = system
    benchmark.group = SOLVERS
    benchmark(lambda: natgrad.steihaug(A, b, 1e6, rtol=0.0, max_iterations=20))


def test_natgrad_lanczos(benchmark: BenchmarkFixture, system: System) -> None:
    A, b = system
    benchmark.group = SOLVERS
    benchmark(lambda: natgrad.lanczos(A, b, rtol=0.0, max_iterations=20, search=0).solve(radius=1))


@pytest.mark.parametrize("solver", ["cg", "minres"])
def test_scipy(benchmark: BenchmarkFixture, system: System, solver: str) -> None:
    A, b = (part.numpy() for part in system)
    solve = getattr(scipy.sparse.linalg, solver)
    benchmark.group = SOLVERS
    benchmark(lambda: solve(A, b, rtol=0.0, maxiter=20))
