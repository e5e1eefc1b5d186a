"""Collection of static batch norm moments from clients."""

import logging
from collections.abc import Mapping, Sequence

from heterofl_flwr.common.errors import MORE_TIME, SILENT, Fault, ReplyError, RoundError, counted, name_faults
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.nn.moments import Moments, check_layers, check_possible
from heterofl_flwr.nn.robust_moments import sum_robust
from heterofl_flwr.stages.privacy_accountant import MOMENTS, Spent, clip_moments, noise_moments

logger = logging.getLogger(__name__)

Norms = Mapping[float, Mapping[str, int]]
"""Number of channels of each batch norm layer of a client's models: rate -> layer name -> channels."""

ANSWER_MOMENTS = (
    "let clients answer for them (answer_queries(app, build, data=...); properties_of(context, moments=True) and "
    "asks_for_moments of a NumPyClient), or evaluate without (Evaluation(static_norm=False))"
)


class CollectedMoments:
    """Batch norm moments from clients, collected in one round.

    Call ``add`` or ``refuse`` for each queried client, then ``result``.

    Parameters
    ----------
    federation : Federation
        The federation with the global model.
    rates : Mapping[int, Sequence[float]]
        The rates that each client evaluates, by node id.
    remote : bool
        Whether the clients run on other machines. Their moments are then summed robustly, unless noise is added.

    Attributes
    ----------
    norms : dict[int, Norms]
        The batch norm layers to measure, by node id; empty if the run needs no moments.
    faults : dict[str, str]
        The reason why a client's moments are not used, by client name.
    """

    def __init__(self, federation: Federation, rates: Mapping[int, Sequence[float]], *, remote: bool) -> None:
        self._federation, self._options = federation, federation.options
        self._moments: dict[float, list[Moments]] = {}  # by rate: one sum, or each client's moments for a robust sum
        self.faults: dict[str, str] = {}
        self._robust = remote and not self._options.privacy.noise  # with noise, moments are clipped
        self.norms: dict[int, Norms] = {}
        architecture = federation.architecture
        # Clients measure personal models themselves.
        if self._options.evaluation.static_norm and not architecture.personal and batch_norms(architecture.model):
            self.norms = {
                node_id: {rate: architecture.norms(rate) for rate in client_rates}
                for node_id, client_rates in rates.items()
            }

    def add(self, moments: Mapping[float, Moments]) -> None:
        """Add a client's moments. If the moments of one rate are invalid, raise ``ReplyError`` and add no moments."""
        architecture, privacy = self._federation.architecture, self._options.privacy
        expected = self._options.averaging.fidelity.moments
        for rate, client_moments in moments.items():
            if client_moments.kind != expected:
                raise ReplyError(f"moments of kind {client_moments.kind}, expected {expected}")
            check_layers(client_moments, architecture.norms(rate))
            check_possible(client_moments, self._options.limits.examples)
        for rate, client_moments in moments.items():
            summand = clip_moments(client_moments, privacy) if privacy.noise else client_moments
            summands = self._moments.setdefault(rate, [])
            if self._robust or not summands:
                summands.append(summand)
            else:
                summands[0] += summand

    def refuse(self, node_id: int, fault: Fault) -> None:
        """Record the reason why a client's moments are not used."""
        self.faults[self._federation.nodes.name(node_id)] = fault.reason

    def result(self, spent: Spent, log: RoundRecord, *, needed: bool) -> dict[float, Moments]:
        """Return, for each rate, the sum of the clients' moments or, with ``privacy.noise``, the noisy mean.

        If no client gave usable moments, there are two cases. If ``needed`` is True, clients were refused, and none of
        them was silent, raise ``RoundError``. Otherwise, return an empty dictionary. With noise, record the privacy
        spent in ``spent`` and ``log``.
        """
        moments = {rate: sum_robust(summands) for rate, summands in self._moments.items()}
        faults, privacy = self.faults, self._options.privacy
        message = f"none of {counted(len(self.norms), 'node')} gave usable static batch norm moments"
        if faults and not moments and needed:
            if SILENT in faults.values():  # a silent client may have moments
                logger.warning("%s: %s; %s", message, MORE_TIME, name_faults("", faults))
            else:
                raise RoundError(f"{message}: {ANSWER_MOMENTS}; {name_faults('', faults)}")
        if not faults and not moments:
            remark = "; they are not asked again" if needed else " in this evaluation"
            logger.warning("%s, so batch norm normalises by batch%s: %s", message, remark, ANSWER_MOMENTS)
        if moments and privacy.noise:
            spent.add(MOMENTS, len(moments))
            log.stages = {**log.stages, **spent.metrics()}
            moments = noise_moments(moments, privacy)
        return moments
