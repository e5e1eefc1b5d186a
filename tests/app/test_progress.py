"""Following a run by the history that it writes."""

import io

from heterofl_flwr.app.launch.progress import Lines, Rounds

from heterofl_flwr.methods.callbacks import RoundRecord
from heterofl_flwr.report import history


def record(number: int) -> RoundRecord:
    return RoundRecord(server_round=number, seconds=1.0, learning_rate=0.1, rates={0: 1.0})


def new(rounds: Rounds) -> list[int]:
    return [one.server_round for one in rounds.new()]


def test_rounds_come_once_as_they_are_written(tmp_path):
    path = tmp_path / "history.jsonl"
    rounds = Rounds(path)
    assert new(rounds) == []
    history.append(path, record(1))
    assert new(rounds) == [1]
    assert new(rounds) == []
    history.append(path, record(2))
    history.append(path, record(3))
    assert new(rounds) == [2, 3]


def test_a_run_that_goes_on_shows_only_what_it_does(tmp_path):
    path = tmp_path / "history.jsonl"
    for number in (1, 2, 3):
        history.append(path, record(number))
    rounds = Rounds(path)
    assert new(rounds) == []
    history.trim(path, 1)  # its last checkpoint was of round 1
    assert new(rounds) == []
    history.append(path, record(2))
    assert new(rounds) == [2]


def test_a_log_is_copied_line_by_line(tmp_path):
    path, out = tmp_path / "flower.log", io.StringIO()
    lines = Lines(path, out)
    lines.show()
    path.write_text("\x1b[92mINFO \x1b[0m:      one\n")
    lines.show()
    with path.open("a") as file:
        file.write("two\n")
    lines.show()
    lines.show()
    assert out.getvalue() == "one\ntwo\n"
