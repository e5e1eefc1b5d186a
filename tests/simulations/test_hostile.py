"""A small share of what ``python -m simulations.fuzz`` sends, and that it would find a fault if there were one."""

from dataclasses import replace
from itertools import groupby

import pytest

from heterofl_flwr.core import counting_mean as aggregate
from heterofl_flwr.federation.records import RoundRecord
from simulations.fuzz import __main__ as hostile
from simulations.fuzz.attacks import ATTACKS, LIES, REFUSED
from simulations.fuzz.forgeries import FORGERIES
from simulations.fuzz.mutations import MUTATIONS
from simulations.fuzz.replies import OBJECTS, UPLOADS
from simulations.fuzz.wire import CASES, Result


@pytest.fixture(scope="module")
def tried():
    """Try each kind once, in each form of replies."""
    return list(hostile.trials(max(len(MUTATIONS), len(OBJECTS)) * len(UPLOADS), seed=1))


@pytest.fixture(scope="module")
def found(tried):
    """Return all outcomes of each row."""
    return {row: {outcome for _, outcome in own} for row, own in groupby(sorted(tried), lambda one: one[0])}


def test_what_is_forged_in_each_way_is_refused_or_harmless(found):
    assert set().union(*found.values()) == {"refused", "harmless"}
    for upload in UPLOADS:
        assert {(f"reply in {upload}", kind) for kind in MUTATIONS} <= found.keys()
        assert {(f"bytes of {upload}", kind) for kind in OBJECTS} <= found.keys()
    others = {"capability", "moments", "posteriors", "settings", "mix", "checkpoint", "run folder", "data in images"}
    assert others <= {what for what, _ in found}


@pytest.mark.parametrize("upload", UPLOADS)
def test_good_replies_count_and_those_of_other_shapes_do_not(found, upload):
    for target, outcome, kinds in (
        ("reply in", "harmless", ("nothing", "keys", "labels on arrays")),
        ("reply in", "refused", ("shapes", "claims", "entries", "far", "headers", "stypes", "sizes")),
        ("bytes of", "harmless", ("nothing", "again")),
        ("bytes of", "refused", ("late", "old, as new", "others' names", *FORGERIES)),
    ):
        assert {kind for kind in kinds if found[f"{target} {upload}", kind] != {outcome}} == set()


def test_equal_seeds_give_equal_outcomes(tried):
    again = list(hostile.trials(30, seed=1))
    for target in {target for (target, _), _ in again}:
        first, second = ([one for one in some if one[0][0] == target] for some in (tried, again))
        assert first[: len(second)] == second


def test_a_fault_is_found_and_ends_the_command_with_status_1(monkeypatch, capsys):
    monkeypatch.setattr(aggregate, "check_reply", lambda *arguments, **limits: None)
    assert hostile.main(["--replies", str(len(MUTATIONS))]) == 1
    printed = capsys.readouterr().out
    assert "crashed: " in printed or "changed: " in printed


def test_a_clean_run_ends_with_status_0_and_a_table(monkeypatch, capsys, tried):
    monkeypatch.setattr(hostile, "trials", lambda number, seed: iter(tried))
    assert hostile.main([]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["reply", "in", "int8", "nothing", "1", "0", "1", "0", "0"] in lines
    assert any(line[:2] == ["all", str(len(tried))] for line in lines)


def test_every_attack_over_the_wire_is_refused_or_counts():
    assert all(attack.silent_from for attack in REFUSED.values())
    assert not any(attack.silent_from for attack in LIES.values())
    assert {name for cases in CASES.values() for case in cases for name in case.attacks} == ATTACKS.keys()


def test_a_case_whose_promise_is_broken_says_so():
    case = CASES["bombs"][1]
    record = RoundRecord(server_round=2, seconds=case.deadline + 6, learning_rate=0.1, rates={0: 1.0})
    bad = Result(case=case, status="finished:failed", history=[record], server=111, superlink=1, equal=False)
    assert len(bad.faults(100)) == 5
    record = replace(record, seconds=1.0, failures=dict.fromkeys(range(4, 54), "refused"))
    good = replace(bad, status="finished:completed", history=[record], server=110, equal=True)
    assert good.faults(100) == []
    assert "| equal |" in good.row
    alone = {partition: "no reply in time" for partition in record.failures if partition % 5 == 4}
    silent = replace(good, history=[replace(record, failures={**record.failures, **alone})])
    assert silent.faults(100) == [f"nothing came of {case.attacks[0]}"]


def test_a_group_that_nobody_knows_is_named(capsys):
    assert hostile.main(["--wire", "unknown"]) == 2
    assert "'unknown'; expected one of refused, stalls" in capsys.readouterr().err
