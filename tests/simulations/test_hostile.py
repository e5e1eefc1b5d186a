"""A small share of what ``python -m simulations.hostile`` sends, and that it would find a fault if there were one."""

from collections import Counter

import pytest

from heterofl_flwr.core import aggregate
from simulations import hostile
from simulations.hostility import answers, replies


@pytest.fixture(scope="module")
def found():
    outcomes = {}
    for row, outcome in hostile.trials(2 * len(replies.KINDS) * len(replies.UPLOADS), seed=1):
        outcomes.setdefault(row, Counter())[outcome] += 1
    return outcomes


def test_answers_of_bad_faith_are_refused_or_harmless(found):
    assert {outcome for counts in found.values() for outcome in counts} == {"refused", "harmless"}


def test_each_kind_is_tried_on_each_target(found):
    expected = {(f"reply in {upload}", kind) for upload in replies.UPLOADS for kind in replies.KINDS}
    assert expected <= found.keys()
    assert {what for what, _ in found} >= {*answers.KINDS, "settings", "mix", "checkpoint", "run folder"}


@pytest.mark.parametrize("upload", replies.UPLOADS)
def test_good_replies_count_and_those_of_other_shapes_do_not(found, upload):
    for kind in ("nothing", "keys", "labels on arrays", "twice"):
        assert set(found[f"reply in {upload}", kind]) == {"harmless"}
    for kind in ("shapes", "claims", "entries", "far", "headers", "stypes", "sizes", "of before", "none"):
        assert set(found[f"reply in {upload}", kind]) == {"refused"}


def test_equal_seeds_give_equal_outcomes():
    first, second = (list(hostile.trials(30, seed=2)) for _ in range(2))
    assert first == second


def test_a_fault_is_found_and_ends_the_command_with_status_1(monkeypatch, capsys):
    monkeypatch.setattr(aggregate, "check_reply", lambda *arguments: None)
    monkeypatch.setattr(aggregate, "check_norm", lambda *arguments: None)
    assert hostile.main(["--replies", str(len(replies.KINDS) * 3)]) == 1
    printed = capsys.readouterr().out
    assert "crashed: " in printed or "changed: " in printed


def test_a_clean_run_ends_with_status_0_and_a_table(capsys):
    assert hostile.main(["--replies", "24"]) == 0
    assert "reply in int8" in capsys.readouterr().out
