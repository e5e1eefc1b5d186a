import io
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from rich.console import Console as RichConsole

from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report import Console
from heterofl_flwr.report.console import plain_line


def shown(fake, first=1, last=10, **options) -> str:
    """Return what a run prints on a console with these options."""
    stream = options.pop("file", io.StringIO())
    fake.run([Console(RichConsole(file=stream, highlight=False, **options))], first, last)
    return stream.getvalue() if isinstance(stream, io.StringIO) else stream.buffer.getvalue().decode("ascii")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_where_the_server_has_no_model_it_says_so():
    stream = io.StringIO()
    Console(RichConsole(file=stream)).on_start(1, 3, {})
    assert stream.getvalue() == "rounds 1 to 3, no model on the server\n"


def test_without_a_terminal_that_can_do_anything_a_round_is_one_plain_line(fake, monkeypatch):
    lines = shown(fake).splitlines()
    monkeypatch.setenv("TERM", "dumb")
    assert shown(fake, force_terminal=True).splitlines() == lines
    assert len(lines) == 11
    assert lines[0].startswith("rounds 1 to 10, a model of")
    accuracy = fake.progress(2, 10).record.evaluate["global-accuracy"]
    found = rf"round 2/10 took=[\d.]+s left=\d+s train-loss=[\d.]+ global={100 * accuracy:.1f}% local=[\d.]+%"
    assert re.match(found, lines[2])
    assert re.search(r" failed=1 train-loss=", lines[3])
    assert max(map(len, lines)) <= 80
    assert not re.search(r"[^\x20-\x7e\n]", "\n".join(lines))


def test_a_terminal_shows_a_round_on_a_line_of_80_columns(fake):
    text = shown(fake, force_terminal=True, width=200)
    assert "\x1b[36m" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    expected = r"^ 4/10 ━{3}─{5} \d\.\d s, \d+ s left  train-loss [\d.]+  global \d+\.\d%  local \d+\.\d%"
    assert re.search(expected, plain, re.MULTILINE)
    assert "left  failed 1  train-loss" in plain  # round 3
    assert max(map(len, plain.splitlines())) <= 80


def test_a_learning_rate_is_shown_where_clients_are_sent_one():
    record = RoundRecord(server_round=1, seconds=2.0, learning_rate=0.05, rates={0: 1.0})
    assert plain_line(record, 3, None) == "round 1/3 took=2.0s sent=0B lr=0.05"
    assert plain_line(replace(record, learning_rate=0.0), 3, None) == "round 1/3 took=2.0s sent=0B"


def messages(*rates):
    config = [ConfigRecord({"rate": rate}) for rate in rates]
    return [Message(RecordDict({"config": own}), number, "train") for number, own in enumerate(config)]


def counted(console, sent):
    """Return what the console shows once the first and the last of these messages are answered."""
    stream = console._console.file
    console.on_messages(sent)
    for message in (sent[0], sent[-1]):
        console._shown = 0.0
        console.on_reply(Message(Error(2, "no"), reply_to=message))
    console.on_replies_end()
    return re.sub(r"\x1b\[[0-9;]*[mK]", "", stream.getvalue()).split("\r")


@pytest.mark.usefixtures("identity")
def test_only_a_terminal_counts_who_has_answered_by_level_before_the_first_round_ends():
    assert counted(Console(RichConsole(file=io.StringIO())), messages(1.0, 0.5)) == [""]
    console = Console(RichConsole(file=io.StringIO(), force_terminal=True, width=80))
    lines = counted(console, messages(1.0, 1.0, 0.0625))
    assert lines == [
        "round 1: training  0 of 3 clients  a 0/2  e 0/1",
        "round 1: training  1 of 3 clients  a 1/2  e 0/1",
        "round 1: training  2 of 3 clients  a 1/2  e 1/1",
        "",
    ]


def test_a_narrow_terminal_breaks_no_value_and_no_color_is_honoured(fake, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(fake, force_terminal=True, width=60)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", text)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= 60
    assert not re.search(r"^ *(%|MB|kB|left)", plain, re.MULTILINE)


def test_a_terminal_without_unicode_gets_ascii(fake):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    assert "####" in shown(fake, file=stream, force_terminal=True)


def test_time_left_is_that_of_the_rounds_to_come(fake):
    stream = io.StringIO()
    console = Console(RichConsole(file=stream))
    console.on_start(3, 7, {})
    for number, seconds in ((3, 300.0), (4, 20.0), (5, 40.0)):  # the first one has to start everything
        console.on_round_end(fake.progress(number, 7, seconds=seconds))
    assert re.findall(r"left=(\S+)", stream.getvalue()) == ["1min0s", "1min0s"]


def test_a_round_shows_how_few_evaluated_and_the_time_on_simulated_devices(few, simulated):
    assert " evaluated-by=1of20 " in plain_line(few[2], 5, None)
    assert "evaluated-by" not in plain_line(few[3], 5, None)
    assert "simulated=1min30s" in plain_line(simulated[0], 40, 0.0)


@pytest.mark.slow
def test_importing_the_reports_loads_neither_pyplot_nor_trackers():
    code = "import sys, heterofl_flwr.report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"matplotlib.pyplot", "tensorboard", "wandb", "mlflow"}.isdisjoint(done.stdout.split())
