"""The ClientApp for ``flwr run``."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from reprlib import repr as shown

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from heterofl_flwr.app.node import AppTask, release_models
from heterofl_flwr.client.node_config import partition_of
from heterofl_flwr.client.queries import answer_capability, answer_moments, answer_stages
from heterofl_flwr.common.errors import ConfigError, HeteroFLError, OutOfMemoryError
from heterofl_flwr.common.fast_exit import exit_fast
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.nn.loss import Fill
from heterofl_flwr.training import TrainResult, evaluate, keep_freed_memory, train_together
from heterofl_flwr.training.evaluate import evaluate_each
from heterofl_flwr.training.fedh2l import learn_from_peers, posteriors
from heterofl_flwr.transport import messages, reading
from heterofl_flwr.transport.arrays import read_tensors


class CohortApp(ClientApp):
    """ClientApp that can train several clients together (``train_cohort``)."""

    @staticmethod
    def train_cohort(received: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """Train several clients together, each on its own data; return their replies."""
        return _answer([AppTask(*pair) for pair in zip(received, contexts, strict=True)])


app = CohortApp()

exit_fast()  # a SuperNode may start a process for each message

app.query("capability")(answer_capability)
app.query("stages")(answer_stages)


@app.query("moments")
def moments_query(message: Message, context: Context) -> Message:
    """Reply with static batch norm moments, measured on this client's training data."""
    task = AppTask(message, context)
    workload = task.workload
    batches: Iterable[Tensor] = workload.moments_batches(task.data.train, task.seed)
    if len(task.instruction.rates) > 1:
        batches = list(batches)  # so that inputs are gathered and augmented once for all rates
    with workload.arithmetic():
        return answer_moments(
            task, lambda: map(Tensor.clone, batches), workload.device, together=workload.moments_together
        )


@app.train()
def train_message(message: Message, context: Context) -> Message:
    """Train the received slice on this client's data, and reply with the trained parameters."""
    return _answer([AppTask(message, context)])[0]


def _answer(tasks: Sequence[AppTask]) -> list[Message]:
    return [
        task.reply(
            model,
            num_examples=result.examples,
            labels=task.data.classes if task.workload.sends_labels else None,
            metrics={"loss": result.loss, "accuracy": result.accuracy},
        )
        for task, (model, result) in zip(tasks, _train(tasks), strict=True)
    ]


def _train(tasks: Sequence[AppTask]) -> list[tuple[nn.Module, TrainResult]]:
    """Train several clients together; return the model and the result of each.

    The clients' options must be equal. The engine ``cohort`` also needs equal rates.
    """
    keep_freed_memory()
    release_models()
    options, workload, rate = tasks[0].options, tasks[0].workload, max(task.rate for task in tasks)
    if any(task.options != options for task in tasks):  # a user's own strategy may send such messages
        raise HeteroFLError("the messages differ in learning rate, so their clients cannot train together")
    try:
        models = [task.load_model() for task in tasks]
        jobs = [task.training_job(model) for task, model in zip(tasks, models, strict=True)]
        with workload.arithmetic(training=True):
            results = train_together(jobs, options, engine=workload.settings.engine.name)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"out of memory at level {level_name(rate)} on {workload.device}: {error}") from error
    for task, result in zip(tasks, results, strict=True):
        task.note_steps(result.steps)
    return list(zip(models, results, strict=True))


@app.evaluate()
def evaluate_message(message: Message, context: Context) -> Message:
    """Evaluate the received models on this client's test data.

    If clients have personal parameters, evaluate this client's own model instead.
    """
    keep_freed_memory()  # the ServerApp may have changed this in the same process
    task = AppTask(message, context)
    examples = len(task.data.test)
    measure = _evaluate_personal_model if task.workload.personal else _evaluate_sent_models
    with task.workload.arithmetic():
        metrics = measure(task) if examples else {}
    return task.reply(num_examples=examples, metrics=metrics)


def _evaluate_sent_models(task: AppTask) -> dict[str, float]:
    sent = task.config.get(messages.CLASSES)
    classes = sent if isinstance(sent, list) else task.data.classes
    metrics: dict[str, float] = {}
    for rate, model in task.models():
        by_name = _evaluate(task, model, classes)
        # Metrics without a rate in their name are those of the first rate, which is the largest.
        metrics = (metrics or by_name) | {f"{name}/{rate}": value for name, value in by_name.items()}
    return metrics


def _evaluate_personal_model(task: AppTask) -> dict[str, float]:
    workload = task.workload
    model = task.with_own_moments(task.load_model())
    metrics = _evaluate(task, model, task.data.classes)
    if workload.settings.evaluate.central and not task.has_own_data:
        _, clients = partition_of(task.context)
        test, kind = workload.whole_test(clients), workload.settings.fidelity
        metrics |= evaluate(model, test, perplexity_kind=kind).metrics("global")
    by_level = {f"{name}/{task.rate}": value for name, value in metrics.items()}
    if len(workload.builds) > 1:  # a mean over all architectures could hide one that learns nothing
        architecture = task.architecture
        metrics |= {f"{architecture}-{name}": value for name, value in metrics.items() if name.endswith("accuracy")}
    return metrics | by_level


def _evaluate(task: AppTask, model: nn.Module, classes: Sequence[object]) -> dict[str, float]:
    """Return a model's metrics on this client's test data, including those of ``evaluate.metric``.

    For the metrics ``local-*``, the logits of classes outside ``classes`` are masked (``train.mask-fill``).
    """
    workload, split = task.workload, task.data.test
    kind, present = workload.settings.fidelity, torch.tensor(classes)
    maskings: list[tuple[Tensor | None, Fill]] = [(None, "none"), (present, workload.settings.train.mask_fill)]
    plain, masked = evaluate_each(model, split, maskings, seed=task.seed, perplexity_kind=kind)
    metrics = {**plain.metrics("global"), **masked.metrics("local")}
    if math.isinf(masked.loss):  # train.mask-fill=-inf, and a target outside the client's classes
        metrics = {name: value for name, value in metrics.items() if name not in ("local-loss", "local-perplexity")}
    if workload.metric:
        with torch.no_grad():
            result = workload.metric(model, split.inputs.clone(), split.targets)
        metrics |= _read_users_metrics(result, metrics)
    return metrics


def _read_users_metrics(result: object, ours: Mapping[str, float]) -> dict[str, float]:
    try:
        metrics = {str(name): float(value) for name, value in result.items()}  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"evaluate.metric returned {shown(result)}; expected a mapping of names to numbers"
        ) from error
    if taken := sorted(metrics.keys() & ours.keys()):
        raise ConfigError(f"evaluate.metric returned {', '.join(taken)}, which this app measures; expected other names")
    return metrics


@app.train("publish")
def publish_message(message: Message, context: Context) -> Message:
    """Train, and reply with the model's class probabilities on the shared examples (FedH2L)."""
    task = AppTask(message, context)
    ((model, result),) = _train([task])
    task.keep(model)
    inputs, _ = _load_seed_examples(task)
    with task.workload.arithmetic():
        published = posteriors(model, inputs, reading.read_value(task.config, messages.TEMPERATURE, float)).cpu()
    answer = task.reply(num_examples=result.examples, metrics={"loss": result.loss, "accuracy": result.accuracy})
    answer.content[messages.POSTERIORS] = ArrayRecord({messages.POSTERIORS: published})
    return answer


@app.train("learn")
def learn_message(message: Message, context: Context) -> Message:
    """Train on this client's data and on the class probabilities of other clients' models (FedH2L)."""
    task = AppTask(message, context)
    workload = task.workload
    record = reading.array_records(message.content)[messages.POSTERIORS]
    peers = read_tensors(record)[messages.POSTERIORS].to(workload.device)
    model = task.load_model()
    temperature = reading.read_value(task.config, messages.TEMPERATURE, float)
    distill = replace(workload.settings.distill, temperature=temperature)
    with workload.arithmetic(training=True):
        divergence = learn_from_peers(task.training_job(model), _load_seed_examples(task), peers, task.options, distill)
    return task.reply(model, num_examples=len(task.data.train), metrics={"divergence": divergence})


def _load_seed_examples(task: AppTask) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = task.workload.seeds.select(torch.tensor(task.config[messages.SEED_ROWS], device=task.workload.device))
    return chosen.inputs, chosen.targets
