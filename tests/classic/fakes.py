"""Clients of the classic API without any network: their training is an addition."""

from threading import Lock

from flwr.common import (
    Code,
    EvaluateRes,
    FitRes,
    GetPropertiesRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays as arrays_of,
)
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy

OK = Status(Code.OK, "")
_ALONE = Lock()  # for what reads arrays: numpy parses headers, in which Python 3.11.7 fails where two do it at once


class Fake(ClientProxy):
    """A client that says what it is told to say and adds ``amount`` to every parameter."""

    def __init__(self, cid, amount=1.0, *, says=None, metrics=None, moments=None):
        super().__init__(cid)
        self.amount = amount
        self.says = {"partition": int(cid)} if says is None else says
        self.metrics = metrics or {}
        self.moments = moments
        self.asked = []

    def get_properties(self, ins, timeout, group_id):
        self.asked.append("properties")
        if isinstance(self.says, Exception):
            raise self.says
        if isinstance(self.says, Status):
            return GetPropertiesRes(self.says, {})
        return GetPropertiesRes(OK, self.says)

    def get_parameters(self, ins, timeout, group_id):
        raise NotImplementedError

    def fit(self, ins, timeout, group_id):
        self.asked.append(ins.config.get("task", "train"))  # Flower's own strategy names no task
        if self.asked[-1] == "moments":
            with _ALONE:
                return self.moments(ins)
        arrays = [array + array.dtype.type(self.amount) for array in arrays_of(ins.parameters)]
        return FitRes(OK, ndarrays_to_parameters(arrays), int(self.amount), dict(self.metrics))

    def evaluate(self, ins, timeout, group_id):
        self.asked.append("evaluate")
        return EvaluateRes(OK, self.amount, int(self.amount), {"local-accuracy": 1 / self.amount})

    def reconnect(self, ins, timeout, group_id):
        raise NotImplementedError


def manager_of(*clients, kind=SimpleClientManager):
    manager = kind()
    for client in clients:
        manager.register(client)
    return manager


def fit_all(instructions):
    """Return what the clients answer."""
    return [(proxy, proxy.fit(ins, None, None)) for proxy, ins in instructions]


def evaluate_all(instructions):
    return [(proxy, proxy.evaluate(ins, None, None)) for proxy, ins in instructions]


def fit_res(arrays, number=1, status=OK, **metrics):
    return FitRes(status, ndarrays_to_parameters(arrays), number, metrics)


def broken(*data):
    """Return parameters whose bytes are these."""
    return Parameters(list(data), "numpy.ndarray")
