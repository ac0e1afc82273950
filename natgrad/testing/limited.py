"""A bound on endless loops that does not depend on the machine's speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode

OPERATIONS = 30_000  # a bounded step on the kit's problems takes fewer


class Limited(TorchFunctionMode):
    """A context in which a loop over operations of torch ends with ``AssertionError``.

    Parameters
    ----------
    limit
        The number of the operation that raises, and of each multiple of it, so that a loop which
        catches the first error ends by a later one. Raise it for whole minimisations.
    """

    def __init__(self, limit: int = OPERATIONS) -> None:
        super().__init__()
        self.limit, self.operations = limit, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.operations += 1
        # Only at multiples: after the error, leaving no_grad is an operation, and must not raise.
        assert self.operations % self.limit, f"no end after {self.limit} operations of torch"
        return func(*args, **(kwargs or {}))
