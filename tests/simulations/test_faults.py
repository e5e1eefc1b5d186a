"""A small share of what ``python -m simulations.faults`` tries, and that it would find a fault if there were one."""

import pytest
import torch

from simulations.faults import __main__ as faults
from simulations.faults.cells import Cells, assess
from simulations.faults.fault import MOMENTS
from simulations.faults.kinds import KINDS, names_of

DEADLINE = 120.0  # nothing here waits for it
TRIED = (("node-leaves", "during"), ("disk-short", "before"))


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return Cells(tmp_path_factory.mktemp("cells"), deadline=DEADLINE, seed=1)


@pytest.fixture(scope="module")
def outcomes(cells):
    return {cell: cells.run(*cell) for cell in TRIED}


@pytest.mark.slow
@pytest.mark.parametrize("cell", TRIED, ids="-".join)
def test_a_fault_costs_no_model_and_no_more_than_a_round(outcomes, cell):
    assert outcomes[cell].faults == []
    assert outcomes[cell].model == "equal"
    assert 0 <= outcomes[cell].seconds < DEADLINE


@pytest.mark.slow
def test_the_table_has_each_cell(outcomes):
    table = faults.to_markdown(list(outcomes.values()))
    assert all(f"| {kind} | {KINDS[kind].what} | equal | " in table for kind, _ in TRIED)
    assert "2 cells of 2 kinds of faults: 2 as promised, 0 not." in table


@pytest.mark.slow
def test_what_is_not_as_promised_is_found(cells, outcomes):
    fault = cells.fault("disk-short", "before")
    expected = cells.expected(fault)
    assert assess(fault, expected, []).faults == []
    other = {**expected, "a/blocks.0.bias": torch.zeros(1)}
    assert assess(fault, other, []).faults == ["the model is other"]
    fault.note("trained", 1)  # for the second time, and so was the round that the full disk cost
    assert assess(fault, expected, []).faults == ["2 rounds were lost"]
    history = fault.run / "history.jsonl"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:-1]))
    (fault.run / "models" / "e.safetensors").write_bytes(b"half")
    found = assess(fault, expected, []).faults
    assert {"the history has rounds [1, 2, 3]", "the model is lost"} <= set(found)


def test_each_kind_has_what_it_needs():
    tried, deployed = (names_of(deployed=own) for own in (False, True))
    assert len(tried) + len(deployed) >= 12
    assert {*tried, *deployed} == KINDS.keys() - {"none"}
    assert len(MOMENTS) == 3


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--kinds", "no-such"], "no kind 'no-such'; expected one of "),
        (["--moments", "later"], "no moment 'later'; expected one of before, during, after"),
        (["--kinds", "disk-full", "--work", "."], ". is not empty: name another folder with --work"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, error, capsys):
    assert faults.main(words) == 2
    assert error in capsys.readouterr().err


def test_the_kinds_are_listed(capsys):
    assert faults.main(["--list"]) == 0
    assert "disk-full           no byte fits on the disk" in capsys.readouterr().out
