"""SecureSum in whole rounds: the model is that of the same fixed-point changes in clear, whoever is lost and when."""

import math
import re
from functools import cache, partial

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.exception import AggregationError
from torch import nn

from heterofl_flwr import Aggregation, HeteroFL, Limits, Momentum, Privacy, RayGrid, classic
from heterofl_flwr.client.queries import answer_stages
from heterofl_flwr.common.errors import ConfigError, ReplyError
from heterofl_flwr.core import width
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.secure.client import MaskedRounds
from heterofl_flwr.secure.fixed_point import largest_steps, to_steps
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.settings.server_stages import parse_stages
from heterofl_flwr.stages.secure_sum import SecureSum
from heterofl_flwr.stages.secure_sum_client import DIGESTS, HASHES, KEY, KEYS, SEEDS, vector_of
from heterofl_flwr.stages.server_stage import Needs, ServerStage
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.arrays import content_bytes, read_tensors
from heterofl_flwr.transport.size_guard import JSON_GROWTH
from tests.federation.tiny import Tiny, Watched, adding, equal, make_app, play
from tests.secure.app import app, classes_of

BOUND, NODES = 0.25, 7  # some changes are longer, and are cut off
MIX = "a4-b2-c1"
ROWS = ["classifier.weight", "classifier.bias"]
PHASES = ("keys", "shares", "train", "reveal")


def is_lost(lost, grid, message):
    """Whether a client is lost, by partition: from a phase of secure aggregation on."""
    phase, since = message.content["config"].get(KEY), lost.get(grid.partition_of(message))
    return phase is not None and since is not None and PHASES.index(phase) >= PHASES.index(since)


def tampering(tampers):
    """Return a grid type on which some clients, by partition, send something else."""

    def change(grid, reply):
        tamper = tampers.get(grid.partition_of(reply))
        if tamper and not reply.has_error():
            tamper(reply.content)

    return partial(Watched, change=change)


@pytest.fixture(autouse=True)
def _without_nonce(monkeypatch):
    """Let runs with and without secure sums train alike."""
    monkeypatch.setattr("heterofl_flwr.stages.secure_sum.secrets.randbits", lambda bits: 0)


def of_two(partition):
    """Return the config of a node that takes part in sums of two."""
    return {"secure-holders": 2}


def run(*, lost=None, stages=(), mix=MIX, nodes=NODES, **options):
    grid = options.pop("grid", partial(Watched, lost=partial(is_lost, lost or {})))
    return play(app, mix=mix, nodes=nodes, grid=grid, stages=stages, min_replies=1, node_config=of_two, **options)


def secure(**options):
    return run(stages=[SecureSum(BOUND, holders=options.pop("holders", 3))], **options)


plain_run, secure_run = cache(run), cache(secure)  # nobody changes what they return


def in_clear(found, lost):
    """Return the counting mean of the fixed-point changes that clients in clear replied, and which entries count."""
    federation = found.federation
    before = federation.architecture.initial_state()
    members = [number for number in range(len(found.log.rates)) if lost.get(number) not in ("keys", "shares")]
    aggregator = Aggregation(
        {name: torch.zeros_like(own).double() for name, own in before.items()}, ROWS, extra_rows=False
    )
    replies = {message.metadata.src_node_id: message for message in found.grid.heard}
    for number, message in enumerate(found.grid.of("train")):
        if number not in members or lost.get(number) == "train":
            continue
        node_id, config = message.metadata.dst_node_id, message.content["config"]
        plan = federation.architecture.train_plan(1, config["rate"], federation.nodes.partition(node_id))
        sent = plan.extract(before)
        changes = {
            name: own.double() - sent[name] for name, own in read_tensors(replies[node_id].content["arrays"]).items()
        }
        seed = derive(config["seed"], "client", 1, config["partition"])
        steps = to_steps(changes, BOUND, len(members), torch.Generator().manual_seed(derive(seed, KEY)))
        aggregator.add(plan, {name: own.double() for name, own in steps.items()}, labels=classes_of(number))
    held = {name: aggregator.holders(name) for name in before}
    for name in ROWS:  # rows of one client stay as they are
        held[name] = torch.where(held[name] < 2, 0, held[name])
    step = BOUND / largest_steps(len(members))
    moved = {name: (before[name].double() + own * step).float() for name, own in aggregator.result().items()}
    return {name: torch.where(held[name] > 0, moved[name], before[name]) for name in before}


@pytest.mark.parametrize(("mix", "rule"), [("a1", "prefix"), (MIX, "prefix"), (MIX, "random-client")])
def test_the_model_is_that_of_the_same_changes_in_clear(mix, rule):
    plain, found = run(mix=mix, slice_rule=rule), secure(mix=mix, slice_rule=rule, holders=2)
    assert found.log.failures == {}
    counted = found.log.stages
    assert counted["summed-clients"] == NODES
    expected = in_clear(plain, {})
    before = plain.before
    for name, own in found.state.items():
        moved = own != before[name]
        assert moved.any()
        assert torch.equal(own[moved], expected[name][moved])
    if rule == "prefix":  # else rows of few clients keep others closed, and some entries have a single holder
        assert equal(found.state, expected)


@pytest.mark.parametrize("phase", PHASES)
def test_clients_may_be_lost_in_each_phase(phase):
    lost = {1: phase, 6: phase}
    found = secure(lost=lost, holders=2)
    assert equal(found.state, in_clear(plain_run(), lost))
    assert found.log.failures.keys() == ({} if phase == "reveal" else lost).keys()


def with_keys(change):
    """Return what changes the public keys that a client sends."""

    def tamper(content):
        keys = content["config"].get(KEYS)
        if keys and len(keys) == 2:
            content["config"][KEYS] = change(keys)

    return tamper


def with_mask(change):
    """Return what changes the reply with a masked change."""
    return lambda content: change(content) if "masked" in content else None


def in_words(content):
    content["masked"]["other"] = content["masked"].pop("masked")


def in_bytes(content):
    content["masked"] = ArrayRecord({"masked": torch.zeros(3)})


def without_seeds(content):
    del content["config"][SEEDS]


def unmasked(content):
    del content["masked"]
    del content["config"][messages.UPLOAD]
    content["arrays"] = ArrayRecord({name: torch.zeros(own.shape) for name, own in Tiny(0.5).named_parameters()})


UNUSABLE = "its answer to what was asked before training is not usable"


FALSE_KEYS = {
    1: (with_keys(lambda keys: [keys[0]] * 2), UNUSABLE),
    3: (with_keys(lambda keys: [bytes(32), keys[1]]), UNUSABLE),
    4: (with_keys(lambda keys: keys[:1]), UNUSABLE),
}
ODD_MASKS = {
    2: (with_mask(in_words), "sent ['other'] in record masked, expected masked alone"),
    4: (with_mask(unmasked), "its change is in the form float32, expected masked"),
}
FALSE_MASKS = {
    5: (with_mask(in_bytes), "its masked change is float32 of shape (3,), expected uint32"),
    6: (with_mask(without_seeds), "expected one sealed share of its seeds for each client"),
}


@pytest.mark.parametrize(("faults", "phase"), [(FALSE_KEYS, "keys"), (ODD_MASKS, "train"), (FALSE_MASKS, "train")])
def test_clients_whose_keys_or_reply_have_another_form_are_left_out(faults, phase):
    found = secure(grid=tampering({partition: tamper for partition, (tamper, _) in faults.items()}), holders=2)
    assert list(found.log.failures) == list(faults)
    for partition, (_, cause) in faults.items():
        assert cause in found.log.failures[partition]
    assert equal(found.state, in_clear(plain_run(), dict.fromkeys(faults, phase)))


def test_entries_that_no_client_holds_are_not_said_to_stay_closed():
    found = run(stages=[SecureSum(8.0, holders=2)], mix="b1-c1", slice_rule="rolling", global_rate="a", labels="none")
    assert found.log.stages["closed-fraction"] == 0


class Partly(Tiny):
    """Its smaller models hold a layer that they do not train."""

    def __init__(self, rate):
        super().__init__(rate)
        self.untrained = () if rate == 1 else ("hidden.*",)


def test_what_a_level_does_not_train_is_in_no_sum():
    options = {"mix": "a1-c1", "build": Partly}
    plain, found = run(**options), run(stages=[SecureSum(100.0)], **options)
    for name in ("hidden.weight", "hidden.bias"):
        torch.testing.assert_close(found.state[name], plain.state[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("phase", "number"), [("keys", 5), ("shares", 3)])
def test_too_few_clients_before_training_end_the_run(phase, number):
    with pytest.raises(AggregationError, match=r"clients sent keys|usable reply"):
        secure(lost=dict.fromkeys(range(number), phase))


@pytest.mark.parametrize("phase", ["train", "reveal"])
def test_too_few_clients_after_training_leave_the_model_as_it_is(phase):
    found = secure(lost=dict.fromkeys(range(3), phase))
    assert equal(found.state, found.before)
    assert "100% of the model stays closed" in found.log.line()
    assert found.log.stages["summed-clients"] == 0
    assert found.strategy.chain.skipped  # so that tensors that clients keep for stages do not count


def grid_with_false_shares():
    """Return a grid type in which node 4 reveals false shares in the first round."""

    def false(content):
        config = content.get("config", {})
        if len(config.get(KEYS, ())) == NODES and "masked" not in content and not false.first:
            config[KEYS] = [bytes(len(text)) for text in config[KEYS]]
        if "masked" in content:
            false.first = False

    false.first = True
    return tampering({4: false})


def test_a_client_that_reveals_false_shares_is_named_and_left_out_of_later_rounds():
    first, second = secure(grid=grid_with_false_shares(), holders=2, num_rounds=2).records
    assert "false shares" in first.failures[4]
    assert first.stages["summed-clients"] == NODES
    assert "in round 1 it revealed false shares" in second.failures[4]
    assert second.stages["summed-clients"] == NODES - 1


def test_clients_that_could_take_part_in_a_skipped_round_are_no_failure():
    _, second = secure(grid=grid_with_false_shares(), mix="a1", holders=NODES, num_rounds=2).records
    assert (second.rates, second.failures.keys()) == ({4: 1.0}, {4})
    assert "100% of the model stays closed" in second.line()


def test_the_bound_on_a_replys_size_has_room_for_the_shares_of_all_clients(monkeypatch):
    """Through a SuperLink, replies of 48 clients with 62 classes were refused as too large."""

    def check(grid, reply):
        asked = {message.metadata.message_id: message for message in grid.sent}[reply.metadata.reply_to_message_id]
        size = JSON_GROWTH * len(reply.content["config"].deflate()) + content_bytes(reply.content)
        assert size <= strategy.largest_reply(asked)

    monkeypatch.setattr("heterofl_flwr.strategies.start.OTHER_BYTES", 7000)  # fewer than the shares of these clients
    strategy = HeteroFL(Tiny, MIX, stages=[SecureSum(BOUND, holders=2)], fraction_evaluate=0.0)
    with Watched(app, NODES, node_config=of_two, change=check) as grid:
        strategy.start(grid, num_rounds=1)
    assert strategy.log.stages["summed-clients"] == NODES


class Hurried(Watched):
    """A grid on which replies to training arrive one by one."""

    def pull_messages(self, message_ids):
        return list(super().pull_messages(list(message_ids)[:1]))


def test_a_round_with_spare_clients_waits_for_enough_replies_to_open_the_sum():
    found = secure(grid=Hurried, mix="a1", fraction_train=0.4, spare=1.0)  # 3 of 6 are needed; 5 open the sum
    assert found.log.stages["summed-clients"] == 5
    assert not equal(found.state, found.before)


def test_a_client_masks_no_round_twice_though_its_server_and_its_context_are_new(tmp_path):
    nodes = {"node_config": lambda partition: {"states-path": str(tmp_path)}}
    begun = play(app, "a1", 6, 2, grid=Watched, stages=[SecureSum()], **nodes)
    again = play(app, "a1", 6, 3, grid=Watched, stages=[SecureSum()], start={"resume": begun.progress[0]}, **nodes)
    second, third = again.records
    assert all("masked a change in round 2" in reason for reason in second.failures.values())
    assert {*second.unsent} == second.failures.keys()  # so reports count no model for them
    assert len(second.failures) == 6
    assert equal(again.progress[0].state, begun.progress[0].state)
    assert third.stages["summed-clients"] == 6
    assert not third.failures


def test_a_mean_change_longer_than_the_norm_bound_is_not_used():
    found = run(stages=[SecureSum(BOUND, holders=2)], limits=Limits(norm_bound=1e-3))
    assert equal(found.state, found.before)


def test_a_client_logs_how_many_changes_were_cut(caplog):
    play(app, "a1", 3, stages=[SecureSum(BOUND)])
    cut = re.findall(
        r"round 1: SecureSum cut the changes of (\d+) of 68 entries of this client to bound=0.25", caplog.text
    )
    assert len(cut) == 3
    caplog.clear()
    play(app, "a1", 3, stages=[SecureSum(1e3)])
    assert "SecureSum cut" not in caplog.text


def test_a_node_takes_part_in_sums_of_three_unless_its_config_says_less():
    with pytest.raises(AggregationError, match="this node takes part in sums of at least 3"):
        play(app, MIX, NODES, stages=[SecureSum(BOUND, holders=2)])


def test_a_client_refuses_a_roster_with_another_slice_than_its_own():
    values = {"run": 1, "server_round": 1, "least": 2, "bound": 1.0, "rows": (), "extra_rows": False, "grid": ()}
    roster = Roster.of([Plan.of(nn.Linear(3, 2), nn.Linear(3, 2))], [(b"1", b"2")], **values)
    steps = {"weight": torch.ones(3, 2), "bias": torch.ones(2)}  # of as many entries
    with pytest.raises(ReplyError, match=r"weight is \(2, 3\), expected \(3, 2\)"):
        vector_of(roster, roster.slices[0], steps, None)


class TwoHeads(nn.Module):
    """Two classifiers of different sizes on the same features."""

    def __init__(self, rate):
        super().__init__()
        self.hidden = nn.Linear(3, width(8, rate))
        self.digits = nn.Linear(width(8, rate), 4)
        self.months = nn.Linear(width(8, rate), 6)


def labelled(labels, build=TwoHeads):
    """Return an app whose clients add 0.1 and name classes."""
    app = make_app(adding(lambda partition: 0.01 * (1 + partition), labels, build=build), build=build)
    app.query("stages")(answer_stages)
    return app


def test_labels_by_head_choose_the_rows_of_a_sum():
    heads = [f"{head}.{part}" for head in ("digits", "months") for part in ("weight", "bias")]
    app = labelled(lambda partition: {"digits": [0, 1, 3], "months": [5]} if partition < 4 else {"months": [2, 5]})
    options = {"build": TwoHeads, "label_rows": heads, "node_config": of_two}
    plain, found = (play(app, "a1", 7, stages=stages, **options) for stages in ([], [SecureSum(1.0, holders=2)]))
    assert not found.log.failures
    for name, tensor in plain.state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=0, atol=1e-6)


def test_labels_that_name_no_known_rows_are_refused_unless_they_count_for_nothing():
    app, options = labelled(lambda partition: [0, 1]), {"build": TwoHeads, "stages": [SecureSum(1.0, holders=2)]}
    with pytest.raises(AggregationError, match="it is not certain which layers of this model have a row for each"):
        play(app, "a1", 7, node_config=of_two, label_rows=[], **options)
    found = play(app, "a1", 7, node_config=of_two, label_rows=[], labels="none", **options)
    assert found.log.failures == {}


def test_starts_have_seeds_of_their_own(monkeypatch):
    first = secure_run()
    monkeypatch.setattr("heterofl_flwr.stages.secure_sum.secrets.randbits", lambda bits: 1)
    assert not equal(secure().state, first.state)


def test_a_reply_says_nothing_in_clear():
    found = secure_run(num_rounds=2)
    replies = [own for own in found.grid.heard if own.metadata.message_type == "train"]
    assert len(replies) == 2 * NODES
    for own in replies:
        config, metrics = own.content["config"], own.content["metrics"]
        sealed = {SEEDS, HASHES, DIGESTS}
        assert set(config) == {messages.SCHEMA_KEY, messages.UPLOAD, *sealed}
        assert dict(metrics) == {messages.NUM_EXAMPLES: 1}
        assert list(own.content["masked"]) == ["masked"]
    assert found.log.train == {}
    one, two = (read_tensors(replies[place].content["masked"])["masked"].numpy() for place in (0, NODES))
    assert (one != two).mean() > 0.99


def test_replies_are_no_larger_than_in_clear():
    plain, found = (
        play(app, mix="a1-b1", nodes=4, grid=Watched, build=Tiny, stages=stages, node_config=of_two).log.bytes_up
        for stages in ((), [SecureSum(holders=2)])
    )
    assert found < plain  # one header in place of four; the numbers for rows are few


def test_secrets_of_a_round_are_gone_when_it_is_over():
    found = secure_run(num_rounds=2)
    for context in found.grid._contexts.values():
        assert set(context.state["heterofl-round"]) == {MaskedRounds.KEY}


def test_other_stages_go_on_from_the_mean():
    plain, found = (
        run(stages=[*own, Momentum(server_momentum=0.5)], num_rounds=2, labels="none")
        for own in ((), [SecureSum(8, holders=2)])
    )
    for name, own in found.state.items():
        torch.testing.assert_close(own, plain.state[name], atol=1e-5, rtol=0)


def test_noise_is_added_to_the_sum_of_the_same_changes(monkeypatch):
    none = lambda stream, shape: torch.zeros(shape, dtype=torch.float64)  # noqa: E731
    monkeypatch.setattr("heterofl_flwr.core.gaussian_noise.draw", none)
    options = {"privacy": Privacy(clip=0.5, noise=1.0), "labels": "none"}
    plain, found = (run(stages=own, **options) for own in ((), [SecureSum(holders=2)]))
    assert equal(found.state, plain.state)
    assert found.log.stages["training-releases"] == 1
    cause = "does not fit into 32 bits on the grid of the noise; expected 1.01 times the noise"
    with pytest.raises(AggregationError, match=cause):  # 7 * 2^24 / noise is just above 2^31
        run(stages=[SecureSum(holders=2)], privacy=Privacy(clip=0.5, noise=7 / 128))


@pytest.mark.parametrize("options", [{}, {"privacy": Privacy(clip=0.5, noise=1.0)}])
def test_a_client_that_diverged_is_not_in_the_sum(options):
    diverging = make_app(adding(lambda partition: math.inf if partition == 1 else 0.0))
    diverging.query("stages")(answer_stages)
    log = play(diverging, "a1", 4, stages=[SecureSum(4.0)], **options).log
    assert log.failures.keys() == {1}
    assert "changed to NaN or infinity" in log.failures[1]
    assert log.stages["summed-clients"] == 3


def test_the_classic_api_is_refused():
    with pytest.raises(ConfigError, match="the classic API has no place for SecureSum"):
        classic.HeteroFL(Tiny, "a1-b1", stages=[SecureSum()])


@pytest.mark.parametrize(
    ("argument", "cause"), [("0", "bound is 0,"), ("holders=1", "holders is 1,"), ("holders=2.5", "holders is 2.5")]
)
def test_a_text_names_it_with_its_arguments(argument, cause):
    (stage,) = parse_stages("secure-sum(2, holders=5)")
    assert (stage.bound, stage.needs) == (2.0, Needs(counting_mean=True, equal_weights=True, holders=5))
    with pytest.raises(ConfigError, match=cause):
        parse_stages(f"secure-sum({argument})")


def test_an_app_that_answers_no_stages_is_named():
    fault = r"0 clients sent keys for SecureSum.*; x and 2 more: error .*its ClientApp is not converted"
    with pytest.raises(AggregationError, match=fault):
        play(make_app(), mix="a1", stages=[SecureSum()], grid=partial(Watched, names="xyz"))


@pytest.mark.simulation
@pytest.mark.release
@pytest.mark.filterwarnings("ignore:Exception ignored in. .function Popen")
def test_actors_give_the_same_model():
    strategy = HeteroFL(Tiny, MIX, stages=[SecureSum(BOUND)])
    with RayGrid("tests.secure.app:app", NODES, at_once=2) as grid:
        found = strategy.start(grid, num_rounds=2).arrays
    assert equal(found.to_torch_state_dict(), secure(num_rounds=2).state)


def needing(holders):
    """Return a stage that needs as many holders of each entry as ``SecureSum(holders=holders)``."""
    return type("Needs", (ServerStage,), {"needs": Needs(holders=holders)})()


def test_entries_that_too_few_clients_can_hold_are_warned_of_before_training(caplog):
    run(mix="a2-b3-c1", stages=[needing(3)])
    (warning,) = (text for text in caplog.messages if "are never trained" in text)
    assert "fewer than 3 clients (holders) can train more than rate 0.5" in warning
    caplog.clear()
    run(mix="a2-b3-c1", stages=[needing(2)])
    assert "never trained" not in caplog.text


def test_enough_clients_of_the_largest_level_are_drawn():
    options = {"mix": "a1-b1-c1-d1-e1", "nodes": 10, "fraction_train": 0.5, "num_rounds": 4}
    free, found = (run(stages=own, **options).records for own in ((), [needing(2)]))
    # So each entry moves in each round, but in rows of classes that nobody has.
    assert all(list(record.rates.values()).count(1.0) >= 2 and len(record.rates) == 5 for record in found)
    assert min(list(record.rates.values()).count(1.0) for record in free) < 2
