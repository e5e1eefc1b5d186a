"""Who is told of replies, and when."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from heterofl_flwr import LocalGrid, Windowed
from heterofl_flwr.grids.windowed import Relay, Watched

app = ClientApp()


@app.query()
def query(message, context):
    return Message(RecordDict({"a": ArrayRecord({"w": Array(np.zeros(1))})}), reply_to=message)


class Told:
    def __init__(self):
        self.events = []

    def on_messages(self, messages):
        self.events.append(len(list(messages)))

    def on_reply(self, reply):
        self.events.append(reply.metadata.src_node_id)

    def on_replies_end(self):
        self.events.append("end")


@pytest.mark.parametrize("known", [True, False])
def test_replies_are_told_once_each_between_the_messages_and_the_end(known):
    told = Told()
    with LocalGrid(app, 3) as grid:
        nodes = list(grid.get_node_ids())
        watched = Watched(Windowed(grid, 2), told, innermost=grid if known else Relay(grid))
        replies = list(watched.send_and_receive([Message(RecordDict(), node, "query") for node in nodes]))
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    assert told.events == [3, *nodes, "end"]


def test_our_grids_tell_of_a_reply_before_it_is_asked_for():
    told = Told()
    with LocalGrid(app, 3) as grid:
        nodes = list(grid.get_node_ids())
        Watched(grid, told, innermost=grid)
        ids = grid.push_messages([Message(RecordDict(), node, "query") for node in nodes])
        grid.wait_for_replies(list(ids)[-1:])
    assert told.events == nodes[-1:]
