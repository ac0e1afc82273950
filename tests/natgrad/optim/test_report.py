"""A report's numbers, as loggers take them."""

import json
import math

import pytest

from natgrad.optim import OptimizerReport, OptimizerStatus


def test_scalars_are_numbers_that_were_measured(name, train):
    run = train(name)
    run.step()
    report = run.optimizer.last_step
    scalars = report.scalars()
    assert json.loads(json.dumps(scalars, allow_nan=False)) == scalars
    assert all(type(value) is float for value in scalars.values())
    assert scalars["loss"] == report.loss
    assert scalars["accepted"] == (report.status is OptimizerStatus.ACCEPTED)
    for field, value in vars(report).items():
        measured = isinstance(value, (int, float)) and not math.isnan(value)
        assert (field in scalars) is measured


@pytest.mark.parametrize("status", OptimizerStatus)
def test_what_was_not_measured_is_left_out(status):
    scalars = OptimizerReport(status).scalars()
    assert scalars.pop("accepted") == (status is OptimizerStatus.ACCEPTED)
    assert scalars == {"iterations": 0, "products": 0, "evaluations": 0, "step_scale": 0}
