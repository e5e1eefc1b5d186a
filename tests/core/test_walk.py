"""``Plan.of`` on whole models: what it finds, and what it refuses."""

import pytest
import torch
from torch import nn

from heterofl_flwr.core import Axis, Plan, axes_between, register
from heterofl_flwr.core.plan import axes_of_modules
from heterofl_flwr.errors import ShapeError


def _mlp(width, depth=1):
    hidden = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(nn.Linear(3, width), *hidden)


class Net(nn.Module):
    """Scalars, a parameter that never scales, buffers, and parameters of the model itself."""

    def __init__(self, width):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("calls", torch.tensor(0))
        self.position = nn.Parameter(torch.randn(5, 3))
        self.norm = nn.BatchNorm1d(width)
        self.linear = nn.Linear(width, 2)


def test_parameters_come_in_the_local_models_order_without_buffers():
    axes = axes_of_modules(Net(4), Net(2))
    assert axes == {
        "temperature": (),
        "position": (Axis(5, 5), Axis(3, 3)),
        "norm.weight": (Axis(4, 2),),
        "norm.bias": (Axis(4, 2),),
        "linear.weight": (Axis(2, 2), Axis(4, 2)),
        "linear.bias": (Axis(2, 2),),
    }
    assert list(axes) == [name for name, _ in Net(2).named_parameters()]


def test_a_model_without_parameters_has_an_empty_plan():
    assert axes_of_modules(nn.ReLU(), nn.ReLU()) == {}


def test_a_model_is_a_whole_slice_of_itself():
    model = Net(4)
    state = dict(model.named_parameters())
    for name, value in Plan.of(model, model).extract(state).items():
        assert torch.equal(value, state[name])
        assert not value.requires_grad


def test_a_shallower_client_lacks_layers():
    full, local = _mlp(4, depth=3), _mlp(2, depth=1)
    plan = Plan.of(full, local)
    assert set(plan.axes) == {"0.weight", "0.bias", "1.0.weight", "1.0.bias"}
    local.load_state_dict(plan.extract(full.state_dict()), strict=True)


def test_a_deeper_client_is_refused():
    with pytest.raises(ShapeError, match=r"parameters that the global model lacks: 2\.0\.weight, 2\.0\.bias"):
        Plan.of(_mlp(4, depth=1), _mlp(2, depth=2))


def test_a_wider_client_is_refused_by_layer():
    with pytest.raises(ShapeError, match=r"layer 0 of type Linear: an axis of 2 entries cannot keep 4"):
        Plan.of(_mlp(2), _mlp(4))


class Tied(nn.Module):
    """An embedding and a decoder of one matrix, as language models have it."""

    def __init__(self, width, again=False):
        super().__init__()
        self.embedding = nn.Embedding(7, width)
        self.decoder = nn.Linear(width, 7)
        self.decoder.weight = self.embedding.weight
        self.again = self.decoder if again else nn.Identity()


def test_a_tied_parameter_is_planned_once_under_its_first_name():
    full, local = Tied(4), Tied(2)
    plan = Plan.of(full, local)
    assert plan.axes["embedding.weight"] == (Axis(7, 7), Axis(4, 2))
    assert list(plan.axes) == ["embedding.weight", "decoder.bias"]
    assert plan.parameters == sum(parameter.numel() for parameter in local.parameters())
    local.load_state_dict(plan.extract(full.state_dict()), strict=False)
    assert torch.equal(local.decoder.weight, full.embedding.weight[:, :2])
    assert local.decoder.weight is local.embedding.weight


def test_a_layer_used_twice_is_planned_once():
    plan = Plan.of(Tied(4, again=True), Tied(2, again=True))
    assert list(plan.axes) == ["embedding.weight", "decoder.bias"]


@pytest.mark.parametrize("loose", [0, 1])
def test_what_is_tied_in_one_of_the_models_alone_is_refused(loose):
    models = [Tied(4), Tied(2)]
    models[loose].decoder = nn.Linear(4 - 2 * loose, 7)
    kinds = ["tied to embedding.weight", "one of its own"]
    whole, own = kinds[:: -1 if loose == 0 else 1]
    expected = rf"parameter decoder.weight is {whole} in the global model, but {own} in the local one: tie the same"
    with pytest.raises(ShapeError, match=expected):
        Plan.of(*models)


def test_a_tied_parameter_of_which_its_layers_keep_different_entries_is_refused():
    class Crossed(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(4, width), Halved(4, width)
            self.two.weight = self.one.weight

    class Halved(nn.Linear):
        pass

    @register(Halved)
    def _(full, local):
        kept = {name: tuple(own.shape) for name, own in local.named_parameters()}
        parts = {"weight": {0: 2}, "bias": {}}
        return {name: axes_between(own.shape, kept[name], parts[name]) for name, own in full.named_parameters()}

    with pytest.raises(ShapeError, match=r"parameter one\.weight is two\.weight too, but their layers keep different"):
        Plan.of(Crossed(8), Crossed(4))


@pytest.mark.parametrize("lazy", [nn.LazyLinear(4), nn.LazyConv2d(4, 3)])
def test_lazy_layers_are_refused_until_they_have_shapes(lazy):
    model = nn.Sequential(lazy)
    with pytest.raises(ShapeError, match=r"parameters 0\.weight, .* have no shape yet: run one batch"):
        Plan.of(model, model)


def test_a_lazy_layer_that_has_run_is_a_plain_one():
    models = [nn.Sequential(nn.LazyLinear(width)) for width in (4, 2)]
    for model in models:
        model(torch.zeros(1, 3))
    assert Plan.of(*models).shapes == {"0.weight": (2, 3), "0.bias": (2,)}


@pytest.mark.parametrize(
    ("full", "local", "found"),
    [
        (nn.Linear(4, 4), nn.Bilinear(4, 4, 4), r"layer \(the model itself\) is Linear .*, but Bilinear"),
        (
            nn.Sequential(nn.Linear(4, 4)),
            nn.Sequential(nn.Linear(2, 2, bias=False)),
            r"layer 0 is Linear with \['weight'",
        ),
        (nn.LSTM(4, 4, 2), nn.LSTM(4, 2, 1), r"layer \(the model itself\) is LSTM"),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU()), r"layer 0 is ReLU with \[\] .*, but GELU"),
    ],
)
def test_layers_that_do_not_correspond_are_refused(full, local, found):
    if isinstance(local, nn.Bilinear):  # so that the names alone would fit
        assert {name for name, _ in full.named_parameters()} == {name for name, _ in local.named_parameters()}
    with pytest.raises(ShapeError, match=found):
        Plan.of(full, local)


def test_torchs_own_transformer_layers_need_no_rules_of_their_own():
    full, local = (nn.TransformerEncoderLayer(width, 2, 3 * width, batch_first=True) for width in (8, 4))
    plan = Plan.of(full, local)
    local.load_state_dict(plan.extract(full.state_dict()), strict=True)
    assert plan.axes["self_attn.in_proj_weight"] == (Axis(24, 12, 6), Axis(8, 4))
    assert plan.axes["linear1.weight"] == (Axis(24, 12), Axis(8, 4))


def test_models_on_no_device_are_enough():
    with torch.device("meta"):
        plan = Plan.of(_mlp(4096), _mlp(512))
    assert plan == Plan.of(_mlp(4096), _mlp(512))
