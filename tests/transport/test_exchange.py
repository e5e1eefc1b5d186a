"""Errors of clients, as the server reports them."""

import pytest
from flwr.app import Error

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.transport.exchange import fault_of
from tests.flower_internals import ClientAppException


def reason_of(error):
    """Return the reason in a reply of Flower to a message at which its ClientApp raised ``error``."""
    return f"{type(error)}:<'{error}'>"


def by_ray(cause, actor):
    """Return the text of Ray's error when an actor raised ``cause``, as Flower raises it."""
    actor = (
        f"\x1b[36mray::ClientAppActor.run()\x1b[39m (pid={actor}, actor_id=cc{actor}e, repr=<object at 0x7f{actor}e>)"
    )
    chain = "The above exception was the direct cause of the following exception:"
    wrapped = ClientAppException(str(ClientAppException(str(cause))))
    return (
        f"{actor}\n  File 'client_app.py', line 3, in get_properties\nmy.errors.{type(cause).__name__}: {cause}\n\n"
        f"{chain}\n\n{actor}\nflwr.clientapp.client_app.ClientAppException: {wrapped}"
    )


@pytest.mark.parametrize(
    "error", [KeyError("site"), RuntimeError("out of memory:\nbuy more"), ValueError("it's <'x'>")]
)
def test_an_error_of_a_simulated_client_is_named_without_its_wrappers(error):
    cause = str(error).replace("\n", "\n    ")
    assert fault_of(Error(2, reason_of(ClientAppException(str(error))))).reason == f"error 2: {cause}"
    assert fault_of(Error(2, reason_of(by_ray(error, 7)))).reason == f"error 2: {type(error).__name__}: {cause}"


def test_an_error_on_a_supernode_is_named_without_its_wrapper():
    reason = fault_of(Error(2, reason_of(ConfigError("found 'c',\nexpected '>'")))).reason
    assert reason == "error 2: ConfigError: found 'c',\n    expected '>'"


def test_a_node_that_is_gone_has_a_remedy():
    reason = fault_of(Error(5, "Error: Node Unavailable")).reason
    assert reason.endswith("; see the log of its SuperNode, and start it again")


@pytest.mark.parametrize("reason", ["the node is gone", "", None])
def test_another_reason_stays(reason):
    assert fault_of(Error(3, reason)).reason == f"error 3: {reason or 'no reason given'}"


def test_an_error_without_text_keeps_its_wrappers():
    assert "ClientAppException" in fault_of(Error(2, reason_of(ClientAppException("")))).reason
