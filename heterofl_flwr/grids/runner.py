"""What runs the clients of a ``LocalGrid``: the interface, and the one that runs them in this process, one by one."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from heterofl_flwr.grids.apps import Cohort, Outcome, call, call_cohort

logger = logging.getLogger(__name__)


@dataclass(order=True, slots=True)
class Job:
    """A message to a client. Jobs sort by urgency, then in the order in which they were sent."""

    urgency: float
    number: int
    message: Message = field(compare=False)
    dropped: bool = field(default=False, compare=False)

    @property
    def id(self) -> str:
        """The message's id."""
        return self.message.metadata.message_id

    @property
    def node_id(self) -> int:
        """The node that the message goes to."""
        return self.message.metadata.dst_node_id


class Runner(ABC):
    """Runs jobs, and keeps each node's context from one to the next."""

    def __init__(self, contexts: dict[int, Context]) -> None:
        self._contexts = contexts

    @abstractmethod
    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs."""

    @abstractmethod
    def collect(self, ids: Sequence[str], deadline: float | None) -> dict[str, Message]:
        """Hand over the replies to these messages; wait for them until the deadline of ``time.monotonic``."""

    @abstractmethod
    def poll(self, ids: Sequence[str]) -> dict[str, Message]:
        """Hand over those replies to these messages that can be had without waiting for another process."""

    @abstractmethod
    def cancel(self, ids: Sequence[str]) -> None:
        """Drop these messages and their replies; nobody will ask for them."""

    @abstractmethod
    def close(self) -> None:
        """End all that the runner started; may be called again."""

    def _settle(self, job: Job, outcome: Outcome) -> Message:
        """Keep the node's new context, report what failed, and return the reply."""
        if outcome.trouble:
            logger.error(
                "node %d failed to answer %r:\n%s", job.node_id, job.message.metadata.message_type, outcome.trouble
            )
        if outcome.context is not None:
            self._contexts[job.node_id] = outcome.context
        return outcome.reply


class Inline(Runner):
    """Runs clients in this process and in the order sent, each only when its reply is asked for."""

    def __init__(self, app: ClientApp, contexts: dict[int, Context]) -> None:
        super().__init__(contexts)
        self._app = app
        self._cohort: Cohort | None = getattr(app, "train_cohort", None)
        self._jobs: dict[str, Job] = {}
        self._done: dict[str, Message] = {}
        self._lock = threading.Lock()  # Flower's legacy server asks from several threads

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs, without running them."""
        self._jobs.update({job.id: job for job in jobs})

    def poll(self, ids: Sequence[str]) -> dict[str, Message]:
        """Run all of these clients."""
        return self.collect(ids, None)

    def collect(self, ids: Sequence[str], deadline: float | None) -> dict[str, Message]:
        """Run these clients until the deadline; the one that is at work then is let finish."""
        with self._lock:
            for job in sorted(job for id_ in ids if (job := self._jobs.get(id_))):
                if deadline is not None and time.monotonic() >= deadline:
                    break
                if job.id in self._jobs:  # else it was answered together with an earlier one
                    self._run(self._together(job))
            return {id_: self._done.pop(id_) for id_ in ids if id_ in self._done}

    def cancel(self, ids: Sequence[str]) -> None:
        """Forget these messages."""
        for id_ in ids:
            self._jobs.pop(id_, None)
            self._done.pop(id_, None)

    def close(self) -> None:
        """Forget all messages."""
        self._jobs.clear()
        self._done.clear()

    def _together(self, job: Job) -> list[Job]:
        """Return the jobs to answer along with one: for a cohort, all that wait with its message type."""
        if self._cohort is None or job.message.metadata.message_type != "train":
            return [job]
        together = {job.node_id: job}
        for other in sorted(self._jobs.values()):
            if other.message.metadata.message_type == "train":
                together.setdefault(other.node_id, other)  # a node's later message waits its turn
        return list(together.values())

    def _run(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            del self._jobs[job.id]
        messages = [_own_message(job.message) for job in jobs]
        contexts = [_own_context(self._contexts[job.node_id]) for job in jobs]
        if self._cohort is not None and jobs[0].message.metadata.message_type == "train":
            outcomes = call_cohort(self._cohort, messages, contexts)
        else:
            outcomes = [call(self._app, messages[0], contexts[0])]
        for job, outcome in zip(jobs, outcomes, strict=True):
            self._done[job.id] = self._settle(job, outcome)


def _own_message(message: Message) -> Message:
    """Return a message whose records a client may change; the server's messages share theirs. Values are not copied."""
    own = copy(message)
    own.content = _own_records(message.content)
    return own


def _own_context(context: Context) -> Context:
    """Return a context that a client may change; it replaces the node's only where the client succeeds."""
    return Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=dict(context.node_config),
        state=_own_records(context.state),
        run_config=dict(context.run_config),
    )


def _own_records(records: RecordDict) -> RecordDict:
    own = records.copy()
    for name, record in records.items():
        own[name] = record.copy()
    return own
