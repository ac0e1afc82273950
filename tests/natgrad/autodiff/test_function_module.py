"""Pure functions of their parameters, as torch.func users write them, beside modules."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.func import functional_call, hessian, jacrev, jvp, linearize, stack_module_state, vmap
from torch.nn import functional as F

from natgrad import EmpiricalFisher, Fisher, FunctionModule, GaussNewton, Gram, Hessian
from natgrad.curvature.metrics import cross_entropy
from natgrad.optim import (
    KFAC,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    OptimizerStatus,
    TrustRegionNewton,
)  # fmt: skip

DOUBLE = torch.float64
# Of torch itself: it scripts a function of its forward mode, and linearize traces without names.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
]


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.fixture
def x(generator):
    return torch.randn(6, 3, generator=generator, dtype=DOUBLE)


def by_call(net):
    """(f, parameters): functional_call on a mapping without gradients."""
    return lambda p, x: functional_call(net, p, (x,)), {
        name: p.detach().clone() for name, p in net.named_parameters()
    }


def ensemble(net):
    """Three networks by vmap, whose logits are averaged."""
    nets = [copy.deepcopy(net) for _ in range(3)]
    parameters, buffers = stack_module_state(nets)

    def f(p, x):
        one = lambda p, b: functional_call(net, (p, b), (x,))  # noqa: E731
        return vmap(one)(p, buffers).mean(0)

    shift = torch.linspace(0.9, 1.1, 3, dtype=DOUBLE)
    return f, {
        name: p.detach() * shift.view(3, *[1] * (p.ndim - 1)) for name, p in parameters.items()
    }


def along(net):
    """A network's derivative along its inputs by forward mode, as PDE losses take it."""
    f, parameters = by_call(net)
    return lambda p, x: jvp(lambda x: f(p, x), (x,), (torch.ones_like(x),))[1], parameters


def linearised(net):
    f, parameters = by_call(net)
    return lambda p, x: linearize(lambda p: f(p, x), p)[0], parameters


FUNCTIONS = {"functional_call": by_call, "vmap": ensemble, "jvp": along, "linearize": linearised}


def dense(f, parameters, x):
    """J (N, C, n) by jacrev."""
    J = jacrev(lambda p: f(p, x))(parameters)
    return torch.cat([piece.flatten(2) for piece in J.values()], dim=2)


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators_of_a_mapping_are_those_of_jacrev(name, chunk_size, x):
    f, parameters = FUNCTIONS[name](network())
    J, p = dense(f, parameters, x), f(parameters, x).softmax(1)
    M = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    expected = torch.einsum("ica,icd,idb->ab", J, M, J) / len(x)
    F_ = Fisher(lambda q, x: Categorical(logits=f(q, x)), parameters, data=x, chunk_size=chunk_size)
    torch.testing.assert_close(F_.to_dense(), expected)
    G = GaussNewton(f, parameters, cross_entropy, data=x, chunk_size=chunk_size)
    torch.testing.assert_close(G.to_dense(), expected)


@pytest.mark.parametrize("name", ["functional_call", "vmap", "jvp"])
def test_hessian_empirical_fisher_and_gram_of_a_mapping(name, x):
    f, parameters = FUNCTIONS[name](network())
    y = torch.arange(6) % 3

    def loss(p, x):
        return F.cross_entropy(f(p, x), y)

    blocks = hessian(lambda p: loss(p, x))(parameters)
    rows = [
        torch.cat([blocks[a][b].reshape(parameters[a].numel(), -1) for b in parameters], dim=1)
        for a in parameters
    ]
    torch.testing.assert_close(Hessian(loss, parameters, data=x).to_dense(), torch.cat(rows))
    J = jacrev(lambda p: f(p, x).log_softmax(1)[torch.arange(6), y])(parameters)
    scores = torch.cat([piece.flatten(1) for piece in J.values()], dim=1)
    E = EmpiricalFisher(
        lambda p, x: f(p, x).log_softmax(1)[torch.arange(len(x)), y], parameters, data=x
    )
    torch.testing.assert_close(E.to_dense(), scores.mT @ scores / 6)
    whole = dense(f, parameters, x).flatten(0, 1)
    torch.testing.assert_close(Gram(f, parameters, data=x).to_dense(), whole @ whole.mT)


def test_outputs_of_a_mapping_that_are_evaluated_already(x):
    net = network()
    parameters = dict(net.named_parameters())
    mine = Fisher(Categorical(logits=functional_call(net, parameters, (x,))), parameters)
    theirs = Fisher(Categorical(logits=net(x)), net.parameters())
    assert torch.equal(mine.to_dense(), theirs.to_dense())


MAKERS = {
    "NaturalGradient": lambda m: NaturalGradient(m, likelihood="categorical"),
    "HessianFree": lambda m: HessianFree(m),  # noqa: PLW0108
    "KFAC": lambda m: KFAC(m, likelihood="categorical"),
    "TrustRegionNewton": lambda m: TrustRegionNewton(m.parameters()),
    "LevenbergMarquardt": lambda m: LevenbergMarquardt(m.parameters()),
}


def trained(module, name, x, steps=3):
    optimizer = MAKERS[name](module)

    def closure():
        if name == "LevenbergMarquardt":
            return (module(x) - torch.eye(3, dtype=DOUBLE)[torch.arange(6) % 3]).flatten()
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), torch.arange(6) % 3)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    assert optimizer.last_step is not None
    assert optimizer.last_step.status is OptimizerStatus.ACCEPTED
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "KFAC"])
def test_an_optimizer_of_a_function_takes_the_steps_of_the_module(name, x):
    net = network()
    f, parameters = by_call(net)
    module = FunctionModule(f, parameters)
    assert [n for n, _ in module.named_parameters()] == [n for n, _ in net.named_parameters()]
    mine = trained(module, name, x)
    torch.testing.assert_close(mine, trained(net, name, x), rtol=1e-9, atol=1e-11)
    # The tensors that were given have moved with it.
    assert torch.equal(torch.cat([p.flatten() for p in parameters.values()]), mine)
    assert torch.equal(f(parameters, x), module(x))


def test_kfac_of_a_function_has_one_block_for_all(x):
    """There are no layers to see: the exact Fisher matrix of few parameters."""
    f, parameters = by_call(network())
    before = float(F.cross_entropy(f(parameters, x), torch.arange(6) % 3))
    trained(FunctionModule(f, parameters), "KFAC", x)
    assert float(F.cross_entropy(f(parameters, x), torch.arange(6) % 3)) < before


STRUCTURES = {
    "tuple": (torch.ones(3, dtype=DOUBLE), torch.zeros((), dtype=DOUBLE)),
    "nested": {"a": [torch.ones(3, dtype=DOUBLE)], "b": {"c": torch.zeros((), dtype=DOUBLE)}},
    "one tensor": torch.ones(3, dtype=DOUBLE),
    "with a buffer": {"w": torch.ones(3, dtype=DOUBLE), "mask": torch.tensor([True, False, True])},
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_any_structure_comes_back_as_it_was(name, x):
    given = STRUCTURES[name]
    seen = []

    def f(p, x):
        seen.append(p)
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(p) if leaf.is_floating_point()]
        return sum((x @ leaf if leaf.ndim else leaf) for leaf in leaves)

    module = FunctionModule(f, given)
    y = module(x)
    assert torch.utils._pytree.tree_structure(seen[0]) == torch.utils._pytree.tree_structure(given)
    leaves = torch.utils._pytree.tree_leaves(given)
    trained = tuple(place for place, leaf in enumerate(leaves) if leaf.is_floating_point())
    rebuilt = lambda *p: torch.utils._pytree.tree_unflatten(  # noqa: E731
        p, torch.utils._pytree.tree_structure(given)
    )
    expected = jacrev(lambda *p: f(rebuilt(*p), x), argnums=trained)(*leaves)
    J = torch.cat([piece.reshape(6, -1) for piece in expected], dim=1)
    torch.testing.assert_close(Gram(y, module.parameters()).to_dense(), J @ J.mT)
    copied = copy.deepcopy(module)
    assert torch.equal(copied(x), y)


def test_what_requires_no_gradient_where_others_do_is_a_buffer_or_frozen():
    w, frozen = torch.ones(2, requires_grad=True), nn.Parameter(torch.ones(1), requires_grad=False)
    module = FunctionModule(lambda p, x: x, {"w": w, "b": torch.zeros(2), "frozen": frozen})
    assert {n: p.requires_grad for n, p in module.named_parameters()} == {
        "w": True, "frozen": False,
    }  # fmt: skip
    assert [n for n, _ in module.named_buffers()] == ["b"]


@pytest.mark.parametrize("name", ["BatchNorm", "spectral norm"])
def test_buffers_in_the_mapping_move_as_the_modules_own(name, x):
    def made():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = nn.Linear(3, 3).double()
            if name == "spectral norm":
                return nn.utils.parametrizations.spectral_norm(layer)
            return nn.Sequential(layer, nn.BatchNorm1d(3).double())

    net, twin = made(), made()
    held = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    module = FunctionModule(lambda p, x: functional_call(net, p, (x,)), held)
    mine, theirs = (trained(m, "NaturalGradient", x) for m in (module, twin))
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    for one, other in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_parameters_of_a_module_are_its_own():
    net = network()
    module = FunctionModule(lambda p, x: x, dict(net.named_parameters()))
    assert all(a is b for a, b in zip(module.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({}, TypeError, "got nothing"),
        ({"a": 1.0}, TypeError, r"got \['float'\]"),
        ({"a": torch.ones(2, requires_grad=True) * 2}, ValueError, "a was computed from others"),
    ],
)
def test_what_can_be_no_parameter_is_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        FunctionModule(lambda p, x: x, parameters)
