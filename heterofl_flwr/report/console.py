"""The progress of a run on the terminal, or as plain lines where there is none."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from flwr.app import ConfigRecord, Message
from rich import console as rich_console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from heterofl_flwr.core import formatting
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.records import Progress, RoundCallback, RoundRecord, State
from heterofl_flwr.messages import CONFIG, RATE
from heterofl_flwr.runs.metrics import KINDS, SCOPES, pick_metric

BAR = 8
WIDTH = 80  # a round is one line of at most so many characters; what does not fit is in the history
PAUSE = 0.1  # seconds between two counts of the replies on the terminal
ACTIVITIES = {"train": "training", "evaluate": "evaluating"}


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
        self._seconds: list[float] = []  # of each round so far
        self._round = 1
        self._lock = threading.Lock()
        self._levels: dict[int, str] = {}  # of the nodes that were sent a message
        self._answered: set[int] = set()
        self._activity = ""
        self._shown = 0.0

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Print the rounds of the run and the size of its model."""
        self._round = first_round
        size = sum(value.numel() for value in state.values())
        model = f"a model of {formatting.count(size)} parameters" if size else "no model on the server"
        self._print(f"rounds {first_round} to {num_rounds}, {model}")

    def on_messages(self, messages: Iterable[Message]) -> None:
        """Count the clients of each level that a message goes to."""
        if self._plain:
            return
        with self._lock:
            self._levels = {message.metadata.dst_node_id: _level(message) for message in messages}
            self._answered = set()
            kind = next((message.metadata.message_type for message in messages), "")
            # Of ``query.moments``: moments.
            self._activity = ACTIVITIES.get(kind.partition(".")[0], kind.rpartition(".")[2])
            self._shown = 0.0
            self._show_count()

    def on_reply(self, reply: Message) -> None:
        """Count an answer."""
        if self._plain:
            return
        with self._lock:
            if reply.metadata.src_node_id in self._levels:
                self._answered.add(reply.metadata.src_node_id)
                self._show_count()

    def on_replies_end(self) -> None:
        """Remove the line of this count."""
        if not self._plain:
            self._console.control(Control((ControlType.ERASE_IN_LINE, 2)))

    def on_round_end(self, progress: Progress) -> bool:
        """Print one round."""
        record, num_rounds = progress.record, progress.num_rounds
        self._seconds.append(record.seconds)
        self._round = record.server_round + 1
        # The mean of several, as evaluation makes single rounds long; the first one has to start what the others find.
        recent = self._seconds[1:][-10:]
        left = (num_rounds - record.server_round) * sum(recent) / len(recent) if recent else None
        if self._plain:
            self._print(plain_line(record, num_rounds, left))
        else:
            self._console.print(self._line(record, num_rounds, left))
        return False

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
        for name, value in _fitting(record, min(self._console.width, WIDTH) - line.cell_len, 3):
            style = "bold red" if name in ("failed", "evaluated-by") else ""
            line.append_text(Text.assemble("  ", (f"{name} ", "dim"), (value, style)))
        return line

    def _show_count(self) -> None:
        """Show how many have answered; not too often."""
        now = time.monotonic()
        if now - self._shown < PAUSE and len(self._answered) < len(self._levels):
            return
        self._shown = now
        asked, answered = Counter(self._levels.values()), Counter(self._levels[node] for node in self._answered)
        levels = [f"{level} {answered[level]}/{number}" for level, number in sorted(asked.items()) if level]
        count = f"{len(self._answered)} of {len(self._levels)} clients"
        line = Text("  ".join([f"round {self._round}: {self._activity}", count, *levels]), "dim")
        line.truncate(min(self._console.width, WIDTH) - 1)
        self._console.control(Control((ControlType.ERASE_IN_LINE, 2)))
        self._console.print(line, end="\r")


def plain_line(record: RoundRecord, num_rounds: int, left: float | None) -> str:
    """Return a round as one line of names and values, for files and programs that read them."""
    line = f"round {record.server_round}/{num_rounds} took={formatting.duration(record.seconds).replace(' ', '')}"
    if left is not None:
        line += f" left={formatting.duration(left).replace(' ', '')}"
    return " ".join([line, *(f"{name}={value}" for name, value in _fitting(record, WIDTH - len(line), 2))])


def _level(message: Message) -> str:
    """Return the level that a message is about; '' if it names none."""
    config = message.content.get(CONFIG) if message.has_content() else None
    rate = config.get(RATE) if isinstance(config, ConfigRecord) else None
    return level_name(rate) if isinstance(rate, float) else ""


def _fitting(record: RoundRecord, room: int, between: int) -> Iterator[tuple[str, str]]:
    """Yield what fits on the line of a round, the most important first; ``between`` is the room between two values."""
    for name, value in _fields(record):
        short = value.replace(" ", "")
        room -= len(name) + len(short) + between
        if room < 0:
            return
        yield name, short


def _fields(record: RoundRecord) -> Iterator[tuple[str, str]]:
    """Yield the names and values of a round, the most important first."""
    if record.failures:
        yield "failed", str(len(record.failures))
    if record.few_answered:
        yield "evaluated-by", f"{record.evaluate_answers}of{record.evaluate_asked}"
    loss = pick_metric(record.train, "loss")
    if loss is not None:
        yield "train-loss", formatting.number(loss)
    for scope in SCOPES:
        name = next((f"{scope}-{kind}" for kind in KINDS if f"{scope}-{kind}" in record.evaluate), "")
        if name:
            yield name.removesuffix("-accuracy"), formatting.score(name, record.evaluate[name])
    if record.simulated_seconds:
        yield "simulated", formatting.duration(record.simulated_seconds)
    yield "sent", formatting.size(record.bytes_down + record.bytes_up)
    if record.learning_rate:
        yield "lr", formatting.number(record.learning_rate)
