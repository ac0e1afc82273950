import pytest
import torch

from natgrad.flat import assign, flatten, gradient, unflatten

NONE: list[torch.Tensor] = []


def parameters(dtype=torch.float64):
    shapes = [(2, 3), (), (0, 4), (5,)]
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in shapes
    ]


def test_round_trip_is_bitwise_for_empty_scalar_and_noncontiguous_tensors():
    originals = [*parameters(), torch.arange(6.0, dtype=torch.float64).view(2, 3).mT]
    vector = flatten(originals)
    assert vector.shape == (6 + 1 + 0 + 5 + 6,)
    for original, piece in zip(originals, unflatten(vector, originals), strict=True):
        assert torch.equal(original, piece)
    targets = [torch.empty_like(original) for original in originals]
    assign(targets, vector)
    assert all(torch.equal(a, b) for a, b in zip(originals, targets, strict=True))


def test_flatten_shares_no_memory_and_carries_no_graph():
    tensors = parameters()
    vector = flatten(tensors)
    assert not vector.requires_grad
    vector.zero_()
    assert tensors[0].abs().sum() > 0


def test_assign_preserves_the_bits_of_nan_infinity_and_negative_zero():
    target = [torch.zeros(4, requires_grad=True)]
    vector = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    assign(target, vector)
    assert torch.equal(target[0].detach().view(torch.int32), vector.view(torch.int32))
    assert target[0].requires_grad
    assert target[0].is_leaf


def test_gradient_equals_autograd_with_zeros_for_frozen_and_unused_parameters():
    used, unused, frozen = (torch.ones(3, dtype=torch.float64) for _ in range(3))
    used.requires_grad_(), unused.requires_grad_()
    result = gradient((used**3 * frozen).sum(), [unused, used, frozen])
    assert torch.equal(result, torch.tensor([0.0] * 3 + [3.0] * 3 + [0.0] * 3).double())
    assert used.grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flatten([]), "no tensors"),
        (lambda: flatten(p for p in NONE), "generator"),
        (lambda: flatten([torch.zeros(1), torch.zeros(1).double()]), "tensor 1 is torch.float64"),
        (lambda: unflatten(torch.zeros(3), [torch.zeros(2)]), r"shape \(2,\).*got shape \(3,\)"),
        (lambda: assign([torch.zeros(2)], torch.zeros(2).double()), "convert the vector"),
        (lambda: gradient(torch.ones(()), [torch.ones(1)]), "requires_grad"),
        (lambda: gradient(torch.ones(2, requires_grad=True), [torch.ones(1)]), r"shape \(2,\)"),
    ],
)
def test_errors_say_what_came_and_what_was_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integer_parameters_are_refused():
    with pytest.raises(TypeError, match="expected floating-point numbers"):
        flatten([torch.zeros(2, dtype=torch.int64)])


@pytest.mark.parametrize("before", [0, 1, 2])
def test_complex_parameters_are_pairs_of_real_numbers(before):
    """Also at an odd place of the vector, where they cannot be views."""
    z = torch.tensor([[1 + 2j, 3 - 4j]], dtype=torch.complex128)
    tensors = [torch.zeros(before, dtype=torch.float64), z, z.conj()]
    vector = flatten(tensors)
    assert vector.tolist() == [0.0] * before + [1, 2, 3, -4, 1, -2, 3, 4]
    for piece, tensor in zip(unflatten(vector, tensors), tensors, strict=True):
        assert torch.equal(piece, tensor)
    target = [torch.empty_like(t.resolve_conj()) for t in tensors]
    assign(target, vector)
    assert torch.equal(target[1], z)
    assert torch.equal(target[2], z.conj())


def test_gradients_of_complex_parameters_are_those_of_their_parts():
    z = torch.tensor([1 + 2j, -1j], dtype=torch.complex128, requires_grad=True)
    pair = torch.view_as_real(z.detach()).requires_grad_()
    losses = [(w.abs().square() * w.real.exp()).sum() for w in (z, torch.view_as_complex(pair))]
    torch.testing.assert_close(gradient(losses[0], [z]), gradient(losses[1], [pair]))


def test_complex_and_real_parameters_have_one_precision():
    with pytest.raises(ValueError, match="one vector needs one precision"):
        flatten([torch.zeros(1), torch.zeros(1, dtype=torch.complex128)])
