"""Curvature through backward passes that are not plainly the transposed Jacobian: exact, or refused
by name, in whatever form and place; nothing in between."""

import copy
import functools
import io
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd.function import once_differentiable
from torch.distributions import Beta, Categorical, Dirichlet
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from natgrad import EmpiricalFisher, Fisher, GaussNewton, Gram, Hessian, Kronecker, LinearOperator
from natgrad.curvature import NotTwiceDifferentiable
from natgrad.curvature.metrics import convex_loss, cross_entropy
from natgrad.optim import LevenbergMarquardt, TrustRegionNewton

DOUBLE = torch.float64
SEEDS = st.integers(0, 2**16)
# Two roundings of the sums of a small network.
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def custom(backward, once=False):
    """tanh as an autograd Function with this backward pass, of (tanh, gradient)."""

    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            t = a.tanh()
            ctx.save_for_backward(t)
            return t

        @staticmethod
        def backward(ctx, gradient):
            return backward(ctx.saved_tensors[0], gradient)

    if once:
        Custom.backward = staticmethod(once_differentiable(Custom.backward))  # type: ignore[method-assign]
    return Custom.apply


def without_grad(t, g):
    with torch.no_grad():
        return g * (1 - t**2)


def split(t, g):
    """Half of the gradient by a path with a graph, half by one without."""
    return g / 2 * (1 - t**2) + (g / 2 * (1 - t**2)).detach()


def derivative(t, g):
    return g * (1 - t**2)


WRONG = {
    "once_differentiable": custom(derivative, once=True),
    "no_grad": custom(without_grad),
    "data": custom(lambda t, g: g.data * (1 - t**2)),
    "detach": custom(lambda t, g: (g * (1 - t**2)).detach()),
    "one of two paths": custom(split),
    "clamps": custom(lambda t, g: (g * (1 - t**2)).clamp(-1e3, 1e3)),
    "clamps small ones": custom(lambda t, g: torch.where(g.abs() < 1e-6, 0 * g, g) * (1 - t**2)),
    "normalises": custom(lambda t, g: g / g.norm() * (1 - t**2)),
    "guided": custom(lambda t, g: g.relu() * (1 - t**2)),
}
RIGHT = {
    "as torch has it": torch.tanh,
    "differentiable": custom(derivative),
    "by another formula": custom(lambda t, g: g - g * t * t),
}


def silently(write):
    """A hook that writes to its gradient and returns nothing."""

    def hook(gradient):
        write(gradient)

    return hook


HOOKS = {
    "clamp that is reached": lambda g: g.clamp(-1e-2, 1e-2),
    "clamp that is not": lambda g: g.clamp(-1e6, 1e6),
    "norm if large": lambda g: g / g.norm() if g.norm() > 1e6 else g,
    "scale": lambda g: 0.5 * g,
    "mask": lambda g: g * (torch.arange(g.shape[-1]) > 0),
    "nan_to_num": torch.nan_to_num,
    "in place": lambda g: g.mul_(2.0),
    "reversal": torch.neg,
    "the same twice": lambda g: g + g,
    "a constant": torch.ones_like,
    "a part of it": silently(lambda g: g[0].zero_()),
    "a view": silently(lambda g: g.view(-1).mul_(2.0)),
    "one sign": torch.relu,
}
LOOKS = {
    "None": lambda g: None,
    "the norm": lambda g: seen.append(g.norm()),
    "the same": lambda g: g,
    "a number": lambda g: seen.append(g.norm().item()),
}
seen: list[Any] = []


class Network(nn.Module):
    def __init__(self, act=torch.tanh, hook=None, seed=0, widths: tuple[int, int, int] = (4, 6, 3)):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Linear(widths[0], widths[1], dtype=DOUBLE)
            self.second = nn.Linear(widths[1], widths[2], dtype=DOUBLE)
        self.act, self.hook = act, hook

    def forward(self, x):
        h = self.act(self.first(x))
        if self.hook is not None:
            h.register_hook(self.hook)
        return self.second(h)


@pytest.fixture
def x(generator):
    return torch.randn(9, 4, generator=generator, dtype=DOUBLE)


def labels(x):
    return torch.arange(len(x)) % 3


def distribution(model):
    return lambda x: Categorical(logits=model(x), validate_args=False)


def log_probs(model):
    return lambda x: Categorical(logits=model(x)).log_prob(labels(x))


def loss(model):
    return lambda x: F.cross_entropy(model(x), labels(x))


# Of outputs with their graph, and of a forward function.
OF_OUTPUTS = {
    "Fisher": lambda m, p, x: Fisher(distribution(m)(x), p),
    "GaussNewton": lambda m, p, x: GaussNewton(m(x), p, cross_entropy),
    "EmpiricalFisher": lambda m, p, x: EmpiricalFisher(log_probs(m)(x), p),
    "Hessian": lambda m, p, x: Hessian(loss(m)(x), p),
}
OF_FUNCTIONS = {
    "Fisher": lambda m, p, x: Fisher(distribution(m), p, data=x),
    "Fisher in chunks": lambda m, p, x: Fisher(distribution(m), p, data=x, chunk_size=4),
    "GaussNewton": lambda m, p, x: GaussNewton(m, p, cross_entropy, data=x),
    "EmpiricalFisher": lambda m, p, x: EmpiricalFisher(log_probs(m), p, data=x),
    "Hessian": lambda m, p, x: Hessian(loss(m), p, data=x),
}
BOTH: dict[str, Any] = {
    **{f"{name} of outputs": make for name, make in OF_OUTPUTS.items()},
    **{f"{name} of a function": make for name, make in OF_FUNCTIONS.items()},
}
# What needs Jᵀ alone: exact where double backward passes are refused.
ONCE: dict[str, Any] = {
    "Gram": lambda m, p, x: Gram(m(x), p),
    "Gram by layers": lambda m, p, x: Gram(m, p, data=x, model=m),
    "Kronecker": lambda m, p, x: Kronecker(m, x, forward=distribution(m), parameters=p),
}


def pairs(operators, hooks):
    """Every hook for the first operator, and two of them for the others."""
    first, *others = operators
    return [(first, hook) for hook in hooks] + [
        (operator, hook) for operator in others for hook in list(hooks)[:2]
    ]


def matrix(make, model, x):
    return make(model, list(model.parameters()), x).to_dense()


def truth(make, x, seed=0):
    return matrix(make, Network(seed=seed), x)


@pytest.mark.parametrize("backward", RIGHT)
@pytest.mark.parametrize("operator", [*BOTH, *ONCE])
def test_functions_with_a_differentiable_backward_pass_are_exact(operator, backward, x):
    make = {**BOTH, **ONCE}[operator]
    found = matrix(make, Network(RIGHT[backward]), x)
    torch.testing.assert_close(found, truth(make, x), **CLOSE)


@pytest.mark.parametrize("operator", [*BOTH, *ONCE])
def test_functions_behind_which_all_gradients_are_zero_are_no_matter(operator, x):
    make = {**BOTH, **ONCE}[operator]
    found, expected = (Network(act) for act in (RIGHT["differentiable"], torch.tanh))
    for model in (found, expected):
        nn.init.zeros_(model.second.weight)
    torch.testing.assert_close(matrix(make, found, x), matrix(make, expected, x), **CLOSE)


@pytest.mark.parametrize(("operator", "backward"), pairs(BOTH, WRONG))
def test_functions_without_one_are_refused_by_name(operator, backward, x):
    with pytest.raises(NotTwiceDifferentiable, match="the backward pass through Custom"):
        matrix(BOTH[operator], Network(WRONG[backward]), x)


@pytest.mark.parametrize("backward", ["once_differentiable", "no_grad", "data", "detach"])
@pytest.mark.parametrize("operator", ONCE)
def test_what_needs_one_derivative_is_exact_where_there_is_one(operator, backward, x):
    found = matrix(ONCE[operator], Network(WRONG[backward]), x)
    torch.testing.assert_close(found, truth(ONCE[operator], x), **CLOSE)


@pytest.mark.parametrize("backward", ["clamps", "normalises"])
@pytest.mark.parametrize("operator", ONCE)
def test_a_derivative_that_clips_is_none(operator, backward, x):
    with pytest.raises(NotTwiceDifferentiable, match="Custom"):
        matrix(ONCE[operator], Network(WRONG[backward]), x)


@given(SEEDS, st.sampled_from(sorted(WRONG)), st.sampled_from(sorted(BOTH)), st.integers(1, 7))
def test_a_wrong_function_anywhere_is_refused_in_any_network(seed, backward, operator, width):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 4, generator=generator, dtype=DOUBLE)
    model = Network(WRONG[backward], seed=seed, widths=(4, width, 3))
    if seed % 2:  # before and after others
        model.act = nn.Sequential(nn.Tanh(), Apply(WRONG[backward]), nn.Sigmoid())
    with pytest.raises(NotTwiceDifferentiable):
        matrix(BOTH[operator], model, x)


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("family", ["dirichlet", "beta"])
def test_reparametrised_draws_of_torch_that_can_be_differentiated_once_are_refused(
    family, dtype, generator
):
    weight = torch.randn(4, 6, generator=generator, dtype=dtype).requires_grad_()
    x = torch.randn(5, 4, generator=generator, dtype=dtype)
    with torch.random.fork_rng():
        concentration = (x @ weight).exp() + 0.5
        if family == "dirichlet":
            draw = Dirichlet(concentration).rsample()
        else:
            draw = Beta(concentration[:, :3], concentration[:, 3:]).rsample()
    with pytest.raises(NotTwiceDifferentiable, match="Dirichlet"):
        GaussNewton(draw, [weight], cross_entropy).to_dense()


@pytest.mark.parametrize(("operator", "hook"), pairs({**BOTH, **ONCE}, HOOKS))
def test_hooks_of_parameters_are_about_gradients_and_not_about_curvature(operator, hook, x):
    make = {**BOTH, **ONCE}[operator]
    model = Network()
    handles = [parameter.register_hook(HOOKS[hook]) for parameter in model.parameters()]
    torch.testing.assert_close(matrix(make, model, x), truth(make, x), **CLOSE)
    for parameter, handle in zip(model.parameters(), handles, strict=True):
        assert parameter._backward_hooks is not None
        assert list(parameter._backward_hooks.values()) == [HOOKS[hook]]
        handle.remove()  # and they are still what the handles know
        assert not parameter._backward_hooks


@pytest.mark.parametrize(("operator", "hook"), pairs(OF_FUNCTIONS, HOOKS))
def test_hooks_of_activations_are_left_out_of_forward_functions(operator, hook, x):
    make = OF_FUNCTIONS[operator]
    found = matrix(make, Network(hook=HOOKS[hook]), x)
    torch.testing.assert_close(found, truth(make, x), **CLOSE)


@pytest.mark.parametrize(("operator", "hook"), pairs(OF_OUTPUTS, HOOKS))
def test_hooks_of_activations_behind_given_outputs_are_refused(operator, hook, x):
    with pytest.raises(NotTwiceDifferentiable, match="a hook on an activation"):
        matrix(OF_OUTPUTS[operator], Network(hook=HOOKS[hook]), x)


def test_they_are_refused_where_the_same_network_had_none_before(x):
    """A structure that was found sound does not show a hook; a model of its own has its own."""
    for hook in (None, HOOKS["scale"]):
        model = Network(hook=hook)
        if hook is None:
            matrix(OF_OUTPUTS["Fisher"], model, x)
            continue
        with pytest.raises(NotTwiceDifferentiable):
            matrix(OF_OUTPUTS["Fisher"], model, x)


def test_they_are_refused_in_the_end_where_they_come_later(x):
    model = Network()
    for _ in range(5):
        matrix(OF_OUTPUTS["Fisher"], model, x)
    model.hook = HOOKS["scale"]
    for _ in range(2):
        matrix(OF_OUTPUTS["Fisher"], model, x)
    with pytest.raises(NotTwiceDifferentiable):  # the 8th
        matrix(OF_OUTPUTS["Fisher"], model, x)


@pytest.mark.parametrize("hook", LOOKS)
@pytest.mark.parametrize("operator", BOTH)
def test_hooks_that_only_look_change_nothing(operator, hook, x):
    make = BOTH[operator]
    found = matrix(make, Network(hook=LOOKS[hook]), x)
    torch.testing.assert_close(found, truth(make, x), **CLOSE)


@pytest.mark.parametrize("form", ["full", "pre", "logging"])
@pytest.mark.parametrize("operator", [*BOTH, *ONCE])
def test_backward_hooks_of_modules_are_neither_run_nor_lost(operator, form, x):
    make = {**BOTH, **ONCE}[operator]
    calls = []

    def clip(module, *gradients):
        calls.append(module)
        return tuple(g.clamp(-1e-2, 1e-2) for g in gradients[0]) if form != "logging" else None

    model = Network(nn.Tanh())
    for module in (model.first, model.act, model.second):
        if form == "pre":
            module.register_full_backward_pre_hook(clip)
        else:
            module.register_full_backward_hook(clip)
    x = x.requires_grad_()  # else the first layer's hook has no gradient to change
    torch.testing.assert_close(matrix(make, model, x), truth(make, x), **CLOSE)
    assert not calls
    loss(model)(x).backward()
    assert set(calls) == {model.first, model.act, model.second}


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_of_nodes_are_found_too(when, x):
    model = Network()
    outputs = model(x)
    if when == "before":
        outputs.grad_fn.register_prehook(lambda gradients: tuple(g / 2 for g in gradients))
    else:
        outputs.grad_fn.register_hook(
            lambda gradients, _: tuple(None if g is None else g / 2 for g in gradients)
        )
    with pytest.raises(NotTwiceDifferentiable, match="hook"):
        Fisher(Categorical(logits=outputs), model.parameters()) @ torch.ones(51).double()


@pytest.mark.parametrize("hook", ["scale", "clamp that is not"])
def test_trust_region_newton_refuses_them_and_levenberg_marquardt_too(hook, x):
    model = Network(hook=HOOKS[hook])
    newton = TrustRegionNewton(model.parameters())

    def closure():
        newton.zero_grad()
        value = loss(model)(x)
        value.backward()
        return value

    with pytest.raises(NotTwiceDifferentiable, match="hook"):
        newton.step(closure)
    least_squares = LevenbergMarquardt(model.parameters(), method="cg")
    with pytest.raises(NotTwiceDifferentiable, match="hook"):
        least_squares.step(lambda: model(x).reshape(-1))


class Checkpointed(nn.Module):
    """The first layers in a checkpoint, with a BatchNorm whose statistics a second run would move,
    and dropout that it would draw again."""

    def __init__(self, reentrant=None, norm=False, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner = nn.Sequential(
                nn.Linear(4, 6), nn.BatchNorm1d(6) if norm else nn.Identity(), nn.Tanh(),
                nn.Dropout(dropout), nn.Linear(6, 6), nn.Tanh(),
            ).double()  # fmt: skip
            self.outer = nn.Linear(6, 3, dtype=DOUBLE)
        self.reentrant = reentrant

    def forward(self, x):
        if self.reentrant is None:
            return self.outer(self.inner(x))
        if self.reentrant:
            x = x.detach().requires_grad_()
        return self.outer(checkpoint(self.inner, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("operator", [*BOTH, *ONCE])
def test_checkpoints_are_exact_and_leave_no_trace(operator, norm, x):
    make, x = {**BOTH, **ONCE}[operator], x[:8]
    plain, model = Checkpointed(norm=norm), Checkpointed(reentrant=False, norm=norm)
    expected = matrix(make, plain, x)
    # What moves is what the caller's own forward pass moved, where outputs are handed over: once,
    # and not again when the checkpoint runs again.
    given = "of outputs" in operator or operator == "Gram"
    before = copy.deepcopy(dict(plain.named_buffers() if given else model.named_buffers()))
    random_state = torch.get_rng_state()
    torch.testing.assert_close(matrix(make, model, x), expected, **CLOSE)
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("operator", OF_FUNCTIONS)
def test_dropout_in_a_checkpoint_is_that_of_the_forward_pass(operator, x):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = matrix(OF_FUNCTIONS[operator], Checkpointed(dropout=0.5), x)
        torch.manual_seed(3)
        found = matrix(OF_FUNCTIONS[operator], Checkpointed(reentrant=False, dropout=0.5), x)
    torch.testing.assert_close(found, plain, **CLOSE)


@pytest.mark.parametrize("operator", [*BOTH, *ONCE])
def test_reentrant_checkpoints_are_refused_by_name(operator, x):
    make = {**BOTH, **ONCE}[operator]
    with pytest.raises(NotTwiceDifferentiable, match="use_reentrant=False"):
        matrix(make, Checkpointed(reentrant=True), x)


@pytest.mark.parametrize("operator", BOTH)
def test_selective_checkpoints_are_refused_by_name(operator, x):
    kept = [torch.ops.aten.addmm.default]
    contexts = functools.partial(create_selective_checkpoint_contexts, kept)

    class Selective(Network):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False, context_fn=contexts)

    with pytest.raises(NotTwiceDifferentiable, match="selective checkpoint"):
        matrix(BOTH[operator], Selective(), x)


class OfNeighbours(Network):
    """With a product that torch has no batched derivative of."""

    def forward(self, x):
        shift = torch.eye(len(x), dtype=x.dtype).roll(1, 0).to_sparse()
        return self.second(torch.sparse.mm(shift, self.first(x)).tanh())


def test_gram_of_sparse_products_and_of_hooks_that_read_numbers(x):
    for model in (OfNeighbours(), Network(hook=LOOKS["a number"])):
        expected = [
            torch.cat(
                [
                    part.flatten()
                    for part in torch.autograd.grad(y, list(model.parameters()), retain_graph=True)
                ]
            )
            for y in model(x).flatten()
        ]
        J = torch.stack(expected)
        found = matrix(ONCE["Gram"], model, x)
        torch.testing.assert_close(found, J @ J.T, **CLOSE)


def test_compiled_modules_run_uncompiled_in_a_forward_function(x):
    model = Network(nn.Tanh())
    compiled = torch.compile(model, backend="aot_eager")
    with pytest.raises(NotTwiceDifferentiable, match=r"torch\.compile"):
        Fisher(Categorical(logits=compiled(x)), model.parameters()).to_dense()
    inner = nn.Sequential(model)
    inner[0].compile(backend="aot_eager")
    found = Fisher(distribution(inner), model.parameters(), data=x).to_dense()
    torch.testing.assert_close(found, truth(OF_FUNCTIONS["Fisher"], x), **CLOSE)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_of_a_kronecker_matrix_act_as_it_does(how, corrected, x):
    model = Network()
    for parameter in model.second.parameters():
        parameter.requires_grad_(False)
    K = Kronecker(model, x, forward=distribution(model), corrected=corrected)
    if how == "deepcopy":
        copied = copy.deepcopy(K)
    elif how == "pickle":
        model.act = torch.tanh
        copied = pickle.loads(pickle.dumps(K))
    else:
        file = io.BytesIO()
        torch.save(K, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    b = torch.arange(float(K.shape[0]), dtype=DOUBLE)
    assert torch.equal(copied @ b, K @ b)
    assert torch.equal(copied.solve(b, damping=0.1), K.solve(b, damping=0.1))
    assert [len(owners) for owners, _ in copied.factors()] == [2]
    # Together, they still belong together.
    both: dict[str, Any] = copy.deepcopy({"model": model, "K": K})
    assert all(
        a is b for a, b in zip(both["K"].parameters, both["model"].parameters(), strict=True)
    )


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("operator", [*BOTH, "Gram"])
def test_operators_that_hold_a_graph_say_what_to_do_instead(operator, how, x):
    model = Network()
    made = {**BOTH, **ONCE}[operator](model, list(model.parameters()), x)
    with pytest.raises(TypeError, match=r"holds a graph.*from_dense"):
        how(made)
    kept = copy.deepcopy(LinearOperator.from_dense(made.to_dense()))
    v = torch.ones(made.shape[0], dtype=DOUBLE)
    torch.testing.assert_close(kept @ v, made @ v, **CLOSE)


@pytest.mark.parametrize("operator", ["Fisher of outputs", "Fisher of a function", "Kronecker"])
def test_operators_know_the_parameters_that_they_reach(operator, x):
    model = Network()
    model.first.bias.requires_grad_(False)
    loose = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    parameters = [loose, *model.parameters()]
    K = {**BOTH, **ONCE}[operator](model, parameters, x)
    reached = [model.first.weight, model.second.weight, model.second.bias]
    for operator_ in (K, 2.0 * K, K + K):
        assert len(operator_.reached) == 3
        assert all(any(p is q for q in operator_.reached) for p in reached)
    assert math.isfinite(float((K @ torch.ones(K.shape[0], dtype=DOUBLE)).norm()))
    assert K.damped(1.0).reached is None  # with a damping every parameter has a row


@pytest.mark.parametrize("backward", WRONG)
def test_losses_in_output_space_are_held_to_the_same(backward):
    y = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3)
    with pytest.raises(NotTwiceDifferentiable, match="Custom"):
        convex_loss(lambda y: WRONG[backward](y).square().sum())(y)
    (expected,), (found,) = (
        convex_loss(lambda y, act=act: act(y).square().sum())(y).multiply((torch.ones_like(y),))  # type: ignore[misc]
        for act in (torch.tanh, RIGHT["differentiable"])
    )
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("hook", HOOKS)
def test_losses_in_output_space_leave_out_hooks(hook):
    y = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3)

    def hooked(y):
        errors = 1 * y
        errors.register_hook(HOOKS[hook])
        return errors.square().sum()

    (found,) = convex_loss(hooked)(y).multiply((torch.ones_like(y),))
    torch.testing.assert_close(found, 2 * torch.ones_like(y), **CLOSE)


@pytest.mark.parametrize("backward", ["once_differentiable", "detach", "one of two paths"])
def test_who_was_refused_once_is_refused_again(backward, x):
    """An operator does not go on with what its failed attempt left behind."""
    model = Network(WRONG[backward])
    K = Gram(model(x), model.parameters())
    for _ in range(2):
        with pytest.raises(NotTwiceDifferentiable):
            K @ torch.ones(K.shape[0], dtype=DOUBLE)
    torch.testing.assert_close(K.to_dense(), truth(ONCE["Gram"], x), **CLOSE)
