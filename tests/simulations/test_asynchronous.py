"""The comparison of rounds with steps: its times and accuracies by hand, a short run, and nothing is run twice."""

import json
import math

import pytest

from heterofl_flwr import Buffered
from simulations import asynchronous
from simulations.asynchronous import Cell, Study, at_time, run_cell, seconds_to

CURVE = [
    {"round": number, "simulated": seconds, **dict.fromkeys("abcde", share)}
    for number, seconds, share in [(1, 1.0, 0.1), (2, 2.0, 0.2), (3, 4.0, 0.6), (4, 8.0, 1.0)]
]


@pytest.mark.parametrize(("accuracy", "expected"), [(30.0, 4.0), (30.1, 8.0), (60.0, 8.0), (60.1, math.inf)])
def test_the_time_to_an_accuracy_is_that_of_means_of_three(accuracy, expected):
    assert seconds_to(CURVE, accuracy) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, 10.0), (3.0, 40.0), (5.0, 70.0), (8.0, 100.0)])
def test_accuracies_between_evaluations_are_on_a_line(seconds, expected):
    assert at_time(CURVE, seconds) == pytest.approx(dict.fromkeys("abcde", expected))


def test_steps_are_evaluated_after_as_many_replies_as_rounds(monkeypatch):
    monkeypatch.setattr(asynchronous, "EVERY", 1)
    monkeypatch.setattr(asynchronous, "SETTINGS", {**asynchronous.SETTINGS, "train.epochs": 1, "model.hidden": "4"})
    steps = Buffered(size=5, concurrency=10)
    study = Study("digits", (0,), {"rounds": (0.0, Buffered()), "steps": (0.0, steps)})
    rounds, found = (run_cell(Cell("iid", "alike", 0, way), study, rounds=2) for way in study.methods)
    assert [own["round"] for own in rounds] == [1, 2]
    assert [own["round"] for own in found] == [2, 4, 6]
    assert found[1]["simulated"] < rounds[1]["simulated"]
    assert all(0 < own[level] < 1 for own in (*rounds, *found) for level in "abcde")


def test_what_is_done_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(asynchronous, "run_cell", lambda cell, study: CURVE)
    assert asynchronous.main(["--out", str(tmp_path)]) == 0
    monkeypatch.setattr(asynchronous, "run_cell", None)
    assert asynchronous.main(["--out", str(tmp_path)]) == 0
    assert len([json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]) == 4 * 2 * 2 * 3
