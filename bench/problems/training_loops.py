"""Training loops as people and their libraries write them, around one optimizer.

A loop makes ``STEPS`` steps of a :class:`Run`. Its reference is a plainer loop over the model's
twin (model_features.py), which must end at the same parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from natgrad import FunctionModule
from natgrad.curvature.metrics import OutputMetric, cross_entropy
from natgrad.optim import (
    KFAC,
    AdaptiveKFAC,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    NonlinearCG,
    TrustRegionNewton,
)
from natgrad.solvers import cholesky

from .model_features import CLASSES, logits

STEPS, CLIP = 2, 0.02


def _cross_entropy(outputs: Any) -> OutputMetric:
    return cross_entropy(logits(outputs))


def categorical(outputs: Any) -> torch.distributions.Categorical:
    return torch.distributions.Categorical(logits=logits(outputs))


@dataclass(frozen=True)
class Kind:
    """An optimizer with nothing in it that draws; ``plain`` if it works without a closure,
    ``squares`` if its loss is one."""

    make: Callable[[nn.Module], torch.optim.Optimizer]
    plain: bool = True
    squares: bool = False
    by_batch: bool = False  # whether the parts of a batch do not make up the whole
    layers: bool = False  # whether it sees layers, of which a pure function has none


def _exact(A: Any, b: Any) -> Any:
    return cholesky(A.to_dense(), b, rtol=1e-12)


# With solves to the end: one that stops early may stop elsewhere for another rounding.
OPTIMIZERS: dict[str, Kind] = {
    "NaturalGradient": Kind(lambda m: NaturalGradient(m, likelihood=categorical, solver=_exact)),
    "HessianFree": Kind(lambda m: HessianFree(m, loss=_cross_entropy, rtol=1e-12, progress=1e-14)),
    "KFAC": Kind(lambda m: KFAC(m, likelihood=categorical, lr=0.1, samples=None), layers=True),
    "E-KFAC": Kind(
        lambda m: KFAC(m, likelihood=categorical, lr=0.1, samples=None, corrected=True),
        layers=True,
        by_batch=True,
    ),
    "AdaptiveKFAC": Kind(
        lambda m: AdaptiveKFAC(m, likelihood=categorical, samples=None), layers=True
    ),
    "LevenbergMarquardt": Kind(lambda m: LevenbergMarquardt(m, solver="dense"), squares=True),
    "TrustRegionNewton": Kind(lambda m: TrustRegionNewton(m.parameters()), plain=False),
    "NonlinearCG": Kind(lambda m: NonlinearCG(m.parameters()), plain=False),
}


@dataclass
class Run:
    """A model at work. ``call`` is what the loop calls in its place (compiled, in parallel);
    ``seen`` collects the gradients that each step started from."""

    kind: Kind
    model: nn.Module
    x: Tensor
    t: Tensor
    optimizer: Any = None
    call: Callable[[Tensor], Any] | None = None
    given: list[list[Tensor | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.optimizer is None:
            self.optimizer = self.kind.make(self.model)

    def loss(self, part: slice = slice(None)) -> Tensor:
        call = self.model if self.call is None else self.call
        outputs = logits(call(self.x[part]))
        if self.kind.squares:
            wanted = F.one_hot(self.t[part], CLASSES).to(outputs.dtype)
            return F.mse_loss(outputs, wanted)
        return F.cross_entropy(outputs, self.t[part])

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """A plain step, or one by a closure where the optimizer asks for it.

        ``closure`` computes the loss and its gradients; None for the plain one.
        """
        closure = closure or self.closure
        if self.kind.plain:
            closure()
            self.optimizer.step()
        else:
            self.optimizer.step(closure)

    def steps(self, step: Callable[[], Any] | None = None) -> None:
        for _ in range(STEPS):
            (step or self.step)()


def plain(run: Run) -> None:
    def step() -> None:
        run.closure()
        run.optimizer.step()

    run.steps(step)


def closure(run: Run) -> None:
    run.steps(lambda: run.optimizer.step(run.closure))


def loss_after_backward(run: Run) -> None:
    def step() -> None:
        loss = run.closure()
        run.optimizer.step(lambda: loss)

    run.steps(step)


def accumulation(run: Run) -> None:
    half = len(run.x) // 2

    def accumulated() -> Tensor:
        run.optimizer.zero_grad()
        total = run.x.new_zeros(())
        for part in (slice(0, half), slice(half, None)):
            loss = run.loss(part) / 2
            loss.backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    run.steps(lambda: run.step(accumulated))


def clipping(run: Run) -> None:
    def clipped() -> Tensor:
        loss = run.closure()
        nn.utils.clip_grad_norm_(run.model.parameters(), CLIP)
        return loss

    run.steps(lambda: run.step(clipped))


def scaled_by_hand(run: Run) -> None:
    """What clipping is, without clip_grad_norm_."""

    def scaled() -> Tensor:
        loss = run.closure()
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
        size = torch.stack([g.abs().square().sum() for g in gradients]).sum().sqrt()
        for gradient in gradients:
            gradient.mul_(torch.clamp(CLIP / (size + 1e-6), max=1.0))
        return loss

    run.steps(lambda: run.step(scaled))


def autocast(run: Run) -> None:
    def step() -> None:
        run.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = run.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        run.given.append([None if p.grad is None else p.grad.clone() for p in _all(run.model)])
        run.optimizer.step()

    run.steps(step)


def with_given_gradients(run: Run) -> None:
    """A plain loop in full precision that starts from the gradients of another."""
    given = iter(run.given)

    def step() -> None:
        run.closure()
        for parameter, gradient in zip(_all(run.model), next(given), strict=True):
            parameter.grad = gradient
        run.optimizer.step()

    run.steps(step)


def grad_scaler(run: Run) -> None:
    scaler = torch.amp.GradScaler("cpu")

    def step() -> None:
        run.optimizer.zero_grad()
        scaler.scale(run.loss()).backward()  # type: ignore[no-untyped-call]
        scaler.step(run.optimizer)
        scaler.update()

    run.steps(step)


def calls_compiled(run: Run) -> None:
    torch._dynamo.reset()
    run.call = torch.compile(run.model, backend="aot_eager")
    run.steps()


def compiled_module(run: Run) -> None:
    torch._dynamo.reset()
    run.call = torch.compile(run.model, backend="aot_eager")
    run.optimizer = run.kind.make(run.call)  # type: ignore[arg-type]
    run.steps()


def compiled_in_place(run: Run) -> None:
    torch._dynamo.reset()
    run.model.compile(backend="aot_eager")
    run.steps()


def data_parallel(run: Run) -> None:
    run.call = nn.DataParallel(run.model)
    run.optimizer = run.kind.make(run.call)
    run.steps()


def functional(run: Run) -> None:
    """The model as a pure function of its parameters and buffers."""
    model = run.model
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    module = FunctionModule(lambda p, x: functional_call(model, p, (x,)), held)
    run.call, run.optimizer = module, run.kind.make(module)
    run.steps()


def lightning_automatic(run: Run) -> None:
    """optimizer_step(closure): training_step comes before zero_grad."""

    def training_step() -> Tensor:
        loss = run.loss()
        run.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    run.steps(lambda: run.optimizer.step(closure=training_step))


def lightning_manual(run: Run) -> None:
    """LightningOptimizer.step() passes a closure that does nothing."""

    def step() -> None:
        run.closure()
        run.optimizer.step(closure=lambda: None)

    run.steps(step)


class _Prepared:
    """What accelerate's prepare() makes of an optimizer: its state goes once through state_dict."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        optimizer.load_state_dict(optimizer.state_dict())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)


def accelerate(run: Run) -> None:
    run.optimizer = _Prepared(run.optimizer)
    run.steps()


class _WithLoss(nn.Module):
    """A transformers model: labels go in, loss and logits come out."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        outputs = {"logits": logits(self.body(x))}
        if labels is not None:
            outputs["loss"] = F.cross_entropy(outputs["logits"], labels)
        return outputs


def transformers_trainer(run: Run) -> None:
    """outputs.loss of model(**batch), then optimizer.step() by a wrapper."""
    model = _WithLoss(run.model)
    # Squared errors are taken of outputs that are one tensor.
    run.optimizer = _Prepared(run.kind.make(run.model if run.kind.squares else model))

    def training_step() -> Tensor:
        run.optimizer.zero_grad()
        loss: Tensor = run.loss() if run.kind.squares else model(run.x, labels=run.t)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    run.steps(lambda: run.step(training_step))


def checkpoint_and_resume(run: Run) -> None:
    def step() -> None:
        run.step()
        saved = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
        run.optimizer = run.kind.make(run.model)
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.add_(1.0)
        run.model.load_state_dict(saved[0])
        run.optimizer.load_state_dict(saved[1])

    run.steps(step)


def averaged(run: Run) -> None:
    mean = torch.optim.swa_utils.AveragedModel(run.model)

    def step() -> None:
        run.step()
        mean.update_parameters(run.model)
        mean.eval()(run.x)

    run.steps(step)


def scheduled(run: Run) -> None:
    scheduler = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, gamma=0.5)

    def step() -> None:
        run.step()
        scheduler.step()

    run.steps(step)


def rates_by_hand(run: Run) -> None:
    def step() -> None:
        run.step()
        for group in run.optimizer.param_groups:
            group["lr"] = 0.5 * group["lr"]

    run.steps(step)


def _all(model: nn.Module) -> list[Tensor]:
    return list(model.parameters())


@dataclass(frozen=True)
class Loop:
    """A loop and its reference on the twin. ``plain`` loops hand over no closure; ``parts`` of the
    batch stand for the whole; ``half`` precision leaves float32's accuracy to compare with;
    ``without_layers`` K-FAC sees none, and is compared with itself on the twin."""

    act: Callable[[Run], None]
    reference: Callable[[Run], None] = Run.steps
    plain: bool = False
    parts: bool = False
    half: bool = False
    without_layers: bool = False
    compiles: bool = False


LOOPS: dict[str, Loop] = {
    "plain": Loop(plain, plain, plain=True),
    "closure": Loop(closure, closure),
    "loss after backward": Loop(loss_after_backward, plain, plain=True),
    "accumulation": Loop(accumulation, parts=True),
    "clipping": Loop(clipping, scaled_by_hand),
    "autocast": Loop(autocast, with_given_gradients, plain=True, half=True),
    "GradScaler": Loop(grad_scaler, plain, plain=True),
    "calls a compiled model": Loop(calls_compiled, compiles=True),
    "compiled module": Loop(compiled_module, compiles=True),
    "module.compile()": Loop(compiled_in_place, compiles=True),
    "DataParallel": Loop(data_parallel),
    "functional_call": Loop(functional, without_layers=True),
    "Lightning, automatic": Loop(lightning_automatic, closure),
    "Lightning, manual": Loop(lightning_manual, plain, plain=True),
    "Accelerate": Loop(accelerate),
    "transformers Trainer": Loop(transformers_trainer),
    "checkpoint and resume": Loop(checkpoint_and_resume),
    "averaged weights": Loop(averaged),
    "schedulers": Loop(scheduled, rates_by_hand),
}
