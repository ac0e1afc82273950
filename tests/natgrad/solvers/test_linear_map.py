"""What a caller's operator is handed, and by what name it and the vectors are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from natgrad.curvature import Dense
from natgrad.solvers import cg, lanczos, least_squares, sample_space
from natgrad.solvers.linear_map import as_tensor


@pytest.mark.parametrize("b", [np.ones(3), torch.ones(3, dtype=torch.float64)], ids=type)
def test_scipy_is_handed_numpy_vectors_whoever_calls(
    b: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    A = scipy.sparse.csr_array(np.diag([1.0, 2.0, 4.0]))
    kinds, product = set(), type(A).__matmul__

    def multiply(self: Any, vector: Any) -> Any:
        kinds.add(type(vector))
        return product(self, vector)

    monkeypatch.setattr(type(A), "__matmul__", multiply)
    assert cg(A, b).x == pytest.approx([1.0, 0.5, 0.25])
    assert kinds == {np.ndarray}


def test_our_operators_are_handed_torch_vectors_whoever_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds, product = set(), Dense.__matmul__

    def multiply(self: Any, vector: Any) -> Any:
        kinds.add(type(vector))
        return product(self, vector)

    monkeypatch.setattr(Dense, "__matmul__", multiply)
    A = Dense(torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)))
    vectors: tuple[Any, ...] = (np.ones(3), torch.ones(3, dtype=torch.float64))
    for b in vectors:
        assert cg(A, b).x == pytest.approx([1.0, 0.5, 0.25])
    assert kinds == {torch.Tensor}


def test_a_numpy_array_is_copied_in_rows_whatever_its_layout_and_byte_order() -> None:
    values = np.arange(6.0).reshape(3, 2)
    expected = torch.from_numpy(values.copy())
    for array in (values, np.asfortranarray(values), values.astype(">f8"), values[::-1][::-1]):
        found = as_tensor(array, "b", columns=True)
        assert torch.equal(found, expected)
        assert found.is_contiguous()
        found.zero_()
        assert array[2, 1] == 5.0


class Gram:
    def to_dense(self) -> torch.Tensor:
        return torch.eye(2)

    def transpose(self, u: torch.Tensor) -> torch.Tensor:
        return u


def test_what_is_refused_is_called_by_its_name() -> None:
    A, sparse = torch.eye(2), torch.ones(2).to_sparse()
    calls: list[tuple[Any, str]] = [
        (lambda: cg(A, sparse), "b is "),
        (lambda: cg(A, torch.ones(2), x0=sparse), "x0 is "),
        (lambda: least_squares(A).solve(sparse), "r is "),
        (lambda: sample_space(Gram()).solve(sparse), "r is "),
        (lambda: least_squares(A.to_sparse()), "J is "),
        (lambda: cg(A, torch.ones(2), check_every=1.5), "check_every must be an integer"),  # type: ignore[arg-type]
        (lambda: lanczos(A, torch.ones(2), search=1.5), "search must be an integer"),  # type: ignore[arg-type]
    ]
    for call, message in calls:
        with pytest.raises(TypeError, match=f"^{message}"):
            call()
