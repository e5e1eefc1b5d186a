"""``Console``: the callback that prints the progress of a run."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import console as rich_console

from heterofl_flwr.common.errors import counted, printable
from heterofl_flwr.core import formatting
from heterofl_flwr.federation.callbacks import Progress, RoundCallback, progress_text
from heterofl_flwr.federation.client_metrics import HEADLINE_KINDS
from heterofl_flwr.federation.round_record import RoundRecord, State
from heterofl_flwr.runs.scores import SCOPES, pick_metric

QUIET_SECONDS = 30.0
"""Seconds without output after which the next reply prints a line. Within ``by_time``, a timer prints a line even
without a reply.
"""

TIMER_SECONDS = 1.0
"""Seconds between the checks of the timer."""


class Console(RoundCallback):
    """Callback that prints a line for each round, and progress within long rounds.

    Parameters
    ----------
    console : rich.console.Console | None
        Console to print on; by default standard output.
    steps : float | None
        Mean number of steps of a client in a round. With it, progress lines have the steps per second.
    logger : logging.Logger | None
        Logger for the lines on progress; with it, nothing is printed, and the strategy logs the rounds itself.
    """

    def __init__(
        self,
        console: rich_console.Console | None = None,
        steps: float | None = None,
        *,
        logger: logging.Logger | None = None,
    ) -> None:
        self._console, self._steps = console or rich_console.Console(highlight=False), steps
        self._logger, self.prints_rounds = logger, logger is None
        self._seconds: list[float] = []  # time of each round so far
        self._round = self._num_rounds = 0  # number of the current round, and of the final one
        self._began = self._last_reply = self._last_line = self._round_began = 0.0
        self._so_far = ""

    @contextmanager
    def by_time(self) -> Iterator[None]:
        """Context manager: print the progress of a long round even if no client replies."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(TIMER_SECONDS):
                now = time.monotonic()
                if self._round and now - self._last_line >= QUIET_SECONDS:
                    spent = formatting.duration(now - self._round_began)
                    self._print(f"round {self._round}/{self._num_rounds}: {self._so_far}, {spent} so far")

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Print the numbers of the first and the final round, and the size of the model."""
        size = sum(value.numel() for value in state.values())
        model = f"a model of {formatting.count(size)} parameters" if size else "no model on the server"
        rounds = f"rounds {first_round} to" if first_round <= num_rounds else "no round is left of"
        self._print(f"{rounds} {num_rounds}, {model}")
        self._num_rounds = num_rounds
        self._begin_round(first_round)

    def on_reply(self, what: str, done: int, total: int, failed: int) -> None:
        """Print the progress of a round if nothing was printed for half a minute."""
        now = time.monotonic()
        if done == 1:
            self._began = self._last_reply
        so_far = progress_text(what, done, total, failed)
        # After the last reply, the server aggregates, lets stages query clients, or evaluates the global model.
        self._last_reply, self._so_far = now, so_far + ("; the server continues" if done == total else "")
        if not done or now - self._last_line < QUIET_SECONDS:
            return
        each = (now - self._began) / done
        line = f"round {self._round}/{self._num_rounds}: {so_far}"
        if what == "trained" and self._steps:
            line += f", {formatting.number(self._steps / each)} steps/s"
        line += f", {formatting.duration(each * (total - done))} to go"
        if what == "trained" and not self._seconds:
            rounds = self._num_rounds - self._round + 1
            line += f"; training of {counted(rounds, 'round')} takes about {formatting.duration(each * total * rounds)}"
        self._print(line)

    def on_round_end(self, progress: Progress) -> bool:
        """Print the line of a round if ``prints_rounds`` is True. Otherwise the strategy logs the round."""
        record, num_rounds = progress.record, progress.num_rounds
        self._seconds.append(record.seconds)
        # The mean of several rounds, because rounds with evaluation are longer; the first round includes starting up.
        recent = self._seconds[1:][-10:]
        to_come = num_rounds - record.server_round
        seconds_left = to_come * sum(recent) / len(recent) if recent and to_come else None
        if self.prints_rounds:
            self._print(round_line(record, num_rounds, seconds_left))
        self._begin_round(record.server_round + 1 if to_come else 0)  # 0: the timer is silent while models are saved
        return False

    def _begin_round(self, number: int) -> None:
        self._round, self._so_far = number, "no client has trained yet"
        self._round_began = self._last_reply = self._last_line = time.monotonic()

    def _print(self, line: str) -> None:
        self._last_line = time.monotonic()
        if self._logger:
            self._logger.info("%s", printable(line))
        else:
            self._console.print(printable(line), markup=False, soft_wrap=True)


def round_line(record: RoundRecord, num_rounds: int, seconds_left: float | None) -> str:
    """Return the terminal's line about a round. Programs parse this line."""
    line = f"round {record.server_round}/{num_rounds} took={formatting.duration(record.seconds).replace(' ', '')}"
    if seconds_left is not None:
        line += f" left={formatting.duration(seconds_left).replace(' ', '')}"
    line += "".join(f" {name}={value.replace(' ', '')}" for name, value in _fields(record))
    return "; ".join([line, *record.remarks])


def _fields(record: RoundRecord) -> Iterator[tuple[str, str]]:
    if record.expected:  # 0 in histories of older versions
        yield "clients", f"{record.answered}/{record.expected}"
    yield "failed", str(len(record.failures))
    if record.few_answered:
        yield "evaluated-by", f"{record.evaluate_answers}of{record.evaluate_asked}"
    if record.evaluate.get("coverage", 1.0) < 1:
        yield "coverage", formatting.percent(record.evaluate["coverage"], 0)
    loss = pick_metric(record.train, "loss")
    if loss is not None:
        yield "train-loss", formatting.number(loss)
    for scope in SCOPES:
        if name := next((f"{scope}-{kind}" for kind in HEADLINE_KINDS if f"{scope}-{kind}" in record.evaluate), ""):
            yield name.removesuffix("-accuracy"), formatting.score(name, record.evaluate[name])
    if record.simulated_seconds:
        yield "simulated", formatting.duration(record.simulated_seconds)
    yield "sent", formatting.size(record.bytes_down + record.bytes_up)
    if record.learning_rate:
        yield "lr", formatting.number(record.learning_rate)
