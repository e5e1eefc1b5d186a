import math
from dataclasses import replace

import pytest

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.runs import history


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.jsonl"


def test_records_are_read_back_as_they_were_written(path, records):
    for one in records:
        history.append(path, one)
    assert history.read(path) == records
    assert path.read_text().count("\n") == len(records)


def test_a_run_without_rounds_has_no_records(path):
    assert history.read(path) == []


def test_a_run_that_diverged_can_be_read_back(path, record):
    history.append(path, replace(record(2), train={"loss": math.nan}, evaluate={"global-perplexity": math.inf}))
    (found,) = history.read(path)
    assert math.isnan(found.train["loss"])
    assert found.evaluate == {"global-perplexity": math.inf}


def test_a_reason_may_hold_any_text(path, record):
    odd = replace(record(1), failures={3: "zeile\u2028ende\n\x85 \N{SNOWMAN}"})
    history.append(path, odd)
    assert history.read(path) == [odd]


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_last_line_that_was_cut_off_is_ignored(path, records, cut, caplog):
    for one in records[:3]:
        history.append(path, one)
    path.write_bytes(path.read_bytes()[: -cut - 1])
    assert history.read(path) == records[:2]
    assert "incomplete line" in caplog.text


def test_a_broken_line_before_the_last_is_an_error(path, record):
    path.write_text("nothing\n")
    history.append(path, record(1))
    with pytest.raises(ConfigError, match=r"history.jsonl, line 1 is no record"):
        history.read(path)


def test_brackets_without_end_are_no_record(path, record):
    path.write_text("[" * 100_000 + "\n")
    history.append(path, record(1))
    with pytest.raises(ConfigError, match=r"history.jsonl, line 1 is no record"):
        history.read(path)


def test_trimming_drops_what_comes_after(path, records):
    for one in records[:5]:
        history.append(path, one)
    history.trim(path, 3)
    assert history.read(path) == records[:3]
    history.append(path, records[3])
    assert history.read(path) == records[:4]


def test_trimming_to_a_round_that_is_missing_is_an_error(path, records):
    history.append(path, records[0])
    with pytest.raises(ConfigError, match="ends with round 1, but the run is to go on after round 3"):
        history.trim(path, 3)
    assert history.read(path) == records[:1]


def test_an_epsilon_that_counted_on_chance_is_not_read_back(path, record):
    """Clients can compute who takes part, so it never held; older histories have it."""
    old = {"epsilon": 8.0, "epsilon-sampled": 1.2, "delta": 1e-5, "training-releases": 1.0}
    history.append(path, replace(record(1), privacy=old))
    assert history.read(path)[0].privacy == {"epsilon": 8.0, "delta": 1e-5, "training-releases": 1.0}
