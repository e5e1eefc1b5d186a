"""Replays in this process of runs through a SuperLink: without the replies and nodes that a history names as lost."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from flwr.app import Error
from safetensors.torch import load_file

from heterofl_flwr import LocalGrid
from heterofl_flwr.app import server_app
from heterofl_flwr.app.workload import Workload
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.validate import from_flat
from heterofl_flwr.settings.value_types import Flat
from heterofl_flwr.transport.compat import SUPERLINK_NODE_ID, ErrorCode
from heterofl_flwr.transport.messages import QUERY_STAGES, error_reply

LOST = Error(ErrorCode.NODE_UNAVAILABLE, "lost")


class Replay(LocalGrid):
    """Nodes in this process; what a history names as lost is lost.

    Attributes
    ----------
    history
        The history of the run.
    steps
        Whether rounds do not wait: then nodes that were not drawn are there too, unless they are away.
    lost
        Messages whose replies are lost, by id.
    answering
        Pairs of a round and a partition that answered what stages asked before training, and were lost afterwards.
    """

    history: Sequence[RoundRecord] = ()
    steps = False
    answering: Collection[tuple[int, int]] = ()
    server_round = 1

    def get_node_ids(self):
        record = self.history[min(self.server_round, len(self.history)) - 1]
        nodes = enumerate(super().get_node_ids())
        if self.steps:
            return [node_id for number, node_id in nodes if name(number) not in record.away]
        return [node_id for number, node_id in nodes if number in record.rates]

    def get_nodes(self):
        return [SimpleNamespace(node_id=own, name=name(number)) for number, own in enumerate(super().get_node_ids())]

    def push_messages(self, messages):
        messages = list(messages)
        pushed, ids = list(super().push_messages(messages)), list(super().get_node_ids())
        for id_, message in zip(pushed, messages, strict=True):
            kind, number = message.metadata.message_type, message.content["config"]["server-round"]
            partition = ids.index(message.metadata.dst_node_id)
            if kind == "train":
                self.server_round = number + 1
            fails = partition in self.history[number - 1].failures
            if fails and (kind == "train" or (kind == QUERY_STAGES and (number, partition) not in self.answering)):
                self.lost.add(id_)
        return pushed

    def pull_messages(self, message_ids):
        for reply in super().pull_messages(message_ids):
            about = reply.metadata.reply_to_message_id
            yield error_reply(about, self.run.run_id, SUPERLINK_NODE_ID, LOST) if about in self.lost else reply


def name(number: int) -> str:
    """Return the registered name of a node of the laboratory."""
    return f"node-{number}"


def check(
    run: RunFolder,
    config: Mapping[str, Flat],
    nodes: int,
    log: str,
    folder: Path,
    answering: Collection[tuple[int, int]] = (),
) -> None:
    """Check the history of a run, the names in its log, and that a replay has the same models."""
    history, met = run.history(), set[int]()
    assert [record.server_round for record in history] == list(range(1, int(config["num-rounds"]) + 1)), log[-9000:]
    steps = "asynchronous.size" in config
    for record in history:
        assert record.answered == len(record.rates) - len(record.failures)
        for partition in record.failures:
            assert f"round {record.server_round}: {name(partition)} at rate" in log
        # A run that begins anew, before its first checkpoint, does not know who was there.
        for partition in met - record.rates.keys() if not steps else ():
            assert any(name(partition) in note for note in record.notes), record
        met |= record.rates.keys()
    settings = {**config, "run.dir": str(folder / "replay"), "sample.wait": 1.0, "run.callbacks": ""}
    settings["sample.min-nodes"] = 1  # here, nodes that did not answer the capability query are not connected
    options = {"run_config": settings, "node_config": lambda number: {"partition-id": number, "num-partitions": nodes}}
    with Replay("heterofl_flwr.app.client_app:app", nodes, **options) as grid:
        grid.history, grid.steps, grid.answering, grid.lost = history, steps, answering, set()
        server_app.run(grid, Workload(from_flat(settings)))
    check_models(run.path, folder / "replay")


def check_models(run: Path, replay: Path) -> None:
    """Check that the models in a run's folder are those in the folder of its replay, bit for bit."""
    models = sorted((run / "models").glob("*.safetensors"))
    assert models
    for path in models:
        ours, replayed = load_file(path), load_file(replay / "models" / path.name)
        assert ours.keys() == replayed.keys()
        assert all(torch.equal(ours[key], replayed[key]) for key in ours)
