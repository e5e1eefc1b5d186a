"""Out of memory is recognised, and its level and bytes named."""

import pytest

from heterofl_flwr.app.launch import memory
from heterofl_flwr.methods.callbacks import RoundRecord

CUDA = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB"


def record(rates, failures) -> RoundRecord:
    return RoundRecord(server_round=3, seconds=1.0, learning_rate=0.1, rates=rates, failures=failures)


def test_a_round_names_the_largest_level_and_its_bytes():
    found = memory.in_round(record({0: 0.5, 1: 1.0, 2: 1.0}, {0: CUDA, 1: CUDA.replace("2.50", "9.75"), 2: "NaN"}))
    assert str(found) == "a client of level a ran out of memory; it asked for 9.75 GiB more"


def test_other_failures_are_none_of_it():
    assert memory.in_round(record({0: 1.0}, {0: "reply refused: NaN"})) is None
    assert memory.in_round(record({0: 1.0}, {})) is None


@pytest.mark.parametrize(
    "line",
    [
        CUDA,
        "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
        "MemoryError",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
    ],
)
def test_a_log_tells_of_it_in_many_words(line):
    assert memory.in_log(["round 1", line]) is not None


def test_a_log_names_what_it_can():
    assert str(memory.in_log([f"level c: {CUDA}"])).startswith(
        "a client of level c ran out of memory; it asked for 2.50"
    )
    assert "an unknown number of bytes" in str(memory.in_log(["MemoryError"]))
    assert memory.in_log(["RuntimeError: no"]) is None
