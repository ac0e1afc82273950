"""Differentiation that can be repeated, and errors that name the cure."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# What torch says of fused kernels, and of cuDNN's RNNs.
_NO_SECOND_DERIVATIVE = ("is not implemented", "double backward")
# What it says of checkpoints that keep some results (context_fn=...).
_SELECTIVE = (
    "backward an extra time",
    "not found in storage",
    "Recomputed values for the following tensors",
    "number of tensors was saved during the original forward",
)
# What it says of the backward passes of torch.compile.
_COMPILED = ("donated buffers", "aot_autograd does not currently support double backward")


class NotTwiceDifferentiable(RuntimeError):
    """The backward pass of a graph is no differentiable linear map, as products need it: a fused
    kernel without a second derivative, a custom Function, a hook, a reentrant checkpoint."""


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Compute attention and recurrent layers, inside, by kernels that have second derivatives.

    Fused attention, and cuDNN's LSTM, GRU and RNN, can be differentiated only once; the products of
    an operator differentiate twice. An operator that is given a forward function falls back to this
    by itself. Compute outputs inside it where you hand over outputs:

    >>> with twice_differentiable():
    ...     q = torch.randn(1, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    ...     outputs = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    """
    enabled = torch.backends.cudnn.enabled
    try:
        # Not cudnn.flags(), which also writes back precisions that the newer API may have set.
        torch.backends.cudnn.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cudnn.enabled = enabled


@contextmanager
def eager() -> Iterator[None]:
    """Inside, what torch.compile has compiled runs as it was written: the backward pass of compiled
    code can be run only once."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:  # nothing is compiled, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad`` with the graph kept, None for unused inputs, and better errors."""
    try:
        return torch.autograd.grad(
            outputs, inputs, weights, retain_graph=True, create_graph=create_graph,
            allow_unused=True,
        )  # fmt: skip
    except RuntimeError as error:
        message = str(error)
        if "modified by an inplace operation" in message:
            raise RuntimeError(
                "data or buffers of this graph were changed in place after the operator was built; "
                "curvature belongs to one point: build a new operator"
            ) from error
        if "backward through the graph a second time" in message:
            raise RuntimeError(
                "the graph of these outputs was freed by an earlier backward pass; pass "
                "retain_graph=True to that one, or build the operator from a fresh forward pass"
            ) from error
        if any(part in message for part in _SELECTIVE):
            raise NotTwiceDifferentiable(
                "a checkpoint of this graph computes other tensors at another backward pass: a "
                "selective checkpoint (context_fn=...), which can be run backward only once, or a "
                "forward pass that changes from call to call; use torch.utils.checkpoint without "
                "context_fn, or none, where curvature is taken. torch said: "
                f"{message.splitlines()[0]}"
            ) from error
        if any(part in message for part in _COMPILED):
            raise NotTwiceDifferentiable(
                "this graph comes from torch.compile, whose backward pass can be run only once. "
                "Call the module itself and not the compiled one, or compute the outputs inside "
                '`with torch.compiler.set_stance("force_eager"):`; an operator that is given a '
                f"forward function does so by itself. torch said: {message.splitlines()[0]}"
            ) from error
        if any(part in message.lower() for part in _NO_SECOND_DERIVATIVE):
            raise NotTwiceDifferentiable(
                "an operation of this model has no second derivative. Fused attention or a cuDNN "
                "RNN: compute the outputs inside `with natgrad.twice_differentiable():`, or hand "
                "over a forward function and data, which does so by itself. Any other: write it "
                f"with differentiable operations. torch said: {message.splitlines()[0]}"
            ) from error
        raise


def many_gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    vectorised: bool,
) -> tuple[Tensor | None, ...]:
    """:func:`gradients` for k weights, stacked along dimension 0 of ``weights`` and of results.

    ``vectorised`` takes one backward pass over all of them by torch.vmap, which autograd Functions
    written in Python need not bear: some fail, some end the process.
    """
    if vectorised:
        # What vmap has no rule for (sparse products, hooks that read a number) goes row by row.
        with suppress(RuntimeError):
            found: tuple[Tensor | None, ...] = torch.autograd.grad(
                outputs, inputs, weights, retain_graph=True, allow_unused=True,
                is_grads_batched=True,
            )  # fmt: skip
            return found
    rows = [gradients(outputs, inputs, each) for each in zip(*weights, strict=True)]
    return tuple(
        None
        if all(piece is None for piece in pieces)
        else torch.stack([torch.zeros_like(x) if p is None else p for p in pieces])
        for x, pieces in zip(inputs, zip(*rows, strict=True), strict=True)
    )
