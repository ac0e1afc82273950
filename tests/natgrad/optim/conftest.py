"""Every optimizer at work on one small network, in the form that fits it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from natgrad.flat import flatten
from natgrad.optim import (
    KFAC,
    AdaptiveKFAC,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    NonlinearCG,
    TrustRegionNewton,
)
from natgrad.testing.networks import make_network


@dataclass(frozen=True)
class Kind:
    """An optimizer and what it asks for: the ``model``, a ``closure`` for every step, a loss of
    ``squared`` errors, or a closure that returns these ``residuals`` themselves."""

    optimizer: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)
    model: bool = True
    closure: bool = False
    squared: bool = False
    residuals: bool = False


KFAC_SETTINGS = {"likelihood": "categorical", "lr": 0.05, "refresh_every": 3}
KINDS = {
    "NaturalGradient": Kind(NaturalGradient, {"likelihood": "categorical"}),
    "HessianFree": Kind(HessianFree),
    "LevenbergMarquardt": Kind(LevenbergMarquardt, squared=True),
    "LevenbergMarquardt of residuals": Kind(
        LevenbergMarquardt, model=False, closure=True, squared=True, residuals=True
    ),
    "TrustRegionNewton": Kind(TrustRegionNewton, model=False, closure=True),
    "NonlinearCG": Kind(NonlinearCG, model=False, closure=True),
    "KFAC": Kind(KFAC, KFAC_SETTINGS),
    "KFAC corrected": Kind(KFAC, {**KFAC_SETTINGS, "corrected": True}),
    "AdaptiveKFAC": Kind(AdaptiveKFAC, {"likelihood": "categorical", "refresh_every": 3}),
}


@dataclass
class Training:
    """A model, its optimizer and a batch. ``step()`` is a whole training step by a closure,
    ``plain_step()`` one by ``backward()`` and a bare ``optimizer.step()``."""

    kind: Kind
    model: nn.Module
    optimizer: Any
    inputs: Tensor
    targets: Tensor

    @property
    def theta(self) -> Tensor:
        return flatten(self.model.parameters())

    @property
    def status(self) -> str:
        return self.optimizer.last_step.status.name

    def loss(self) -> Tensor:
        return loss_of(self.kind, self.model(self.inputs), self.targets)

    def closure(self) -> Tensor:
        if self.kind.residuals:
            return (self.model(self.inputs) - self.targets).flatten()
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss

    def step(self) -> Any:
        return self.optimizer.step(self.closure)

    def plain_step(self) -> None:
        self.closure()
        self.optimizer.step()

    def copied(self, copy: Callable[[Any], Any]) -> "Training":
        """The same at work on what ``copy`` makes of (model, optimizer)."""
        model, optimizer = copy((self.model, self.optimizer))
        return replace(self, model=model, optimizer=optimizer)


def loss_of(kind: Kind, outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets) if kind.squared else F.cross_entropy(outputs, targets)


@pytest.fixture
def train():
    """(name, model and inputs, ...) -> Training; ``groups`` makes parameter groups of the model,
    ``optimizer`` is somebody else's."""

    def make(
        name: str,
        network: tuple[nn.Module, Tensor] | None = None,
        groups: Callable[[nn.Module], Any] | None = None,
        seed: int = 0,
        optimizer: Callable[..., Any] | None = None,
        **settings: Any,
    ) -> Training:
        kind = KINDS[name] if optimizer is None else Kind(optimizer, model=False)
        generator = torch.Generator().manual_seed(seed)
        model, inputs = network or make_network("mlp", generator)
        with torch.no_grad(), torch.random.fork_rng():
            outputs = copy.deepcopy(model)(inputs)  # for their shape
        if kind.squared:
            targets = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
        else:
            targets = torch.randint(0, outputs.shape[1], (len(outputs),), generator=generator)
        parameters = model.parameters() if groups is None else groups(model)
        known = {"model": model} if kind.model else {}
        made = kind.optimizer(parameters, **{**known, **kind.settings, **settings})
        return Training(kind, model, made, inputs, targets)

    return make


@pytest.fixture
def built():
    """(make, seed) -> what ``make()`` gives, with torch's own initial values in float64."""

    def build(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make().double()

    return build


def names(**wanted: bool) -> list[str]:
    return [
        name
        for name, kind in KINDS.items()
        if all(getattr(kind, key) is value for key, value in wanted.items())
    ]


@pytest.fixture(params=KINDS)
def name(request):
    """Each of the optimizers."""
    return request.param


@pytest.fixture(params=names(closure=False))
def plain(request):
    """Each of those that can step without a closure."""
    return request.param


@pytest.fixture(params=names(residuals=False))
def standard(request):
    """Each of those that take the standard closure."""
    return request.param


@pytest.fixture(params=names(model=True))
def watching(request):
    """Each of those that watch a model."""
    return request.param


@pytest.fixture(params=[name for name in KINDS if not name.startswith("KFAC")])
def searching(request):
    """Each of those that evaluate a closure at candidates."""
    return request.param


@pytest.fixture(
    params=[name for name in KINDS if name not in ("KFAC", "KFAC corrected", "AdaptiveKFAC")]
)
def retrying(request):
    """Each of those that evaluate several candidates in one step."""
    return request.param


@pytest.fixture(autouse=True)
def _gradients_stay_enabled():
    """Whatever comes out of a step, or of a peer's."""
    yield
    assert torch.is_grad_enabled()
