"""Forward passes that leave random generators and the modules' buffers unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from natgrad.autodiff.convolution import LeanConvolutions
from natgrad.autodiff.differentiation import eager, twice_differentiable
from natgrad.autodiff.hooks import WithoutTensorHooks

# Copies of buffers with the versions of the originals, by module and name.
Held = dict[tuple[nn.Module, str], tuple[Tensor, int]]
_LENT: ContextVar[Held | None] = ContextVar("lent buffers", default=None)


class RandomState:
    """The state of torch's global generators at construction, on the CPU and on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Start random numbers from this state inside; restore the generators afterwards."""
        devices = [self._device] if self._cuda is not None else []
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield


@contextmanager
def preserved_buffers() -> Iterator[None]:
    """Let modules in training mode that are called inside work on copies of their buffers.

    Such buffers are BatchNorm's statistics and spectral norm's vectors. Graphs keep the copies; the
    originals are put back. Modules in evaluation mode, and scripted ones, are assumed not to write
    to theirs.
    """
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


class MovingBuffers:
    """The buffers that a model's own forward pass writes to, with their values before a call.

    Spectral norm computes with its vectors and moves them on: a later pass is another function.
    The first call shows which buffers move; only these are copied from then on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._moving: list[tuple[nn.Module, str]] | None = None

    def copied(self) -> Held:
        """Return copies of the buffers, with their versions, before a call."""
        return {
            (module, name): (buffer.clone(), buffer._version)
            for module, name in (self._all() if self._moving is None else self._moving)
            if (buffer := module._buffers[name]) is not None
        }

    def moved(self, held: Held) -> Held:
        """Return those of ``held`` that the call has written to."""
        changed = {
            key: (copy, version)
            for key, (copy, version) in held.items()
            if (now := key[0]._buffers[key[1]]) is None or now._version != version
        }
        if self._moving is None:
            self._moving = list(changed)
        return changed

    def _all(self) -> list[tuple[nn.Module, str]]:
        return [
            (module, name)
            for module in self._model.modules()
            if module.training and not isinstance(module, torch.jit.ScriptModule)
            for name in module._buffers
        ]


@contextmanager
def lent_buffers(held: Held) -> Iterator[None]:
    """Inside, the buffers have the values that ``held`` has copies of.

    A :class:`Forward` that is made inside runs with them later, as it does with the generators.
    """
    originals = {(module, name): module._buffers[name] for module, name in held}
    try:
        for (module, name), (copy, _) in held.items():
            module._buffers[name] = copy
        token = _LENT.set(held)
        try:
            yield
        finally:
            _LENT.reset(token)
    finally:
        for (module, name), original in originals.items():
            module._buffers[name] = original


class Forward:
    """A forward function, called repeatedly with the same random numbers and no side effects.

    Compiled modules run uncompiled; hooks on activations are left out.

    Parameters
    ----------
    function
        The function of the data to call.
    device
        The device whose generator it may use besides the CPU's.

    Attributes
    ----------
    fallback
        Set it to True to avoid kernels that cannot be differentiated twice.
    """

    def __init__(self, function: Callable[[Any], Any], device: torch.device) -> None:
        self._function, self._state = function, RandomState(device)
        self._held = _LENT.get() or {}
        self.fallback = False

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Let calls inside draw from the random state, and use the buffers, at construction.

        Graphs can be recorded inside even if the caller is in inference mode.
        """
        with torch.inference_mode(False), self._state.replayed(), lent_buffers(self._held):
            yield

    def evaluate(self, data: Any) -> Any:
        """Return the function's value without a graph."""
        with torch.no_grad(), preserved_buffers(), eager(), WithoutTensorHooks():
            return self._function(data)

    def __call__(self, data: Any) -> Any:
        """Return the function's value with a graph."""
        with torch.enable_grad(), preserved_buffers(), eager():
            if self.fallback:
                with WithoutTensorHooks(), twice_differentiable():
                    return self._function(data)
            with LeanConvolutions():
                return self._function(data)
