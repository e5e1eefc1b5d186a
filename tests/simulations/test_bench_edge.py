import pytest

from simulations.bench import edge
from simulations.bench.edge import Used

TORCH = Used(1.0, 2.0, 100)


@pytest.mark.parametrize(
    ("client", "passed"),
    [
        (Used(9.0, 3.0, 125), True),
        (Used(1.0, 3.1, 100), False),
        (Used(1.0, 2.0, 126), False),
    ],
)
def test_verdict_compares_processor_and_memory_with_the_goals(capsys, client, passed):
    assert edge.report({"torch": TORCH, "client": client, "training": Used(9.0, 9.0, 900)}) is passed
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("PASS" if passed else "FAIL")
    assert len(lines) == 6


def test_processes_are_measured_by_themselves():
    held = bytearray(200 * 2**20)  # what this process holds is none of the child's
    small, large = edge.measure("pass"), edge.measure(f"x = bytearray({100 * 2**20})")
    assert len(held) > small.peak
    assert 90 * 2**20 < large.peak - small.peak < 110 * 2**20
    assert 0 < small.processor < small.seconds + 1


def test_a_process_that_fails_is_no_measurement():
    with pytest.raises(RuntimeError, match="exit status 3: raise SystemExit"):
        edge.measure("raise SystemExit(3)")


def test_the_median_is_taken_of_each_number():
    assert edge.median([Used(1.0, 9.0, 5), Used(2.0, 7.0, 6), Used(3.0, 8.0, 1)]) == Used(2.0, 8.0, 5)
