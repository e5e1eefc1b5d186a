"""``Monitor``: callback that serves a run's metrics and health over HTTP."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler
from importlib import import_module
from socketserver import ThreadingTCPServer
from threading import Thread
from typing import Any

from heterofl_flwr.common.address import split_address
from heterofl_flwr.common.errors import ConfigError, extra
from heterofl_flwr.common.files import to_json
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.callbacks import Progress, RoundCallback, progress_text
from heterofl_flwr.federation.client_metrics import HEADLINE_KINDS
from heterofl_flwr.federation.nodes import NO_CAPABILITY
from heterofl_flwr.federation.round_record import RoundRecord, State

log = logging.getLogger(__name__)

MARGIN = 60.0
"""Lower bound of the margin in seconds; see ``Monitor``."""

IDLE_SECONDS = 10.0
"""Seconds within which a request must arrive."""

Values = Mapping[tuple[str, ...], float]
"""The values of a metric by its labels, such as (phase, metric, level)."""


class Monitor(RoundCallback):
    """Callback that serves a run's metrics and health over HTTP during the run.

    ``/metrics`` has the metrics of the latest round and evaluation in the format of Prometheus. ``/health`` is a JSON
    object, with HTTP status 503 if no round has ended for more than ``timeout + wait + margin`` seconds. The margin is
    the duration of the longest round so far, but at least one minute.

    Parameters
    ----------
    address : str
        Address to listen at, such as ``127.0.0.1:9090``. With port 0, the system chooses a port, and the
        attribute ``address`` contains it once the run has started.
    timeout : float
        Seconds that clients have in a round: ``start(timeout=...)``.
    wait : float
        Seconds that a round waits for nodes: ``Sampling.wait``.
    """

    def __init__(self, address: str = "127.0.0.1:9090", *, timeout: float = 3600.0, wait: float = 60.0) -> None:
        with extra("prometheus", "leave the metrics address empty (run.metrics-address)"):
            self._client: Any = import_module("prometheus_client")
            self._core: Any = import_module("prometheus_client.core")
        self._bound, self.address, self._limit = split_address(address), address, timeout + wait
        self._server: _Server | None = None

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Start the HTTP server."""
        self.close()
        self._num_rounds, self._longest, self._replies = num_rounds, MARGIN, ""
        self._ended, self._ended_at = time.monotonic(), time.time()  # end of the latest round, or start of the run
        self._record = RoundRecord.empty(first_round - 1)
        self._evaluated: Values = {}
        self._bytes, self._faults = Counter(down=0, up=0), Counter(rejected=0, other=0)
        self._failing: dict[int, dict[str, str]] = {}  # by partition, until the client's next usable reply
        self._not_evaluated: set[int] = set()  # partitions that failed only in the latest evaluation
        self._silent: dict[str, str] = {}  # time since which a node does not answer the capability query, by name
        self._away: dict[str, str] = {}  # time since which a node is away, by name
        registry = self._client.CollectorRegistry()
        registry.register(self)
        self._client.ProcessCollector(registry=registry)
        try:
            self._server = _Server(
                self._bound, partial(_Handler, self, partial(self._client.generate_latest, registry))
            )
        except OSError as error:
            raise ConfigError(
                f"the metrics address {self.address} cannot be used: {error.strerror}; end the process that listens "
                f"there, or choose another address of this machine (run.metrics-address)"
            ) from error
        self.address = f"{self._bound[0]}:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()
        log.info("Metrics: http://%s/metrics, health: http://%s/health", self.address, self.address)

    def on_reply(self, what: str, done: int, total: int, failed: int) -> None:
        """Store the progress of the round for ``/health``."""
        self._replies = progress_text(what, done, total, failed)

    def on_round_end(self, progress: Progress) -> bool:
        """Store the round's record, and the time at which each node began to fail, to be silent or to be away."""
        record, now = progress.record, _text(time.time())
        faults = record.evaluate_failures | record.failures
        again = self._not_evaluated if record.evaluate_asked else set()
        self._not_evaluated = (record.evaluate_failures.keys() | self._not_evaluated - again) - record.failures.keys()
        for partition in (record.rates.keys() - {*record.spared} | again) - faults.keys():
            self._failing.pop(partition, None)
        for partition, reason in faults.items():
            since = self._failing.get(partition, {}).get("since", now)
            self._failing[partition] = {"name": record.name(partition), "since": since, "reason": reason}
        self._silent = {name: self._silent.get(name, now) for name in record.unanswered}
        self._away = {name: self._away.get(name, now) for name in record.away}
        self._bytes.update(down=record.bytes_down, up=record.bytes_up)
        self._faults.update(
            rejected=len(record.refused),
            other=len(record.failures) - len(record.refused) + len(record.evaluate_failures),
        )
        if record.evaluate:
            self._evaluated = _headlines("evaluate", record.evaluate, record.evaluate_by_level)
        self._record, self._longest = record, max(self._longest, record.seconds)
        self._ended, self._ended_at, self._replies = time.monotonic(), time.time(), ""
        return False

    def on_end(self, state: State) -> None:
        """Stop the HTTP server."""
        self.close()

    def on_error(self) -> None:
        """Stop the HTTP server."""
        self.close()

    def close(self) -> None:
        """Stop the HTTP server."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def health(self) -> dict[str, object]:
        """Return the JSON object of ``/health``."""
        seconds, limit, record = time.monotonic() - self._ended, self._limit + self._longest, self._record
        return {
            "status": "ok" if seconds <= limit else "overdue",
            "round": record.server_round,
            "rounds": self._num_rounds,
            "since": _text(self._ended_at),
            "seconds": round(seconds, 1),
            "limit": limit,
            "replies": self._replies,
            "clients": f"{record.answered}/{record.expected}",
            "failing": self._all_failing(),
            "away": self._away,
            "notes": list(record.notes),
        }

    def _all_failing(self) -> list[dict[str, str]]:
        silent = self._silent.items()
        failing = ({"name": name, "since": since, "reason": NO_CAPABILITY} for name, since in silent)
        return [*self._failing.values(), *failing]

    def collect(self) -> Iterator[object]:
        """Yield the metrics; called by the Prometheus client."""
        gauge, counter, record = self._core.GaugeMetricFamily, self._core.CounterMetricFamily, self._record
        sent = Counter(level_name(rate) for rate in record.rates.values())
        answered = Counter(dict.fromkeys(sent, 0))
        unanswered = {*record.failures, *record.spared}
        answered.update(level_name(rate) for number, rate in record.rates.items() if number not in unanswered)
        metrics = {**_headlines("train", record.train, record.train_by_level), **self._evaluated}
        epsilon = {(): record.stages["epsilon"]} if "epsilon" in record.stages else {}
        failing = {client["name"]: 1 for client in self._all_failing()}
        healthy = self.health()["status"] == "ok"
        for family, name, text, labels, values in (
            (gauge, "round", "Last round that has ended", (), {(): record.server_round}),
            (gauge, "rounds", "Rounds of the run", (), {(): self._num_rounds}),
            (gauge, "round_seconds", "Time of the last round", (), {(): record.seconds}),
            (gauge, "round_end_timestamp_seconds", "End of the last round", (), {(): self._ended_at}),
            (gauge, "healthy", "Whether the last round ended within its limit", (), {(): healthy}),
            (gauge, "clients_expected", "Clients of a round if no node is missing", (), {(): record.expected}),
            (gauge, "clients_asked", "Clients asked to train", ["level"], _keyed(sent)),
            (gauge, "clients_answered", "Clients with a usable reply", ["level"], _keyed(answered)),
            (gauge, "node_failing", "Nodes whose last reply was not usable", ["node"], _keyed(failing)),
            (gauge, "node_away", "First round without the node", ["node"], _keyed(record.away)),
            (counter, "bytes", "Parameters and labels sent and received", ["direction"], _keyed(self._bytes)),
            (counter, "failures", "Replies that were not used", ["kind"], _keyed(self._faults)),
            (gauge, "metric", "Metrics; no level is all clients", ["phase", "metric", "level"], metrics),
            (gauge, "epsilon", "Epsilon spent so far", (), epsilon),
        ):
            metric = family(f"heterofl_{name}", text, labels=labels)
            for key, value in values.items():
                metric.add_metric(key, value)
            yield metric


def _keyed(values: Mapping[str, int]) -> Values:
    return {(key,): value for key, value in values.items()}


def _headlines(phase: str, metrics: Mapping[str, float], by_level: Mapping[str, Mapping[str, float]]) -> Values:
    """Return the accuracies, losses and perplexities by (phase, metric, level); the level is '' for ``metrics``.

    Other metrics are left out, because clients may report any number of them.
    """
    return {
        (phase, name, level): value
        for level, values in {"": metrics, **by_level}.items()
        for name, value in values.items()
        if name.endswith(HEADLINE_KINDS)
    }


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


class _Server(ThreadingTCPServer):
    """HTTP server whose threads do not keep the process alive."""

    daemon_threads = allow_reuse_address = True


class _Handler(BaseHTTPRequestHandler):
    timeout = IDLE_SECONDS

    def __init__(self, monitor: Monitor, metrics: Callable[[], bytes], *args: Any) -> None:
        self._monitor, self._metrics = monitor, metrics
        super().__init__(*args)

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that hangs up would leave a traceback on standard error
            super().handle()

    def do_GET(self) -> None:
        status, kind, body = 404, "text/plain; version=0.0.4; charset=utf-8", b"expected /metrics or /health\n"
        if self.path == "/metrics":
            status, body = 200, self._metrics()
        elif self.path == "/health":
            health = self._monitor.health()
            status, kind = 200 if health["status"] == "ok" else 503, "application/json"
            body = f"{to_json(health, indent=2)}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing; by default each request is a line on standard error."""
