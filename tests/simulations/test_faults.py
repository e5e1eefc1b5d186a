"""A small share of what ``python -m simulations.faults`` tries, and that it would find a fault if there were one."""

import pytest
import torch

from simulations.faults import __main__ as faults
from simulations.faults.__main__ import to_markdown
from simulations.faults.cells import Cells, assess
from simulations.faults.fault import MOMENTS
from simulations.faults.kinds import KINDS, names_of

pytestmark = pytest.mark.slow

DEADLINE = 120.0  # nothing here waits for it

TRIED = (("reply-late", "during"), ("node-leaves", "during"), ("disk-short", "before"))


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return Cells(tmp_path_factory.mktemp("cells"), deadline=DEADLINE, seed=1)


@pytest.fixture(scope="module")
def outcomes(cells):
    return {(kind, moment): cells.run(kind, moment) for kind, moment in TRIED}


@pytest.mark.parametrize("cell", TRIED, ids="-".join)
def test_a_fault_costs_no_model_and_no_more_than_a_round(outcomes, cell):
    outcome = outcomes[cell]
    assert outcome.faults == []
    assert outcome.model == "equal"
    assert 0 <= outcome.seconds < DEADLINE


def test_the_table_has_each_cell(outcomes):
    found = list(outcomes.values())
    table = to_markdown(found)
    assert all(f"| {kind} | {KINDS[kind].what} | equal | " in table for kind, _ in TRIED)
    assert "3 cells of 3 kinds of faults: 3 as promised, 0 not." in table


def test_what_is_not_as_promised_is_found(cells, outcomes):
    fault = cells.fault("disk-short", "before")
    expected = cells.expected(fault)
    assert assess(fault, expected, []).good
    other = {**expected, "a/blocks.0.bias": torch.zeros(1)}
    assert assess(fault, other, []).faults == ["the model is other"]
    fault.note("trained", 1)  # for the second time, and so was the round that the full disk cost
    assert assess(fault, expected, []).faults == ["2 rounds were lost"]
    history = fault.run / "history.jsonl"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:-1]))
    (fault.run / "models" / "e.safetensors").write_bytes(b"half")
    found = assess(fault, expected, []).faults
    assert "the history has rounds [1, 2, 3]" in found
    assert "the model is lost" in found


def test_each_kind_has_what_it_needs():
    tried, deployed = (names_of(deployed=own) for own in (False, True))
    assert len(tried) + len(deployed) >= 12
    assert {*tried, *deployed} == KINDS.keys() - {"none"}
    assert len(MOMENTS) == 3


def test_words_that_mean_nothing_are_refused(tmp_path, capsys):
    assert faults.main(["--kinds", "no-such"]) == 2
    assert "--kinds: found no-such, expected some of client-killed" in capsys.readouterr().err
    assert faults.main(["--moments", "later"]) == 2
    (tmp_path / "there").touch()
    with pytest.raises(SystemExit, match="is not empty"):
        faults.main(["--kinds", "disk-full", "--work", str(tmp_path)])


def test_the_kinds_are_listed(capsys):
    assert faults.main(["--list"]) == 0
    assert "disk-full           no byte fits on the disk" in capsys.readouterr().out
