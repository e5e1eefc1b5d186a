"""Which settings reach the model."""

import pytest

from heterofl_flwr.nn.models import build_model
from heterofl_flwr.settings import from_flat, model_options
from heterofl_flwr.settings.presets import with_architecture


@pytest.mark.parametrize("model", ["cnn", "preresnet18", "preresnet50", "transformer"])
def test_every_model_takes_its_options(model):
    settings = from_flat({"model.name": model, "mix": "b1-e1", "data.name": "mnist"})
    options = model_options(settings)
    assert options["global_rate"] == 0.5
    build_model(model, **options, **({"vocabulary": 9} if model == "transformer" else {}))


def test_options_are_the_settings():
    settings = from_flat({"model.norm": "gn", "model.scaler": False, "model.hidden": "8,16"})
    assert model_options(settings) == {"hidden": (8, 16), "norm": "gn", "scaler": False, "global_rate": 1.0}
    options = model_options(from_flat({"data.name": "wikitext2", "fidelity.encoder-init": "fixed"}))
    assert options == {"scaler": True, "encoder_init": "fixed", "global_rate": 1.0}


@pytest.mark.parametrize(
    ("model", "norm", "architecture", "expected"),
    [
        ("cnn", "gn", "preresnet18", "gn"),
        ("cnn", "auto", "preresnet18", "sbn"),
        ("mlp", "auto", "cnn", "sbn"),  # what suits a model without norm does not suit this one
        ("cnn", "gn", "mlp", "none"),
    ],
)
def test_an_architecture_has_the_norm_that_is_asked_for_if_it_can(model, norm, architecture, expected):
    settings = from_flat({"model.name": model, "model.norm": norm})
    assert with_architecture(settings, architecture).model.norm == expected


def test_a_users_model_gets_none():
    assert model_options(from_flat({"model.name": "mine:build"})) == {}
