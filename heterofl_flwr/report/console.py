"""The progress of a run on the terminal, or as plain lines where there is none."""

from collections import deque
from collections.abc import Iterable, Iterator

from rich import console as rich_console
from rich.text import Text

from heterofl_flwr.core import text
from heterofl_flwr.methods.callbacks import Progress, RoundCallback, RoundRecord, State
from heterofl_flwr.methods.round_log import clients_by_level, sent_to
from heterofl_flwr.report.metrics import KINDS, SCOPES, families, headline_kind, of_level

Field = tuple[str, str]
BAR = 12
GAP = "   "
INDENT = Text(GAP)
STYLES = {"failed": "bold red", "evaluated-by": "bold red"}


class Console(RoundCallback):
    """Prints each round: time left, loss and accuracy of the run and of each level, bytes sent.

    Lines are added and never rewritten, so they mix with what Flower logs. Colours follow ``NO_COLOR``; where there
    is no terminal, or one that can do nothing (``TERM=dumb``), a round is one plain line of names and values.

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

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Say how far the run goes."""
        parameters = sum(value.numel() for value in state.values())
        what = f"a model of {text.count(parameters)} parameters"
        self._print(f"rounds {first_round} to {num_rounds}, {what}")

    def on_round_end(self, progress: Progress) -> bool:
        """Print one round."""
        record = progress.record
        self._recent.append(record.seconds)
        left = (progress.num_rounds - record.server_round) * sum(self._recent) / len(self._recent)
        if self._plain:
            self._print(plain_line(record, progress.num_rounds, left))
        else:
            self._show(self._head(record, progress.num_rounds, left), _scores(record))
            self._show(INDENT, _levels(record))
        return False

    def on_end(self, state: State) -> None:
        """Print nothing more; the table at the end is ``summary_table``."""

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _show(self, head: Text, fields: Iterable[Field]) -> None:
        """Print fields behind a head on as many lines as they need; none is broken."""
        line, shown = head.copy(), False
        for name, value in fields:
            field = Text.assemble((f"{name} ", "dim"), (value, STYLES.get(name, "")), GAP)
            if line.cell_len + field.cell_len - len(GAP) > self._console.width and line.plain.strip():
                self._console.print(line)
                line = INDENT.copy()
            line.append_text(field)
            shown = True
        if shown:
            line.rstrip()
            self._console.print(line)

    def _head(self, record: RoundRecord, num_rounds: int, left: float) -> Text:
        done = round(BAR * record.server_round / num_rounds)
        full, empty = ("#", "-") if self._console.options.ascii_only else ("━", "─")
        return Text.assemble(
            (f"{record.server_round:>{len(str(num_rounds))}}/{num_rounds} ", "bold"),
            (full * done, "cyan"),
            (empty * (BAR - done), "dim"),
            (f" {text.duration(record.seconds)}, {text.duration(left)} left{GAP}", "dim"),
        )


def plain_line(record: RoundRecord, num_rounds: int, left: float) -> str:
    """Return a round as one line of names and values, for files and programs that read them."""
    times = (("took", text.duration(record.seconds)), ("left", text.duration(left)))
    fields = [f"{name}={value.replace(' ', '')}" for name, value in (*times, *_scores(record), *_levels(record))]
    return " ".join([f"round {record.server_round}/{num_rounds}", *fields])


def _scores(record: RoundRecord) -> Iterator[Field]:
    yield "lr", text.number(record.learning_rate)
    loss = of_level(record.train, "loss")
    if loss is not None:
        yield "loss", text.number(loss)
    for scope in SCOPES:
        name = next((f"{scope}-{kind}" for kind in KINDS if f"{scope}-{kind}" in record.evaluate), None)
        if name:
            yield scope, text.score(name, record.evaluate[name])
    for family, name in families([record], headline_kind([record])).items():
        yield family, text.score(name, record.evaluate[name])
    if record.few_answered:
        yield "evaluated-by", f"{record.evaluate_answers} of {record.evaluate_asked}"
    yield "sent", text.size(record.bytes_down + record.bytes_up)
    if record.simulated_seconds:
        yield "simulated", text.duration(record.simulated_seconds)
    if record.failures:
        yield "failed", str(len(record.failures))


def _levels(record: RoundRecord) -> Iterator[Field]:
    kind = headline_kind([record])
    clients = clients_by_level(record.rates)
    for level in sorted({*clients, *record.train_by_level, *record.evaluate_by_level}):
        loss = of_level(record.train_by_level.get(level, {}), "loss")
        score = of_level(record.evaluate_by_level.get(level, {}), kind)
        values = [
            sent_to(clients[level], record.bytes_by_level.get(level)) if level in clients else "",
            "" if loss is None else text.number(loss),
            "" if score is None else text.score(kind, score),
        ]
        yield level, ", ".join(value for value in values if value)
