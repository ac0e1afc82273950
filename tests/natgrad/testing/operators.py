"""Operators to break: slow, plain, and written without natgrad.curvature."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from natgrad.testing import truth
from natgrad.testing.cases.network import NetworkCase
from natgrad.testing.likelihoods import draw, metric


class Matrix:
    """A matrix, or a function that gives one anew for every product."""

    def __init__(self, matrix):
        self._matrix = matrix

    def __matmul__(self, v):
        return (self._matrix() if callable(self._matrix) else self._matrix) @ v


class Products:
    """Any function of v (n,) or (n, k)."""

    def __init__(self, product):
        self._product = product

    def __matmul__(self, v):
        return self._product(v)


def flat(case, found):
    pieces = zip(case.parameters, found, strict=True)
    return torch.cat([
        (torch.zeros_like(p) if piece is None else piece).reshape(-1) for p, piece in pieces
    ]).detach()  # fmt: skip


class JacobianProducts:
    """v ↦ Jᵀ M J v / N column by column, by two backward passes; M (N, 3, 3)."""

    def __init__(self, case, M, kernels=(SDPBackend.MATH,)):
        self.case, self.M = case, M
        with torch.enable_grad(), sdpa_kernel(list(kernels)):
            self.y = case.model(case.inputs)
            self.z = torch.ones_like(self.y, requires_grad=True)
            self.trained = [p for p in case.parameters if p.requires_grad]
            self.pulled = torch.autograd.grad(
                self.y, self.trained, self.z, create_graph=True, allow_unused=True
            )

    def forward(self, v):
        along = dict(zip(map(id, self.case.parameters), self.case.pieces(v), strict=True))
        with torch.enable_grad():
            total = sum(
                (piece * along[id(p)]).sum()
                for p, piece in zip(self.trained, self.pulled, strict=True)
                if piece is not None
            )
        return torch.autograd.grad(total, self.z, retain_graph=True)[0]

    def transpose(self, u):
        found = torch.autograd.grad(self.y, self.trained, u, retain_graph=True, allow_unused=True)
        by_parameter = dict(zip(map(id, self.trained), found, strict=True))
        return flat(self.case, [by_parameter.get(id(p)) for p in self.case.parameters])

    def column(self, v):
        Jv = self.forward(v.clone())
        return self.transpose((self.M @ Jv.unsqueeze(2)).squeeze(2)) / len(self.y)

    def __matmul__(self, v):
        with torch.inference_mode(False):
            if v.ndim == 1:
                return self.column(v)
            return torch.stack([self.column(column) for column in v.mT], dim=1)


def fisher(case: NetworkCase):
    return JacobianProducts(case, metric(case.family, case.model(case.inputs)))


def dense_fisher(case: NetworkCase):
    return Matrix(truth.fisher(case))


def outer_products(case: NetworkCase, labels):
    """Σ_draws Σ_n score scoreᵀ / (N draws)."""
    total = torch.zeros(case.n, case.n, dtype=case.dtype)
    for drawn in labels:
        log_probs = case.log_probs(case.inputs, drawn)
        rows = [
            torch.autograd.grad(each, case.parameters, retain_graph=True, allow_unused=True)
            for each in log_probs
        ]
        g = torch.stack([flat(case, row) for row in rows])
        total += g.mT @ g
    return total / (len(case.targets) * len(labels))


def sampled_fisher(case: NetworkCase, scale=1.0):
    distribution = case.distribution(case.inputs)
    seeds = torch.Generator().manual_seed(case.draw_seed)
    labels = [
        draw(distribution, int(torch.randint(2**40, (), generator=seeds)))
        for _ in range(case.draws)
    ]
    return Matrix(scale * outer_products(case, labels))


def layers(case: NetworkCase):
    """(module, inputs with the bias's 1 (N, d_in), output gradients (C, N, d_out)) of linear ones
    that are used."""
    seen = []

    def see(module, inputs, output):
        seen.append((module, inputs[0].detach(), output))

    linear = [module for module in case.model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(see) for module in linear]
    with torch.enable_grad():
        y = case.model(case.inputs)
    for handle in handles:
        handle.remove()
    found = []
    for module, x, z in seen:
        a = x if module.bias is None else torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        g = [torch.autograd.grad(c.sum(), z, retain_graph=True)[0] for c in y.unbind(1)]
        found.append((module, a, torch.stack(g)))
    return found, y.detach()


def factors(case: NetworkCase):
    found, y = layers(case)
    M = metric(case.family, y)
    for module, a, g in found:
        G = torch.einsum("cni,ncd,dnj->ij", g, M, g) / len(a)
        yield module, a.mT @ a / len(a), G.detach().contiguous()


def assembled(case: NetworkCase, blocks):
    """The matrix (n, n) of blocks over (d_out, d_in + 1) by module, in the parameters' order."""
    rows = dict(zip(map(id, case.parameters), case.pieces(torch.arange(case.n)), strict=True))
    dense = torch.zeros(case.n, case.n, dtype=case.dtype)
    for module, block in blocks:
        places = rows[id(module.weight)]
        if module.bias is not None:
            places = torch.cat([places, rows[id(module.bias)].unsqueeze(1)], dim=1)
        index = places.reshape(-1)
        dense[index.unsqueeze(1), index] = block
    return dense


def kronecker(case: NetworkCase):
    return Matrix(assembled(case, [(m, torch.kron(G, A)) for m, A, G in factors(case)]))


def corrected(case: NetworkCase):
    found, y = layers(case)
    M = metric(case.family, y)
    blocks = []
    for (module, a, g), (_, A, G) in zip(found, factors(case), strict=True):
        Q = torch.kron(torch.linalg.eigh(G)[1], torch.linalg.eigh(A)[1])
        each = torch.einsum("cno,ni->cnoi", g, a).flatten(2) @ Q
        moments = torch.einsum("cnk,ncd,dnk->k", each, M, each).detach() / len(a)
        blocks.append((module, (Q * moments) @ Q.mT))
    return Matrix(assembled(case, blocks))


def solve(K, b, damping):
    dense = K @ torch.eye(len(b), dtype=b.dtype)
    return torch.linalg.solve(dense + damping * torch.eye(len(b), dtype=b.dtype), b)
