"""Static batch norm moments in the classic API: a question that travels as an instruction to fit."""

from collections.abc import Callable, Mapping

from flwr.common import Code, FitIns, FitRes
from flwr.server.client_proxy import ClientProxy

from heterofl_flwr.errors import HeteroFLError, ReplyError
from heterofl_flwr.legacy.arrays import moments_from_arrays, unpack
from heterofl_flwr.legacy.proxies import ask_all
from heterofl_flwr.methods.failure import RoundError
from heterofl_flwr.methods.federation import Federation
from heterofl_flwr.methods.limits import short
from heterofl_flwr.methods.queries import MomentsSum
from heterofl_flwr.nn.moments import Moments

_SECONDS = 3600.0


def ask_for_moments(
    total: MomentsSum,
    proxies: Mapping[int, ClientProxy],
    instructions: Mapping[int, FitIns],
    rates_of: Mapping[int, tuple[float, ...]],
    note: Callable[[int, str], None],
) -> dict[float, Moments]:
    """Ask, add up, and return the moments of all clients that answered, by rate; note why others did not."""

    def ask(number: int) -> FitRes | Exception:
        try:
            return proxies[number].fit(instructions[number], timeout=_SECONDS, group_id=0)
        except Exception as error:  # each of Flower's runtimes raises errors of its own
            return error

    faults: list[str] = []
    for number, answer in zip(instructions, ask_all(ask, instructions), strict=True):
        try:
            # All are read before any is added, so an answer that does not fit changes nothing.
            total.add(number, _read(total.federation, answer, rates_of[number], f"client {number}"))
        except HeteroFLError as error:
            fault = short(str(error))
            faults.append(f"client {number}: {fault}")
            note(number, f"no usable moments: {fault}")
    merged = total.result()
    if instructions and not merged:
        raise RoundError(
            f"none of {len(instructions)} clients that promised static batch norm moments gave any: let fit begin with "
            f"asks_for_moments, or evaluate without (Evaluation(static_norm=False)); {'; '.join(faults[:3])}"
        )
    return merged


def _read(
    federation: Federation, answer: FitRes | Exception, rates: tuple[float, ...], sender: str
) -> dict[float, Moments]:
    if isinstance(answer, Exception):
        raise ReplyError(f"{sender} failed: {type(answer).__name__}: {answer}") from answer
    if answer.status.code != Code.OK:
        raise ReplyError(f"{sender} failed: {answer.status.message or answer.status.code.name}")
    layers = {rate: list(federation.norms(rate)) for rate in rates}
    channels = [number for rate in rates for number in federation.norms(rate).values()]
    # Of each layer come a count and two sums.
    arrays = unpack(answer.parameters, sender, [size for number in channels for size in (1, number, number)])
    return moments_from_arrays(arrays, federation.fidelity.moments, layers, sender)
