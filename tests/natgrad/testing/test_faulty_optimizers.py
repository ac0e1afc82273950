"""Optimizers with a fault each, which a check must find, and correct ones, which none accuses."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from natgrad.testing.check import Outcome
from natgrad.testing.conformance import checks_for
from natgrad.testing.subjects.optimizer import Optimizer

SEEDS = {"quick": range(2), "slow": range(20)}


class Descent(torch.optim.Optimizer):
    """m ← μ m + g + w θ, θ ← θ − lr m; a gradient that is not finite is no step."""

    def __init__(
        self, params, lr=0.02, momentum=0.5, weight_decay=0.0, maximize=False
    ) -> None:  # fmt: skip
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize,
        })  # fmt: skip

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else self.evaluated(closure)
        if self.sound(loss):
            self.move(closure, loss)
        return loss

    def evaluated(self, closure) -> Tensor:
        with torch.enable_grad():
            return closure()

    def chosen(self) -> Iterable[tuple[dict[str, Any], Any]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield group, parameter

    def sound(self, loss) -> bool:
        return all(bool(torch.isfinite(p.grad).all()) for _, p in self.chosen())

    def gradient(self, group, parameter) -> Tensor:
        sign = -1 if group["maximize"] else 1
        return sign * parameter.grad + group["weight_decay"] * parameter

    def average(self, group, parameter, g: Tensor) -> Tensor:
        state = self.state[parameter]
        state["m"] = group["momentum"] * state.get("m", torch.zeros_like(g)) + g
        return state["m"]

    def move(self, closure, loss) -> None:
        for group, parameter in self.chosen():
            m = self.average(group, parameter, self.gradient(group, parameter))
            parameter.sub_(group["lr"] * m)


class Normalised(Descent):
    """θ ← θ − lr g / ‖g‖, of the whole gradient: no unit of the loss changes it."""

    def size(self) -> Tensor:
        return torch.cat([p.grad.flatten().square() for _, p in self.chosen()]).sum().sqrt()

    def move(self, closure, loss) -> None:
        pairs = list(self.chosen())
        size = self.size() if pairs else 0
        for group, parameter in pairs if size else ():
            parameter.sub_(group["lr"] * (self.gradient(group, parameter) / size))


class Halving(Descent):
    """θ − α g with α halved from 1 until the loss falls, 40 times at most; else θ."""

    last_step = None

    def move(self, closure, loss) -> None:
        pairs = list(self.chosen())
        starts = [parameter.clone() for _, parameter in pairs]
        gradients = [self.gradient(*pair) for pair in pairs]
        kept = [parameter.grad.clone() for _, parameter in pairs]
        self.evaluations, accepted, alpha = 1, False, 1.0
        while self.goes_on(accepted) and bool(torch.cat([g.flatten() for g in gradients]).any()):
            for (group, parameter), start, g in zip(pairs, starts, gradients, strict=True):
                parameter.copy_(start - group["lr"] * alpha * g)
            accepted = self.accepts(self.evaluated(closure), loss)
            self.evaluations, alpha = self.evaluations + 1, alpha / 2
        for (_, parameter), start, grad in zip(pairs, starts, kept, strict=True):
            parameter.grad = grad
            if not accepted:
                self.restore(parameter, start)
        self.tell(accepted)

    def sound(self, loss) -> bool:
        self.evaluations = 1
        self.tell(False)
        return super().sound(loss) and bool(torch.isfinite(loss))

    def goes_on(self, accepted: bool) -> bool:
        return not accepted and self.evaluations < 40

    def accepts(self, candidate: Tensor, loss: Tensor) -> bool:
        return bool(candidate < loss)

    def restore(self, parameter: Tensor, start: Tensor) -> None:
        parameter.copy_(start)

    def tell(self, accepted: bool) -> None:
        status = "ACCEPTED" if accepted else "REFUSED"
        self.last_step = SimpleNamespace(status=status, evaluations=self.evaluations)


class GaussNewton(torch.optim.Optimizer):
    """θ ← θ − lr s, s the shortest with J s = r in the sense of least squares."""

    def __init__(self, params, lr=1.0) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):  # type: ignore[override]
        with torch.enable_grad():
            r = closure()
            parameters = self.param_groups[0]["params"]
            rows = [
                torch.autograd.grad(each, parameters, retain_graph=True, materialize_grads=True)
                for each in r
            ]
        J = torch.stack([torch.cat([piece.flatten() for piece in row]) for row in rows])
        step = self.solved(J, r.detach())
        for parameter, piece in zip(
            parameters, step.split([p.numel() for p in parameters]), strict=True
        ):
            parameter.sub_(self.param_groups[0]["lr"] * piece.view_as(parameter))
        return r.detach().square().sum() / 2

    def solved(self, J: Tensor, r: Tensor) -> Tensor:
        return torch.linalg.pinv(J, rtol=1e-10) @ r


BASIC = {"closure", "plain", "groups", "deterministic", "objectives"}
TRAITS = {
    Descent: {"maximize", "weight decay", "proportional", "guarded", *BASIC},
    Normalised: {"scale invariant", "proportional", "guarded", *BASIC},
    Halving: {"closure", "search", "monotone", "status", "guarded", *BASIC} - {"plain"},
    GaussNewton: {"residuals", "exact curvature", "natural gradient", "objectives"},
}


def subject(kind: type) -> Optimizer:
    original = next(each for each in TRAITS if issubclass(kind, each) and each is not Descent) if (
        not issubclass(kind, Descent) or issubclass(kind, (Normalised, Halving))
    ) else Descent  # fmt: skip
    squared = original is GaussNewton
    networks: dict[str, Any] = {"networks": ()} if squared else {}
    return Optimizer(
        kind.__name__,
        lambda model: kind(model.parameters()),
        frozenset(TRAITS[original]),
        ("squared",) if squared else ("categorical", "squared"),
        **networks,
    )


# --- faults of Descent


class StateOutside(Descent):
    def average(self, group, parameter, g):
        self.averages = getattr(self, "averages", {})
        self.averages[parameter] = group["momentum"] * self.averages.get(parameter, 0) + g
        return self.averages[parameter]


class StateByIdentity(Descent):
    """Which is another one in a copy."""

    def average(self, group, parameter, g):
        group["m"] = group.get("m", {})
        group["m"][str(id(parameter))] = group["m"].get(str(id(parameter)), 0) * 0.5 + g
        return group["m"][str(id(parameter))]


class RateFixed(Descent):
    def move(self, closure, loss):
        for group in self.param_groups:
            group["lr"], kept = self.defaults["lr"], group["lr"]
            group["kept"] = kept
        super().move(closure, loss)
        for group in self.param_groups:
            group["lr"] = group.pop("kept")


class RateOfTheFirstGroup(Descent):
    def move(self, closure, loss):
        for group, parameter in self.chosen():
            m = self.average(group, parameter, self.gradient(group, parameter))
            parameter.sub_(self.param_groups[0]["lr"] * m)


class RateSquared(Descent):
    def move(self, closure, loss):
        for group, parameter in self.chosen():
            parameter.sub_(group["lr"] ** 2 * self.gradient(group, parameter))


class LaterGroupsForgotten(Descent):
    def __init__(self, *args, **given):
        super().__init__(*args, **given)
        self.known = [id(p) for group in self.param_groups for p in group["params"]]

    def chosen(self):
        groups = self.param_groups[:1]
        return [(g, p) for g in groups for p in g["params"] if p.grad is not None]


class ClosureWithoutGradients(Descent):
    def evaluated(self, closure):
        return closure()


class LossNotReturned(Descent):
    def step(self, closure=None):
        super().step(closure)


class LastLossReturned(Halving):
    def step(self, closure):  # type: ignore[override]
        super().step(closure)
        return self.evaluated(closure)


class EvaluationsNotCounted(Halving):
    def tell(self, accepted):
        self.evaluations = 1
        super().tell(accepted)


class MaximizeIgnored(Descent):
    def gradient(self, group, parameter):
        return parameter.grad + group["weight_decay"] * parameter


class WeightDecayIgnored(Descent):
    def gradient(self, group, parameter):
        return super().gradient({**group, "weight_decay": 0.0}, parameter)


class WeightDecayOfTheFirstGroup(Descent):
    def gradient(self, group, parameter):
        decay = self.param_groups[0]["weight_decay"]
        return super().gradient({**group, "weight_decay": decay}, parameter)


class WrongSign(Descent):
    def gradient(self, group, parameter):
        return -super().gradient(group, parameter)


class NoneCrashes(Descent):
    def chosen(self):
        return [(group, p) for group in self.param_groups for p in group["params"]]


class NoneIsZero(Descent):
    """So that what is frozen goes on by its momentum."""

    def chosen(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                yield group, parameter


class GradientsConsumed(Descent):
    def move(self, closure, loss):
        super().move(closure, loss)
        self.zero_grad()


class GraphLeft(Descent):
    def evaluated(self, closure):
        with torch.enable_grad():
            loss = closure()
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad = parameter.grad + 0 * parameter
        return loss


class Leaking(Descent):
    def move(self, closure, loss):
        self.history = [*getattr(self, "history", []), *[p.clone() for _, p in self.chosen()]]
        super().move(closure, loss)


class KeepsTheClosure(Descent):
    def step(self, closure=None):
        self.closure = closure
        return super().step(closure)


class DrawsFromTheGlobalGenerator(Descent):
    def move(self, closure, loss):
        torch.rand(1)
        super().move(closure, loss)


class Noisy(Descent):
    def gradient(self, group, parameter):
        return super().gradient(group, parameter) * (1 + 1e-6 * torch.rand_like(parameter))


class OneOfASize(Descent):
    """Clipped by the norm of the parameters before it."""

    def move(self, closure, loss):
        so_far = 0.0
        for group, parameter in self.chosen():
            assert parameter.grad is not None
            so_far += float(parameter.grad.norm())
            parameter.sub_(group["lr"] * self.gradient(group, parameter) / (1 + so_far))


class NanAccepted(Descent):
    def sound(self, loss):
        return True


class NanRemembered(Descent):
    def sound(self, loss):
        sound = super().sound(loss)
        for group, parameter in self.chosen() if not sound else ():
            self.average(group, parameter, torch.zeros_like(parameter))
        return sound


class MovesFromTheOptimum(Descent):
    def gradient(self, group, parameter):
        return super().gradient(group, parameter) + 1e-8


class ViewsOnly(Descent):
    def move(self, closure, loss):
        for group, parameter in self.chosen():
            parameter.view(-1).sub_(group["lr"] * self.gradient(group, parameter).view(-1))


class StateInDouble(Descent):
    def average(self, group, parameter, g):
        m = super().average(group, parameter, g.double())
        parameter.data = parameter.double()
        return m


class HooksOfLoadingForgotten(Descent):
    def load_state_dict(self, state_dict):
        for index, parameter in enumerate(self.param_groups[0]["params"]):
            self.state[parameter] = dict(state_dict["state"].get(index, {}))


class ScalerMisled(Descent):
    """It says that it divides by the scale, and does not."""

    _step_supports_amp_scaling = True


class EachRankForItself(Descent):
    def gradient(self, group, parameter):
        if torch.distributed.is_initialized() and torch.distributed.get_rank():
            return super().gradient(group, parameter) / 2
        return super().gradient(group, parameter)


# --- of the others


class AbsoluteTolerance(Normalised):
    def size(self):
        size = super().size()
        return size if size > 1e-7 else torch.zeros(())


class AbsoluteEpsilon(Normalised):
    def size(self):
        return super().size() + 1e-8


class NotRestored(Halving):
    def restore(self, parameter, start):
        pass


class RestoredByArithmetic(Halving):
    def restore(self, parameter, start):
        parameter += 1e-16 + (start - parameter) * (1 - 1e-15)


class AcceptsARise(Halving):
    def __init__(self, params):
        super().__init__(params, lr=50.0)

    def accepts(self, candidate, loss):
        return True


class AcceptsNan(Halving):
    def accepts(self, candidate, loss):
        return not candidate >= loss

    def sound(self, loss):
        super().sound(loss)
        return True


class Endless(Halving):
    def goes_on(self, accepted):
        return not accepted

    def sound(self, loss):
        super().sound(loss)
        return True


class ClaimsWhatItRefused(Halving):
    def tell(self, accepted):
        super().tell(True)


class HalfAStep(GaussNewton):
    def solved(self, J, r):
        return super().solved(J, r) / 2


class DampingMissing(GaussNewton):
    def solved(self, J, r):
        return torch.linalg.solve(J.mT @ J, J.mT @ r)


class DampedByACoordinate(GaussNewton):
    def solved(self, J, r):
        return torch.linalg.solve(J.mT @ J + 1e-4 * torch.eye(J.shape[1]), J.mT @ r)


FAULTS: dict[type, set[str]] = {
    StateOutside: {"P1"},
    StateByIdentity: {"P1", "P1b"},
    RateFixed: {"P2", "P2b", "P2c"},
    RateOfTheFirstGroup: {"P3"},
    RateSquared: {"P2c"},
    LaterGroupsForgotten: {"P3b"},
    ClosureWithoutGradients: {"P4", "P4b"},
    LossNotReturned: {"P4"},
    LastLossReturned: {"P4"},
    EvaluationsNotCounted: {"P4c"},
    MaximizeIgnored: {"P7"},
    WeightDecayIgnored: {"P3c"},
    WeightDecayOfTheFirstGroup: {"P3c"},
    WrongSign: {"P7b"},
    NoneCrashes: {"P5", "P5b", "P5c"},
    NoneIsZero: {"P5b"},
    GradientsConsumed: {"P10b"},
    GraphLeft: {"P10"},
    Leaking: {"P17"},
    KeepsTheClosure: {"P17b"},
    DrawsFromTheGlobalGenerator: {"P11"},
    Noisy: {"P12"},
    OneOfASize: {"P13"},
    NanAccepted: {"P15"},
    NanRemembered: {"P15b"},
    MovesFromTheOptimum: {"P16", "P16b"},
    ViewsOnly: {"P8"},
    StateInDouble: {"P8b", "P8c"},
    HooksOfLoadingForgotten: {"P6"},
    ScalerMisled: {"P9"},
    EachRankForItself: {"P19"},
    AbsoluteTolerance: {"P14"},
    AbsoluteEpsilon: {"P14"},
    NotRestored: {"P15e"},
    RestoredByArithmetic: {"P15e"},
    AcceptsARise: {"P15f"},
    AcceptsNan: {"P15c", "P15d"},
    Endless: {"P15c"},
    ClaimsWhatItRefused: {"P15", "P15e"},
    HalfAStep: {"P18"},
    DampingMissing: {"P18b"},
    DampedByACoordinate: {"N1"},
}


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_a_fault_is_found(kind):
    known = {check.identifier: check for check in checks_for("optimizer")}
    verdicts = [known[each].examine(subject(kind), examples=10) for each in sorted(FAULTS[kind])]
    assert Outcome.FAILED in [verdict.outcome for verdict in verdicts], verdicts


@pytest.mark.parametrize("check", checks_for("optimizer"), ids=str)
@pytest.mark.parametrize("kind", TRAITS, ids=lambda kind: kind.__name__)
def test_what_is_correct_is_not_accused(kind, check):
    for seed in SEEDS["quick"]:
        check(subject(kind), seed=seed, examples=2)


@pytest.mark.slow
@pytest.mark.parametrize("check", checks_for("optimizer"), ids=str)
@pytest.mark.parametrize("kind", TRAITS, ids=lambda kind: kind.__name__)
def test_what_is_correct_is_not_accused_by_any_seed(kind, check):
    for seed in SEEDS["slow"]:
        check(subject(kind), seed=seed, examples=5)
