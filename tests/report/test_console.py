import io
import re
import subprocess
import sys

import pytest
from rich.console import Console as RichConsole

from heterofl_flwr.report import Console


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


def test_without_a_terminal_a_round_is_one_plain_line(fake):
    lines = shown(fake).splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("rounds 1 to 10, a model of")
    accuracy = fake.progress(2, 10).record.evaluate["global-accuracy"]
    assert re.match(rf"round 2/10 took=[\d.]+s left=\d+s lr=0\.1 loss=[\d.]+ global={100 * accuracy:.1f}% ", lines[2])
    assert re.search(r" sent=[\d.]+MB .*\ba=\d+,[\d.]+,[\d.]+% b=", lines[2])
    assert re.search(r" failed=1 ", lines[3])
    assert max(map(len, lines)) < 200
    assert not re.search(r"[^\x20-\x7e\n]", "\n".join(lines))


def test_a_level_has_its_clients_and_what_each_was_sent(fake):
    stream = io.StringIO()
    rates = {3: 1.0, 5: 1.0, 8: 0.25}
    record = fake.progress(1, 2, rates=rates, bytes_by_level={"a": 24_600_000, "c": 796_000})
    Console(RichConsole(file=stream)).on_round_end(record)
    assert re.search(r" a=2x12\.3MB,", stream.getvalue())
    assert re.search(r" c=1x796kB,?", stream.getvalue())


def test_a_dumb_terminal_gets_plain_lines_too(fake, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert shown(fake, force_terminal=True) == shown(fake)


def test_a_terminal_shows_time_left_levels_and_bytes(fake):
    text = shown(fake, force_terminal=True, width=200)
    assert "\x1b[36m" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert re.search(r"^ 4/10 ━{5}─{7} \d\.\d s, \d+ s left   lr 0\.1   loss \d", plain, re.MULTILINE)
    assert re.search(r"global \d+\.\d %   local \d+\.\d %   worst \d+\.\d %   sent [\d.]+ MB$", plain, re.MULTILINE)
    assert re.search(r"^   a \d+, [\d.]+, \d+\.\d %   b \d+, [\d.]+, \d+\.\d %", plain, re.MULTILINE)
    assert "failed 1" in plain  # round 3


def test_no_color_is_honoured(fake, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown(fake, force_terminal=True))


def test_a_narrow_terminal_breaks_no_value(fake):
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown(fake, force_terminal=True, width=60))
    assert max(map(len, plain.splitlines())) <= 60
    assert not re.search(r"^ *(%|MB|kB|left)", plain, re.MULTILINE)


def test_a_terminal_without_unicode_gets_ascii(fake):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    assert "####" in shown(fake, file=stream, force_terminal=True)


def test_time_left_is_that_of_the_rounds_to_come(fake):
    stream = io.StringIO()
    console = Console(RichConsole(file=stream))
    console.on_start(3, 7, {})
    for number in (3, 4):
        console.on_round_end(fake.progress(number, 7, seconds=20.0))
    assert re.findall(r"left=(\S+)", stream.getvalue()) == ["1min20s", "1min0s"]


@pytest.mark.parametrize("terminal", [False, True])
def test_markup_in_names_is_shown_as_it_is(fake, terminal):
    stream = io.StringIO()
    console = Console(RichConsole(file=stream, force_terminal=terminal))
    console.on_start(1, 2, {})
    console.on_round_end(fake.progress(1, 2, train_by_level={"[red]x": {"loss": 0.5}}, evaluate_by_level={}))
    assert "[red]x" in stream.getvalue()


@pytest.mark.slow
def test_importing_the_reports_loads_neither_pyplot_nor_trackers():
    code = "import sys, heterofl_flwr.report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"matplotlib.pyplot", "tensorboard", "wandb", "mlflow"}.isdisjoint(done.stdout.split())
