"""The progress of a run on the terminal, or as plain lines where there is none."""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator

from flwr.app import ConfigRecord, Message
from rich import console as rich_console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from heterofl_flwr import messages as wire
from heterofl_flwr.core import formatting
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.records import Progress, RoundCallback, RoundRecord, State
from heterofl_flwr.runs.metrics import KINDS, SCOPES, families, headline_kind, of_level

Field = tuple[str, str]
BAR = 8
WIDTH = 80
"""A round is one line of at most so many letters; what does not fit is in the history."""

PAUSE = 0.1
"""Seconds between two counts of the replies on the terminal."""

GAP = "  "
URGENT = ("failed", "evaluated-by")
DOING = {"train": "training", "evaluate": "evaluating"}
STYLES = {"failed": "bold red", "evaluated-by": "bold red"}


class Console(RoundCallback):
    """Prints each round on a line: time taken and left, what failed, loss and accuracy.

    On a terminal it also shows within a round how many clients of each level have answered; that line is overwritten.
    Colours follow ``NO_COLOR``; where there is no terminal, or one that can do nothing (``TERM=dumb``), a round is one
    plain line of names and values.

    Parameters
    ----------
    console : rich.console.Console | None
        Where to print; by default standard output.
    """

    prints_rounds = True

    def __init__(self, console: rich_console.Console | None = None) -> None:
        self._console = console or rich_console.Console(highlight=False)
        self._plain = not self._console.is_terminal or self._console.is_dumb_terminal
        # The mean of the last rounds: evaluation makes single ones long.
        self._recent: deque[float] = deque(maxlen=10)
        self._is_first = True
        self._round = 1
        self._lock = threading.Lock()
        self._levels: dict[int, str] = {}  # by node, of those that have not answered
        self._asked: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._doing = ""
        self._shown = 0.0

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Say how far the run goes."""
        self._round = first_round
        parameters = sum(value.numel() for value in state.values())
        what = f"a model of {formatting.count(parameters)} parameters"
        self._print(f"rounds {first_round} to {num_rounds}, {what}")

    def on_messages(self, messages: Iterable[Message]) -> None:
        """Count whom the round asks for something."""
        if self._plain:
            return
        with self._lock:
            self._levels = {message.metadata.dst_node_id: _level(message) for message in messages}
            self._asked, self._answered = Counter(self._levels.values()), Counter()
            self._doing = next((_doing(message.metadata.message_type) for message in messages), "")
            self._shown = 0.0
            self._show_count()

    def on_reply(self, reply: Message) -> None:
        """Count an answer."""
        if self._plain:
            return
        with self._lock:
            level = self._levels.pop(reply.metadata.src_node_id, None)
            if level is not None:
                self._answered[level] += 1
                self._show_count()

    def on_replies_end(self) -> None:
        """Remove the line of this count."""
        if not self._plain:
            self._console.control(Control((ControlType.ERASE_IN_LINE, 2)))

    def on_round_end(self, progress: Progress) -> bool:
        """Print one round."""
        record = progress.record
        if not self._is_first:  # the first one has to start much that the others find there
            self._recent.append(record.seconds)
        self._is_first = False
        self._round = record.server_round + 1
        left = progress.num_rounds - record.server_round
        seconds = left * sum(self._recent) / len(self._recent) if self._recent else None
        if self._plain:
            self._print(plain_line(record, progress.num_rounds, seconds))
        else:
            self._console.print(self._line(record, progress.num_rounds, seconds))
        return False

    def on_end(self, state: State) -> None:
        """Print nothing more; the table at the end is ``summary_table``."""

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _line(self, record: RoundRecord, num_rounds: int, left: float | None) -> Text:
        done = round(BAR * record.server_round / num_rounds)
        full, empty = ("#", "-") if self._console.options.ascii_only else ("━", "─")
        times = [formatting.duration(record.seconds), *([] if left is None else [f"{formatting.duration(left)} left"])]
        line = Text.assemble(
            (f"{record.server_round:>{len(str(num_rounds))}}/{num_rounds} ", "bold"),
            (full * done, "cyan"),
            (empty * (BAR - done), "dim"),
            (f" {', '.join(times)}", "dim"),
        )
        for name, value in _fitting(record, min(self._console.width, WIDTH) - line.cell_len, f"{GAP} "):
            style = "bold red" if name in URGENT else ""
            line.append_text(Text.assemble(GAP, (f"{name} ", "dim"), (value, style)))
        return line

    def _show_count(self) -> None:
        """Show how many have answered; not too often."""
        now = time.monotonic()
        if now - self._shown < PAUSE and self._levels:
            return
        self._shown = now
        levels = [f"{level} {self._answered[level]}/{asked}" for level, asked in sorted(self._asked.items()) if level]
        count = f"{self._answered.total()} of {self._asked.total()} clients"
        line = Text(GAP.join([f"round {self._round}: {self._doing}", count, *levels]), "dim")
        line.truncate(min(self._console.width, WIDTH) - 1)
        self._console.control(Control((ControlType.ERASE_IN_LINE, 2)))
        self._console.print(line, end="\r")


def plain_line(record: RoundRecord, num_rounds: int, left: float | None) -> str:
    """Return a round as one line of names and values, for files and programs that read them."""
    times = {"took": record.seconds, **({} if left is None else {"left": left})}
    words = [f"round {record.server_round}/{num_rounds}"]
    words += [f"{name}={_short(formatting.duration(seconds))}" for name, seconds in times.items()]
    line = " ".join(words)
    return " ".join([line, *(f"{name}={value}" for name, value in _fitting(record, WIDTH - len(line), " ="))])


def _fitting(record: RoundRecord, room: int, between: str) -> Iterator[Field]:
    """Yield what fits on the line of a round, the most important first."""
    for name, value in _fields(record):
        room -= len(name) + len(value) + len(between)
        if room < 0:
            return
        yield name, value


def _level(message: Message) -> str:
    """Return the level that a message is about; '' if it names none."""
    config = message.content.get(wire.CONFIG) if message.has_content() else None
    rate = config.get(wire.RATE) if isinstance(config, ConfigRecord) else None
    return level_name(rate) if isinstance(rate, float) else ""


def _doing(message_type: str) -> str:
    """Return what clients do, for people: of ``query.moments`` it is ``moments``."""
    return DOING.get(message_type.partition(".")[0], message_type.rpartition(".")[2])


def _fields(record: RoundRecord) -> Iterator[Field]:
    """Yield the names and values of a round, the most important first."""
    if record.failures:
        yield "failed", str(len(record.failures))
    if record.few_answered:
        yield "evaluated-by", f"{record.evaluate_answers}of{record.evaluate_asked}"
    loss = of_level(record.train, "loss")
    if loss is not None:
        yield "train-loss", formatting.number(loss)
    for family, name in families([record], headline_kind([record])).items():
        yield family, _short(formatting.score(name, record.evaluate[name]))
    for scope in SCOPES:
        name = next((f"{scope}-{kind}" for kind in KINDS if f"{scope}-{kind}" in record.evaluate), "")
        if name:
            yield name.removesuffix("-accuracy"), _short(formatting.score(name, record.evaluate[name]))
    if record.simulated_seconds:
        yield "simulated", _short(formatting.duration(record.simulated_seconds))
    yield "sent", _short(formatting.size(record.bytes_down + record.bytes_up))
    yield "lr", formatting.number(record.learning_rate)


def _short(value: str) -> str:
    return value.replace(" ", "")
