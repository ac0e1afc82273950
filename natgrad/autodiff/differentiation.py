"""Gradients from a graph that is kept, and errors that name the cure."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# Parts of torch's error messages: for fused kernels and cuDNN's RNNs,
_NO_SECOND_DERIVATIVE = ("is not implemented", "double backward")
# for selective checkpoints (context_fn=...), in torch 2.6 by the recomputed tensors,
_SELECTIVE_CHECKPOINT = (
    "backward an extra time",
    "not found in storage",
    "Recomputed values for the following tensors",
    "number of tensors was saved during the original forward",
)
# and for the backward passes of torch.compile.
_COMPILED = ("donated buffers", "aot_autograd does not currently support double backward")


class NotTwiceDifferentiable(RuntimeError):
    """The backward pass of a graph is not the differentiable linear map that products need.

    Causes are a fused kernel without a second derivative, a custom autograd Function, a hook on an
    activation, or a reentrant checkpoint; the message names the one that was found.
    """


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run attention and recurrent layers by kernels that have second derivatives.

    Fused attention, and cuDNN's LSTM, GRU and RNN, can be differentiated only once, while an
    operator's products differentiate twice. An operator built from a forward function falls back to
    this context by itself. Where you pass outputs to an operator, compute them inside it.

    Examples
    --------
    >>> with twice_differentiable():
    ...     q = torch.randn(1, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    ...     outputs = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    """
    enabled = torch.backends.cudnn.enabled
    try:
        # cudnn.flags() would also write back precisions, which the newer API may have changed.
        torch.backends.cudnn.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cudnn.enabled = enabled


@contextmanager
def eager() -> Iterator[None]:
    """Run code under torch.compile uncompiled: a compiled backward pass can run only once."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:  # nothing is compiled; set_stance would import dynamo, which takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def without_hooks(hooks: Iterable[dict[int, Any]], parameters: Iterable[Tensor]) -> Iterator[None]:
    """Run backward passes without the ``hooks`` of modules and those of ``parameters``.

    Such hooks clip or log the gradients of a training step, while curvature is that of the model.
    They are put back afterwards; no other code runs meanwhile.
    """
    emptied = [each for each in hooks if each]
    emptied += [each for p in parameters if (each := getattr(p, "_backward_hooks", None))]
    copies = [dict(each) for each in emptied]
    try:
        for each in emptied:
            each.clear()
        yield
    finally:
        for each, copy in zip(emptied, copies, strict=True):
            each.update(copy)


def gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Call ``torch.autograd.grad`` with the graph kept, None for unused inputs, clearer errors.

    Parameters
    ----------
    outputs
        The tensors to differentiate.
    inputs
        The tensors to differentiate in.
    weights
        One cotangent for each output, of its shape; None for scalar outputs.
    create_graph
        Whether the gradients carry a graph of their own.

    Raises
    ------
    NotTwiceDifferentiable
        If an operation, a selective checkpoint or compiled code cannot be differentiated again.
    RuntimeError
        If a tensor of the graph was changed in place, or the graph was freed.
    """
    try:
        return torch.autograd.grad(
            outputs,
            inputs,
            weights,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
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
        if any(part in message for part in _SELECTIVE_CHECKPOINT):
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
    """Compute :func:`gradients` for k weights at once.

    Parameters
    ----------
    outputs, inputs
        As in :func:`gradients`.
    weights
        k cotangents for each output, stacked along dimension 0; results are stacked the same way.
    vectorised
        Whether to take one backward pass over all k by torch.vmap. Not for graphs with autograd
        Functions written in Python: under vmap some of them fail, some end the process.
    """
    if vectorised:
        # vmap has no rule for sparse products or hooks that read a number: take row by row then.
        with suppress(RuntimeError):
            found: tuple[Tensor | None, ...] = torch.autograd.grad(
                outputs,
                inputs,
                weights,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
            return found
    rows = [gradients(outputs, inputs, each) for each in zip(*weights, strict=True)]
    return tuple(
        None
        if all(piece is None for piece in pieces)
        else torch.stack([torch.zeros_like(x) if p is None else p for p in pieces])
        for x, pieces in zip(inputs, zip(*rows, strict=True), strict=True)
    )
