"""The Fisher matrix of every family in its own parameters, and of losses in their outputs."""

import math
from typing import Any

import pytest
import torch
from torch import distributions as D
from torch.distributions import constraints
from torch.nn import functional as F

from natgrad.curvature import (
    Fisher,
    GaussNewton,
    NotTwiceDifferentiable,
    OutputMetric,
    output_metric,
    register_metric,
)
from natgrad.curvature.metrics import convex_loss, cross_entropy

DOUBLE = torch.float64
CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10}


def lower(y):
    """A Cholesky factor (N, 2, 2) from three numbers a sample."""
    zero = torch.zeros_like(y[:, 0])
    first = torch.stack([y[:, 0].exp(), zero], dim=1)
    return torch.stack([first, torch.stack([y[:, 1], y[:, 2].exp()], dim=1)], dim=1)


# How many numbers y a sample, and the distribution that they make; all have a KL in torch.
FAMILIES = {
    "normal": (2, lambda y: D.Normal(y[:, 0], y[:, 1].exp())),
    "laplace": (2, lambda y: D.Laplace(y[:, 0], y[:, 1].exp())),
    "categorical by logits": (3, lambda y: D.Categorical(logits=y)),
    "categorical by probabilities": (3, lambda y: D.Categorical(probs=y.softmax(-1))),
    "one-hot categorical": (3, lambda y: D.OneHotCategorical(logits=y)),
    "bernoulli by logits": (1, lambda y: D.Bernoulli(logits=y[:, 0])),
    "bernoulli by probabilities": (1, lambda y: D.Bernoulli(probs=y[:, 0].sigmoid())),
    "binomial": (1, lambda y: D.Binomial(5, logits=y[:, 0])),
    "beta": (2, lambda y: D.Beta(y[:, 0].exp(), 1 + y[:, 1].exp())),
    "multivariate normal by scale": (
        5, lambda y: D.MultivariateNormal(y[:, :2], scale_tril=lower(y[:, 2:])),
    ),
    "multivariate normal by covariance": (
        5, lambda y: D.MultivariateNormal(y[:, :2], lower(y[:, 2:]) @ lower(y[:, 2:]).mT),
    ),
    "low-rank multivariate normal": (
        6,
        lambda y: D.LowRankMultivariateNormal(y[:, :2], y[:, 2:4].unsqueeze(2), y[:, 4:].exp() + 1),
    ),
    "gamma": (2, lambda y: D.Gamma(y[:, 0].exp(), y[:, 1].exp())),
    "dirichlet": (3, lambda y: D.Dirichlet(y.exp())),
    "exponential": (1, lambda y: D.Exponential(y[:, 0].exp())),
    "poisson": (1, lambda y: D.Poisson(y[:, 0].exp())),
    "geometric": (1, lambda y: D.Geometric(logits=y[:, 0])),
    "half-normal": (1, lambda y: D.HalfNormal(y[:, 0].exp())),
    "gumbel": (2, lambda y: D.Gumbel(y[:, 0], y[:, 1].exp())),
    "log-normal": (2, lambda y: D.LogNormal(y[:, 0], y[:, 1].exp())),
    "independent": (2, lambda y: D.Independent(D.Normal(y, 1.5), 1)),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_second_differences_of_the_divergence(family, generator):
    """KL(p_θ ‖ p_θ±s) from torch, differenced: no derivative of ours or autograd's is in it."""
    width, make = FAMILIES[family]
    y = 0.5 * torch.randn(4, width, generator=generator, dtype=DOUBLE)
    theta = y.reshape(-1).clone().requires_grad_()
    fisher = Fisher(make(theta.view(4, width)), [theta])
    for _ in range(3):
        s = torch.randn(len(theta), generator=generator, dtype=DOUBLE)
        h = 1e-3
        both = [
            D.kl_divergence(make(y), make(y + sign * h * s.view(4, width))).mean()
            for sign in (-1, 1)
        ]
        # Fourth order is what is left, but third at the kink of Laplace's |x|.
        rtol = 2e-2 if family == "laplace" else 1e-4
        divergences: Any = sum(both)
        assert torch.isclose(s @ (fisher @ s), divergences / h**2, rtol=rtol)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"laplace"}))
def test_equals_the_sampled_second_moment_of_scores(family, generator):
    width, make = FAMILIES[family]
    y = 0.3 * torch.randn(1, width, generator=generator, dtype=DOUBLE)
    theta = y.requires_grad_()
    dense = Fisher(make(theta), [theta]).to_dense()
    draws = 20_000
    repeated = y.detach().expand(draws, width).clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sample = make(repeated.detach()).sample()
    (scores,) = torch.autograd.grad(make(repeated).log_prob(sample).sum(), repeated)
    outer = scores.unsqueeze(2) * scores.unsqueeze(1)
    error = outer.var(dim=0).sqrt() / math.sqrt(draws)
    assert ((outer.mean(0) - dense).abs() <= 5 * error + 1e-9).all()


def test_closed_forms_that_anyone_can_check():
    rate = torch.tensor([2.0], dtype=DOUBLE, requires_grad=True)
    assert torch.allclose(Fisher(D.Poisson(rate), [rate]).to_dense(), (1 / rate).diag())
    assert torch.allclose(Fisher(D.Exponential(rate), [rate]).to_dense(), (rate**-2).diag())
    logits = torch.zeros(1, 2, dtype=DOUBLE, requires_grad=True)
    expected = torch.tensor([[0.25, -0.25], [-0.25, 0.25]], dtype=DOUBLE)
    assert torch.allclose(Fisher(D.Categorical(logits=logits), [logits]).to_dense(), expected)
    with torch.random.fork_rng():
        multinomial = D.Multinomial(7, logits=logits)
    assert torch.allclose(Fisher(multinomial, [logits]).to_dense(), 7 * expected)


@pytest.mark.parametrize(
    "transforms",
    [
        [D.TanhTransform()],
        [D.TanhTransform(cache_size=1), D.AffineTransform(0.5, 3.0)],
        [D.SigmoidTransform(), D.AffineTransform(torch.tensor(-1.0), torch.tensor(2.0))],
        [D.ComposeTransform([D.TanhTransform(), D.AffineTransform(1.0, 2.0)])],
    ],
    ids=["tanh", "tanh, affine", "sigmoid, affine", "composed"],
)
def test_a_bijection_without_parameters_changes_nothing(transforms, generator):
    mean = torch.randn(5, 2, generator=generator, dtype=DOUBLE, requires_grad=True)
    log_std = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    base = D.Independent(D.Normal(mean, log_std.exp().expand_as(mean)), 1)
    squashed = D.TransformedDistribution(base, transforms)
    with torch.random.fork_rng():
        squashed.rsample()  # a cached sample carries a graph, but is no parameter
    plain = Fisher(base, [mean, log_std]).to_dense()
    assert torch.equal(Fisher(squashed, [mean, log_std]).to_dense(), plain)


def test_a_learned_affine_map_of_a_normal_joins_its_parameters(generator):
    raw = torch.randn(6, 2, generator=generator, dtype=DOUBLE, requires_grad=True)
    mean, scale = raw[:, 0], -raw[:, 1].exp()
    standard = D.Normal(torch.zeros(6, dtype=DOUBLE), torch.ones(6, dtype=DOUBLE))
    moved = D.TransformedDistribution(standard, [D.AffineTransform(mean, scale), D.TanhTransform()])
    plain = Fisher(D.Normal(mean, scale.abs()), [raw]).to_dense()
    assert torch.allclose(Fisher(moved, [raw]).to_dense(), plain, **CLOSE)


def test_independent_distributions_of_a_dict_or_tuple_add_up(generator):
    y = torch.randn(5, 6, generator=generator, dtype=DOUBLE, requires_grad=True)
    move = D.Independent(D.Normal(y[:, :2], y[:, 2:3].exp().expand(5, 2)), 1)
    button = D.Categorical(logits=y[:, 3:])
    total = Fisher(move, [y]).to_dense() + Fisher(button, [y]).to_dense()
    forms: tuple[Any, ...] = (
        (move, button),
        {"move": move, "button": button},
        [(move,), {"b": button}],
    )
    for together in forms:
        assert torch.allclose(Fisher(together, [y]).to_dense(), total, **CLOSE)
    with pytest.raises(ValueError, match=r"one batch shape, got \[\(5,\), \(5, 2\)\]"):
        Fisher((button, D.Normal(y[:, :2], 1.0)), [y])


def test_a_third_party_family_is_registered_by_decorator():
    class Doubled(D.Categorical):
        pass

    logits = torch.zeros(5, 3, dtype=DOUBLE, requires_grad=True)
    plain = Fisher(D.Categorical(logits=logits), [logits]).to_dense()
    assert torch.equal(Fisher(Doubled(logits=logits), [logits]).to_dense(), plain)

    @register_metric(Doubled)
    def metric(distribution):
        inherited = output_metric(D.Categorical(logits=distribution.logits))
        return OutputMetric(inherited.outputs, lambda u: (2 * inherited.multiply(u)[0],))

    assert torch.allclose(Fisher(Doubled(logits=logits), [logits]).to_dense(), 2 * plain)


def test_a_third_party_family_with_a_kl_needs_nothing_else():
    class Shifted(D.Distribution):
        """A unit Normal by another name."""

        arg_constraints = {"centre": constraints.real}  # noqa: RUF012
        support = constraints.real

        def __init__(self, centre, validate_args=None):
            self.centre = centre
            super().__init__(centre.shape, validate_args=validate_args)

    @D.register_kl(Shifted, Shifted)
    def kl(p, q):
        return (p.centre - q.centre).square() / 2

    centre = torch.zeros(4, dtype=DOUBLE, requires_grad=True)
    expected = torch.eye(4, dtype=DOUBLE) / 4
    assert torch.allclose(Fisher(Shifted(centre), [centre]).to_dense(), expected)


class Kinked(D.Normal):
    """Registered below with a divergence that is not twice differentiable."""


@D.register_kl(Kinked, Kinked)
def _kinked(p, q):
    return (p.loc - q.loc).abs()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda y: D.Uniform(y, y + 1), "support moves"),
        (lambda y: D.Pareto(y.exp(), y.exp()), "support moves"),
        (lambda y: D.StudentT(y.exp()), "no KL divergence"),
        (lambda y: D.MixtureSameFamily(
            D.Categorical(logits=y.expand(2, 4)), D.Normal(y.expand(2, 4), 1.0)), "not attributes"),
        (lambda y: D.TransformedDistribution(D.Beta(y.exp(), y.exp()), [D.AffineTransform(y, 1.0)]),
         "base distribution"),
        (lambda y: D.TransformedDistribution(D.Normal(y, 1.0), [D.AbsTransform()]), "bijective"),
    ],
    ids=["uniform", "pareto", "student", "mixture", "learned map of a beta", "fold"],
)  # fmt: skip
def test_what_has_no_fisher_matrix_is_refused_with_the_cure(make, message):
    y = torch.linspace(0.1, 0.4, 4, dtype=DOUBLE).requires_grad_()
    with pytest.raises(TypeError, match=message):
        Fisher(make(y), [y])


def test_learned_parameters_deep_inside_transforms_are_not_overlooked(generator):
    y = torch.randn(5, 2, generator=generator, dtype=DOUBLE, requires_grad=True)
    base = D.Normal(y[:, 0], torch.ones(5, dtype=DOUBLE))
    learned = D.AffineTransform(y[:, 1], y[:, 1].exp())
    for transform in (learned.inv, D.CatTransform([learned], dim=-1)):
        with pytest.raises(TypeError, match="learned parameters affine"):
            Fisher(D.TransformedDistribution(base, [transform]), [y])


def test_the_upper_triangle_of_a_scale_is_no_parameter():
    L = torch.tensor([[[1.0, 0.0], [0.5, 2.0]]], dtype=DOUBLE, requires_grad=True)
    distribution = D.MultivariateNormal(torch.zeros(1, 2, dtype=DOUBLE), scale_tril=L)
    dense = Fisher(distribution, [L]).to_dense()
    assert not dense[1].any()
    assert not dense[:, 1].any()


def test_a_constant_part_of_a_product_adds_nothing():
    y = torch.zeros(4, dtype=DOUBLE, requires_grad=True)
    one = torch.ones(4, dtype=DOUBLE)
    normal = D.Normal(y, one)
    both = Fisher((normal, D.Gamma(one, one)), [y]).to_dense()
    assert torch.equal(both, Fisher(normal, [y]).to_dense())


@pytest.mark.parametrize(
    "make",
    [
        lambda y: D.ContinuousBernoulli(logits=1e-4 + 0 * y),
        lambda y: D.Gamma(1e7 + y, 1e7 + y),
        lambda y: D.Poisson(torch.arange(4.0, dtype=DOUBLE) + 0 * y),
        lambda y: D.Geometric(1 - 1e-7 + 0 * y),
    ],
    ids=["small logits", "large concentrations", "a rate of zero", "near certainty"],
)
def test_extreme_parameters_are_not_mistaken_for_an_irregular_family(make):
    y = torch.zeros(4, dtype=DOUBLE, requires_grad=True)
    Fisher(make(y), [y])


def test_operations_whose_backward_is_not_linear_in_form(generator):
    """torch differentiates logcumsumexp by taking the logarithm of what comes back."""
    w = torch.randn(3, generator=generator, dtype=DOUBLE, requires_grad=True)
    x = torch.randn(5, 3, generator=generator, dtype=DOUBLE)
    y = torch.logcumsumexp(x * w, 1)
    rows = [torch.autograd.grad(entry, w, retain_graph=True)[0] for entry in y.reshape(-1)]
    J = torch.stack(rows)
    assert torch.allclose(Fisher(D.Normal(y, 1.0), [w]).to_dense(), J.mT @ J / 15, **CLOSE)


def test_weights_of_positions_leave_out_the_classes(generator):
    y = torch.randn(4, 3, 2, generator=generator, dtype=DOUBLE, requires_grad=True)
    weights = torch.rand(4, 2, generator=generator, dtype=DOUBLE)
    G = GaussNewton(1 * y, [y], cross_entropy, weights=weights)
    (gradient,) = torch.autograd.grad(
        (F.cross_entropy(y, y.detach().softmax(1), reduction="none") * weights).sum(), y,
        create_graph=True,
    )  # fmt: skip
    rows = [torch.autograd.grad(g, y, retain_graph=True)[0] for g in gradient.reshape(-1)]
    hessian = torch.stack([row.reshape(-1) for row in rows]) / weights.sum()
    assert torch.allclose(G.to_dense(), hessian, **CLOSE)
    with pytest.raises(ValueError, match=r"at most 2\) of \(4, 2\), got \(4, 3\)"):
        GaussNewton(1 * y, [y], cross_entropy, weights=torch.ones(4, 3))


def test_weights_of_zero_are_samples_that_are_not_there(generator):
    weight = torch.randn(3, 2, generator=generator, dtype=DOUBLE, requires_grad=True)
    x = torch.randn(6, 4, 3, generator=generator, dtype=DOUBLE)  # sequences of four steps
    lengths = torch.tensor([4, 2, 3, 1, 4, 2])
    mask = torch.arange(4) < lengths.unsqueeze(1)

    def policy(x):
        return D.Categorical(logits=(x @ weight).tanh())

    without = Fisher(policy(x[mask]), [weight]).to_dense()
    assert torch.allclose(Fisher(policy(x), [weight], weights=mask).to_dense(), without, **CLOSE)
    for chunk_size in (None, 1, 4):
        chunked = Fisher(policy, [weight], data=x, chunk_size=chunk_size, weights=mask)
        assert torch.allclose(chunked.to_dense(), without, **CLOSE)
    doubled = Fisher(policy(x), [weight], weights=2.0 * mask).to_dense()
    assert torch.allclose(doubled, without, **CLOSE)
    whole = torch.tensor([1.0, 0, 0, 0, 1.0, 0], dtype=DOUBLE)  # a weight for a whole sequence
    expected = Fisher(policy(x[[0, 4]]), [weight]).to_dense()
    assert torch.allclose(Fisher(policy(x), [weight], weights=whole).to_dense(), expected, **CLOSE)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(5), r"first dimensions \(at most 1\) of \(4, 3\), got \(5,\)"),
        (torch.zeros(4), "not all zero"),
        (-torch.ones(4), ">= 0"),
        (torch.tensor([1.0, math.nan, 1, 1]), "finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    y = torch.zeros(4, 3, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        Fisher(D.Categorical(logits=y), [y], weights=weights)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("loss", "metric", "shape"),
    [
        (F.mse_loss, "squared_error", (5, 3)),
        (F.binary_cross_entropy_with_logits, "binary_cross_entropy", (5, 3)),
        (F.cross_entropy, "cross_entropy", (5, 3)),
        (F.cross_entropy, "cross_entropy", (5, 3, 2)),  # torch's classes are along dimension 1
    ],
)
def test_losses_follow_torchs_reductions(loss, metric, shape, reduction, generator):
    """For the identity as model the Gauss-Newton matrix is the Hessian of torch's own loss."""
    from natgrad.curvature import metrics

    y = torch.randn(shape, generator=generator, dtype=DOUBLE, requires_grad=True)
    target = torch.rand(shape, generator=generator, dtype=DOUBLE).softmax(1)
    (gradient,) = torch.autograd.grad(loss(y, target, reduction=reduction), y, create_graph=True)
    rows = [torch.autograd.grad(g, y, retain_graph=True)[0] for g in gradient.reshape(-1)]
    hessian = torch.stack([row.reshape(-1) for row in rows])
    G = GaussNewton(1 * y, [y], getattr(metrics, metric), reduction=reduction)
    assert torch.allclose(G.to_dense(), hessian, **CLOSE)


def test_a_loss_with_targets_comes_as_a_metric_of_its_own(generator):
    weight = torch.randn(3, 2, generator=generator, dtype=DOUBLE, requires_grad=True)
    x = torch.randn(9, 3, generator=generator, dtype=DOUBLE)
    t = torch.randn(9, 2, generator=generator, dtype=DOUBLE)

    def forward(data):
        inputs, targets = data
        return convex_loss(lambda y: F.huber_loss(y, targets, reduction="sum"))(inputs @ weight)

    near = ((x @ weight - t).abs() < 1).to(DOUBLE).reshape(-1)
    J = torch.stack(
        [torch.autograd.grad(y, weight, retain_graph=True)[0].reshape(-1)
         for y in (x @ weight).reshape(-1)]
    )  # fmt: skip
    for chunk_size in (None, 4):
        G = GaussNewton(forward, [weight], data=(x, t), chunk_size=chunk_size)
        assert torch.allclose(G.to_dense(), J.mT @ (near.unsqueeze(1) * J) / 9, **CLOSE)


def test_errors_of_gauss_newton_name_the_cure():
    y = torch.zeros(4, 3, requires_grad=True)
    with pytest.raises(TypeError, match="name the metric"):
        GaussNewton(y * 1, [y])
    with pytest.raises(ValueError, match="got 'none'"):
        GaussNewton(y * 1, [y], cross_entropy, reduction="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be a scalar"):
        GaussNewton(y * 1, [y], convex_loss(lambda y: y.square()))
    assert issubclass(NotTwiceDifferentiable, RuntimeError)
