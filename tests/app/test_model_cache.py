"""Cached models: one that came back changed is not reused."""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from weakref import ref

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrizations, vector_to_parameters

from heterofl_flwr.app import model_cache
from heterofl_flwr.app.model_cache import kept_model
from heterofl_flwr.core.exchange import exclude_parameters
from heterofl_flwr.nn.static_norm import collect_moments
from tests.federation.tiny import Tiny, build_normed, inputs


class Settings:
    def __init__(self):
        self.depth = 3


class Full(nn.Module):
    """A model with attributes of all kinds, some of them hooks of its own."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.body = Tiny(rate, norm=True)
        self.lstm = nn.LSTM(4, 2)
        self.act: Callable = nn.functional.relu
        self.sizes, self.settings, self.calls = [1, 2], Settings(), 0
        self.seen, self.kind = torch.zeros(2), torch.float32
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.body.hidden.register_forward_hook(_nothing)

    def forward(self, x):
        return self.lstm(self.act(self.body(x)) * self.scale)[0]


def _nothing(*_):
    return None


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    model(inputs(0)).sum().backward()
    optimizer.step()


def freeze(model):
    model.requires_grad_(False)
    model.eval()


def measure(model):
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    collect_moments(model.body, [inputs(0)])


def look(model):
    hook = model.body.hidden.register_full_backward_pre_hook(_nothing)
    hook.remove()


@pytest.mark.parametrize(
    "use",
    [train, freeze, look, lambda model: model.to("meta"), measure],
    ids=["train", "freeze", "a hook that is gone", "move", "moments"],
)
def test_what_can_be_set_back_is_given_out_again(use):
    model = kept_model(Full, 1.0)
    use(model)
    number = id(model)
    del model
    model = kept_model(Full, 1.0)
    assert id(model) == number
    assert all(own.requires_grad and own.grad is None and own.device.type == "cpu" for own in model.parameters())
    fresh_buffers = dict(Full(1.0).named_buffers())
    assert all(torch.equal(own, fresh_buffers[name]) for name, own in model.named_buffers())
    assert all(module.training for module in model.modules())


def test_a_model_that_somebody_holds_is_never_given_out_again():
    model = kept_model(Full, 1.0)
    values = parameters_to_vector(model.parameters()).clone()
    other = kept_model(Full, 1.0)
    assert other is not model
    measure(other)
    assert torch.equal(parameters_to_vector(model.parameters()), values)


def test_layers_that_are_frozen_when_built_stay_so():
    def frozen(rate):
        model = Tiny(rate)
        model.hidden.requires_grad_(False)
        return model

    for _ in range(2):
        model = kept_model(frozen, 1.0)
        assert not model.hidden.weight.requires_grad
        model.hidden.requires_grad_(True)


def test_few_models_are_kept_one_for_each_rate_function_and_thread():
    models = {id(kept_model(own, rate)) for own in (Tiny, build_normed) for rate in (1.0, 0.5)}
    assert len(models) == 4
    first = id(kept_model(Tiny, 1.0))
    with ThreadPoolExecutor(1) as pool:  # clients may run in threads of one process, as ``start_client`` in a notebook
        assert id(pool.submit(kept_model, Tiny, 1.0).result()) != first
    assert id(kept_model(Tiny, 1.0)) == first
    kept = ref(kept_model(Tiny, 1.0))
    for number in range(1, 40):
        recent = id(kept_model(Tiny, number / 100))
    assert kept() is None
    assert id(kept_model(Tiny, 0.39)) == recent


def swap(model):
    model.body.classifier = nn.Sequential(nn.Linear(8, 4))


def halve(model):
    model.body.hidden.out_features = 2


def share(model):
    vector_to_parameters(parameters_to_vector(model.parameters()), model.parameters())


CHANGES = {
    "forward hook": lambda model: model.body.hidden.register_forward_hook(_nothing),
    "hook of loading": lambda model: model.register_load_state_dict_pre_hook(_nothing),
    "backward hook": lambda model: model.body.register_full_backward_hook(_nothing),
    "hook of a gradient": lambda model: model.body.hidden.weight.register_hook(_nothing),
    "attribute of a parameter": lambda model: setattr(model.body.hidden.weight, "grad_sample", None),
    "width": halve,
    "function": lambda model: setattr(model, "act", torch.tanh),
    "forward": lambda model: setattr(model.body, "forward", _nothing),
    "attribute of an object": lambda model: setattr(model.settings, "depth", 4),
    "tensor that is no buffer": lambda model: model.seen.add_(1),
    "what cannot be told": lambda model: setattr(model, "act", (number for number in range(3))),
    "layer": swap,
    "layer of another kind": lambda model: setattr(model.body, "norm", nn.Identity()),
    "class": lambda model: setattr(model.body, "__class__", type("Other", (Tiny,), {})),
    "parametrization": lambda model: parametrizations.weight_norm(model.body.hidden),
    "compiled": lambda model: model.compile(),
    "memory": share,
    "layout": lambda model: setattr(model.body.hidden.weight, "data", torch.ones(3, 4).T),
    "tied": lambda model: setattr(model.body.norm, "bias", model.body.hidden.bias),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model_that_came_back_otherwise_is_built_anew(change):
    model = kept_model(Full, 0.5)
    change(model)
    gone = ref(model)
    del model
    again = id(kept_model(Full, 0.5))
    gc.collect()
    assert gone() is None  # so it cannot be this one
    assert id(kept_model(Full, 0.5)) == again


def test_a_model_of_which_nothing_can_be_told_is_never_given_out_again():
    class Odd(nn.Linear):
        def __init__(self, rate):
            super().__init__(2, 2)
            self.stream = (number for number in range(3))

    first = ref(kept_model(Odd, 1.0))
    kept_model(Odd, 1.0)
    gc.collect()
    assert first() is None


def test_one_that_trains_what_is_not_exchanged_is_built_anew():
    def build(rate):
        model = Tiny(rate)
        exclude_parameters(model, ["classifier.bias"])
        return model

    nn.init.ones_(kept_model(build, 1.0).classifier.bias)
    assert not torch.equal(kept_model(build, 1.0).classifier.bias, torch.ones(4))


def test_models_go_with_the_function_that_builds_them():
    """An app may make a new one of each message's context; their models must not pile up."""
    build = partial(Tiny, norm=True)
    model = ref(kept_model(build, 1.0))
    del build
    gc.collect()
    assert model() is None
    assert not [
        own
        for own in model_cache._own.models
        if isinstance(own, partial) and own.func is Tiny and own is not build_normed
    ]


def test_a_function_that_cannot_be_referred_to_weakly_builds_each_time():
    class Builder:
        __slots__ = ()

        def __call__(self, rate):
            return Tiny(rate)

    build = Builder()
    assert kept_model(build, 1.0) is not kept_model(build, 1.0)
