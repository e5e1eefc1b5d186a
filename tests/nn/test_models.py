import pickle

import pytest
import torch

from heterofl_flwr.core.levels import LEVELS
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.models import MODELS, PAPER, build_model

# method.md, section 1: parameters at levels a to e
COUNTS = {
    ("cnn", ()): (1_556_874, 391_370, 98_922, 25_274, 6_594),
    ("mlp", ()): (633_226, 259_274, 115_306, 54_074, 26_146),
    ("lenet", ()): (64_102, 16_456, 4_421, 1_241, 453),
    ("preresnet18", ()): (9_622_090, 2_408_746, 603_802, 151_762, 38_350),
    ("preresnet18-later", ()): (11_172_170, 2_796_714, 701_018, 176_178, 44_510),
    ("transformer", (("vocabulary", 33_279),)): (19_263_999, 9_107_967, 4_435_455, 2_200_575, 1_108_479),
}


@pytest.mark.parametrize(("name", "options"), COUNTS)
def test_parameters_are_exactly_the_papers(name, options):
    build = build_model(name, **dict(options))
    with torch.device("meta"):
        models = [build(rate) for rate in LEVELS.values()]
    found = tuple(sum(parameter.numel() for parameter in model.parameters()) for model in models)
    assert found == COUNTS[name, options]


def test_the_paper_has_three_setups():
    assert {name: setup.model for name, setup in PAPER.items()} == {
        "mnist": "cnn",
        "cifar10": "preresnet18",
        "wikitext2": "transformer",
    }


@pytest.mark.parametrize(("name", "classes"), [("mnist", 10), ("cifar10", 10), ("wikitext2", 33_279)])
def test_a_setups_example_fits_its_model(name, classes):
    setup = PAPER[name]
    with torch.device("meta"):
        model = setup.build(scaler=False)(0.0625)
    assert model(setup.example().to("meta")).shape[1] == classes
    assert setup.example().dtype == (torch.int64 if name == "wikitext2" else torch.float32)


def test_options_reach_the_model():
    model = build_model("cnn", classes=3, norm="gn", global_rate=0.5)(0.25)
    assert model.linear.out_features == 3
    assert model.features.scaler1.rate == 0.5
    assert PAPER["mnist"].build(classes=4)(0.25).linear.out_features == 4


def test_a_build_travels_to_other_processes():
    build = pickle.loads(pickle.dumps(build_model("preresnet50", hidden=(4, 4, 4, 4))))
    assert build(0.5).linear.in_features == 8


def test_unknown_models_name_the_known_ones():
    with pytest.raises(ConfigError, match="'resnet' is no model; expected one of cnn, mlp, lenet, preresnet18, "):
        build_model("resnet")


@pytest.mark.parametrize(
    ("name", "options", "fault"),
    [
        ("cnn", {"widths": (1, 2)}, "unexpected keyword argument 'widths'; its options are channels, classes, hidden"),
        ("transformer", {}, "missing a required argument: 'vocabulary'"),
        ("cnn", {"rate": 0.5}, "rate"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_built(name, options, fault):
    with pytest.raises(ConfigError, match=fault):
        build_model(name, **options)


def test_users_may_add_models(monkeypatch):
    monkeypatch.setitem(MODELS, "mine", lambda rate: torch.nn.Linear(2, int(4 * rate)))
    assert build_model("mine")(0.5).out_features == 2
