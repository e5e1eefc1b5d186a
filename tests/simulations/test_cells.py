"""The comparisons of rounds with steps, and of attacks: what they compute, and that nothing is run twice."""

import math
from dataclasses import replace

import pytest

from heterofl_flwr import Buffered
from heterofl_flwr.data import load_dataset
from simulations import asynchronous, robust
from simulations.asynchronous import Cell, Study, at_time, run_cell, seconds_to, share_of_time

CURVE = [
    {"round": number, "simulated": seconds, **dict.fromkeys("abcde", share)}
    for number, seconds, share in [(1, 1.0, 0.1), (2, 2.0, 0.2), (3, 4.0, 0.6), (4, 8.0, 1.0)]
]


@pytest.mark.parametrize(("accuracy", "expected"), [(30.0, 4.0), (30.1, 8.0), (60.0, 8.0), (60.1, math.inf)])
def test_the_time_to_an_accuracy_is_that_of_means_of_three(accuracy, expected):
    assert seconds_to(CURVE, accuracy) == expected


@pytest.mark.parametrize(("rounds", "expected"), [(4, "1.00"), (3, "> 0.50")])
def test_an_accuracy_that_a_run_did_not_reach_has_the_share_of_time_at_its_end(rounds, expected):
    assert share_of_time(CURVE[:rounds], CURVE) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, 10.0), (3.0, 40.0), (5.0, 70.0), (8.0, 100.0)])
def test_accuracies_between_evaluations_are_on_a_line(seconds, expected):
    assert at_time(CURVE, seconds) == pytest.approx([expected] * 5)


@pytest.mark.slow
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


CELL = robust.Cell("digits", "a1-e9", "mean", "none", 0, 0)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    settings = {**robust.COMMON, "num-rounds": 2, "model.hidden": "32,64", "train.batch-size": 50}
    monkeypatch.setattr(robust, "COMMON", settings)


@pytest.mark.slow
def test_each_attack_changes_the_model_and_no_reply_is_refused():
    found = [
        robust.run_cell(CELL),
        *(robust.run_cell(replace(CELL, attack=attack, attackers=2)) for attack in robust.ATTACKS),
    ]
    assert [own["refused"] for own in found] == [0] * 5
    assert len({(own["largest"], own["smallest"]) for own in found}) == 5


def test_labels_are_wrong_for_attackers_alone():
    task = robust.load_workload({**robust.COMMON, "data.name": "digits"})
    truth = load_dataset("digits").train.targets
    robust.prepare(task, replace(CELL, attack="labels", attackers=1))
    own = task.partitions(robust.CLIENTS).train[0]
    assert (task.train.targets[own] == 9 - truth[own]).all()
    assert (task.train.targets != truth).sum() == len(own)
    robust.prepare(task, CELL)
    assert (task.train.targets == truth).all()


@pytest.mark.parametrize(("program", "found"), [(asynchronous, CURVE), (robust, {"largest": 0.5, "smallest": 0.25})])
def test_what_is_done_is_not_repeated(tmp_path, monkeypatch, program, found):
    monkeypatch.setattr(program, "run_cell", lambda *_: found)
    assert program.main(["--out", str(tmp_path)]) == 0
    lines = (tmp_path / "cells.jsonl").read_text()
    monkeypatch.setattr(program, "run_cell", None)
    assert program.main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "cells.jsonl").read_text() == lines != ""
