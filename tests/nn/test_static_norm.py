import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from heterofl_flwr.common.errors import ConfigError, DataError
from heterofl_flwr.nn.measure_moments import _alike, batch_norms, collect_moments
from heterofl_flwr.nn.models import CNN
from heterofl_flwr.nn.moments import check_possible
from heterofl_flwr.nn.static_norm import with_static_norm


def _batches(number=4, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 8, 8, generator=generator) * 2 + 1 for _ in range(number)]


def _user_model():
    """Return a model as a user has it: running statistics, dropout, and a layer frozen in evaluation mode."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5), nn.BatchNorm1d(5)
    )
    model[2].eval()
    return model


def _snapshot(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [(name, module.training) for name, module in model.named_modules()]
    tracking = [layer.track_running_stats for layer in batch_norms(model).values()]
    return state, modes, tracking, [len(module._forward_pre_hooks) for module in model.modules()]


def _assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:] == after[1:]


def _cumulative_reference(model, batches):
    """Return the model as the authors evaluate it: with torch's own cumulative averages (momentum=None)."""
    reference = copy.deepcopy(model)
    for name, layer in batch_norms(model).items():
        tracking = nn.BatchNorm2d(layer.num_features, momentum=None, track_running_stats=True)
        parameters = {kind: value for kind, value in layer.state_dict().items() if kind in ("weight", "bias")}
        tracking.load_state_dict(parameters, strict=False)
        parent, _, child = name.rpartition(".")
        setattr(reference.get_submodule(parent), child, tracking)
    reference.train()
    with torch.no_grad():
        for batch in batches:
            reference(batch)
    return reference.eval()


@pytest.mark.parametrize("name", ["cnn", "preresnet18"])
def test_paper_moments_are_torchs_cumulative_averages(small, name):
    model = small(name)(1.0)
    batches = [*_batches(3, 6), *_batches(1, 4, seed=9)]
    static = with_static_norm(model, collect_moments(model, batches))
    reference = _cumulative_reference(model, batches)
    expected = {key: value for key, value in reference.state_dict().items() if "running" in key}
    assert len(expected) == 2 * len(batch_norms(model)) > 0
    for key, value in expected.items():
        torch.testing.assert_close(static.state_dict()[key], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(static(batches[0]), reference(batches[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["paper", "fixed"])
def test_moments_behind_an_instance_norm_do_not_depend_on_its_statistics(kind):
    model = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.BatchNorm2d(3))
    (batch,), before = _batches(1), _snapshot(model)
    moments = collect_moments(model, [batch], kind)
    static = with_static_norm(model, moments)
    _assert_same(before, _snapshot(model))
    assert static[1].num_batches_tracked == moments.layers["1"].count
    torch.testing.assert_close(static(batch), model.train()(batch), rtol=1e-4, atol=0.02)  # variances are unbiased


def test_moments_of_a_loader_are_those_of_its_inputs():
    inputs, model = torch.randn(8, 3), nn.BatchNorm1d(3)
    loader = DataLoader(TensorDataset(inputs, torch.zeros(8)), batch_size=4)
    found, expected = (collect_moments(model, batches).statistics("") for batches in (loader, inputs.split(4)))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["paper", "fixed"])
def test_a_layer_that_is_called_twice_counts_a_batch_once(kind):
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return torch.stack([self.norm(step) for step in x.unbind(1)], 1)

    batches = torch.randn(8, 12, 3).split(4)
    found = collect_moments(Steps(), batches, kind)
    assert found.layers["norm"].count == {"paper": 2, "fixed": 8 * 12}[kind]
    check_possible(found, 8)
    steps = [step for batch in batches for step in batch.unbind(1)]
    for own, expected in zip(
        found.statistics("norm"), collect_moments(nn.BatchNorm1d(3), steps, kind).statistics(""), strict=True
    ):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize(
    ("device", "joint"), [("cpu", ()), ("cpu", ("cpu",)), pytest.param("cuda", ("cuda",), marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("kind", ["paper", "fixed"])
@pytest.mark.parametrize("name", ["cnn", "preresnet18"])
def test_batches_that_go_together_keep_their_own_statistics(small, monkeypatch, name, kind, device, joint):
    monkeypatch.setattr("heterofl_flwr.nn.measure_moments.JOINT", joint)
    model = small(name)(1.0).to(device).double()
    batches = [own.to(device).double() for own in (*_batches(5, 6), *_batches(2, 4, seed=9), *_batches(1, 6, seed=3))]
    before = _snapshot(model)
    alone, joined = (collect_moments(model, batches, kind, together=together) for together in (1, 3))
    _assert_same(before, _snapshot(model))
    assert [len(some) for some in _alike(batches, 3)] == [3, 2, 2, 1]
    for key, value in alone.to_tensors().items():
        torch.testing.assert_close(joined.to_tensors()[key], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", [[20], [2, 18], [6, 4, 8, 2]])
def test_fixed_moments_do_not_depend_on_the_batches(sizes):
    data = torch.randn(20, 3, 2, generator=torch.Generator().manual_seed(0)) + 5
    mean, variance = collect_moments(nn.BatchNorm1d(3), data.split(sizes), "fixed").statistics("")
    expected_variance, expected_mean = torch.var_mean(data.double(), (0, 2))
    torch.testing.assert_close(mean, expected_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, expected_variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_left_as_it_was_even_after_a_failure(training):
    model = _user_model()
    if not training:
        model.eval()
    before = _snapshot(model)
    buffers = [layer.running_mean for layer in batch_norms(model).values()]
    moments = collect_moments(model, _batches())
    _assert_same(before, _snapshot(model))
    model[1].running_mean.fill_(100)  # which is not used
    before, again = _snapshot(model), collect_moments(model, _batches())
    assert all(torch.equal(moments.layers[name].first_sum, again.layers[name].first_sum) for name in moments.layers)
    with pytest.raises(RuntimeError):
        collect_moments(model, [*_batches(2), torch.zeros(2, 7, 8, 8)])
    _assert_same(before, _snapshot(model))
    assert all(a is b.running_mean for a, b in zip(buffers, batch_norms(model).values(), strict=True))


@pytest.mark.parametrize(("dtype", "affine"), [(torch.bfloat16, True), (torch.float64, True), (torch.float32, False)])
def test_statistics_take_the_models_precision(dtype, affine):
    model, batches = nn.BatchNorm2d(3, affine=affine).to(dtype), [batch.to(dtype) for batch in _batches()]
    moments = collect_moments(model, batches)
    expected = torch.stack([batch.double().mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(moments.statistics("")[0], expected, rtol=1e-5, atol=1e-6)
    assert with_static_norm(model, moments).running_mean.dtype == dtype


def test_a_layer_that_is_never_reached_keeps_what_it_had():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.aside = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.aside(x) if self.training else x)

    model = Auxiliary()
    model.aside.running_mean.fill_(7)
    moments = collect_moments(model, _batches())
    assert moments.layers["aside"].count == 0
    assert (with_static_norm(model, moments).aside.running_mean == 7).all()


def test_a_layer_that_no_batch_reached_is_not_run_with_the_statistics_of_a_new_model():
    generator = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.add_module("generator", generator)
    model.forward = lambda x: model[1](model[0](x))
    static = with_static_norm(model, collect_moments(model, _batches()))
    static = pickle.loads(pickle.dumps(static.generator))
    with pytest.raises(ConfigError, match=r"batch norm layer generator\.1 has no moments, because no batch reached it"):
        static(torch.randn(4, 2))
    static.train()(torch.randn(4, 2))
    static.eval()(torch.randn(4, 2))  # training has measured statistics


def test_a_batch_of_one_value_per_channel_is_refused_by_layer():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192))
    before = _snapshot(model)
    with pytest.raises(DataError, match=r"layer 1 got a batch of shape \(1, 192\), 1 value"):
        collect_moments(model, [*_batches(1), torch.zeros(1, 3, 8, 8)])
    _assert_same(before, _snapshot(model))


class _Pair(nn.Module):
    """A model of two inputs."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, signal, person=0.0):
        return self.norm(signal + person)


@pytest.mark.parametrize(
    "batch",
    [
        lambda signal, person, target: ((signal, person), target),
        lambda signal, person, target: [[signal, person], target],  # a DataLoader's
        lambda signal, person, target: {"inputs": {"person": person, "signal": signal}, "target": target},
    ],
)
def test_a_model_of_several_inputs_is_measured_on_all_of_them(batch):
    model, data = _Pair(), [(torch.randn(6, 4), torch.randn(6, 4), torch.zeros(6)) for _ in range(3)]
    expected = collect_moments(model, [signal + person for signal, person, _ in data])
    measured = collect_moments(model, [batch(*each) for each in data], together=3)
    assert torch.equal(measured.layers["norm"].first_sum, expected.layers["norm"].first_sum)
    assert torch.equal(measured.layers["norm"].second_sum, expected.layers["norm"].second_sum)


@pytest.mark.parametrize(
    "batches", [[], [torch.zeros(0, 3, 8, 8)], [("labels", torch.zeros(6))], [torch.full((6, 3, 8, 8), torch.nan)]]
)
def test_batches_that_cannot_be_measured_are_refused(batches):
    with pytest.raises(
        DataError, match=r"no examples|gave a batch of tuple without inputs|moments of features\.norm1 are not finite"
    ):
        collect_moments(CNN(3, hidden=(8, 8)), batches)
