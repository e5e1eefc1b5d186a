"""What a node says of itself, and to whom."""

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, messages
from heterofl_flwr.capability import answer_capability
from heterofl_flwr.errors import ConfigError, ReplyError
from tests.federation.tiny import build, make_app

pytestmark = pytest.mark.usefixtures("identity")


def node(**config):
    return Context(1, 2, config, RecordDict(), {})


def query(**config):
    return Message(RecordDict({"config": messages.new_config(config)}), 2, "query.capability")


def test_a_level_that_is_none_names_those_there_are():
    with pytest.raises(ConfigError, match="'auto' is no level: expected one of a"):
        answer_capability(query(), node(level="auto"))


def test_a_message_of_an_older_version_is_refused_by_both_sides():
    old = ConfigRecord({"heterofl-schema": 0})

    def stale(message, context):
        return Message(RecordDict({"config": old, "arrays": ArrayRecord()}), reply_to=message)

    with LocalGrid(make_app(odd={1: stale}), 2) as grid:
        strategy = HeteroFL(build, "a1", evaluation=Evaluation(every=0))
        strategy.start(grid, num_rounds=1)
    assert "sent messages of schema 0, expected 1: install the same version" in strategy.log.failures[1]
    with pytest.raises(ReplyError, match="the server sent messages of schema 0, expected 1: install the same version"):
        messages.read_config(Message(RecordDict({"config": old}), 2, "query.capability"))
