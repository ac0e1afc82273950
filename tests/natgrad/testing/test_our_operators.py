"""Every operator that natgrad ships passes every check of its kind."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from scipy.sparse.linalg import aslinearoperator
from torch import nn

from natgrad.autodiff.jacobian import Jacobian
from natgrad.curvature import (
    Dense,
    Diagonal,
    EmpiricalFisher,
    Fisher,
    FunctionOperator,
    GaussNewton,
    Gram,
    Hessian,
    Identity,
    Kronecker,
    LinearOperator,
    LowRank,
    Sharing,
    Submatrix,
    twice_differentiable,
)
from natgrad.curvature.metrics import (
    binary_cross_entropy,
    convex_loss,
    cross_entropy,
    squared_error,
)
from natgrad.flat import Slots
from natgrad.testing.check import Kind
from natgrad.testing.conformance import parametrize_with_checks
from natgrad.testing.likelihoods import FAMILIES
from natgrad.testing.strategies import distributions
from natgrad.testing.subjects.curvature import Curvature
from natgrad.testing.subjects.curvature import Kronecker as Factored
from natgrad.testing.subjects.operator import Operator

METRICS: dict[str, Any] = {
    "categorical": cross_entropy, "mse": squared_error, "bernoulli": binary_cross_entropy
}  # fmt: skip


def eigen(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors, values.clamp(min=0)


def low_rank(matrix):
    return LowRank(*eigen(matrix))


def nystrom(matrix):
    generator = torch.Generator().manual_seed(0)
    return LowRank.nystrom(Dense(matrix), len(matrix), generator=generator)


def gram(matrix):
    vectors, values = eigen(matrix)
    theta = nn.Parameter(torch.ones(len(matrix), dtype=matrix.dtype))
    return Gram((vectors * values.sqrt()) @ theta, [theta])


def linear_least_squares(matrix):
    vectors, values = eigen(matrix)
    theta = nn.Parameter(torch.ones(len(matrix), dtype=matrix.dtype))
    outputs = (values.sqrt().unsqueeze(1) * vectors.mT) @ theta
    return 0.5 * GaussNewton(outputs, [theta], squared_error, reduction="sum")


def quadratic(matrix):
    theta = nn.Parameter(torch.ones(len(matrix), dtype=matrix.dtype))
    return Hessian(0.5 * theta @ matrix @ theta, [theta])


def damped(matrix):
    identity = Identity(len(matrix), dtype=matrix.dtype)
    return (Dense(matrix) - 2 * identity).damped(2.0)


def combined(matrix):
    return 0.25 * Dense(matrix) + Dense(0.5 * matrix) - -0.25 * Dense(matrix)


def submatrix(matrix):
    n = len(matrix)
    wide = torch.ones(n + 2, n + 2, dtype=matrix.dtype)
    wide[1:-1, 1:-1] = matrix
    kept = torch.zeros(n + 2, dtype=torch.bool)
    kept[1:-1] = True
    return Submatrix(Dense(wide), kept)


def function(matrix):
    return FunctionOperator(lambda v: matrix @ v, len(matrix), dtype=matrix.dtype)


EXPLICIT = [
    Operator.of(LinearOperator.from_dense, name="Dense"),
    Operator.of(lambda m: Diagonal(m.diagonal()), structure="diagonal", name="Diagonal"),
    Operator.of(low_rank, structure="semidefinite"),
    Operator.of(nystrom, structure="semidefinite"),
    Operator.of(function),
    Operator.of(lambda m: LinearOperator.from_scipy(aslinearoperator(m.numpy())), name="SciPy"),
    Operator.of(damped),
    Operator.of(combined),
    Operator.of(submatrix),
    Operator.of(gram, structure="semidefinite"),
    Operator.of(linear_least_squares, structure="semidefinite"),
    Operator.of(quadratic),
]


@parametrize_with_checks(EXPLICIT, Kind.OPERATOR)
def test_explicit_operators(subject, check):
    check(subject, examples=5)


def data(case):
    return {"data": case.inputs, "chunk_size": case.chunk_size}


def labelled(case):
    return {"data": (case.inputs, case.targets), "chunk_size": case.chunk_size}


def fisher(case):
    """By a forward function, in chunks or not."""
    F = Fisher(case.distribution, case.parameters, weights=case.weights, **data(case))
    return len(case.inputs) * F if case.reduction == "sum" else F


def fisher_of_a_graph(case):
    with twice_differentiable():
        return Fisher(case.distribution(case.inputs), case.parameters, weights=case.weights)


def gauss_newton(case):
    G = GaussNewton(
        case.model, case.parameters, METRICS[case.family], reduction=case.reduction, **data(case)
    )
    return G


def gauss_newton_of_any_loss(case):
    """From the sum of the loss, whose mean is over the first dimension."""
    summed = replace(case, reduction="sum")

    def outcome(given):
        x, targets = given
        return convex_loss(lambda y: summed.criterion(y, targets))(case.model(x))

    G = GaussNewton(outcome, case.parameters, reduction=case.reduction, **labelled(case))
    by_element = 1 if case.reduction == "sum" else len(case.targets) / case.terms
    return by_element * G


def empirical_fisher(case):
    return EmpiricalFisher(
        lambda given: case.log_probs(*given), case.parameters, weights=case.weights,
        **labelled(case),
    )  # fmt: skip


def hessian(case):
    if case.reduction == "sum":
        return Hessian(case.loss(case.inputs, case.targets), case.parameters)
    return Hessian(lambda given: case.loss(*given), case.parameters, **labelled(case))


def jacobian(case):
    with twice_differentiable():
        J = Jacobian((case.model(case.inputs),), Slots(case.parameters))
    shape = (len(case.inputs), 3)
    return lambda v: J.forward(v)[0].reshape(-1), lambda u: J.transpose((u.reshape(shape),))


def gram_jacobian(case):
    """Jᵀ of a Gram matrix, and J = K J⁺ by way of it."""
    K = Gram(case.model, case.parameters, data=case.inputs)
    J = torch.stack([K.transpose(e) for e in torch.eye(K.shape[0], dtype=K.dtype)])
    return lambda v: J @ v, K.transpose


EVERYTHING = ("chunks", "forward", "frozen", "fused", "random", "sum", "weights")
KEPT = ("frozen", "fused", "random", "weights")
UNWEIGHTED = ("chunks", "forward", "frozen", "fused", "random", "sum")
CURVATURES = [
    Curvature.of(fisher, "fisher", EVERYTHING, families=tuple(FAMILIES), jacobian=jacobian),
    Curvature.of(fisher_of_a_graph, "fisher", KEPT, jacobian=gram_jacobian),
    Curvature.of(gauss_newton, "gauss_newton", UNWEIGHTED),
    Curvature.of(empirical_fisher, "empirical_fisher", [t for t in EVERYTHING if t != "sum"]),
    Curvature.of(hessian, "hessian", [t for t in UNWEIGHTED if t != "sum"]),
]
ANY_LOSS = Curvature.of(gauss_newton_of_any_loss, "gauss_newton", UNWEIGHTED)


@parametrize_with_checks(CURVATURES, Kind.CURVATURE)
def test_curvature_operators(subject, check):
    check(subject, examples=10)


@settings(max_examples=50)
@given(distributions())
def test_the_metric_of_every_family(case):
    F = Fisher(case.distribution, [case.outputs]).to_dense()
    expected = torch.block_diag(*case.metric) / case.batch
    assert torch.allclose(F, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@parametrize_with_checks([*CURVATURES, ANY_LOSS], Kind.CURVATURE)
def test_curvature_operators_by_many_seeds(subject, check, seed):
    check(subject, examples=10, seed=seed)


def factored(**choices):
    def make(case):
        return Kronecker(
            case.model, case.inputs, forward=case.distribution, parameters=case.parameters,
            **choices,
        )  # fmt: skip

    return make


def sampled(case):
    generator = torch.Generator().manual_seed(case.draw_seed)
    return factored(samples=case.draws, generator=generator)(case)


def solve(K, b, damping):
    return K.solve(b, damping=damping)


FACTORED = [
    Factored.of(factored(), ["forward", "mixed"], solve=solve, name="Kronecker"),
    Factored.of(
        factored(corrected=True), ["corrected", "forward", "mixed"], solve=solve, name="corrected"
    ),
    Factored.of(
        factored(sharing=Sharing.REDUCE), ["forward", "mixed"], solve=solve, name="reduced"
    ),
    Factored.of(sampled, ["forward", "mixed", "sampled"], solve=solve),
]


@parametrize_with_checks(FACTORED, Kind.KRONECKER)
def test_kronecker_factored_operators(subject, check):
    check(subject, examples=10)
