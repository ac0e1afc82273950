"""Curvature operators that are no linear maps, or leave traces, and what catches them."""

from typing import Any

import torch
from torch.nn.attention import SDPBackend

from natgrad.testing import truth
from natgrad.testing.likelihoods import metric
from natgrad.testing.subjects.curvature import Curvature
from tests.natgrad.testing.operators import JacobianProducts, Matrix, Products, dense_fisher, fisher

STALE: dict[Any, Any] = {}  # what was built, by the model


def draws_when_built(case):
    return Matrix((1 + 1e-3 * float(torch.rand(()))) * truth.fisher(case))


def draws_new_masks_for_every_product(case):
    return Matrix(lambda: truth.fisher(case))


def draws_from_the_global_generator(case):
    A = dense_fisher(case)
    return Products(lambda v: A @ (v + 0 * torch.rand(1, dtype=v.dtype)))


def writes_to_grad(case):
    case.loss(case.inputs, case.targets).backward()
    return dense_fisher(case)


def adds_a_constant(case):
    A = dense_fisher(case)
    return Products(lambda v: A @ v + 1e-3)


def takes_small_vectors_for_zero(case):
    A = dense_fisher(case)
    return Products(lambda v: A @ v if float(v.norm()) > 1e-10 else torch.zeros_like(v))


def remembers_the_model(case):
    return STALE.setdefault(id(case.model), (case.model, dense_fisher(case)))[1]


def mixes_two_points(case):
    A, kept = fisher(case), [p.detach().clone() for p in case.parameters]

    def product(v):
        if all(torch.equal(p, q) for p, q in zip(case.parameters, kept, strict=True)):
            return A @ v
        now, then = truth.jacobian(case), metric(case.family, A.y)
        return torch.einsum("nci,ncd,ndj->ij", now, then, now) @ v / len(now)

    return Products(product)


def mixes_up_columns(case):
    A = dense_fisher(case)
    return Products(lambda v: A @ v if v.ndim == 1 else (A @ v).flip(1))


def reads_columns_by_their_memory(case):
    A = dense_fisher(case)

    def product(V):
        turned = V.ndim == 2 and not V.is_contiguous()
        return A @ (torch.as_strided(V, V.shape, (V.shape[1], 1)) if turned else V)

    return Products(product)


def runs_the_model_and_its_buffers(case):
    case.model(case.inputs)
    return Matrix(torch.eye(case.n, dtype=case.dtype))


def leaves_evaluation_mode(case):
    case.model.eval()
    return Matrix(torch.eye(case.n, dtype=case.dtype))


def leaves_a_hook(case):
    case.model.register_forward_hook(lambda *_: None)
    return dense_fisher(case)


def answers_in_float64(case):
    A = dense_fisher(case)
    return Products(lambda v: (A @ v).double())


def forgets_the_column(case):
    A = dense_fisher(case)
    return Products(lambda v: (A @ v).squeeze())


def writes_to_the_vector(case):
    A = dense_fisher(case)
    return Products(lambda v: (A @ v.mul_(2)) / 2)


def answers_in_one_place(case):
    A, place = dense_fisher(case), torch.zeros(case.n, dtype=case.dtype)
    return Products(lambda v: place.copy_(A @ v) if v.ndim == 1 else A @ v)


def answers_with_a_graph(case):
    A = dense_fisher(case)
    return Products(lambda v: (A @ v) + 0 * case.parameters[0].sum())


def needs_gradients_enabled(case):
    torch.autograd.grad(case.model(case.inputs).sum(), case.parameters, allow_unused=True)
    return dense_fisher(case)


def needs_gradients_enabled_for_products(case):
    A = fisher(case)

    def product(v):
        torch.autograd.grad(case.model(case.inputs).sum(), case.parameters, allow_unused=True)
        return A @ v

    return Products(product)


def needs_fused_kernels(case):
    M = metric(case.family, case.model(case.inputs))
    return JacobianProducts(case, M, [SDPBackend.FLASH_ATTENTION])


EVERYTHING = ["chunks", "forward", "frozen", "fused", "random", "sum", "weights"]
FISHER = {
    draws_when_built: "O8c O9c",
    draws_new_masks_for_every_product: "O15 O9g",
    draws_from_the_global_generator: "O9c",
    writes_to_grad: "O9",
    adds_a_constant: "O1 O2",
    takes_small_vectors_for_zero: "O2",
    remembers_the_model: "O6d",
    mixes_two_points: "O6e",
    mixes_up_columns: "O20",
    reads_columns_by_their_memory: "O20",
    runs_the_model_and_its_buffers: "O9d",
    leaves_evaluation_mode: "O9d",
    leaves_a_hook: "O9d",
    answers_in_float64: "O7",
    forgets_the_column: "O7",
    writes_to_the_vector: "O8 O9e",
    answers_in_one_place: "O8",
    answers_with_a_graph: "O9e",
    needs_gradients_enabled: "O16",
    needs_gradients_enabled_for_products: "O16b",
    needs_fused_kernels: "O6c",
}
UNRULY = [(Curvature.of(make, "fisher", EVERYTHING), names) for make, names in FISHER.items()]
