"""A small share of what ``python -m simulations.fuzz`` sends, and that it would find a fault if there were one."""

from collections import Counter
from dataclasses import replace

import pytest

from heterofl_flwr.core import counting_mean as aggregate
from heterofl_flwr.federation.records import RoundRecord
from simulations.fuzz import __main__ as hostile
from simulations.fuzz import queries, replies
from simulations.fuzz.attacks import ATTACKS, LIES, REFUSED
from simulations.fuzz.forgeries import FORGERIES
from simulations.fuzz.wire import CASES, Case, Result, Wire


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
    assert {what for what, _ in found} >= {*queries.KINDS, "settings", "mix", "checkpoint", "run folder"}


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
    monkeypatch.setattr(aggregate, "check_reply", lambda *arguments, **limits: None)
    assert hostile.main(["--replies", str(len(replies.KINDS) * 3)]) == 1
    printed = capsys.readouterr().out
    assert "crashed: " in printed or "changed: " in printed


def test_a_clean_run_ends_with_status_0_and_a_table(capsys):
    assert hostile.main(["--replies", "24"]) == 0
    assert "reply in int8" in capsys.readouterr().out


def test_replies_are_forged_byte_by_byte_in_every_way(found):
    expected = {(f"bytes of {upload}", kind) for upload in replies.UPLOADS for kind in replies.OBJECTS}
    assert expected <= found.keys()
    for upload in replies.UPLOADS:
        assert set(found[f"bytes of {upload}", "nothing"]) == set(found[f"bytes of {upload}", "again"]) == {"harmless"}
        for kind in ("late", "old, as new", "others' names", *FORGERIES):
            assert set(found[f"bytes of {upload}", kind]) == {"refused"}


def test_every_attack_over_the_wire_is_refused_or_counts():
    assert all(attack.silent_from for attack in REFUSED.values())
    assert not any(attack.silent_from for attack in LIES.values())
    named = {name for cases in CASES.values() for case in cases for name in case.attacks}
    assert named == ATTACKS.keys()


def test_a_case_whose_promise_is_broken_says_so():
    case = CASES["bombs"][1]
    record = RoundRecord(server_round=2, seconds=case.deadline + 6, learning_rate=0.1, rates={0: 1.0})
    bad = Result(case=case, status="finished:failed", history=[record], server=111, superlink=1, equal=False)
    assert len(bad.faults(100)) == 4
    good = replace(bad, status="finished:completed", history=[replace(record, seconds=1.0)], server=110, equal=True)
    assert good.faults(100) == []
    assert "| equal |" in good.row


@pytest.mark.deployment
@pytest.mark.slow
def test_hostile_nodes_over_tls_leave_the_model_as_when_they_are_silent(tmp_path):
    attacks = ["objects withheld", "a config that never closes", "one chunk many times", "an old reply again"]
    result = Wire(tmp_path).run(Case(name="some", attacks=attacks, honest=2, own_supernodes=True, deadline=30.0))
    assert result.faults(0) == []
    assert result.equal
    assert set(result.history[0].failures) == {2, 3, 4}
    assert set(result.history[1].failures) == set(result.history[2].failures) == {2, 3, 4, 5}


def test_a_group_that_nobody_knows_is_named():
    with pytest.raises(SystemExit, match="unknown"):
        hostile.main(["--wire", "unknown"])
