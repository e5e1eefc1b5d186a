"""Apps and models that do not fit the server: the run's error names the remedy."""

import contextlib

import pytest
from flwr.client.mod import secagg_mod, secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.server import Server, SimpleClientManager
from torch import nn

from heterofl_flwr import HeteroFL, LocalGrid
from heterofl_flwr.classic import HeteroFL as ClassicHeteroFL
from heterofl_flwr.client import answer_queries
from heterofl_flwr.common.errors import ConfigError, RoundError
from tests.classic.numpy_clients import classic_app
from tests.federation.tiny import Keep, Tiny, add_one, build, build_normed, crash, make_app, play


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


def test_a_build_in_half_precision():
    with pytest.raises(RoundError, match=r"must have the same dtype.*let build make them in float32"):
        play(build=lambda rate: build(rate).half())


class Unscaled(Tiny):
    """A model whose last layer expects the width of the full model."""

    def __init__(self, rate):
        super().__init__(rate)
        self.classifier = nn.Linear(8, 4)


def test_a_width_that_build_forgot_is_an_error_that_names_the_levels(caplog):
    app, hint = make_app(build=Unscaled), "no client of level {} could train: try its model alone, build({})(inputs)"
    with pytest.raises(RoundError) as info:
        play(app, "a1-c1-e1", 3, build=Unscaled)
    assert all(hint.format(*level) in str(info.value) for level in (("c", 0.25), ("e", 0.0625)))
    assert "level a " not in str(info.value)
    goes_on = play(app, "a1-c1", 4, build=Unscaled, min_replies=1)
    assert "no client of level c could train" in goes_on.log.notes
    assert f"round 1: {hint.format('c', 0.25)}" in caplog.text


@pytest.mark.parametrize("failing", [{1}, {0, 1}, {0, 1, 2, 3}])
def test_no_level_is_blamed_for_clients_that_fail_at_all_levels_or_in_part(failing, caplog):
    app, keep = make_app(odd=dict.fromkeys(failing, crash)), Keep()
    with contextlib.suppress(RoundError):
        play(app, "a1-c1", 4, min_replies=1, callbacks=[keep])
    notes = [note for record in keep.records for note in record.notes]
    assert ("no client of level a could train" in notes) == (failing == {0, 1})
    assert not any("level c" in note for note in notes)
    assert "try its model alone" not in caplog.text  # the disk is full, not a layer too wide


def test_progress_counts_clients_that_fail_apart():
    replies = play(make_app(odd={1: crash}), "a1", 3).replies
    assert replies == [("trained", 0, 3, 0), ("trained", 1, 3, 0), ("trained", 2, 3, 1), ("trained", 3, 3, 1)]


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
