"""Hostile SuperNodes over TLS: a few of those that ``python -m simulations.fuzz --wire`` lets join."""

import pytest

from simulations.fuzz.wire import Case, run_case

pytestmark = [pytest.mark.deployment, pytest.mark.slow]


def test_they_leave_the_model_as_when_they_are_silent(tmp_path):
    attacks = ["objects withheld", "a config that never closes", "one chunk many times", "an old reply again"]
    # Flower starts a process for each message to a good node: here for two instructions to train, and a query.
    few = {"model.norm": "none", "evaluate.every": 0}
    case = Case(name="some", attacks=attacks, honest=1, own_supernodes=True, rounds=2, deadline=30.0, settings=few)
    result = run_case(case, tmp_path)
    assert result.faults(0) == []
    assert result.equal
    assert [set(record.failures) for record in result.history] == [{1, 2, 3}, {1, 2, 3, 4}]
