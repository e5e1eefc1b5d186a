"""The table of attacks: its clients lie in messages, it goes on where it stopped, and it tells what it found."""

import json
from dataclasses import replace

import pytest

from heterofl_flwr.data import load_dataset
from simulations import robust
from simulations.robust import Cell, run_cell

CELL = Cell("digits", "a1-e9", "mean", "none", 0, 0)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    settings = {**robust.COMMON, "num-rounds": 2, "model.hidden": "32,64"}
    monkeypatch.setattr(robust, "COMMON", settings)


def test_each_attack_changes_the_model_and_no_reply_is_refused():
    found = [run_cell(CELL), *(run_cell(replace(CELL, attack=attack, attackers=2)) for attack in robust.ATTACKS)]
    assert [own["refused"] for own in found] == [0] * 5
    assert len({(own["largest"], own["smallest"]) for own in found}) == 5


def test_labels_are_wrong_for_attackers_alone():
    task = robust.load_task({**robust.COMMON, "data.name": "digits"})
    truth = load_dataset("digits").train.targets
    robust.prepare(task, replace(CELL, attack="labels", attackers=1))
    own = task.partitions(robust.CLIENTS).train[0]
    assert (task.train.targets[own] == 9 - truth[own]).all()
    assert (task.train.targets != truth).sum() == len(own)
    robust.prepare(task, CELL)
    assert (task.train.targets == truth).all()


def test_what_is_done_is_not_repeated(tmp_path, monkeypatch):
    chosen = [CELL, replace(CELL, mean="trimmed"), replace(CELL, seed=1)]
    monkeypatch.setattr(robust, "cells", lambda data: iter(chosen))
    monkeypatch.setattr(robust, "run_cell", lambda own: {"largest": 0.5 + 0.1 * own.seed, "smallest": 0.25})
    assert robust.main(["--out", str(tmp_path)]) == 0
    monkeypatch.setattr(robust, "run_cell", None)
    assert robust.main(["--out", str(tmp_path)]) == 0
    assert len([json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]) == 3
