"""The chain: in which order stages run, what they may not be beside, a stage of the user's own."""

from dataclasses import dataclass, replace

import pytest
import torch

from heterofl_flwr import Adam, FedDyn, HeteroFL, Momentum, MovingAverage, Plan, Privacy, Robust, Scaffold
from heterofl_flwr.adapters import ProductMean
from heterofl_flwr.common.errors import ConfigError, ReplyError, RoundError
from heterofl_flwr.core.aggregator import Version
from heterofl_flwr.report import Recorder, RunFolder
from heterofl_flwr.stages.chain import Chain
from heterofl_flwr.stages.client_stage import ClientStage, client_stage
from heterofl_flwr.stages.secure_sum import SecureSum
from heterofl_flwr.stages.server_stage import Needs, RoundContext, ServerStage, Update
from tests.federation.grouped import grouped
from tests.federation.tiny import build, equal, play

STATE = {"w": torch.zeros(4)}
PLAN = Plan.between(STATE, {"w": (2,)})


def open_chain(*stages, **options):
    chain = Chain(stages, **options)
    chain.open(RoundContext(server_round=1, state=STATE))
    return chain


class Writes(ServerStage):
    """Writes down what it is asked."""

    def __init__(self, name, diary):
        self.name, self._diary = name, diary

    def on_reply(self, update, context):
        self._diary.append(("reply", self.name))
        return update

    def on_mean(self, new, holders, context):
        self._diary.append(("mean", self.name))
        assert holders("w").tolist() == [1, 1, 0, 0]
        return new


def test_replies_go_back_through_the_stages_and_means_forward():
    diary = []
    chain = open_chain(Writes("one", diary), Writes("two", diary))
    chain.add(Update(plan=PLAN, tensors={"w": torch.ones(2)}))
    assert chain.close()["w"].tolist() == [1, 1, 0, 0]
    assert diary == [("reply", "two"), ("reply", "one"), ("mean", "one"), ("mean", "two")]


def test_clients_mask_what_all_other_stages_have_made():
    """A stage after SecureSum got a masked vector in place of parameters, and no client could train."""
    assert open_chain(SecureSum(), FedDyn()).instruction["client-stages"] == "feddyn,secure-sum"


@pytest.mark.parametrize("extra_rows", [True, False])
def test_rows_of_no_class_are_averaged_where_the_round_says_so(extra_rows):
    state = {"bias": torch.zeros(2), "embedding": torch.zeros(3)}
    context = RoundContext(server_round=1, state=state, rows=[*state], extra_rows=extra_rows)
    chain = Chain([])
    chain.open(context)
    chain.add(
        Update(plan=Plan.between(state, state), tensors={"bias": torch.ones(2), "embedding": torch.ones(3)}, labels=[0])
    )
    assert chain.close()["embedding"].tolist() == [1, 0, extra_rows]


class Twice(ServerStage):
    """Counts what a client changed twice."""

    def on_reply(self, update, context):
        before = update.plan.extract(context.state)
        return replace(update, tensors={name: 2 * own - before[name] for name, own in update.tensors.items()})


def test_a_stage_of_the_users_own_is_an_argument():
    plain, own = play(mix="a1-b1-c1"), play(mix="a1-b1-c1", stages=[Twice()])
    before = plain.before
    for name, tensor in own.state.items():
        torch.testing.assert_close(tensor - before[name], 2 * (plain.state[name] - before[name]))


class Refuses(ServerStage):
    def on_reply(self, update, context):
        if update.rate < 1:
            raise ReplyError("too small")
        return update


def test_a_stage_may_refuse_a_reply_which_leaves_no_trace():
    found = play(mix="a1-b1", nodes=2, stages=[Refuses()])
    assert found.log.failures == {1: "too small"}
    alone = play(mix="a1-x1", nodes=2)
    assert equal(found.state, alone.state)


class Pulls(ServerStage):
    def penalty(self, model, context):
        return 0.0


class Unregistered(ClientStage):
    pass


class Unnamed(ServerStage):
    def client(self):
        return Unregistered()


class Asks(ServerStage):
    needs = Needs


class Sends(ServerStage):
    def broadcast(self, context):
        return {}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            {"stages": [Pulls()]},
            r"Pulls.penalty is not called on the server; it belongs in a ClientStage, which Pulls.cl",
        ),
        ({"stages": [Unnamed()]}, r"Unnamed.client\(\) returns Unregistered, without a name; expected @client_stage"),
        ({"stages": [Asks()]}, r"Asks.needs is <class .*Needs'>; expected an instance, such as Needs\(steps=True\)"),
        ({"stages": [Sends()]}, r"Sends.broadcast is not called, as Sends.client\(\) returns None"),
        (
            {"stages": [Scaffold()], "privacy": Privacy(clip=1, noise=1)},
            "Scaffold uses single replies, which have no n",
        ),
        ({"stages": [Scaffold(), SecureSum()]}, "Scaffold reads replies, which SecureSum hides"),
        ({"stages": [SecureSum()], "upload": "int8"}, "Compress reads replies, which SecureSum hides"),
        ({"stages": [Scaffold()], "robust": Robust()}, "Scaffold needs the counting mean; expected robust=None"),
        ({"stages": [Momentum(), Momentum()]}, "Momentum: two stages have this name"),
        ({"stages": [FedDyn(), type("Own", (FedDyn,), {"name": "Own"})()]}, "feddyn: two stages have this client half"),
        ({"stages": [Momentum(), Adam()]}, "Momentum, Adam: each takes a step along the mean change; expected one"),
        (
            {"stages": [MovingAverage(), Adam()]},
            "MovingAverage must come after Adam, which changes the models to evaluate",
        ),
        ({"stages": [Adam(), FedDyn()]}, "FedDyn must come before Adam, which replaces the mean"),
        ({"aggregator": "product"}, "aggregator is 'product', expected a function from a state to an Aggregator"),
        ({"robust": Robust(), "aggregator": ProductMean}, "robust and aggregator both replace the counting mean"),
        ({"stages": [Scaffold()], "aggregator": ProductMean}, "expected aggregator=CountingMean"),
        ({"stages": [Momentum()], "aggregator": ProductMean}, "Momentum takes a step along the mean change entry"),
        ({"stages": [MovingAverage()], "aggregator": ProductMean}, "MovingAverage averages models entry by entry, but"),
        ({"privacy": Privacy(clip=1, noise=1), "weights": "examples"}, "Noise needs a mean in which each client"),
        ({"robust": Robust(), "weights": "examples"}, "outvotes others; expected weights='equal'"),
    ],
)
def test_what_does_not_go_together_is_refused(options, fault):
    with pytest.raises(ConfigError, match=fault):
        HeteroFL(build, "a1-b1", **grouped(options))


class Ruins(ServerStage):
    def on_mean(self, new, holders, context):
        return {name: own / 0 for name, own in new.items()}


class Flattens(ServerStage):
    def on_mean(self, new, holders, context):
        return new | {"hidden.weight": new["hidden.weight"].flatten()}


class Loses(ServerStage):
    def on_mean(self, new, holders, context):
        return {name: tensor for name, tensor in new.items() if name != "hidden.bias"}


@client_stage("listens")
@dataclass(frozen=True)
class Listens(ClientStage):
    pass


class Widens(ServerStage):
    def on_mean(self, new, holders, context):
        return new | {"hidden.bias": new["hidden.bias"].numpy()} | {"classifier.bias": new["classifier.bias"].double()}


class Averages(ServerStage):
    def evaluated(self, state):
        return {name: tensor / 0 for name, tensor in state.items()}


class Forgetful(ServerStage):
    def evaluated(self, state):
        self.average = state


class Misspells(ServerStage):
    def client(self):
        return Listens()

    def broadcast(self, context):
        return {"hidden.weightt": torch.ones(8, 3)}


class Forgets(ServerStage):
    def on_mean(self, new, holders, context):
        new["hidden.bias"] = new["hidden.bias"] + 1


class Drops(ServerStage):
    def on_reply(self, update, context):
        pass


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        (Forgets(), "Forgets.on_mean returned NoneType; expected dict"),
        (Drops(), "Drops.on_reply returned NoneType; expected Update"),
        (Ruins(), "Ruins.on_mean returned a model that is not usable: .*hidden.weight contains NaN or infinity"),
        (Flattens(), r"Flattens.on_mean returned .* not usable: hidden.weight has shape \(24,\), expected \(8, 3\)"),
        (Loses(), "Loses.on_mean returned .* not usable: hidden.bias is missing"),
        (Widens(), "usable: classifier.bias is torch.float64, expected .*32; hidden.bias is ndarray, expected a"),
        (Averages(), "Averages.evaluated returned a model that is not usable: .* contains NaN or infinity"),
        (Forgetful(), "Forgetful.evaluated returned NoneType; expected dict"),
        (Misspells(), r"Misspells.broadcast: hidden.weightt is \(8, 3\); expected the name and shape of a parameter"),
    ],
)
def test_what_a_stage_may_not_return_is_named(stage, fault):
    with pytest.raises((ConfigError, RoundError), match=fault):
        play(stages=[stage])


class Counts(ServerStage):
    def state(self):
        return {"rounds": 3}


def test_a_stage_keeps_tensors():
    with pytest.raises(ConfigError, match=r"Counts.state, under 'rounds', returned int; expected Tensor"):
        Chain([Counts()]).state()


class Measures(ServerStage):
    def __init__(self, value):
        self.value = value

    def metrics(self):
        return {"drift": self.value}


def test_a_stage_measures_numbers_which_a_history_can_hold(tmp_path):
    """A scalar tensor was written as text, and the history of the run could not be read again."""
    folder = RunFolder(tmp_path)
    play(stages=[Measures(torch.tensor(0.5))], callbacks=[Recorder(folder)])
    assert [record.stages for record in folder.history()] == [{"drift": 0.5}]
    with pytest.raises(ConfigError, match=r"Measures.metrics, under 'drift', returned list; expected a number"):
        Chain([Measures([0.5])]).metrics()
    second = Measures(0.5)
    second.name = "second"
    with pytest.raises(ConfigError, match=r"second.metrics, under 'drift', returned a metric of another stage"):
        Chain([Measures(0.5), second]).metrics()


class Adds(ServerStage):
    """Adds up how far the clients' parameters are from those that they received."""

    def __init__(self):
        self.total = 0.0

    def on_added(self, update, context):
        before = update.plan.extract(context.state)
        self.total += float((update.tensors["w"] - before["w"]).sum())


def test_a_stage_gets_the_version_that_the_client_received():
    """Without a stage that reads replies before the mean, ``on_added`` had the current model."""
    stage = Adds()
    chain = open_chain(stage)
    version = Version(number=0, plan=PLAN, tensors={"w": torch.full((2,), 5.0)}, moved={})
    chain.add(Update(plan=PLAN, tensors={"w": torch.full((2,), 6.0)}, version=version))
    assert stage.total == 2


class Weighs(ServerStage):
    def on_reply(self, update, context):
        return replace(update, weight=3.0)


def test_a_stage_may_not_weight_clients_where_each_must_count_once():
    """With noise, epsilon was computed as if each client counted once."""
    chain = open_chain(FedDyn(), Weighs())
    with pytest.raises(ConfigError, match=r"FedDyn needs .* gave the weight 3, expected 1"):
        chain.add(Update(plan=PLAN, tensors={"w": torch.ones(2)}))
