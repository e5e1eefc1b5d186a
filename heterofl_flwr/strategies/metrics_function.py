"""Functions of users that aggregate the metrics of clients."""

import logging
from collections.abc import Callable, Collection, Mapping
from reprlib import repr as shown

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from heterofl_flwr.common.errors import check_takes
from heterofl_flwr.federation.round_record import RoundRecord, check_metrics
from heterofl_flwr.transport import messages, reading

logger = logging.getLogger(__name__)

MetricsFn = Callable[[list[RecordDict], str], MetricRecord | None]
"""Function of the records of all replies, and of the key of the number of examples; it returns metrics or None."""


class MetricsFunction:
    """The function in a strategy's argument, such as ``train_metrics_aggr_fn``, and the replies' records for it.

    If the function is None, metrics are the means over clients, without metrics that are lists.
    """

    def __init__(self, argument: str, function: MetricsFn | None) -> None:
        check_takes(argument, function, "records", "weighting_key")
        self._argument, self._function = argument, function
        self._records: dict[int, RecordDict] = {}  # of the replies in the current round, without arrays
        self._warned = False

    def reset(self) -> None:
        """Begin a new run."""
        self._records, self._warned = {}, False

    def keep(self, node_id: int, reply: Message) -> None:
        """Store a reply's records; without a function, warn once that metrics that are lists are left out."""
        if self._function is not None:
            self._records[node_id] = RecordDict(
                {name: record for name, record in reply.content.items() if not isinstance(record, ArrayRecord)}
            )
        elif not self._warned and (names := reading.list_metrics(reply)):
            self._warned = True
            logger.warning(
                "clients report lists as metrics (%s), which are left out: only a function in %s gets lists",
                shown(names),
                self._argument,
            )

    def add_earlier(self, node_id: int, metrics: Mapping[str, float]) -> None:
        """Add metrics of the client's earlier reply in this round to its stored records."""
        if (records := self._records.get(node_id)) is not None:
            stored = reading.find_record(records, messages.METRICS, MetricRecord) or MetricRecord()
            records[messages.METRICS] = MetricRecord({**metrics, **stored})

    def aggregate(self, node_ids: Collection[int], log: RoundRecord, means: dict[str, float]) -> MetricRecord | None:
        """Call the function with the records of these clients; return its result, and write its numbers to ``means``.

        Without a function or clients, return ``means``.
        """
        records, self._records = self._records, {}
        if self._function is None or not node_ids:
            return MetricRecord(dict(means))
        metrics = self._function([records[node_id] for node_id in node_ids], messages.NUM_EXAMPLES)
        check_metrics(metrics, self._argument)
        if metrics is not None:
            log.note_computed(means, metrics)
        return metrics
