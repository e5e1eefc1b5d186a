"""FedH2L on the server: what it relays, what it refuses, and that no parameter travels."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from heterofl_flwr import DistillOptions, Evaluation, FedH2L, Limits
from heterofl_flwr.client import Task
from heterofl_flwr.client.queries import answer_capability
from heterofl_flwr.common.errors import ConfigError, RoundError
from heterofl_flwr.transport import messages
from tests.federation.grouped import grouped
from tests.federation.tiny import Keep, Watched

CLASSES, BATCH, NODES = 3, 4, 3


def app_of(said=None):
    """Return an app that publishes what ``said`` has for a partition, and reports the mean of what its peers said."""
    app = ClientApp()
    app.query("capability")(answer_capability)

    @app.train("publish")
    def _(message, context):
        partition = context.node_config["partition-id"]
        own = (said or {}).get(partition, posterior(partition))
        content = {
            messages.POSTERIORS: ArrayRecord({messages.POSTERIORS: own}),
            messages.CONFIG: messages.new_config({}),
            messages.METRICS: MetricRecord({messages.NUM_EXAMPLES: 5, "loss": 2.0}),
        }
        return Message(RecordDict(content), reply_to=message)

    @app.train("learn")
    def _(message, context):
        peers = message.content[messages.POSTERIORS].to_torch_state_dict()[messages.POSTERIORS]
        metrics = {"peers": len(peers), "first": float(peers[:, 0, 0].sum())}
        task = Task(message, context, lambda rate: torch.nn.Identity())
        return task.reply(task.model(), num_examples=5, metrics=metrics)

    return app


def posterior(partition):
    return torch.tensor([0.1 * (partition + 1), 0.2, 0.8 - 0.1 * (partition + 1)]).repeat(BATCH, 1)


def test_initial_arrays_that_no_client_gets_are_warned_of(caplog):
    with Watched(app_of(), NODES) as grid:
        strategy = FedH2L(CLASSES, distill=DistillOptions(seed_batch=BATCH), evaluation=Evaluation(every=0))
        strategy.start(grid, ArrayRecord({"weight": torch.zeros(1)}), num_rounds=2)
    assert caplog.text.count("initial_arrays has weight, and no client gets them") == 1


def play(said=None, num_rounds=1, **options):
    strategy = FedH2L(
        CLASSES,
        distill=DistillOptions(seed_size=10, seed_batch=BATCH),
        evaluation=Evaluation(every=0),
        **grouped(options),
    )
    with Watched(app_of(said), NODES) as grid:
        result = strategy.start(grid, num_rounds=num_rounds)
    return strategy, grid, result


def test_each_client_gets_what_its_peers_published():
    strategy, grid, result = play()
    assert strategy.log.failures == {}
    for message in grid.of("train.learn"):
        mine = grid.partition_of(message)
        found = message.content[messages.POSTERIORS].to_torch_state_dict()
        others = [posterior(partition) for partition in range(NODES) if partition != mine]
        assert list(found) == [messages.POSTERIORS]
        assert torch.equal(found[messages.POSTERIORS], torch.stack(others))
    assert all(not message.content[messages.ARRAYS] for message in grid.sent if messages.ARRAYS in message.content)
    assert dict(result.arrays) == {}


def test_both_exchanges_are_about_the_same_seed_examples():
    strategy, grid, _ = play(num_rounds=2)
    rows = [list(message.content["config"][messages.SEED_ROWS]) for message in grid.of("train.publish")]
    assert rows == [list(message.content["config"][messages.SEED_ROWS]) for message in grid.of("train.learn")]
    assert rows[0] == rows[1] == list(strategy.seed_rows(1)) != rows[-1] == list(strategy.seed_rows(2))
    assert all(0 <= row < 10 for row in rows[0])


def test_a_metrics_function_gets_the_metrics_of_both_exchanges():
    def first(contents, key):
        return MetricRecord({name: value for name, value in contents[0]["metrics"].items() if name != key})

    _, _, result = play(train_metrics_aggr_fn=first)
    assert result.train_metrics_clientapp[1].keys() == {"loss", "peers", "first"}


def test_callbacks_see_the_progress_of_both_exchanges():
    keep = Keep()
    play(callbacks=[keep])
    assert keep.replies == [(what, done, NODES, 0) for what in ("published", "trained") for done in range(NODES + 1)]


@pytest.mark.parametrize("option", [{"limits": Limits(norm_bound=1.0)}, {"spare": 0.5}, {"upload": "int8"}])
def test_options_of_parameters_and_of_spare_clients_are_refused(option):
    with pytest.raises(ConfigError, match=r"FedH2L: found .*; expected the default values"):
        play(**option)


def test_what_is_no_posterior_is_refused_named_and_not_relayed():
    strategy, grid, _ = play({1: torch.full((BATCH, CLASSES), 1.0)})
    assert list(strategy.log.failures) == [1]
    assert "sent posteriors" in strategy.log.failures[1]
    assert sorted(map(grid.partition_of, grid.of("train.learn"))) == [0, 2]
    for message in grid.of("train.learn"):
        assert len(message.content[messages.POSTERIORS].to_torch_state_dict()[messages.POSTERIORS]) == 1


def test_a_round_without_any_posterior_fails_loudly():
    with pytest.raises(RoundError, match="0 of 3 clients gave a usable reply"):
        play(dict.fromkeys(range(NODES), torch.full((BATCH, CLASSES), float("nan"))))


def test_a_client_alone_learns_without_peers():
    strategy, grid, _ = play(fraction_train=0.01)
    (message,) = grid.of("train.learn")
    peers = message.content[messages.POSTERIORS].to_torch_state_dict()[messages.POSTERIORS]
    assert peers.shape == (0, BATCH, CLASSES)
    assert strategy.log.train["peers"] == 0


@pytest.mark.parametrize("key", [messages.TEMPERATURE, messages.SEED_ROWS])
def test_a_train_config_with_what_the_strategy_sends_is_refused(key):
    strategy = FedH2L(CLASSES, evaluation=Evaluation(every=0))
    with Watched(app_of(), NODES) as grid, pytest.raises(ConfigError, match=f"the config for clients has {key}"):
        strategy.start(grid, train_config=ConfigRecord({key: 1.0}))
