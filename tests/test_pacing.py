"""What a step takes: medians of its parts, and what to lower."""

import time

import pytest

from common import pacing
from common.pacing import Pace, StepTimes


def test_acting_is_told_from_learning(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    pace = Pace()
    assert pace.times(lambda: pytest.fail("nothing to tell")) is None
    for environment, learning in ((0.001, 0.5), (0.002, 0.010), (0.003, 0.011)):
        pace.note(environment, learning)

    def choose():
        clock[0] += 0.004

    assert pace.times(choose) == pytest.approx((4, 2, 7))

    def slow():
        clock[0] += 0.1

    assert pace.times(slow) == pytest.approx((11, 2, 0))  # never more than what it is a part of
    for _ in range(pacing.KEPT):
        pace.note(0.005, 0.020)
    assert pace.times(choose) == pytest.approx((4, 5, 16))


def test_the_line_names_what_to_lower_where_updates_are_most():
    assert StepTimes(1, 2, 17).line(20) == (
        "one online step: act 1 ms, environment 2 ms, update 17 ms (medians), 50 steps/s at most; --utd below 20 makes "
        "updates shorter"
    )
    assert "--utd" not in StepTimes(1, 2, 17).line(1)
    assert "--utd" not in StepTimes(1, 20, 17).line(20)


def test_the_line_names_what_helps_where_environments_are_most():
    assert StepTimes(1, 20, 17).line(20, 4).endswith("steps/s at most; --env-workers 4 may step environments faster")
    assert StepTimes(1, 20, 17).line(20, 1).endswith("at most")
    assert "--env-workers" not in StepTimes(1, 2, 17).line(1, 4)
