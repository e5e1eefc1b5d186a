"""Apps and models that do not fit the server: the run's error names the remedy."""

import pytest
import torch
from flwr.client.mod import secagg_mod, secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.server import Server, SimpleClientManager

from heterofl_flwr import HeteroFL, LocalGrid
from heterofl_flwr.classic import HeteroFL as ClassicHeteroFL
from heterofl_flwr.client import answer_queries
from heterofl_flwr.common.errors import ConfigError, RoundError
from tests.classic.numpy_clients import classic_app
from tests.federation.tiny import add_one, build, build_normed, play


@pytest.mark.parametrize("mod", [secagg_mod, secaggplus_mod])
def test_an_app_that_masks_for_flowers_secure_aggregation(mod):
    app = ClientApp()
    answer_queries(app, build)
    app.train(mods=[mod])(add_one)
    with pytest.raises(RoundError, match=r"leave out that mod, and use stages=\[SecureSum"):
        play(app)


def test_a_numpy_client_under_the_strategy_of_the_message_api():
    with pytest.raises(RoundError, match=r"NumPyClient, which needs heterofl_flwr\.classic\.HeteroFL"):
        play(classic_app, build=build_normed)


def test_a_build_without_values():
    def on_meta(rate):
        with torch.device("meta"):
            return build(rate)

    with pytest.raises(ConfigError, match=r"returns hidden.weight, .* on the meta device"):
        HeteroFL(on_meta, "a1").federation.architecture.initial_state()


def test_a_build_in_half_precision():
    with pytest.raises(RoundError, match=r"must have the same dtype.*let build make them in float32"):
        play(build=lambda rate: build(rate).half())


def test_a_build_that_defines_its_class_itself():
    def build_inner(rate):
        class Inner(type(build(rate))):
            pass

        return Inner(rate)

    assert play(mix="a1-c1", build=build_inner).log.answered == 3


def test_a_strategy_of_the_other_api():
    with LocalGrid(classic_app, 2) as grid, pytest.raises(ConfigError, match="import HeteroFL from heterofl_flwr"):
        ClassicHeteroFL(build_normed).start(grid)
    server = Server(client_manager=SimpleClientManager(), strategy=HeteroFL(build, "a1"))
    with pytest.raises(ConfigError, match=r"HeteroFL .* is for the Message API: .* heterofl_flwr\.classic"):
        server.fit(1, None)
