"""Robust means behind both of Flower's APIs: attacks that move a mean do not move them."""

import pytest
import torch

from heterofl_flwr import Adam, Momentum, Robust
from tests.federation.tiny import adding, make_app, play

MEANS = ["trimmed", "median"]


train, flip = adding(lambda partition: 0.5), adding(lambda partition: -0.5)


def gains(robust, hostile=(0,), num_rounds=1, **options):
    """Return by how much each entry went up, where one client of six holds the whole model and may be hostile."""
    run = play(make_app(train, odd=dict.fromkeys(hostile, flip)), "a1-c5", 6, num_rounds, robust=robust, **options)
    assert run.log.failures == {}
    before = run.before
    return torch.cat([(run.state[name] - own).flatten() for name, own in before.items()])


FORMS = [{"upload": name} for name in ("float32", "int8")]
RULES = [{"slice_rule": name} for name in ("rolling", "random-client")]


@pytest.mark.parametrize("options", [*FORMS, *RULES], ids=lambda options: "".join(options.values()))
def test_the_only_holder_turns_an_entry_round_unless_few_keep(options):
    plain = gains(None, **options).min().item()
    assert plain == pytest.approx(-0.5, abs=0.01) if options in FORMS else plain < 0
    for mean in MEANS:
        assert gains(Robust(mean=mean, few="keep"), **options).min().item() >= 0
        assert gains(Robust(mean=mean), **options).min().item() < 0


@pytest.mark.parametrize("optimizer", [Momentum(server_momentum=0.5), Adam()])
def test_a_server_optimizer_steps_along_what_is_robust(optimizer):
    assert gains(Robust(few="keep"), stages=[optimizer], num_rounds=2).min() >= 0
