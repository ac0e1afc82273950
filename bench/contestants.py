"""Optimizers as racers: torch's, whose calls are counted, and ours, whose reports tell the work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from adam_grid import Setting
from races import Racer, costs
from torch import Tensor, nn

from natgrad.curvature import GaussNewton, LinearOperator, OutputMetric
from natgrad.optim import KFAC, AdaptiveKFAC, HessianFree, NaturalGradient, OptimizerReport

Closure = Callable[[], Tensor]
Work = Callable[[OptimizerReport], float]


def ours(optimizer: Any, closure: Closure, work: Work) -> Racer:
    def step(progress: float) -> float:
        optimizer.step(closure)
        return work(optimizer.last_step)

    return Racer(step, lambda: optimizer.last_step.status.name)


def standard(optimizer: torch.optim.Optimizer, loss: Closure) -> Closure:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    return closure


def adam(parameters: Iterable[Tensor], backward: Callable[[], float], setting: Setting) -> Racer:
    """``backward()`` computes the gradient and returns the work."""
    optimizer = torch.optim.Adam(parameters, lr=setting.learning_rate, fused=True)

    def step(progress: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = setting.rate(progress)
        optimizer.zero_grad()
        work = backward()
        optimizer.step()
        return work

    return Racer(step)


def lbfgs(parameters: Iterable[Tensor], loss: Closure, max_iter: int = 20) -> Racer:
    """``max_iter`` iterations a step; with the default tolerances it would end long before the
    budget."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=max_iter, history_size=50, tolerance_grad=0, tolerance_change=0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    calls, closure = 0, standard(optimizer, loss)

    def counted() -> Tensor:
        nonlocal calls
        calls += 1
        return closure()

    def step(progress: float) -> float:
        before = calls
        optimizer.step(counted)  # type: ignore[no-untyped-call]
        return calls - before

    return Racer(step)


def searched(
    cost: dict[str, float], product: str | None = "product", *, fixed: float = 1.0, share: float = 1
) -> Work:
    """Of a step from one gradient: candidates, and on that ``share`` of the data products and what
    is ``fixed``, by default their set-up by a forward and a backward pass."""

    def work(report: OptimizerReport) -> float:
        candidates = (report.evaluations - 1) * cost["forward"]
        products = report.products * cost[product] if product else 0.0
        return 1 + candidates + share * (fixed + products)

    return work


@dataclass(frozen=True)
class Training:
    """A model, what it is trained on, and ``loss(model, *batch)``, a mean over the batch.

    ``likelihood`` and ``metric`` are those of the loss, by which curvature knows it; ``seed`` is
    that of batches, labels and subsets.
    """

    model: nn.Module
    data: tuple[Tensor, ...]
    loss: Callable[..., Tensor]
    likelihood: str
    metric: Callable[[Tensor], OutputMetric]
    seed: int

    def parameters(self) -> list[Tensor]:
        return list(self.model.parameters())

    def whole(self) -> Tensor:
        return self.loss(self.model, *self.data)

    def batches(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Epochs without end, each in a new order."""
        generator = torch.Generator().manual_seed(self.seed)
        count = len(self.data[0])
        while True:
            if size >= count:
                yield self.data
            else:
                for indices in torch.split(torch.randperm(count, generator=generator), size):
                    yield tuple(tensor[indices] for tensor in self.data)

    def growing_batches(self, size: int, growth: float) -> Iterator[tuple[Tensor, ...]]:
        """As :meth:`batches`, each ``growth`` times as large as the last (Martens & Grosse 2015,
        section 13); of an epoch, what is less than a batch is left out."""
        generator = torch.Generator().manual_seed(self.seed)
        count, wanted = len(self.data[0]), float(size)
        while wanted < count:
            order, start = torch.randperm(count, generator=generator), 0
            while start + int(wanted) <= count:
                indices = order[start : start + int(wanted)]
                yield tuple(tensor[indices] for tensor in self.data)
                start, wanted = start + int(wanted), wanted * growth
        while True:
            yield self.data

    def costs(self) -> dict[str, float]:
        """Of a forward pass, and of a product with the Gauss-Newton matrix."""
        parameters = self.parameters()
        G = self._curvature(1.0)()
        v = torch.randn(G.shape[0], generator=torch.Generator().manual_seed(0))
        return costs(
            lambda: torch.autograd.grad(self.whole(), parameters),
            forward=self.whole, product=lambda: G @ v,
        )  # fmt: skip

    def adam(self, setting: Setting) -> Racer:
        return adam(self.parameters(), self._backward(setting.batch_size), setting)

    def lbfgs(self, max_iter: int = 20) -> Racer:
        return lbfgs(self.parameters(), self.whole, max_iter)

    def kfac(self, cost: dict[str, float], batch_size: int, **settings: Any) -> Racer:
        optimizer = KFAC(self.model, likelihood=self.likelihood, seed=self.seed, **settings)
        batches = self.batches(batch_size)
        return self._on_batches(optimizer, cost, batches, 0.0, settings["refresh_every"])

    def adaptive_kfac(
        self, cost: dict[str, float], batch_size: int, growth: float = 1.0, closure: bool = False,
        **settings: Any,
    ) -> Racer:  # fmt: skip
        """With ``closure`` it measures the loss after the step, and takes back one that raised it;
        without, each step is taken unseen. ``growth`` is that of the batches."""
        optimizer = AdaptiveKFAC(self.model, likelihood=self.likelihood, seed=self.seed, **settings)
        fraction, every = settings["fraction"], settings["refresh_every"]
        grows = growth > 1
        batches = self.growing_batches(batch_size, growth) if grows else self.batches(batch_size)
        return self._on_batches(optimizer, cost, batches, fraction, every, closure)

    def natural_gradient(
        self, cost: dict[str, float], fraction: float = 1.0, **settings: Any
    ) -> Racer:
        """The gradient from all the data, the metric from that ``fraction``, new at each step."""
        curvature = self._curvature(fraction)
        optimizer = NaturalGradient(self.parameters(), curvature=curvature, **settings)
        return ours(optimizer, standard(optimizer, self.whole), searched(cost, share=fraction))

    def hessian_free(self, cost: dict[str, float], fraction: float = 1.0, **settings: Any) -> Racer:
        """As in :meth:`natural_gradient`; Martens' curvature is from a fraction too."""
        curvature = self._curvature(fraction)
        optimizer = HessianFree(self.parameters(), curvature=curvature, **settings)
        return ours(optimizer, standard(optimizer, self.whole), searched(cost, share=fraction))

    def _curvature(self, fraction: float) -> Callable[[], LinearOperator]:
        """The Gauss-Newton matrix, which is the Fisher matrix of these losses."""
        generator = torch.Generator().manual_seed(self.seed)
        return lambda: GaussNewton(
            lambda x: self.metric(self.model(x)), self.parameters(), data=self.data[0],
            fraction=fraction, generator=generator,
        )  # fmt: skip

    def _backward(self, batch_size: int) -> Callable[[], float]:
        batches = self.batches(batch_size)

        def backward() -> float:
            batch = next(batches)
            self.loss(self.model, *batch).backward()  # type: ignore[no-untyped-call]
            return len(batch[0]) / len(self.data[0])

        return backward

    def _on_batches(
        self, optimizer: Any, cost: dict[str, float], batches: Iterator[tuple[Tensor, ...]],
        fraction: float, every: int, closure: bool = False,
    ) -> Racer:  # fmt: skip
        """``fraction`` of each batch is that of the curvature, 0 where only a refresh needs it. A
        refresh of the factors counts as a forward and three backward passes."""
        steps = 0
        refresh = cost["forward"] + 3 * (1 - cost["forward"])

        def step(progress: float) -> float:
            nonlocal steps
            batch = next(batches)
            once = standard(optimizer, lambda: self.loss(self.model, *batch))
            if closure:
                optimizer.step(once)
            else:
                once()
                optimizer.step()
            report = optimizer.last_step
            work: float = 1 + max(report.evaluations - 1, 0) * cost["forward"]
            work += (fraction or 1.0) * refresh * (steps % every == 0)
            if fraction:
                work += fraction * (1 + report.products * cost["product"])
            steps += 1
            return work * len(batch[0]) / len(self.data[0])

        return Racer(step, lambda: optimizer.last_step.status.name)
