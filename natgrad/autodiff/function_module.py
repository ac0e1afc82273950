"""A pure function of its parameters, as torch.func users write it, in the form of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_map, tree_unflatten

# What operators take: parameters in an order, or a mapping for functions of (mapping, data).
Parameters = Iterable[Tensor] | Mapping[str, Tensor]


class FunctionModule(nn.Module):
    """The module x ↦ ``function(parameters, x)``, for operators and optimizers that take modules.

    Its parameters share memory with the tensors that are given, so that a step of an optimizer
    changes these too.

    Parameters
    ----------
    function
        Called with the parameters, in the structure that they were given in, and the inputs.
    parameters
        A mapping, tuple or list of tensors, nested if wanted, or one tensor: what ``function``
        takes first. Where no floating-point tensor requires gradients, all are trained; else those
        that do, and the others are buffers, as integer and bool tensors are: pass the buffers that
        a model writes to (BatchNorm's, spectral norm's) in the mapping. ``nn.Parameter`` objects
        are registered themselves, so that modules which own them see the same ``.grad``.

    Raises
    ------
    TypeError
        If a leaf is no tensor.
    ValueError
        If a leaf was computed from others, so that it cannot be a parameter.

    Examples
    --------
    >>> import torch
    >>> def line(parameters, x):
    ...     return x @ parameters["slope"] + parameters["offset"]
    >>> module = FunctionModule(line, {"slope": torch.ones(2), "offset": torch.zeros(())})
    >>> module(torch.ones(3, 2)).tolist(), [name for name, _ in module.named_parameters()]
    ([2.0, 2.0, 2.0], ['slope', 'offset'])
    """

    def __init__(self, function: Callable[..., Any], parameters: Any) -> None:
        super().__init__()
        self._function = function
        leaves, structure = tree_flatten_with_path(parameters)
        given = [leaf for _, leaf in leaves]
        if not given or not all(isinstance(leaf, Tensor) for leaf in given):
            kinds = sorted({type(leaf).__name__ for leaf in given if not isinstance(leaf, Tensor)})
            raise TypeError(
                f"parameters must be tensors in a mapping, tuple or list, got {kinds or 'nothing'}"
            )
        # The structure with the places of its tensors in it: it is copied and saved as plain data.
        self._structure = tree_unflatten(list(range(len(leaves))), structure)
        every = not any(leaf.requires_grad for leaf in given)
        self._places = [
            _register(self, [_text(key) for key in path], leaf, trained=every or leaf.requires_grad)
            for path, leaf in leaves
        ]

    def tree(self) -> Any:
        """Return the parameters as they are now, in the structure that they were given in."""
        return tree_map(lambda place: getattr(*self._places[place]), self._structure)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return ``function(parameters, *inputs, **named)``.

        Parameters
        ----------
        *inputs, **named
            What the function takes after its parameters.
        """
        return self._function(self.tree(), *inputs, **named)


def resolved(source: Any, parameters: Parameters) -> tuple[Any, Iterable[Tensor]]:
    """The source and the parameters of an operator in a form without mappings.

    A function of a mapping and the data becomes one of the data; of outputs that are evaluated
    already the mapping's values are the parameters.
    """
    if not isinstance(parameters, Mapping):
        return source, parameters
    if not callable(source):
        return source, parameters.values()
    module = FunctionModule(source, parameters)
    return module, module.parameters()


def _text(key: Any) -> str:
    """The name of one step of a path: a key, an index, an attribute."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _register(
    root: nn.Module, path: list[str], leaf: Tensor, *, trained: bool
) -> tuple[nn.Module, str]:
    """Register a tensor under a dotted name, in submodules as state_dict() names them."""
    *modules, name = ".".join(path).split(".") if path else ["value"]
    owner = root
    for part in modules:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    number = leaf.dtype.is_floating_point or leaf.dtype.is_complex
    if not number or not (trained or isinstance(leaf, nn.Parameter)):
        owner.register_buffer(name, leaf)
        return owner, name
    if leaf.grad_fn is not None:
        raise ValueError(
            f"parameter {'.'.join(path)} was computed from others: pass parameter.detach(), or "
            "compute it inside the function"
        )
    if not isinstance(leaf, nn.Parameter) or (trained and not leaf.requires_grad):
        leaf = nn.Parameter(leaf.detach())
    owner.register_parameter(name, leaf)
    return owner, name
