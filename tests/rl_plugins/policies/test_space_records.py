"""A space written down is the same space again."""

import io

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl_plugins import UsageError
from rl_plugins.policies.space_records import space_of, space_record, spaces_record

SPACES = [
    spaces.Box(-1, np.inf, (2, 3), np.float32),
    spaces.Box(np.array([-1.0, 1e-300]), np.array([1e300, 2.0]), dtype=np.float64),
    spaces.Box(0, 255, (9, 9, 3), np.uint8),
    spaces.Box(-5, 5, (), np.float16),
    spaces.Discrete(4, start=-1),
    spaces.Discrete(3, dtype=np.int32),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 1], [0, 2]])),
    spaces.MultiBinary(5),
    spaces.MultiBinary([2, 2]),
    spaces.Dict(b=spaces.Discrete(2), a=spaces.Tuple([spaces.MultiBinary(1), spaces.Discrete(9)])),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_round_trip_through_a_file(space):
    file = io.BytesIO()
    torch.save(space_record(space), file)
    file.seek(0)
    again = space_of(torch.load(file, weights_only=True))
    assert again == space
    assert getattr(again, "dtype", None) == getattr(space, "dtype", None)


def test_other_spaces_and_damaged_records_are_named():
    text = spaces.Text(3)
    with pytest.raises(UsageError, match="Text are not supported"):
        space_record(text)
    assert spaces_record(text, spaces.Discrete(2)) == {}
    for record in (
        {},
        {"kind": "Sphere"},
        {"kind": "Discrete", "n": -1, "start": 0, "dtype": "i8"},
    ):
        with pytest.raises(UsageError, match="spaces are damaged"):
            space_of(record)
