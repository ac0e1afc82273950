"""Lean convolutions are torch's, and their derivatives too."""

import pytest
import torch
from torch.nn import functional as F

from natgrad.autodiff.convolution import LeanConvolutions
from natgrad.curvature import EmpiricalFisher, Hessian

DOUBLE = torch.float64
CASES = [
    (F.conv1d, (3, 2, 7), (4, 2, 3), {"stride": 2, "padding": 1}),
    (F.conv2d, (3, 4, 5, 6), (6, 2, 2, 3), {"groups": 2, "dilation": (1, 2), "padding": (0, 2)}),
    (F.conv2d, (2, 1, 4, 4), (2, 1, 3, 3), {"padding": "same"}),
    (F.conv2d, (1, 4, 4), (2, 1, 2, 2), {}),  # without a batch
    (F.conv3d, (2, 1, 3, 3, 3), (2, 1, 2, 2, 2), {"stride": (1, 2, 1)}),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].__name__} {case[3]}")
def case(request, generator):
    function, x_shape, weight_shape, settings = request.param
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=DOUBLE, requires_grad=True)
        for shape in (x_shape, weight_shape, weight_shape[:1])
    )
    return lambda *tensors: function(*tensors, **settings), (x, weight, bias)


def test_first_and_second_derivatives_pass_gradcheck(case):
    function, tensors = case

    def lean(*tensors):
        with LeanConvolutions():
            return function(*tensors)

    assert torch.equal(lean(*tensors), function(*tensors))
    assert torch.autograd.gradcheck(lean, tensors)
    with torch.random.fork_rng():  # it draws the directions that it checks
        assert torch.autograd.gradgradcheck(lambda *t: lean(*t).tanh(), tensors)


def test_a_model_that_differentiates_itself_has_all_its_derivatives(generator):
    """A residual with a derivative in it needs the third one, its Hessian the fourth."""
    weight = torch.randn(2, 1, 3, generator=generator, dtype=DOUBLE, requires_grad=True)
    data = torch.randn(4, 1, 6, generator=generator, dtype=DOUBLE)

    def slope(x):
        x = x.clone().requires_grad_()
        y = F.conv1d(x, weight).tanh().square().sum()
        (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        return gradient.square().sum((1, 2))

    H = Hessian(lambda x: slope(x).sum(), [weight], data=data)
    E = EmpiricalFisher(slope, [weight], data=data)
    rows = [torch.autograd.grad(y, weight, retain_graph=True)[0] for y in slope(data)]
    J = torch.stack([row.reshape(-1) for row in rows])
    assert torch.allclose(E.to_dense(), J.mT @ J / 4, rtol=1e-9)
    (gradient,) = torch.autograd.grad(slope(data).sum(), weight, create_graph=True)
    rows = [torch.autograd.grad(g, weight, retain_graph=True)[0] for g in gradient.reshape(-1)]
    assert torch.allclose(H.to_dense(), torch.stack([r.reshape(-1) for r in rows]), rtol=1e-9)
