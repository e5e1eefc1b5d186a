"""Aggregators of adapters in rounds, behind both of Flower's APIs."""

import pytest
import torch
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays

from heterofl_flwr import Adam, HeteroFL, Privacy, Robust, classic
from heterofl_flwr.adapters.averaging import ProductAggregator, ZeroPaddedAggregator
from heterofl_flwr.classic.client import parameters_of, submodel
from heterofl_flwr.errors import ConfigError
from tests.adapters.ranked import A, Adapted, B
from tests.classic.fakes import Fake, fit_all, fit_res, manager_of
from tests.federation.tiny import make_app, play

MIX, RANKS = "a1-c1", (4, 1)


def expected(state):
    """Return the mean product of two clients that add 1 and 2 to each entry of their ranks."""
    products = [(state[B][:, :rank] + 1 + own) @ (state[A][:rank] + 1 + own) for own, rank in enumerate(RANKS)]
    return (products[0] + products[1]) / 2


@pytest.mark.parametrize(("upload", "tolerance"), [("float32", 1e-5), ("float16", 1e-2), ("int8", 0.2)])
def test_a_round_averages_products(upload, tolerance):
    run = play(make_app(build=Adapted), MIX, 2, build=Adapted, aggregator=ProductAggregator, upload=upload)
    found, before = run.state, run.strategy.federation.initial_state()
    torch.testing.assert_close(found[B] @ found[A], expected(before), atol=tolerance, rtol=0)
    torch.testing.assert_close(found["bias"], torch.full((2,), 1.5), atol=tolerance, rtol=0)


class Client(Fake):
    """A client of the classic API that adds to what it returns."""

    def fit(self, ins, timeout, group_id):
        model = submodel(parameters_to_ndarrays(ins.parameters), ins.config, Adapted)
        with torch.no_grad():
            for own in model.parameters():
                own += self.amount
        return fit_res(parameters_of(model), 1)


def test_a_round_of_the_classic_api_averages_products():
    strategy = classic.HeteroFL(Adapted, MIX, aggregator=ProductAggregator, wait=0.0)
    state = strategy.federation.initial_state()
    parameters = ndarrays_to_parameters([own.numpy() for own in state.values()])
    sent = strategy.configure_fit(1, parameters, manager_of(Client("0", 1), Client("1", 2)))
    results = fit_all(sent)
    assert [len(result.parameters.tensors) for _, result in results] == [len(state)] * 2
    new, _ = strategy.aggregate_fit(1, results, [])
    found = dict(zip(state, map(torch.from_numpy, parameters_to_ndarrays(new)), strict=True))
    torch.testing.assert_close(found[B] @ found[A], expected(state))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"robust": Robust()}, "robust and aggregator both replace the counting mean"),
        ({"stages": [Adam()]}, "ServerOptimizer steps along what the mean changes"),
        ({"privacy": Privacy(clip=1.0, noise=1.0)}, "Noise fits the counting mean"),
        ({"aggregator": "product"}, "aggregator is 'product'; expected Aggregator, a subclass"),
    ],
)
def test_what_does_not_go_with_an_aggregator_is_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        HeteroFL(Adapted, MIX, **{"aggregator": ProductAggregator, **options})


def test_a_server_optimizer_steps_along_a_zero_padded_mean():
    run = play(make_app(build=Adapted), MIX, 2, build=Adapted, aggregator=ZeroPaddedAggregator, stages=[Adam()])
    before = run.strategy.federation.initial_state()
    assert (run.state[B] != before[B]).all()
