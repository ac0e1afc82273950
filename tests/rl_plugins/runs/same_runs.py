"""What two runs have in common where they are the same run."""

import csv

import torch


def untimed(path):
    """The rows of a table, without the columns that hold times."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def assert_same(first, second):
    """Equal in structure, in kinds, and bit for bit; a NaN is equal to a NaN."""
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert type(first) is type(second)
        assert first == second or (first != first and second != second)
