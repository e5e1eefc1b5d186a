"""Checks that the stages of a chain fit each other and the mean."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.aggregator import OpenAggregator
from heterofl_flwr.core.counting_mean import Weights
from heterofl_flwr.stages.client_stage import CLIENT_METHODS, CLIENT_STAGES
from heterofl_flwr.stages.conversation import Conversation
from heterofl_flwr.stages.server_stage import Needs, ServerStage, stage_name

Kind = Literal["counting", "robust", "asynchronous", "other"]
"""Kind of mean that a chain uses."""


def check_chain(stages: Sequence[ServerStage], aggregator: OpenAggregator, kind: Kind, weights: Weights) -> None:
    """Raise a ``ConfigError`` if a stage's class is invalid, or if stages, mean and ``weights`` do not fit each other.

    If classes are invalid, the error lists all faults of classes and nothing else. Otherwise, it lists all conflicts.
    """
    faults = [fault for stage in stages for fault in _faults_of_class(stage)]
    if faults:
        raise ConfigError("; ".join(faults))
    halves = [client.registered_name for stage in stages if (client := stage.client()) is not None]
    unique = {
        "name; expected one, or different names (ServerStage.name)": [stage_name(stage) for stage in stages],
        "client half; expected one of them": halves,
    }
    for what, names in unique.items():
        faults += [f"{name}: two stages have this {what}" for name, count in Counter(names).items() if count > 1]
    if len(steps := {stage_name(stage): 1 for stage in stages if stage.needs.steps}) > 1:
        faults.append(f"{', '.join(steps)}: each takes a step along the mean change; expected one of them")
    for stage in stages:
        faults += _faults(stage, stages, aggregator, kind, weights)
    for place, stage in enumerate(stages):
        faults += _faults_of_order(stage, stages[:place])
    if kind == "robust" and weights != "equal":
        faults.append("robust: a client that chooses its own weight outvotes others; expected weights='equal'")
    if faults:
        raise ConfigError("; ".join(faults))


def _faults(
    stage: ServerStage, stages: Sequence[ServerStage], aggregator: OpenAggregator, kind: Kind, weights: Weights
) -> Iterator[str]:
    needs, name = stage.needs, stage_name(stage)
    if needs.counting_mean and kind != "counting":
        remedy = {
            "robust": "robust=None (server.robust=none)",
            "asynchronous": "rounds that wait (asynchronous.size=0)",
            "other": "aggregator=CountingMean (server.aggregator=counting-mean)",
        }[kind]
        yield f"{name} needs the counting mean; expected {remedy}"
    if needs.equal_weights and weights != "equal":
        yield f"{name} needs a mean in which each client counts once; expected weights='equal'"
    if (needs.steps or overrides(stage, "evaluated")) and not getattr(aggregator, "by_entry", True):
        what = "takes a step along the mean change" if needs.steps else "averages models"
        yield (
            f"{name} {what} entry by entry, but an entry of this aggregator's mean depends on other entries of the "
            f"replies (by_entry = False); expected no {name}"
        )
    if overrides(stage, "on_added") and any(rule.needs.changes for rule in stages):
        yield f"{name} uses single replies, which have no noise; expected privacy.noise=0"
    summing = next((other for other in stages if isinstance(other, Conversation)), stage)
    reads = (stage.reads_replies and overrides(stage, "on_reply")) or overrides(stage, "on_added")
    if reads and stage is not summing:
        yield f"{name} reads replies, which {stage_name(summing)} hides; expected one of them"


def _faults_of_order(stage: ServerStage, earlier: Sequence[ServerStage]) -> Iterator[str]:
    """Yield an error text for each stage in ``earlier`` that must come after ``stage``."""
    if not overrides(stage, "on_mean"):
        return
    reads_mean = stage.needs.counting_mean and not overrides(stage, "on_added")
    for other in earlier:
        if overrides(other, "evaluated") and not overrides(stage, "evaluated"):
            yield f"{stage_name(other)} must come after {stage_name(stage)}, which changes the models to evaluate"
        if reads_mean and other.needs.steps:
            yield f"{stage_name(stage)} must come before {stage_name(other)}, which replaces the mean"


def overrides(stage: ServerStage, method: str) -> bool:
    """Whether a stage's class overrides a method of ``ServerStage``."""
    return getattr(type(stage), method) is not getattr(ServerStage, method)


def _faults_of_class(stage: ServerStage) -> Iterator[str]:
    """Yield error texts for ``needs``, for methods of a stage that are never called, and for its client half."""
    name, client = stage_name(stage), stage.client()
    if not isinstance(stage.needs, Needs):
        yield f"{name}.needs is {stage.needs!r}; expected an instance, such as Needs(steps=True)"
    for method in (method for method in CLIENT_METHODS if callable(getattr(type(stage), method, None))):
        yield f"{name}.{method} is not called on the server; it belongs in a ClientStage, which {name}.client() returns"
    if client is None:
        if overrides(stage, "broadcast"):
            yield f"{name}.broadcast is not called, as {name}.client() returns None; expected a ClientStage"
    elif CLIENT_STAGES.get(getattr(client, "registered_name", "")) is not type(client):
        yield f"{name}.client() returns {type(client).__name__}, without a name; expected @client_stage('name') on it"
