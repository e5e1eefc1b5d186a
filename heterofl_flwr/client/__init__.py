"""What a Flower ClientApp calls: three functions around the user's own training loop.

::

    answer_queries(app, build, data=load)      # once: what this node can hold, and its data's moments

    @app.train()
    def train(message, context):
        model = submodel(message, build)       # the user's model at this message's rate, loaded
        ...                                    # the user's own loop
        return reply(message, model, num_examples=n, labels=classes, metrics={"train-loss": loss})
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import get_args
from weakref import WeakKeyDictionary

import torch
from flwr.app import ArrayRecord, Context, Message, MessageType
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from heterofl_flwr.client.client_context import (
    CONTEXT,
    STAGES,
    answering,
    keep_notes,
    keep_part,
    kept_by_stages,
    own_layers,
    read_notes,
)
from heterofl_flwr.client.local_model import build_models, check_kept, parameters_of, read_state, seed_of
from heterofl_flwr.client.node_config import answer_capability
from heterofl_flwr.common.errors import ConfigError, DataError, ReplyError
from heterofl_flwr.core.exchanged import exchanged_parameters
from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.core.reply_checks import whole_numbers
from heterofl_flwr.core.slice_plan import is_shared
from heterofl_flwr.nn.measure_moments import collect_moments
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.penalty import Penalty, Quadratic, Term
from heterofl_flwr.stages.client_stage import FULL_PRECISION, ClientChain, ClientContext, Outgoing
from heterofl_flwr.stages.registry import client_stages
from heterofl_flwr.training.distilled_loss import distilled_loss, note_inner_widths
from heterofl_flwr.transport import compat, messages, packing

__all__ = [
    "answer_capability",
    "answer_moments",
    "answer_queries",
    "answer_stages",
    "distilled_loss",
    "models_to_evaluate",
    "regularizer",
    "reply",
    "seed_of",
    "share_of_work",
    "submodel",
]

_TOTAL_STEPS: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()
"""Sum of the learning rates of the steps that a model took with the penalty of its instruction."""

Batches = Iterable[Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]]


def submodel(message: Message, build: Build, *, context: Context | None = None, seed_torch: bool = False) -> nn.Module:
    """Return the model at the message's rate with the parameters it brings.

    In an instruction to evaluate, batch norm gets the static moments that the message brings, or normalises by batch
    where it brings none. The model is new each time, and so must be its optimizer.

    Parameters
    ----------
    message : Message
        The instruction.
    build : Callable[[float], nn.Module]
        From a rate to the model, the same function as the server's. The global random generators are afterwards as
        they were before, also if it draws.
    context : Context | None
        The client's context, where the strategy shares only some parameters (``HeteroFL(shared=...)``): in it
        ``reply(..., context=context)`` kept the others; in evaluation too. A client that has not trained yet begins
        with those of a model of the run's seed.
    seed_torch : bool
        Whether torch's global generators are seeded with ``seed_of(message)``, so that equal runs are equal. Never with
        code that draws noise for privacy from them, as Opacus does: the server and the other clients know this seed,
        and can take the noise away.
    """
    rate, model = next(build_models(message, build, own_layers(context, message), seed_torch))
    rates = messages.read_rates(messages.read_config(message))
    note_inner_widths(model, build, [smaller for smaller in rates if smaller < rate])
    return model


def own_part(message: Message, model: nn.Module) -> dict[str, Tensor]:
    """Return a trained model's parameters that stay with this client."""
    shared = messages.read_shared(messages.read_config(message))
    # Copies, as the caller may go on training the model.
    return {name: tensor.clone() for name, tensor in parameters_of(model).items() if not is_shared(name, shared)}


def client_chain(message: Message, context: Context | None, kept: Mapping[str, Tensor] = {}) -> ClientChain:
    """Return the client stages of an instruction; ``kept`` is their state, by ``stage/name``."""
    config = messages.read_config(message)
    is_query = message.metadata.message_type == messages.QUERY_STAGES
    stages = ClientContext(
        received=cache(lambda: read_state(message)),
        seed=0 if is_query else seed_of(message),
        config=config,
        learning_rate=messages.read_optional(config, messages.LEARNING_RATE, float) or 0.0,
        broadcast=_read_broadcast(message),
        state=dict(kept),
        round_state=read_notes(context),
    )
    return ClientChain(client_stages(config), stages)


def _read_broadcast(message: Message) -> dict[str, Tensor]:
    """Return the tensors of the stages' server halves; reject one that does not fit its parameter."""
    records = messages.array_records(message.content)
    if messages.BROADCAST not in records:
        return {}
    tensors, received = packing.read_tensors(records[messages.BROADCAST]), read_state(message)
    for name, tensor in tensors.items():
        parameter = received.get(name.partition("/")[2])
        if parameter is None or (parameter.shape, parameter.dtype) != (tensor.shape, tensor.dtype):
            raise ReplyError(
                f"{messages.SERVER} sent {name[:80]!r} of {tensor.dtype} and shape {tuple(tensor.shape)} for a stage, "
                f"expected the name, type and shape of a parameter"
            )
    return tensors


def stage_penalty(message: Message, context: Context | None) -> Penalty:
    """Return the penalty of the instruction's client stages, without FedProx's."""
    config, kept = messages.read_config(message), kept_by_stages(context, message)
    chain = client_chain(message, context, kept)
    if chain.stateful:
        check_kept(config, kept, f"the state of its client stages ({', '.join(chain.stateful)})")
    return chain.penalty()


def note_steps(model: nn.Module, total_step: float) -> None:
    """Note that a model took steps with the penalty of its instruction."""
    _TOTAL_STEPS[model] = _TOTAL_STEPS.get(model, 0.0) + total_step


def regularizer(message: Message, context: Context) -> Callable[[nn.Module], Tensor | float]:
    """Return the penalty of the strategy on the loss of each batch (FedProx, FedDyn, SCAFFOLD); 0 without one.

    ::

        penalty = regularizer(message, context)         # once
        loss = criterion(model(x), y) + penalty(model)  # in each step
    """
    config, stages = messages.read_config(message), stage_penalty(message, context)
    learning_rate = messages.read_optional(config, messages.LEARNING_RATE, float) or 0.0
    terms: list[Term] = [stages] if stages else []
    if strength := messages.read_optional(config, messages.PROXIMAL_MU, float):
        terms.append(Quadratic(strength, read_state(message)))
    penalty = Penalty(terms=terms)

    def term(model: nn.Module) -> Tensor | float:
        note_steps(model, learning_rate)
        return penalty(model)

    return term


def share_of_work(message: Message) -> float:
    """Return after which share of its steps a client is to stop: 1, but where devices are simulated."""
    return messages.read_optional(messages.read_config(message), messages.WORK, float) or 1.0


def models_to_evaluate(
    message: Message, build: Build, *, context: Context | None = None, seed_torch: bool = False
) -> Iterator[tuple[float, nn.Module]]:
    """Yield each rate that the message asks about and its model, cut from the parameters it brings.

    The models are as ``submodel`` returns them; ``context`` and ``seed_torch`` are those of ``submodel``, the seed
    before each. Where clients train other slices than prefixes, a smaller rate's is that of the round.
    """
    yield from build_models(message, build, own_layers(context, message), seed_torch)


def reply(
    message: Message,
    model: nn.Module | None = None,
    *,
    num_examples: int,
    labels: Iterable[int] | None = None,
    metrics: Mapping[str, float | Sequence[float]] | None = None,
    capacity: str | float | None = None,
    context: Context | None = None,
) -> Message:
    """Return the answer to an instruction; parameters travel in the form that it asks for, and clipped if it does.

    Parameters
    ----------
    message : Message
        The instruction.
    model : nn.Module | None
        The trained model; leave it out when evaluating. Its parameters travel, its buffers do not.
    num_examples : int
        How many examples were used.
    labels : Iterable[int] | None
        The classes of this client's data. Rows of the classifier count for these alone; None means all. It is for
        training: in an answer to an evaluation it changes nothing.
    metrics : Mapping[str, float | Sequence[float]] | None
        Numbers to report. Of lists there are no means: only the server's own function of metrics sees them.
    capacity : str | float | None
        A level or rate, if what this node can hold has changed; it counts from the next round on. It is for training
        too.
    context : Context | None
        The client's context, where the strategy shares only some parameters: it keeps the others of the trained model,
        for ``submodel``.
    """
    if model is None and message.metadata.message_type == MessageType.TRAIN:
        raise ConfigError("an answer to training has no model: give reply what submodel returned, trained")
    if not isinstance(model, nn.Module | None):
        raise ConfigError(f"model is of type {type(model).__name__}; expected what submodel returned, trained")
    config: dict[str, object] = {}
    known: Sequence[int] | None = None if labels is None else whole_numbers(labels)
    if capacity is not None:
        config[messages.CAPACITY] = rate_of(capacity)
    records: Mapping[str, ArrayRecord] = {}
    if model is not None:
        instructed, kept = messages.read_config(message), kept_by_stages(context, message)
        shared = messages.read_shared(instructed)
        sent = {name: tensor for name, tensor in parameters_of(model).items() if is_shared(name, shared)}
        given = Outgoing(tensors=sent, labels=known, num_examples=num_examples, metrics=metrics or {})
        node = CONTEXT.get() or context
        chain = client_chain(message, node, kept)
        if chain.penalising and (context is None or model not in _TOTAL_STEPS):
            raise ConfigError(
                f"{', '.join(chain.penalising)}: the strategy adds a penalty to the clients' loss, so add "
                f"regularizer(message, context)(model) to it, and call reply(..., context=context)"
            )
        outgoing = _run_stages(message, chain, given, _TOTAL_STEPS.get(model, 0.0), node)
        kept = chain.state
        own = own_part(message, model) | {f"{STAGES}{name}": tensor for name, tensor in kept.items()}
        if context is not None and own:
            keep_part(context, instructed, own)
        records = packing.pack_trained(outgoing.tensors, outgoing.scales, outgoing.form)
        known, num_examples, metrics = outgoing.labels, outgoing.num_examples, outgoing.metrics
        config |= outgoing.fields
        if outgoing.form != FULL_PRECISION:
            config[messages.UPLOAD] = outgoing.form
    if known is not None:
        config[messages.LABELS] = list(known)
    reported = messages.new_metrics(metrics or {}, num_examples)
    return messages.answer(message, config, {messages.METRICS: reported, **records})


def answer_queries(
    app: ClientApp,
    build: Build | None = None,
    data: Callable[[Context], Batches] | None = None,
    *,
    build_from: Callable[[Context], Build] | None = None,
) -> None:
    """Let a ClientApp answer the server's questions, and ``reply`` find what stages keep during a round.

    Parameters
    ----------
    app : ClientApp
        Your app; a handler for each query is added to it.
    build : Callable[[float], nn.Module] | None
        From a rate to the model, the same function as the server's.
    data : Callable[[Context], Batches] | None
        From the context to batches of this node's training inputs, for static batch norm: tensors, or tuples or
        mappings that begin with one. Without it the node answers ``query.moments`` with none; where no node has any,
        the server asks once, and batch norm then normalises by batch.
    build_from : Callable[[Context], Callable[[float], nn.Module]] | None
        In place of ``build`` where the model depends on the context, on its ``run_config`` say: from the context to
        ``build``.
    """
    if (build is None) == (build_from is None):
        raise ConfigError("answer_queries takes either build, from a rate to the model, or build_from, its maker")

    def moments(message: Message, context: Context) -> Message:
        own = build_from(context) if build_from and data else build
        if data is None or own is None:  # there are none
            return messages.answer(message, {})
        return answer_moments(message, own, lambda: data(context))

    for name, answer in (("capability", answer_capability), ("stages", answer_stages), ("moments", moments)):
        app.query(name)(answer)
    compat.wrap_calls(app, answering)


def answer_stages(message: Message, context: Context) -> Message:
    """Return what this node says to what the strategy's stages ask beside training."""
    chain = client_chain(message, context)
    answers = chain.answer()
    keep_notes(context, chain.round_state)
    return messages.answer(message, answers)


def answer_moments(
    message: Message,
    build: Build,
    batches: Callable[[], Batches],
    device: torch.device | str = "cpu",
    *,
    together: int = 1,
    seed_torch: bool = False,
) -> Message:
    """Return the static batch norm moments of this node's data, for each rate that the message asks about.

    ``together`` is that of ``heterofl_flwr.nn.collect_moments``, ``seed_torch`` that of ``submodel``.
    """
    variants: tuple[Variant, ...] = get_args(Variant)
    kind = messages.read_choice(messages.read_config(message), messages.MOMENTS_KIND, variants)
    moments = {
        rate: collect_moments(model.to(device), map(first_tensor, batches()), kind=kind, together=together)
        for rate, model in build_models(message, build, None, seed_torch)
    }
    return messages.answer(message, {}, {messages.MOMENTS: packing.pack_moments(moments)})


def _run_stages(
    message: Message, chain: ClientChain, outgoing: Outgoing, total_step: float, context: Context | None
) -> Outgoing:
    """Return the update after the client stages that the instruction names."""
    sent = set(messages.array_records(message.content).get(messages.ARRAYS) or ())
    if other := sorted(outgoing.tensors.keys() - sent) or sorted(sent - outgoing.tensors.keys()):
        raise ConfigError(
            f"the model given to reply has other parameters than the message's ({', '.join(other[:3])}): give reply "
            f"what submodel returned, and not what DataParallel, torch.compile or Opacus made of it"
        )
    outgoing = chain.on_update(outgoing, total_step)
    if chain.round_state:
        keep_notes(context, chain.round_state)
    return outgoing


def first_tensor(batch: object) -> Tensor:
    """Return the model's input of a batch for static batch norm."""
    first = batch
    if isinstance(batch, tuple | list | Mapping) and batch:
        first = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    if not isinstance(first, Tensor):
        raise DataError(
            f"data for static batch norm gave a batch of {type(batch).__name__}; expected a tensor of inputs, or a "
            f"tuple or a mapping that begins with one"
        )
    return first
