"""Fuzzed replies to a strategy: three clients answer a round, and one of them is hostile.

A slow and plain reader says what the model may be afterwards: either to the bit that without the client, or, where the
reply was taken, the mean with what its bytes say.
"""

import io
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from unittest import mock

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import nn

from heterofl_flwr import Evaluation, HeteroFL, Limits, LocalGrid
from heterofl_flwr.client import answer_queries, reply, submodel
from heterofl_flwr.compat import inflate_object_from_contents
from heterofl_flwr.core.compression import Upload
from heterofl_flwr.core.levels import width
from heterofl_flwr.strategies import instructions, size_guard
from simulations.fuzz.attacks import Outgoing, outgoing
from simulations.fuzz.forgeries import FORGERIES, Forgery, Uploaded, as_it_is, many_small_objects, replaced
from simulations.fuzz.mutations import MUTATIONS, Envelope, damage
from simulations.fuzz.superlink import connected
from simulations.fuzz.target import Target

State = Mapping[str, torch.Tensor]
Values = Mapping[str, NDArray[np.float64]]
BOUND = 20.0
HIDDEN, CLASSES = 8, 4
HOSTILE = 1
UPLOADS: Sequence[Upload] = ("float32", "float16", "int8")

Act = Callable[[random.Random, Message, Sequence[Message], Message], list[Outgoing]]
"""From a good reply, the messages of all three nodes and an old reply to what a node sends."""


def _damaged(draw: random.Random, good: Message) -> Uploaded:
    """Change some bytes of an object's body, and name it by what it has become."""
    whole = as_it_is(good)
    old = draw.choice(sorted(whole.objects))
    return replaced(whole, old, damage(draw, (whole.objects[old] or b"").partition(b"\x00")[2]))


def _holes(draw: random.Random, good: Message) -> Uploaded:
    """Withhold some objects."""
    whole = as_it_is(good)
    gone = draw.sample(sorted(whole.objects), draw.randrange(1, len(whole.objects)))
    return replace(whole, objects={**whole.objects, **dict.fromkeys(gone)})


def _own(forge: Forgery) -> Act:
    return lambda draw, good, asked, old: [outgoing(good, forge)]


def _named(draw: random.Random, good: Message, asked: Sequence[Message], old: Message) -> list[Outgoing]:
    """Announce in another's name, or to another's message, with a reply that says so or does not."""
    out, upload = outgoing(good)
    other = draw.choice([asked[0], asked[2]]).metadata
    change = {"_src_node_id": other.dst_node_id, "_reply_to_message_id": other.message_id}
    key, where = draw.choice(sorted(change)), draw.choice([out, good])
    where.metadata.__dict__[key] = change[key]
    return [outgoing(good)] if where is good else [(out, upload)]


OBJECTS: Mapping[str, Act] = {
    "nothing": _own(as_it_is),
    "bytes": lambda draw, good, asked, old: [outgoing(good, partial(_damaged, draw))],
    "holes": lambda draw, good, asked, old: [outgoing(good, partial(_holes, draw))],
    "others' names": _named,
    "again": lambda draw, good, asked, old: [outgoing(good), outgoing(good), outgoing(old)],
    "late": lambda draw, good, asked, old: [outgoing(old)],
    "old, as new": lambda draw, good, asked, old: [(outgoing(good)[0], as_it_is(old))],
    **{name: _own(forge) for name, forge in FORGERIES.items()},
    "small objects": _own(many_small_objects(5000)),
}
"""What is wrong below the records: with bytes, with what is announced, with whom it is of."""


class Net(nn.Module):
    """Three inputs, eight hidden units at rate 1, four classes."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, width(HIDDEN, rate))
        self.classifier = nn.Linear(width(HIDDEN, rate), CLASSES)


class Server:
    """A strategy in its first round, again and again, with three clients; the second is hostile."""

    def __init__(self, grid: LocalGrid, upload: Upload) -> None:
        self._grid = grid
        self.upload = upload
        limits, evaluation = Limits(norm_bound=BOUND), Evaluation(every=0)
        self.strategy = HeteroFL(Net, "a1", upload=upload, weights="examples", limits=limits, evaluation=evaluation)
        self._before = self.strategy.federation.initial_state()
        self._arrays = ArrayRecord(dict(self._before))
        self._ask()
        self._good = [self._reply(message, number) for number, message in enumerate(self._asked)]
        self._without = self._aggregate([self._seal(0), self._seal(2)])
        self._old = self._seal(HOSTILE)
        self.targets = [
            Target(f"reply in {upload}", list(MUTATIONS), self._try_reply),
            Target(f"bytes of {upload}", list(OBJECTS), self._try_objects),
        ]

    def _try_reply(self, kind: str, draw: random.Random) -> str:
        """Forge what a reply holds."""
        self._ask()
        envelope = self._good[HOSTILE].copy()
        MUTATIONS[kind](draw, envelope)
        replies = [self._seal(0), envelope.seal(self._asked[HOSTILE]), self._seal(2)]
        return self._outcome(replies, lambda: envelope, kind)

    def _try_objects(self, kind: str, draw: random.Random) -> str:
        """Forge a reply byte by byte, and let it come through Flower's grid."""
        self._ask()
        said: list[Outgoing] = []

        def answer(metadata: Metadata) -> Iterable[Outgoing]:
            number = [own.metadata.dst_node_id for own in self._asked].index(metadata.dst_node_id)
            good = self._seal(number)
            if number != HOSTILE:
                return [outgoing(good)]
            said.extend(OBJECTS[kind](draw, good, self._asked, self._old))
            return said

        grid, link = connected(answer)
        guard = size_guard.guard(grid, self.strategy.largest_reply)
        try:
            with mock.patch.object(size_guard, "time", link.clock), mock.patch.object(instructions, "time", link.clock):
                replies = guard.send_and_receive(self._asked, timeout=1.0)
                return self._outcome(replies, lambda: _envelope_in(said[0][1].head, link.objects), kind)
        finally:
            self._old = self._seal(HOSTILE)

    def _outcome(self, replies: Iterable[Message], envelope: Callable[[], Envelope], kind: str) -> str:
        """Return what became of a round with these replies, of which an envelope is the hostile one."""
        state = self._aggregate(replies)
        if HOSTILE in self.strategy.log.failures:
            same = all(torch.equal(state[name], own) for name, own in self._without.items())
            return "refused" if same and kind != "nothing" else "changed: a refused reply"
        if not np.isfinite(self.strategy.log.train["loss"]):
            return "changed: the metrics"
        return "harmless" if self._as_it_says(state, envelope()) else "changed: other than it says"

    def _ask(self) -> None:
        self._asked = self.strategy.configure_train(1, self._arrays, ConfigRecord(), self._grid)
        for number, message in enumerate(self._asked):
            message.metadata.__dict__["_message_id"] = f"{number}-now"

    def _reply(self, message: Message, number: int) -> Envelope:
        model = submodel(message, Net)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.25 * (number + 1))
        return Envelope.of(reply(message, model, num_examples=number + 1, labels=range(CLASSES), metrics={"loss": 1.0}))

    def _seal(self, number: int) -> Message:
        return self._good[number].seal(self._asked[number])

    def _aggregate(self, replies: Iterable[Message]) -> State:
        try:
            new = self.strategy.aggregate_train(1, iter(replies))[0]
        finally:  # what it said of its capacity is forgotten
            for message in self._asked:
                self.strategy.federation.nodes.set_capacity(message.metadata.dst_node_id, 1.0)
        assert new is not None
        return new.to_torch_state_dict()

    def _as_it_says(self, state: State, envelope: Envelope) -> bool:
        """Whether the model is the mean with what an envelope's bytes say, within its bound."""
        said = [self._good[0], envelope, self._good[2]]
        subs = [_read(own, self._before) for own in said]
        weights = [float(own.metrics["num-examples"]) for own in said]  # type: ignore[arg-type]
        change = sum(float(((subs[HOSTILE][name] - own.numpy()) ** 2).sum()) for name, own in self._before.items())
        rows = [own.config.get("labels") for own in said]
        means = {
            name: _mean(
                own.numpy(), [sub[name] for sub in subs], weights, rows if name.startswith("classifier") else []
            )
            for name, own in self._before.items()
        }
        close = (np.allclose(state[name].numpy(), mean, 1e-4, 1e-5) for name, mean in means.items())
        return change <= (BOUND * (1 + 1e-4)) ** 2 and all(close)


def _envelope_in(head: str, objects: Mapping[str, bytes | None]) -> Envelope:
    """Return what a reply says, by Flower's own reader; what its node withheld, another may have sent."""
    message = inflate_object_from_contents(head, {id_: own for id_, own in objects.items() if own is not None})
    assert isinstance(message, Message)
    return Envelope.of(message)


def _read(envelope: Envelope, before: State) -> Values:
    """Return the parameters that an envelope's bytes say, by numpy's own reader."""
    loaded = {
        record: {
            name: np.load(io.BytesIO(array.data), allow_pickle=False).astype(np.float64) for name, array in own.items()
        }
        for record, own in envelope.arrays.items()
    }
    if "arrays" in loaded:
        return loaded["arrays"]
    changes, scales = loaded["changes"], list(loaded.get("scales", {}).get("scales", []))
    for name in sorted(changes) if scales else ():
        rows = changes[name].reshape(len(changes[name]) if changes[name].ndim > 1 else 1, -1)
        own, scales = scales[: len(rows)], scales[len(rows) :]
        changes[name] = (rows * np.array(own)[:, None]).reshape(changes[name].shape)
    return {name: before[name].double().numpy() + change for name, change in changes.items()}


def _mean(
    old: NDArray[np.float32], subs: Sequence[NDArray[np.float64]], weights: Sequence[float], labels: Sequence[object]
) -> NDArray[np.float64]:
    """Return the counting mean of one parameter, row by row; with labels, of those whose rows they are."""
    new = old.astype(np.float64)
    for row in range(len(old)):
        held = [
            (weight, sub[row])
            for weight, sub, own in zip(weights, subs, labels or [None] * len(subs), strict=True)
            if own is None or row in own  # type: ignore[operator]
        ]
        total = sum(weight for weight, _ in held)
        if total:
            new[row] = sum(weight * values for weight, values in held) / total
    return new


def servers() -> Iterator[Server]:
    """Yield a server for each form of replies; they last until the next is asked for."""
    app = ClientApp()
    answer_queries(app, Net)
    with LocalGrid(app, 3) as grid:
        yield from map(partial(Server, grid), UPLOADS)
