"""FedH2L in our own app: three architectures that learn from one another on the bundled digits."""

from dataclasses import replace

import pytest
import torch
from flwr.app import ArrayRecord

from heterofl_flwr.app import client_app, server_app
from heterofl_flwr.app.node import AppTask
from heterofl_flwr.app.workload import Workload, load_workload
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.data.dataset import Reading, Split
from heterofl_flwr.nn import build_model
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.validate import DEFAULTS, from_flat
from heterofl_flwr.training.fedh2l import posteriors
from heterofl_flwr.transport.messages import instruction
from tests.app.runs import run_kept
from tests.federation.tiny import node_context

CLIENTS = 5
HERE = "tests.app.test_fedh2l"
small_cnn = build_model("cnn", hidden=(16, 32))
small_resnet = build_model("preresnet18", channels=1, hidden=(8, 8, 16, 16))
H2L = {
    **DEFAULTS,
    "server.strategy": "fedh2l",
    "distill.models": f"{HERE}:small_cnn,{HERE}:small_resnet,mlp",
    "distill.seed-size": 200,
    "distill.seed-batch": 50,
    "distill.steps": 30,
    "train.mask-fill": "none",
    "train.labels": "none",
    "train.epochs": 1,
    "train.batch-size": 50,
    "train.lr": 0.2,
    "mix": "a",
    "assignment": "fix",
    "data.split": "non-iid-2",
    "num-rounds": 2,
    "run.callbacks": "",
    "evaluate.every": 2,
}
STANDALONE = {key: value for key, value in H2L.items() if not key.startswith("distill.")}
STANDALONE |= {"server.strategy": "heterofl", "server.shared": "", "model.hidden": "16,32"}


def run(folder, **settings):
    return RunFolder(run_kept(folder, settings, CLIENTS))


def test_clients_have_architectures_in_turns():
    workload = load_workload(H2L)
    models = [workload.builds[workload.architecture(partition)](1.0) for partition in range(4)]
    assert [type(model).__name__ for model in models] == ["CNN", "PreResNet", "MLP", "CNN"]


def test_a_text_has_no_classes_to_learn_from_peers():
    workload = Workload(from_flat(H2L))
    words = torch.zeros(2, 4, dtype=torch.int64)
    workload.dataset = replace(workload.dataset, train=Split(words, words, reading=Reading(0)))
    with pytest.raises(ConfigError, match=r"server\.strategy=fedh2l exchanges .* data set digits is text"):
        server_app.make_strategy(workload, ())


@pytest.mark.parametrize("unread", [{"model.name": "mlp"}, {"model.hidden": "8,16"}])
def test_the_model_of_the_settings_is_not_replaced_in_silence(unread):
    settings = {key: H2L[key] for key in ("server.strategy", "distill.models")} | unread
    ((key, value),) = unread.items()
    with pytest.raises(ConfigError, match=f"^{key}={value}: with distill.models="):
        server_app.make_strategy(Workload(from_flat(settings)), ())
    server_app.make_strategy(Workload(from_flat({**settings, "distill.models": ""})), ())


@pytest.mark.usefixtures("identity")
@pytest.mark.parametrize(("config", "seeds"), [(H2L, 200), (STANDALONE, 0)], ids=["fedh2l", "standalone"])
def test_moments_are_measured_on_the_seed_set_too(config, seeds):
    context = node_context(config, partition_id=0, num_partitions=5)
    asked = AppTask(
        instruction("evaluate", 2, ArrayRecord(), {"rate": 1.0, "seed": 0, "server-round": 1, "partition": 0}), context
    )
    assert sum(len(batch) for batch in asked.trained_batches()) == len(asked.data.train) + seeds


@pytest.mark.release
@pytest.mark.usefixtures("page")
def test_peers_teach_what_own_data_do_not_show(tmp_path):
    two = {**H2L, "distill.models": f"{HERE}:small_cnn,mlp"}
    h2l, alone = run(tmp_path / "h2l", **two), run(tmp_path / "alone", **STANDALONE)
    with_peers, without = h2l.history()[-1], alone.history()[-1]
    assert with_peers.failures == without.failures == {}
    assert with_peers.evaluate["global-accuracy"] > without.evaluate["global-accuracy"] + 0.15
    assert with_peers.evaluate["local-accuracy"] > 0.6
    by_architecture = [with_peers.evaluate[f"{name}-global-accuracy"] for name in load_workload(two).builds]
    assert min(by_architecture) < with_peers.evaluate["global-accuracy"] < max(by_architecture)
    mlp = load_workload(two).builds["mlp"](1.0)
    fedavg = 2 * CLIENTS * H2L["num-rounds"] * sum(parameter.numel() for parameter in mlp.parameters())
    assert with_peers.bytes_up + with_peers.bytes_down < 0.01 * fedavg
    assert h2l.report.exists()


def test_posteriors_have_the_precision_of_the_run(tmp_path, monkeypatch):
    """Else convolutions on a GPU would round to TF32, torch's default."""
    switches = []

    def noted(*arguments):
        switches.append(torch.backends.cudnn.allow_tf32)
        return posteriors(*arguments)

    monkeypatch.setattr(client_app, "posteriors", noted)
    small = {"distill.models": f"{HERE}:small_cnn,mlp", "distill.steps": 1, "engine.precision": "float32"}
    run(tmp_path, **{**H2L, **small, "num-rounds": 1})
    assert switches == [False] * CLIENTS


def test_clients_have_the_levels_of_the_mix(tmp_path):
    small = {"distill.models": f"{HERE}:small_cnn,mlp", "mix": "d1-e1", "distill.steps": 1}
    (record,) = run(tmp_path, **{**H2L, **small, "num-rounds": 1, "evaluate.every": 1}).history()
    assert record.failures == {}
    assert [record.rates[partition] for partition in range(CLIENTS)] == [0.125, 0.125, 0.0625, 0.0625, 0.0625]
    assert record.evaluate_by_level.keys() == {"d", "e"}
