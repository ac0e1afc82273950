"""An end to endless loops that does not depend on the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode

OPERATIONS = 30_000  # more than a bounded step takes on problems of this kit


class Limited(TorchFunctionMode):
    """Inside, the operation of torch numbered ``limit`` raises ``AssertionError``, and each that is
    a multiple of it: who catches the first has the next before them."""

    def __init__(self, limit: int = OPERATIONS) -> None:
        super().__init__()
        self.limit, self.operations = limit, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.operations += 1
        # Not each one after it: leaving no_grad is an operation too.
        assert self.operations % self.limit, f"no end after {self.limit} operations of torch"
        return func(*args, **(kwargs or {}))
