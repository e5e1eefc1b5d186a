"""What a client gets and what its reply does, against the authors' ``distribute`` and ``combine``."""

import math
import random

import pytest
import torch

from heterofl_flwr.core import Aggregation, Mix, Plan, width
from heterofl_flwr.core.assignment import fixed_rate
from tests.parity.theirs import OURS, THEIR_HEADS, randomise

pytestmark = pytest.mark.parity

MIXES = ["a1-b1-c1-d1-e1", "a1-e1", "a1-c1", "a2-d3", "a1", "b1-e1", "b1-c1-d1", "c2-e1"]
CLIENTS = 6


def _labels(authors, seed):
    """Return a random label set for each client; some label has no client."""
    classes = authors.cfg["num_tokens" if authors.cfg["model_name"] == "transformer" else "classes_size"]
    draw = random.Random(seed)
    return [sorted(draw.sample(range(1, classes), draw.randint(1, classes // 2))) for _ in range(CLIENTS)]


def _trained(sub, seed):
    """Return what a client might send back: its slice, changed."""
    generator = torch.Generator().manual_seed(seed)
    return [value + 0.1 * torch.randn(value.shape, generator=generator) for value in sub]


def _case(authors, model, mix, **sizes):
    authors.configure(model, global_rate=mix.global_rate, **sizes)
    rates = [fixed_rate(mix, client, CLIENTS) for client in range(CLIENTS)]
    return rates, randomise(authors.theirs(mix.global_rate), seed=len(mix.rates))


def _state(module):
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def _check_slices(authors, rates, module):
    """Compare our slices with theirs, bit for bit: of our modules, of theirs, and of plain shapes."""
    state = _state(module)
    sliced, _ = authors.federation(state, rates, []).distribute(list(range(len(rates))))
    plans = authors.plans(set(rates))
    for rate, expected in zip(rates, sliced, strict=True):
        local = authors.theirs(rate)
        by_position = dict(zip(plans[rate].axes, state.values(), strict=True))
        heads = THEIR_HEADS if authors.cfg["model_name"] == "transformer" else None
        shapes = dict(local.named_parameters())
        subs = [
            plans[rate].extract(by_position),
            Plan.between(state, shapes, heads=heads).extract(state),
            Plan.of(module, local, heads=heads).extract(state),
        ]
        for sub in subs:
            for (name, theirs), ours in zip(expected.items(), sub.values(), strict=True):
                assert torch.equal(ours, theirs), name
        local.load_state_dict(expected)


def _check_means(authors, rates, state, labels):
    """Compare our means with theirs."""
    federation = authors.federation(state, rates, labels)
    clients = list(range(len(rates)))
    sliced, kept = federation.distribute(clients)
    replies = [_trained(sub.values(), seed) for seed, sub in enumerate(sliced)]
    federation.combine([dict(zip(state, reply, strict=True)) for reply in replies], kept, clients)
    build, plans = authors.ours(), authors.plans(set(rates))
    full = build(authors.cfg["global_model_rate"])
    ours = dict(zip(plans[rates[0]].axes, state.values(), strict=True))
    aggregator = Aggregation(ours, label_rows=full.label_rows, extra_rows=False)
    for rate, reply, known in zip(rates, replies, labels, strict=True):
        aggregator.add(plans[rate], dict(zip(plans[rate].axes, reply, strict=True)), labels=known)
    pairs = zip(federation.global_parameters.items(), aggregator.result().values(), strict=True)
    for (name, theirs), found in pairs:
        assert (theirs - found).abs().max() <= 1e-6, name
    assert not all(torch.equal(federation.global_parameters[name], value) for name, value in state.items())


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("model", OURS)
def test_slices_are_theirs_to_the_bit(authors, model, mix):
    rates, module = _case(authors, model, Mix.parse(mix))
    _check_slices(authors, rates, module)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("model", OURS)
def test_means_are_theirs(authors, model, mix):
    rates, module = _case(authors, model, Mix.parse(mix))
    for seed in range(3):
        _check_means(authors, rates, _state(module), _labels(authors, seed))


def test_the_row_of_mask_is_never_averaged_by_them(authors):
    rates, module = _case(authors, "transformer", Mix.parse("a1-e1"))
    name = "transformer_embedding.embedding.weight"
    state = _state(module)
    federation = authors.federation(state, rates, _labels(authors, 1))
    sliced, kept = federation.distribute(list(range(CLIENTS)))
    federation.combine([{key: value + 1 for key, value in sub.items()} for sub in sliced], kept, list(range(CLIENTS)))
    assert torch.equal(federation.global_parameters[name][-1], state[name][-1])


@pytest.mark.slow
@pytest.mark.parametrize("model", OURS)
def test_full_size(authors, model):
    sizes = {"embedding_size": 256, "num_heads": 8, "hidden_size": 512, "num_layers": 4, "dropout": 0.2}
    authors.cfg.update(num_tokens=33_279, bptt=64, transformer=sizes)
    mix = Mix.parse("a1-b1-c1-d1-e2")
    rates, module = _case(authors, model, mix, hidden=(64, 128, 256, 512))
    _check_slices(authors, sorted(set(rates), reverse=True), module)
    _check_means(authors, rates, _state(module), _labels(authors, 0))


def _agree(full, global_rate, rate):
    """Return whether their slicer, their model builder and we give the same widths."""
    sliced, built = math.ceil(math.ceil(global_rate * full) * (rate / global_rate)), math.ceil(rate * full)
    return math.ceil(global_rate * full) == width(full, global_rate) and sliced == built == width(full, rate)


# Rates whose quotient is no round number, so that their floats round up now and then.
@pytest.mark.parametrize(("global_rate", "rate"), [(0.7, 0.3), (0.6, 0.2), (0.9, 0.07)])
@pytest.mark.parametrize("model", ["conv", "resnet18"])
def test_uneven_rates_are_theirs_where_their_floats_agree(authors, model, global_rate, rate):
    hidden = [full for full in range(8, 200) if _agree(full, global_rate, rate)][:4]
    mix = Mix.parse(f"{global_rate}x1-{rate}x1")
    rates, module = _case(authors, model, mix, hidden=hidden)
    _check_slices(authors, rates, module)
    _check_means(authors, rates, _state(module), _labels(authors, 2))


@pytest.mark.parametrize("text", ["a1-b1-c1-d1-e1", "a1-e9", "a9-b1", "a1-b1-c1", "a3-c4", "b2-e5", "a1"])
@pytest.mark.parametrize("number", [10, 97, 100])
def test_fixed_levels_are_theirs(authors, text, number):
    control = {"fed": "1", "num_users": str(number), "frac": "0.1", "data_split_mode": "iid", "norm": "bn"}
    control |= {"model_split_mode": "fix", "model_mode": text, "scale": "1", "mask": "1"}
    authors.cfg.update(control=control, data_name="MNIST")
    authors.utils.process_control()
    mix = Mix.parse(text)
    assert [fixed_rate(mix, partition, number) for partition in range(number)] == authors.cfg["model_rate"]
    assert mix.global_rate == authors.cfg["global_model_rate"]
