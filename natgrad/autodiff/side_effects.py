"""Forward passes that leave no trace: the generators and the modules' buffers as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from natgrad.autodiff.convolution import LeanConvolutions
from natgrad.autodiff.differentiation import eager, twice_differentiable
from natgrad.autodiff.hooks import WithoutTensorHooks


class RandomState:
    """The state of torch's global generators at one moment, to run under again and again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, randomness starts from this state; afterwards the generators are as before."""
        devices = [self._device] if self._cuda is not None else []
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield


@contextmanager
def preserved_buffers() -> Iterator[None]:
    """Every module in training mode that is called inside works on copies of its buffers:
    BatchNorm's statistics, spectral norm's vectors. The copies stay in the graph, the originals go
    back in their places. Modules in evaluation mode, and scripted ones, are taken at their word."""
    originals: dict[tuple[int, str], tuple[nn.Module, Tensor]] = {}

    def lend_copies(module: nn.Module, _: Any) -> None:
        if not module.training or isinstance(module, torch.jit.ScriptModule):
            return
        for name, buffer in module._buffers.items():
            if buffer is not None and (id(module), name) not in originals:
                originals[id(module), name] = module, buffer
                module._buffers[name] = buffer.clone()

    handle = register_module_forward_pre_hook(lend_copies)
    try:
        yield
    finally:
        handle.remove()
        for (_, name), (module, buffer) in originals.items():
            module._buffers[name] = buffer


class Forward:
    """A forward function to call again and again with the randomness of one moment, without trace:
    compiled modules run uncompiled, hooks of activations are left out.

    ``fallback`` makes it avoid kernels that cannot be differentiated twice.
    """

    def __init__(self, function: Callable[[Any], Any], device: torch.device) -> None:
        self._function, self._state = function, RandomState(device)
        self.fallback = False

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, calls draw on from the state of the construction. A graph can be recorded here
        whatever the caller's gradient mode."""
        with torch.inference_mode(False), self._state.replayed():
            yield

    def evaluate(self, data: Any) -> Any:
        """The value without a graph."""
        with torch.no_grad(), preserved_buffers(), eager(), WithoutTensorHooks():
            return self._function(data)

    def __call__(self, data: Any) -> Any:
        with torch.enable_grad(), preserved_buffers(), eager():
            if self.fallback:
                with WithoutTensorHooks(), twice_differentiable():
                    return self._function(data)
            with LeanConvolutions():
                return self._function(data)
