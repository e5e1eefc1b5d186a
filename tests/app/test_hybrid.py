"""The hybrid in our own app, on the bundled digits: families of a CNN with batch norm and of an MLP without."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from heterofl_flwr import messages, packing
from heterofl_flwr.app import client_app, server_app
from heterofl_flwr.app.node import Instruction
from heterofl_flwr.app.task import Task, load_task
from heterofl_flwr.data.dataset import Reading, Split
from heterofl_flwr.errors import ConfigError, HeteroFLError, ReplyError
from heterofl_flwr.federation.families import within
from heterofl_flwr.nn import build_model
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import with_static_norm
from heterofl_flwr.report import RunFolder
from heterofl_flwr.report.console import plain_line
from heterofl_flwr.report.figures import draw_run
from heterofl_flwr.settings import DEFAULTS, from_flat
from heterofl_flwr.strategies.instructions import instruction
from tests.app.runs import history_of, node_context, run_app
from tests.federation.tiny import equal

CLIENTS = 6
HERE = "tests.app.test_hybrid"
small_cnn = build_model("cnn", channels=1, classes=10, hidden=(4, 8))
small_mlp = build_model("mlp", inputs=(1, 8, 8), classes=10, hidden=(16,))
CNN, MLP = "small_cnn", "small_mlp"
HYBRID = {
    **DEFAULTS,
    "server.strategy": "hybrid",
    "distill.models": f"{HERE}:small_cnn,{HERE}:small_mlp",
    "distill.seed-size": 50,
    "distill.seed-batch": 20,
    "distill.steps": 2,
    "train.epochs": 1,
    "train.batch-size": 50,
    "mix": "a1-b1",
    "data.split": "non-iid-2",
    "num-rounds": 2,
    "evaluate.every": 2,
    "run.callbacks": "",
    "engine.name": "plain",
}


def run(folder, **settings):
    run_app({**HYBRID, "run.dir": str(folder), **settings}, CLIENTS)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return the folder of a run, which tests only read."""
    folder = RunFolder(tmp_path_factory.mktemp("hybrid") / "run")
    run(folder.path)
    return folder


def state_of(folder):
    return dict(sorted(RunFolder(folder).load_checkpoint().state.items()))


def test_a_resumed_run_equals_one_without_a_break_bit_for_bit(tmp_path):
    some = {"server.optimizer": "momentum(0.5)", "sample.fraction": 0.5, "train.upload": "int8"}
    run(tmp_path / "whole", **some, **{"num-rounds": 3})
    run(tmp_path / "broken", **some, **{"num-rounds": 2})
    run(tmp_path / "broken", **some, **{"num-rounds": 3, "run.resume": True})
    assert equal(state_of(tmp_path / "whole"), state_of(tmp_path / "broken"))
    assert history_of(tmp_path / "whole") == history_of(tmp_path / "broken")


def test_one_family_that_takes_no_seed_steps_is_heterofl(tmp_path):
    own = {"distill.models": f"{HERE}:small_cnn", "distill.steps": 0}
    run(tmp_path / "hybrid", **own)
    plain = {"server.strategy": "heterofl", "model.name": f"{HERE}:small_cnn", "distill.models": ""}
    run(tmp_path / "plain", **{**own, **plain})
    assert equal(within(CNN, state_of(tmp_path / "hybrid")), state_of(tmp_path / "plain"))
    hybrid, alone = (RunFolder(tmp_path / name).history()[-1] for name in ("hybrid", "plain"))
    assert alone.evaluate == {name: hybrid.evaluate[name] for name in alone.evaluate}
    assert alone.evaluate_by_level["b"].items() <= hybrid.evaluate_by_level["b"].items()
    assert alone.rates == hybrid.rates


def test_a_run_folder_tells_of_each_family(done):
    folder, last = done, done.history()[-1]
    assert last.failures == {}
    assert last.train["divergence"] > 0
    own = [last.evaluate[f"{name}/global-accuracy"] for name in (CNN, MLP)]
    assert last.evaluate["global-accuracy"] == pytest.approx(sum(own) / 2)
    assert own[0] != own[1]
    assert {path.name for path in (folder.path / "models").glob("*.json")} == {
        f"{name}-{level}.json" for name in (CNN, MLP) for level in "ab"
    }
    score = last.evaluate_by_level["a"][f"{MLP}/global-accuracy"]
    about = json.loads((folder.path / "models" / f"{MLP}-a.json").read_text())
    assert (about["family"], about["level"], about["metrics"]["global-accuracy"]) == (MLP, "a", score)
    costs = folder.costs()
    sizes = [sum(one.numel() for one in build(0.5).parameters()) for build in (small_cnn, small_mlp)]
    assert costs.by_rate[0.5].parameters == round(sum(sizes) / 2)
    (curves,) = (one.figure for one in draw_run([last], costs) if one.name == "families")
    assert [line.get_label() for line in curves.axes[0].get_lines()] == [CNN, MLP]
    assert f"{CNN}={100 * own[0]:.1f}%" in plain_line(last, 2, 0.0)


def test_the_models_in_the_folder_are_those_that_were_evaluated(done):
    task, last, models = load_task(HYBRID), done.history()[-1], done.path / "models"
    for name, build in task.families.items():
        model = build(1.0)
        model.load_state_dict(load_file(models / f"{name}-a.safetensors"), strict=False)
        moments = models / f"{name}-a.moments.safetensors"
        assert moments.exists() == (name == CNN)
        if moments.exists():
            model = with_static_norm(model, Moments.from_tensors(load_file(moments)))
        right = model.eval()(task.test.inputs).argmax(1) == task.test.targets
        assert right.float().mean().item() == pytest.approx(last.evaluate[f"{name}/global-accuracy"])


@pytest.fixture
def exchange(identity):
    """Return a node's context, and a function that makes messages to it."""
    told = {"rate": 0.5, "global-rate": 1.0, "server-round": 3, "seed": 0, "partition": 1, "lr": 0.05}
    told |= {"family": MLP, "temperature": 1.0, "seed-rows": [0, 1]}

    def message(kind, **changes):
        brings = dict(small_mlp(0.5).named_parameters()) if kind == messages.TRAIN_PUBLISH else {}
        arrays = packing.move_to_record({name: one.detach() for name, one in brings.items()})
        made = instruction(kind, 2, arrays, {**told, **changes})
        if kind == messages.TRAIN_LEARN:
            posteriors = {messages.POSTERIORS: torch.full((1, 2, 10), 0.1)}
            made.content[messages.POSTERIORS] = packing.move_to_record(posteriors)
        return made

    return node_context(HYBRID, partition_id=1, num_partitions=CLIENTS), message


def test_a_slice_waits_in_its_node_for_the_second_exchange_alone(exchange):
    context, message = exchange
    said = client_app.publish_message(message(messages.TRAIN_PUBLISH), context)
    assert list(messages.array_records(said.content)) == [messages.POSTERIORS]
    waiting = context.state[client_app.WAITING].to_torch_state_dict()
    answer = client_app.learn_message(message(messages.TRAIN_LEARN), context)
    found = messages.array_records(answer.content)[messages.ARRAYS].to_torch_state_dict()
    assert found.keys() == waiting.keys() == dict(small_mlp(0.5).named_parameters()).keys()
    assert not equal(found, waiting)
    assert dict(context.state) == {}
    assert list(answer.content[messages.CONFIG][messages.LABELS]) == list(load_task(HYBRID).part(1, CLIENTS)[2])


@pytest.mark.parametrize("labels", ["inferred", "none"])
def test_classes_travel_in_neither_exchange_unless_they_are_asked_for(exchange, labels):
    context, message = exchange
    context.run_config["train.labels"] = labels
    client_app.publish_message(message(messages.TRAIN_PUBLISH), context)
    answer = client_app.learn_message(message(messages.TRAIN_LEARN), context)
    assert messages.LABELS not in answer.content[messages.CONFIG]


def test_a_node_that_lost_its_slice_says_so(exchange):
    context, message = exchange
    with pytest.raises(HeteroFLError, match="no slice that it trained in round 3: it was started anew"):
        client_app.learn_message(message(messages.TRAIN_LEARN), context)
    client_app.publish_message(message(messages.TRAIN_PUBLISH, **{"server-round": 2}), context)
    with pytest.raises(HeteroFLError, match="no slice that it trained in round 3"):
        client_app.learn_message(message(messages.TRAIN_LEARN), context)


def test_a_node_measures_itself_with_the_model_that_it_trains(exchange):
    context, _ = exchange
    assert Instruction(None, context).trial().build is load_task(HYBRID).families[MLP]


def test_a_family_that_is_unknown_is_named(exchange):
    context, message = exchange
    with pytest.raises(ReplyError, match=f"sent 'rnn' as family, expected one of {CNN}, {MLP}"):
        client_app.publish_message(message(messages.TRAIN_PUBLISH, family="rnn"), context)


def test_what_the_hybrid_cannot_do_is_said_before_the_run():
    with pytest.raises(ConfigError, match=r"server\.shared: found 'hidden\.\*', but server\.strategy=hybrid"):
        from_flat({**HYBRID, "server.shared": "hidden.*"})
    text = Task(from_flat(HYBRID))
    words = torch.zeros(2, 4, dtype=torch.int64)
    text.dataset = replace(text.dataset, train=Split(words, words, reading=Reading(0)))
    with pytest.raises(ConfigError, match=r"server\.strategy=hybrid exchanges .* data set digits is text"):
        server_app.make_strategy(text, ())


def test_families_are_named_as_their_models():
    def names(models):
        return list(load_task({**HYBRID, "distill.models": models}).families)

    assert names("") == ["cnn"]
    assert names("mlp,preresnet18-later") == ["mlp", "preresnet18-later"]
    assert names(f"mlp,{HERE}:small_mlp") == ["mlp", "small_mlp"]
    assert names(f"{HERE}:small_mlp,tests.app.test_fedh2l:small_cnn,{HERE}:small_cnn") == [
        "small_mlp",
        "small_cnn-1",
        "small_cnn-2",
    ]
