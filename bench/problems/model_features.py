"""What people build into models, each as a small block (N, 4) -> (N, 4) beside a plain twin.

The twin computes the same function of the same parameters, in the same order, without the
machinery: without the hook, the checkpoint, the Function, the write in place. So it is the
reference, for the matrix of a curvature and for a training step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

WIDTH, CLASSES = 4, 3


class Block(nn.Module):
    """tanh(W x + b), of which most features are a variant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x).tanh()
        return y


class ParameterHook(Block):
    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.register_hook(_halved)  # type: ignore[no-untyped-call]


class HalvedAfterwards(Block):
    """The same gradient in ``.grad``, by a hook that autograd does not run inside the graph."""

    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(_halve_grad)  # type: ignore[no-untyped-call]


class ModuleHook(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layer.register_full_backward_hook(_look)


class ActivationHook(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(_unchanged)  # type: ignore[no-untyped-call]
        return y


class Checkpoint(Block):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(super().forward, x, use_reentrant=False)
        return y


class ReentrantCheckpoint(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        y: Tensor = checkpoint(super().forward, x, use_reentrant=True)
        return y


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient: Tensor = gradients[0] * (1 - y * y)
        return gradient


class _TanhOnce(_Tanh):
    backward = staticmethod(  # type: ignore[assignment]
        torch.autograd.function.once_differentiable(_Tanh.backward)
    )


class CustomFunction(Block):
    function: type[torch.autograd.Function] = _Tanh

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function.apply(self.layer(x))  # type: ignore[no-untyped-call]
        return y


class OnceDifferentiable(CustomFunction):
    function = _TanhOnce


class Tied(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


class Frozen(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layer.weight.requires_grad_(False)


class LoRA(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layer.requires_grad_(False)
        self.A = nn.Linear(WIDTH, 2, bias=False)
        self.B = nn.Linear(2, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.layer(x) + self.B(self.A(x))).tanh()
        return y


class WeightNorm(Block):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.layer)


class SpectralNorm(Block):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.layer)


class Parametrised(Block):
    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.layer, "weight", _Symmetric())


class _Symmetric(nn.Module):
    def forward(self, W: Tensor) -> Tensor:
        return W.triu() + W.triu(1).mT


class BatchNorm(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(super().forward(x))
        return y


class Dropout(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.3, self.training)


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x).mul_(2.0).tanh_()
        return y


class OutOfPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (2.0 * self.layer(x)).tanh()
        return y


class Embedding(Block):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(3, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        words = (x.detach().sum(1) > 0).long()
        y: Tensor = super().forward(x) + self.words(words)
        return y


class Recurrent(Block):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(2, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.memory(super().forward(x).reshape(-1, 2, 2))[0][:, -1]
        return y


class Attention(Block):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([x, super().forward(x), x.square()], dim=1)
        y: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)
        return y


class GroupedQueries(Block):
    """Two query heads that share one key and value head, by torch's fused attention."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([x, super().forward(x), -x], dim=1)
        q = self.layer(tokens).reshape(-1, 3, 2, 2).transpose(1, 2)
        k = tokens[..., :2].unsqueeze(1)
        y: Tensor = F.scaled_dot_product_attention(q, k, 2 * k, enable_gqa=True)
        return y.transpose(1, 2).reshape(-1, 3, WIDTH).mean(1)


class GroupedQueriesByHand(GroupedQueries):
    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([x, Block.forward(self, x), -x], dim=1)
        q = self.layer(tokens).reshape(-1, 3, 2, 2).transpose(1, 2)
        k = tokens[..., :2].unsqueeze(1)
        y: Tensor = (q @ k.mT / 2**0.5).softmax(-1) @ (2 * k)
        return y.transpose(1, 2).reshape(-1, 3, WIDTH).mean(1)


class ComplexInside(Block):
    """Complex numbers between a real parameter and real outputs."""

    def forward(self, x: Tensor) -> Tensor:
        z = torch.view_as_complex(self.layer(x).reshape(-1, 2, 2))
        y = torch.view_as_real(z * torch.exp(1j * z.real)).reshape(-1, WIDTH)
        return y


class ComplexParameter(Block):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.view_as_complex(super().forward(x).reshape(-1, 2, 2)) * self.turn
        return torch.view_as_real(z).reshape(-1, WIDTH)


class Unused(Block):
    def __init__(self) -> None:
        super().__init__()
        self.elsewhere = nn.Linear(2, 2)


@dataclass(frozen=True)
class Feature:
    """A block and its twin; ``by_batch`` where its forward pass draws or normalises by the batch:
    the parts of a batch do not make up the whole then."""

    block: Callable[[], nn.Module]
    twin: Callable[[], nn.Module]
    by_batch: bool = False


FEATURES: dict[str, Feature] = {
    "plain": Feature(Block, Block),
    "parameter hook": Feature(ParameterHook, HalvedAfterwards),
    "module hook": Feature(ModuleHook, Block),
    "activation hook": Feature(ActivationHook, Block),
    "checkpoint": Feature(Checkpoint, Block),
    "reentrant checkpoint": Feature(ReentrantCheckpoint, Block),
    "custom Function": Feature(CustomFunction, Block),
    "once differentiable": Feature(OnceDifferentiable, Block),
    "tied": Feature(Tied, Tied),
    "frozen": Feature(Frozen, Frozen),
    "LoRA": Feature(LoRA, LoRA),
    "weight norm": Feature(WeightNorm, WeightNorm),
    "spectral norm": Feature(SpectralNorm, SpectralNorm, by_batch=True),
    "parametrised": Feature(Parametrised, Parametrised),
    "BatchNorm": Feature(BatchNorm, BatchNorm, by_batch=True),
    "dropout": Feature(Dropout, Dropout, by_batch=True),
    "in place": Feature(InPlace, OutOfPlace),
    "embedding": Feature(Embedding, Embedding),
    "LSTM": Feature(Recurrent, Recurrent),
    "attention": Feature(Attention, Attention),
    "grouped queries": Feature(GroupedQueries, GroupedQueriesByHand),
    "complex inside": Feature(ComplexInside, ComplexInside),
    "complex parameter": Feature(ComplexParameter, ComplexParameter),
    "unused parameters": Feature(Unused, Unused),
}


class Model(nn.Module):
    """Blocks and a head; with ``several`` a dict of outputs, of which the logits are the policy."""

    def __init__(self, blocks: list[nn.Module], *, several: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.several = several

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        y = self.head(self.blocks(x))
        return {"logits": y, "size": y.detach().square()} if self.several else y


def pair(
    features: tuple[str, ...], seed: int, dtype: torch.dtype, *, several: bool = False
) -> tuple[Model, Model]:
    """A model with the features, one a block, and its plain twin with the same values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        chosen = [FEATURES[name] for name in features]
        model = Model([feature.block() for feature in chosen], several=several)
        torch.manual_seed(seed)
        twin = Model([feature.twin() for feature in chosen], several=several)
    # to() would make complex parameters real; the buffers of spectral norm were drawn alike.
    for module in (model, twin):
        for held in [*module.parameters(), *module.buffers()]:
            if held.dtype.is_floating_point or held.is_complex():
                held.data = held.data.to(dtype.to_complex() if held.is_complex() else dtype)
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    return model, twin


def logits(outputs: Tensor | dict[str, Tensor]) -> Tensor:
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def _halved(gradient: Tensor) -> Tensor:
    return gradient / 2


def _halve_grad(parameter: Tensor) -> None:
    """Halve what has come since the last call, into a ``.grad`` that accumulates."""
    gradient = parameter.grad
    assert gradient is not None
    held = getattr(parameter, "_halved_until_now", None)
    if held is not None and held[0] is gradient:
        gradient.add_(held[1])
    gradient.div_(2)
    parameter._halved_until_now = gradient, gradient.clone()  # type: ignore[attr-defined]


def _look(module: nn.Module, gradients: object, _: object) -> None:
    return None


def _unchanged(gradient: Tensor) -> Tensor:
    return gradient
