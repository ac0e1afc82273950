"""Derivatives flow through every solve of equations, at the cost of one more, and not through what
is none."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from natgrad.curvature import Dense
from natgrad.solvers import (
    Status,
    cg,
    cholesky,
    lanczos,
    least_squares,
    minres,
    sample_space,
    steihaug,
)  # fmt: skip

N, RTOL = 3, 1e-13
DOUBLE = torch.float64

# name -> (A, b, λ) -> x, the solution of (A + λ I) x = b
SOLVERS = {
    "cg": lambda A, b, damping=0.0: cg(A, b, damping=damping, rtol=RTOL),
    "preconditioned": lambda A, b, damping=0.0: cg(
        A, b, damping=damping, rtol=RTOL, preconditioner=Dense(torch.eye(N, dtype=DOUBLE) / 3)
    ),
    "minres": lambda A, b, damping=0.0: minres(damped(A, damping), b, rtol=RTOL),
    "cholesky": lambda A, b, damping=0.0: cholesky(A, b, damping=damping, rtol=RTOL),
    "lanczos": lambda A, b, damping=0.0: lanczos(A, b, rtol=RTOL).solve(damping=damping),
    "lanczos inside": lambda A, b, damping=0.0: lanczos(A, b, rtol=RTOL).solve(
        damping=damping, radius=1e6
    ),
    "steihaug": lambda A, b, damping=0.0: steihaug(damped(A, damping), -b, 1e6, rtol=RTOL),
}


def damped(A, damping):
    return A if not damping else lambda v: product(A, v) + damping * v


def product(A, v):
    return A(v) if callable(A) else A @ v


@pytest.fixture
def system(generator):
    """S with A = S + Sᵀ + 6 I, and b."""
    S = torch.randn(N, N, generator=generator, dtype=DOUBLE) / 2
    b = torch.randn(N, generator=generator, dtype=DOUBLE)
    return S.requires_grad_(), b.requires_grad_()


def positive(S):
    return S + S.mT + 6 * torch.eye(N, dtype=DOUBLE)


def twice(solve, inputs):
    with torch.random.fork_rng():  # gradgradcheck draws its cotangents from the global generator
        return gradgradcheck(solve, inputs)


KINDS = {
    "matrix": positive,
    "function": lambda S: lambda v: S @ v + S.mT @ v + 6 * v,
    "function of a matrix": lambda S: (lambda A: lambda v: A @ v)(positive(S)),
    "of a matrix and what it is made of": lambda S: (
        lambda A: lambda v: A @ v + 0.1 * (S + S.mT) @ v
    )(positive(S)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_first_and_second_derivatives(name, kind, system):
    def solve(S, b):
        return SOLVERS[name](KINDS[kind](S), b).x

    assert gradcheck(solve, system)
    assert twice(solve, system)


@pytest.mark.parametrize("name", SOLVERS)
def test_they_are_those_of_the_inverse(name, system, generator):
    S, b = system
    weights = torch.randn(N, generator=generator, dtype=DOUBLE)
    found, expected = (
        torch.autograd.grad(x @ weights, (S, b))
        for x in (
            SOLVERS[name](positive(S), b, 0.5).x,
            torch.linalg.solve(positive(S) + 0.5 * torch.eye(N, dtype=DOUBLE), b),
        )
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["cg", "minres", "cholesky"])
def test_those_of_many_right_hand_sides(name, system, generator):
    S, _ = system
    B = torch.randn(N, 3, generator=generator, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda S, B: SOLVERS[name](positive(S), B).x, (S, B))


def counted(A):
    calls = []

    def multiply(v):
        calls.append(1)
        return A @ v

    return multiply, calls


@pytest.mark.parametrize("name", ["cg", "minres", "lanczos", "steihaug"])
def test_a_derivative_in_b_costs_one_solve_and_nothing_before_it(name, system):
    S, b = system
    A, calls = counted(positive(S.detach()))
    s = SOLVERS[name](A, b)
    assert len(calls) == s.products
    before = len(calls)
    (g,) = torch.autograd.grad(s.x.sum(), b)
    spent = len(calls) - before
    calls.clear()
    again = SOLVERS[name](A, torch.ones_like(b))
    torch.testing.assert_close(g, again.x)
    assert abs(spent - again.products) <= 2  # steihaug solves by cg inside its radius


@pytest.mark.parametrize("name", ["cg", "minres", "lanczos", "steihaug"])
def test_one_in_the_parameters_of_A_costs_two_products_more(name, system):
    S, b = system
    A, calls = counted(positive(S))
    s = SOLVERS[name](A, b)
    assert len(calls) == s.products
    without, _ = counted(positive(S.detach()))
    plain = SOLVERS[name](without, b.detach())
    assert s.products == plain.products + 1
    before = len(calls)
    torch.autograd.grad(s.x.sum(), b, retain_graph=True)
    assert len(calls) - before <= plain.products + 2 + 2


def spread(size=20):
    """Of condition 100, and a right-hand side that one product solves for."""
    A = torch.diag(torch.linspace(1, 100, size, dtype=DOUBLE))
    b = torch.zeros(size, dtype=DOUBLE)
    b[0] = 1.0
    return A, b.requires_grad_()


# name -> (A, b, settings) -> a solve with these settings
SETTINGS = {
    "cg": cg,
    "minres": minres,
    "lanczos": lambda A, b, **settings: lanczos(A, b, **settings).solve(),
    "lanczos on a radius": lambda A, b, **settings: lanczos(A, b, **settings).solve(radius=0.5),
    "steihaug": lambda A, b, **settings: steihaug(A, -b, 1e6, **settings),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_solve_of_a_derivative_has_the_settings_of_the_first(name):
    A, b = spread()
    counts = []
    for rtol in (0.5, 1e-9):
        multiply, calls = counted(A)
        x = SETTINGS[name](multiply, b, rtol=rtol).x
        calls.clear()
        torch.autograd.grad(x.sum(), b)
        counts.append(len(calls))
    assert counts[0] < counts[1] / 2
    x = SETTINGS[name](A, b, max_iterations=2).x
    with pytest.raises(RuntimeError, match="another one, and that ended with MAX_ITERATIONS"):
        x.sum().backward()


@pytest.mark.parametrize("name", ["cg", "minres", "steihaug"])
def test_and_its_preconditioner(name):
    A, b = spread()
    inverse = torch.diag(1 / A.diagonal())
    multiply, calls = counted(A)
    x = SETTINGS[name](multiply, b, rtol=1e-9, preconditioner=inverse).x
    calls.clear()
    torch.autograd.grad(x.sum(), b)
    assert len(calls) <= 4  # with it every right-hand side takes one iteration


@pytest.mark.parametrize("name", SOLVERS)
def test_nothing_is_recorded_where_nothing_is_asked_for(name, system):
    S, b = system
    assert not SOLVERS[name](positive(S.detach()), b.detach()).x.requires_grad
    with torch.no_grad():
        assert not SOLVERS[name](positive(S), b).x.requires_grad
    s = SOLVERS[name](positive(S), b)
    assert s.x.requires_grad
    assert not s.Ax.requires_grad


def test_the_iterations_are_not_recorded(system):
    S, b = system
    x = cg(positive(S), b, rtol=RTOL).x
    nodes, stack = set(), [x.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            stack += [following for following, _ in node.next_functions]
    assert len(nodes) < 10


def test_operators_of_this_package_are_constants(system):
    S, b = system
    x = cg(Dense(positive(S)), b, rtol=RTOL).x
    (g,) = torch.autograd.grad(x.sum(), b)
    torch.testing.assert_close(positive(S).detach() @ g, torch.ones_like(b))


def test_a_module_in_the_product_gets_its_gradients(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scale = torch.nn.Linear(N, N, bias=False).double()
    b = torch.randn(N, generator=generator, dtype=DOUBLE)

    def A(v):
        return scale(torch.nn.functional.linear(v, scale.weight.mT)) + v

    cg(A, b, rtol=RTOL).x.square().sum().backward()
    W = scale.weight.detach().clone().requires_grad_()
    torch.linalg.solve(W @ W.mT + torch.eye(N, dtype=DOUBLE), b).square().sum().backward()
    torch.testing.assert_close(scale.weight.grad, W.grad)


def test_tensors_that_were_computed_before_get_their_own(system):
    """Two of them, by a function's named arguments too, and a third that only decides."""
    S, b = system
    first, second, switch = positive(S), S.mT @ S, S + 1.0

    def A(v):
        curved = second if bool(switch.isfinite().all()) else first
        return torch.nn.functional.linear(input=v, weight=first) + curved @ v

    x = cg(A, b, rtol=RTOL).x
    found = torch.autograd.grad(x.sum(), (first, second, switch, b), allow_unused=True)
    u = torch.linalg.solve((first + second).detach(), torch.ones_like(b))
    torch.testing.assert_close(found[3], u)
    # Of the matrix W in W v: the function is the same in each, as symmetric as A is as a whole.
    for gradient in found[:2]:
        torch.testing.assert_close(gradient, -torch.outer(u, x.detach()))
    assert found[2] is None or not bool(found[2].any())


def test_graphs_behind_a_product_can_be_used_again(system):
    S, b = system
    K = positive(S) ** 2 / 6
    x = cg(lambda v: (K + K.mT) @ v + 20 * v + 0.1 * (S + S.mT) @ v, b, rtol=RTOL).x
    (alone,) = torch.autograd.grad(x.sum(), S, retain_graph=True)
    (again,) = torch.autograd.grad(x.sum(), S, retain_graph=True)
    (both,) = torch.autograd.grad(x.sum() + K.sum(), S)
    (of_K,) = torch.autograd.grad((positive(S) ** 2 / 6).sum(), S)
    assert torch.equal(alone, again)
    torch.testing.assert_close(both, alone + of_K)


@pytest.mark.parametrize("shape", [(7, 4), (3, 6)])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_least_squares(shape, damping, generator):
    J = torch.randn(shape, generator=generator, dtype=DOUBLE, requires_grad=True)
    r = torch.randn(shape[0], generator=generator, dtype=DOUBLE, requires_grad=True)

    def solve(J, r):
        return least_squares(J).solve(r, damping=damping, rtol=1e-12).x

    if not damping and shape[0] < shape[1]:
        with pytest.raises(RuntimeError, match="not full column rank, and damping is 0"):
            solve(J, r).sum().backward()
        return
    assert gradcheck(solve, (J, r))
    assert twice(solve, (J, r))


@pytest.mark.parametrize("shape", [(5, 5), (7, 4), (3, 6)])
def test_least_squares_in_one_of_its_arguments(shape, generator):
    J = torch.randn(shape, generator=generator, dtype=DOUBLE)
    r = torch.randn(shape[0], generator=generator, dtype=DOUBLE)
    damping = 0.0 if shape[0] >= shape[1] else 0.1
    normal = J.mT @ J + damping * torch.eye(shape[1], dtype=DOUBLE)

    def solve(J, r):
        return least_squares(J).solve(r, damping=damping, rtol=1e-11).x

    right = r.clone().requires_grad_()
    (found,) = torch.autograd.grad(solve(J, right).sum(), right)
    expected = J @ torch.linalg.solve(normal, torch.ones(shape[1], dtype=DOUBLE))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    assert gradcheck(lambda J: solve(J, r), J.clone().requires_grad_())
    with torch.no_grad():
        assert not solve(J.clone().requires_grad_(), right).requires_grad
    assert not solve(J, r).requires_grad


def test_least_squares_of_dependent_columns_have_no_derivative(generator):
    column = torch.randn(5, 1, generator=generator, dtype=DOUBLE)
    J = torch.cat([column, 2 * column], dim=1).requires_grad_()
    with pytest.raises(RuntimeError, match="here: J has not full column rank, and damping is 0"):
        least_squares(J).solve(torch.ones(5, dtype=DOUBLE)).x.sum().backward()


# name -> (S, b) -> the minimiser on a radius, of a definite or an indefinite model
ON_RADIUS = {
    "definite": lambda S, b: lanczos(positive(S), b, rtol=RTOL).solve(radius=0.1),
    "indefinite": lambda S, b: lanczos(S + S.mT, b, rtol=RTOL).solve(radius=2.0),
    "damped": lambda S, b: lanczos(S + S.mT, b, rtol=RTOL).solve(radius=1e-3, damping=0.5),
    "least squares": lambda S, b: least_squares(S).solve(b, radius=0.1, rtol=RTOL),
    "wide": lambda S, b: least_squares(S[:2]).solve(b[:2], radius=0.1, rtol=RTOL),
}


@pytest.mark.parametrize("name", ON_RADIUS)
def test_on_a_radius_the_step_turns_on_the_sphere(name, system):
    solve = ON_RADIUS[name]
    S, b = system
    s = solve(S, b)
    assert s.status is Status.BOUNDARY
    assert gradcheck(lambda S, b: solve(S, b).x, system, rtol=1e-4)
    assert twice(lambda S, b: solve(S, b).x, system)
    # Its length is given, and the derivative of a fixed length is 0.
    for gradient in torch.autograd.grad(s.x.square().sum(), system):
        assert float(gradient.norm()) <= 1e-10 * float(s.x.detach().norm())


def test_a_derivative_on_the_radius_costs_one_solve(system):
    """In the tangent space, of n - 1 dimensions: n - 1 products, one to verify, one for μ."""
    S, b = system
    A, calls = counted(positive(S.detach()))
    s = lanczos(A, b, rtol=RTOL).solve(radius=0.1)
    before = len(calls)
    torch.autograd.grad(s.x.sum(), b)
    assert before == s.products
    assert len(calls) - before <= (N - 1) + 2


def test_one_of_several_steps_has_the_derivative_of_its_branch():
    """The hard case: b does not excite the lowest eigenvector, and ± that vector fits as well."""
    A = torch.diag(torch.tensor([-1.0, 2.0, 3.0], dtype=DOUBLE))
    b = torch.tensor([0.0, 1.0, 1.0], dtype=DOUBLE, requires_grad=True)
    s = lanczos(A, b, rtol=RTOL).solve(radius=3.0)
    assert s.status is Status.BOUNDARY
    rest = b[1:] / torch.tensor([3.0, 4.0], dtype=DOUBLE)
    branch = s.x[0].sign().detach() * (9 - rest.square().sum()).sqrt()
    for mine, closed in zip(s.x, (branch, *rest), strict=True):
        found, expected = (
            torch.autograd.grad(value, b, retain_graph=True)[0][1:] for value in (mine, closed)
        )
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


CUT = {
    "max_iterations": lambda A, b: cg(A, b, max_iterations=2),
    "steihaug on its radius": lambda A, b: steihaug(A, -b, 1e-2),
    "negative curvature": lambda A, b: cg(-A, b),
    "stop": lambda A, b: cg(A, b, stop=lambda values: torch.tensor(True)),
}


@pytest.mark.parametrize("name", CUT)
def test_what_solves_no_equations_has_no_derivative_and_says_so(name, system):
    S, b = system
    s = CUT[name](positive(S), b)
    assert s.status is not Status.CONVERGED
    with pytest.raises(
        RuntimeError, match=rf"no derivative here: the solve ended with {s.status.name}"
    ):
        s.x.sum().backward()


def test_a_gram_matrix_refuses(generator):
    K = torch.eye(3, dtype=DOUBLE)
    gram = type("Gram", (), {"to_dense": lambda self: K, "transpose": lambda self, u: u})()
    with pytest.raises(ValueError, match=r"pass r\.detach\(\)"):
        sample_space(gram).solve(torch.ones(3, dtype=DOUBLE, requires_grad=True))


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_a_derivative_is_as_accurate_as_its_solve(rtol, system):
    S, b = system
    A = positive(S.detach())
    (g,) = torch.autograd.grad(cg(A, b, rtol=rtol).x.sum(), b)
    assert float((A @ g - 1).norm()) <= rtol * math.sqrt(N)
