"""Metrics of fewer than half of the clients asked: marked wherever they are shown, and never the best."""

import io
import re
from dataclasses import replace

from rich.console import Console as RichConsole

from heterofl_flwr.federation.records import Progress
from heterofl_flwr.report import Console, EarlyStopping, Recorder, seconds_to, summary_table, write_report
from heterofl_flwr.report.summary import failure_lines, level_rows
from heterofl_flwr.runs import history
from heterofl_flwr.runs.metrics import scalars, scores


def printed(records) -> list[str]:
    stream = io.StringIO()
    RichConsole(file=stream, width=100).print(summary_table(records))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_the_record_says_so_for_good(few, tmp_path):
    history.append(tmp_path / "history.jsonl", few[2])
    (found,) = history.read(tmp_path / "history.jsonl")
    assert found == few[2]
    assert found.few_answered
    assert found.comparable == {"coverage": 0.05}


def test_a_history_of_an_older_version_has_no_marks(few):
    values = few[2].to_json()
    for name in ("evaluate_asked", "evaluate_answers", "partial", "evaluate_medians", "worst_client"):
        del values[name]
    found = history.record_of(values)
    assert not found.few_answered
    assert found.comparable == found.evaluate


def test_they_are_never_the_best(few):
    for score in scores(few):
        if score.name in few[2].partial:
            assert score.best_round not in (3, None)
    (alone, *_) = scores([few[2]])
    assert (alone.final, alone.best, alone.best_round, alone.partial) == (1.0, None, None, True)


def test_an_aim_is_not_reached_by_them(few):
    timed = [replace(record, simulated_seconds=1.0) for record in few]
    assert seconds_to(timed, "global-accuracy", 0.99) is None


def test_early_stopping_passes_over_them(few, fake):
    def stops(patience, target=None):
        stopping = EarlyStopping("global-accuracy", patience, target=target)
        stopping.on_start(1, 9, {})
        made = [few[0], few[2], few[2], few[2]]
        return [stopping.on_round_end(Progress(record, {}, {}, {}, 9)) for record in made]

    assert stops(2) == [False] * 4
    assert stops(None, 0.99) == [False] * 4


def test_the_best_state_is_of_another_round(few, folder):
    recorder = Recorder(folder)
    recorder.on_start(1, 5, {})
    for record in few:
        recorder.on_round_end(Progress(record, {}, {}, {}, 5))
    assert recorder.best.metric == "global-accuracy"
    assert recorder.best.server_round != 3


def test_the_console_says_how_many_judged(few, fake):
    stream = io.StringIO()
    console = Console(RichConsole(file=stream))
    console.on_round_end(Progress(few[2], {}, {}, {}, 5))
    console.on_round_end(Progress(few[3], {}, {}, {}, 5))
    first, second = stream.getvalue().splitlines()
    assert " evaluated-by=1of20 " in first
    assert "evaluated-by" not in second


def test_trackers_get_the_counts_and_the_mark(few):
    found = scalars(few[2])
    assert (found["round/evaluation-asked"], found["round/evaluation-answers"]) == (20, 1)
    assert found["round/evaluation-partial"] == 1.0
    assert "round/evaluation-partial" not in scalars(few[0])


def test_the_closing_table_marks_them(few):
    lines = printed(few[:3])
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert re.search(r"100\.0 % \* ", rows["global-accuracy"])
    assert not rows["global-accuracy"].endswith(" 3")
    assert any("in rounds 3 (at worst 1 of 20): never the best" in line for line in lines)
    assert not any("*" in line for line in printed(few[3:]))
    assert [row.partial for row in level_rows(few[:3], None)] == [True] * 5


def test_the_page_marks_them(few, folder, fake):
    folder.start({})
    for record in few[:3]:
        folder.append(record)
    page = write_report(folder).read_text()
    assert "100.0 % *" in page
    assert "(at worst 1 of 20): never the best" in page


def test_the_closing_table_names_who_failed_and_why(few):
    lines = printed(few[:3])
    at = lines.index("failed: 9 of 30 trainings, 19 evaluations or moments")
    assert re.fullmatch(r"  28 x in rounds 3, clients 1-.*: error 2: the worker is gone", lines[at + 1])
    assert len(lines) == at + 2
    assert max(map(len, lines[at:])) <= 100
    assert failure_lines([replace(few[0], failures={})]) == []


def test_a_reason_that_looks_like_markup_is_printed_as_it_is(few):
    odd = replace(few[0], failures={0: "error 2: [red]no[/] [/link]"})
    assert any(line.endswith("error 2: [red]no[/] [/link]") for line in printed([odd]))


def test_many_reasons_are_cut_to_a_few_short_lines(few):
    failures = {
        number: f"Traceback (most recent call last):\n{number} {'x' * 200}\nValueError: no" for number in range(9)
    }
    lines = failure_lines([replace(few[0], failures=failures)])
    assert len(lines) == 5
    assert lines[1].startswith("  1 x in rounds 1, clients 0: Traceback (most recent call la ... ")
    assert lines[1].endswith("xxx ValueError: no")
    assert lines[4] == "  6 x in rounds 1, clients 3-8: 6 other reasons"
    assert max(map(len, lines)) <= 110
