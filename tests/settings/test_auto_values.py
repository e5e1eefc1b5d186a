"""What ``auto`` stands for."""

import pytest

from heterofl_flwr.nn.models import build_model
from heterofl_flwr.settings.auto_values import CLIENTS, NOT_IID, OTHER, PRESETS, model_options, with_architecture
from heterofl_flwr.settings.validate import DEFAULTS, from_flat
from heterofl_flwr.settings.value_types import AUTO


def test_every_preset_has_a_value_for_every_auto_alone():
    followed = {"train.mask-fill"}  # from other settings
    later = {"engine.device", "engine.name", "sample.min-replies"}  # decided during the run
    auto = {key for key, value in DEFAULTS.items() if value == AUTO}
    assert auto - followed - later == set(OTHER)
    assert all(set(table) <= set(OTHER) for table in NOT_IID.values())
    assert set(NOT_IID) | set(CLIENTS) <= set(PRESETS)


# Table 6 and the published code: rounds, milestones, rate, epochs, batch.
@pytest.mark.parametrize(
    ("data", "split", "published"),
    [
        ("mnist", "non-iid-2", (400, (200,), 0.01, 5, 10)),
        ("cifar10", "iid", (400, (150, 250), 0.1, 5, 10)),
        ("uoft-cs/cifar10", "dirichlet-0.3", (800, (300, 500), 0.1, 5, 10)),
        ("wikitext2", "iid", (200, (50, 100), 0.1, 1, 1)),
    ],
)
def test_the_papers_settings_are_published_ones(data, split, published):
    settings = from_flat({"data.name": data, "data.split": split})
    train = settings.train
    assert (settings.num_rounds, train.milestones, train.learning_rate, train.epochs, train.batch_size) == published
    assert (train.momentum, train.weight_decay, train.clip) == (0.9, 5e-4, 1.0)
    assert settings.sample.fraction_train == 0.1


def test_a_value_that_is_given_wins():
    assert from_flat({"data.name": "mine:load"}).num_rounds == OTHER["num-rounds"]
    assert from_flat({"data.name": "mnist", "train.lr": 0.5, "model.hidden": "8"}).train.learning_rate == 0.5


def test_another_model_has_its_own_widths():
    model = from_flat({"model.name": "preresnet18"}).model
    assert (model.hidden, model.norm) == ((), "sbn")
    assert from_flat({"model.name": "transformer"}).model.norm == "none"
    assert from_flat({"model.name": "cnn"}) == from_flat({})


@pytest.mark.parametrize("model", ["cnn", "preresnet18", "preresnet50", "transformer"])
def test_every_model_has_the_options_that_are_settings(model):
    settings = from_flat({"model.name": model, "mix": "b1-e1", "data.name": "mnist"})
    options = model_options(settings)
    assert options["global_rate"] == 0.5
    build_model(model, **options, **({"vocabulary": 9} if model == "transformer" else {}))


def test_options_are_the_settings():
    settings = from_flat({"model.norm": "gn", "model.scaler": False, "model.hidden": "8,16"})
    assert model_options(settings) == {"hidden": (8, 16), "norm": "gn", "scaler": False, "global_rate": 1.0}
    options = model_options(from_flat({"data.name": "wikitext2", "fidelity": "fixed"}))
    assert options == {"scaler": True, "encoder_init": "fixed", "global_rate": 1.0}
    assert model_options(from_flat({"model.name": "mine:build"})) == {}


@pytest.mark.parametrize(
    ("model", "norm", "architecture", "expected"),
    [
        ("cnn", "gn", "preresnet18", "gn"),
        ("cnn", "auto", "preresnet18", "sbn"),
        ("mlp", "auto", "cnn", "sbn"),  # what suits a model without norm does not suit this one
        ("cnn", "gn", "mlp", "none"),
    ],
)
def test_an_architecture_has_the_norm_asked_for_if_it_can(model, norm, architecture, expected):
    settings = from_flat({"model.name": model, "model.norm": norm})
    assert with_architecture(settings, architecture).model.norm == expected
