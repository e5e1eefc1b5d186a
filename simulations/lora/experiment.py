"""The experiment: one model trained on half of the articles, then adapters of clients on the other half.

A model as the paper's Transformer at level c is trained on every second article of WikiText-2. Twenty clients, who have
the other articles, then train LoRA adapters of ranks 16, 8, 4 and 2 on all linear layers of its encoder, five clients
of each rank; or adapters of one rank, all of them. The scaling of all adapters is 2.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from torch import nn

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, lora
from heterofl_flwr.client import answer_queries, reply, seed_of, submodel
from heterofl_flwr.core import Mix
from heterofl_flwr.core.randomness import derive, generator, kept_random_state
from heterofl_flwr.data import Dataset, Split
from heterofl_flwr.data.folder import read_folder
from heterofl_flwr.data.known import SOURCES, Columns
from heterofl_flwr.data.text import Texts, to_text
from heterofl_flwr.errors import DataError, extra
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.local_model import load_parameters
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.transformer import Transformer, TransformerShape
from heterofl_flwr.runs import Recorder, RunFolder
from heterofl_flwr.runs.checkpoint import Checkpoint
from heterofl_flwr.settings.groups import AGGREGATORS
from heterofl_flwr.training import TrainingJob, TrainOptions, evaluate, train, train_together

CLIENTS, RANK, SCALING = 20, 16, 2
FOUR_RANKS, ONE_RANK = "a1-b1-c1-d1", "a1"
LAYERS = r".*encoder\.\d+\.(attention\.linear_[qkvo]|linear[12])"
BASE = 0  # the owner of the articles that the model is trained on; clients are numbered from 1


@dataclass(frozen=True)
class Method:
    """How adapters are averaged, and their ranks."""

    aggregator: str = "counting-mean"
    mix: str = FOUR_RANKS
    rank: int = RANK


METHODS: Mapping[str, Method] = {
    "counting mean": Method(),
    "product": Method("product"),
    "zero-padding": Method("zero-padding"),
    "all of rank 2": Method(mix=ONE_RANK, rank=2),
    "all of rank 16": Method(mix=ONE_RANK),
}


@dataclass(frozen=True)
class Size:
    """How much is computed; the defaults are those of the page."""

    epochs: int = 2  # on the articles of the base
    rounds: int = 10
    step_share: float = 0.1  # of a pass over a client's articles, in a round
    fewest: int = 20  # words that come less often are read as <unk>
    base_lr: float = 0.1
    lr: float = 0.3
    shape: TransformerShape = TransformerShape(embedding=64, hidden=128)  # noqa: RUF009 - it is frozen


def load_articles(root: Path, seed: int, fewest: int) -> Dataset:
    """Return WikiText-2 in rows of 64 words, each of one owner: the base's, or a client's."""
    train, test = read_folder(root / SOURCES["wikitext2"].path, Columns(text="text"))
    if not isinstance(train, Texts) or not isinstance(test, Texts):
        raise DataError(f"{root} has no WikiText-2: found images or classes, expected its train and test texts")
    counts = Counter(word for text in train.texts for word in text.split())
    numbers = list(accumulate(bool(re.match(r"\s= [^=]", text)) for text in train.texts))  # of each line's article
    articles = [number for number in sorted(set(numbers)) if number % 2]
    generator(seed, "articles").shuffle(articles)
    owners = {number: 1 + place % CLIENTS for place, number in enumerate(articles)}

    def read(texts: Texts, whose: Sequence[int]) -> Texts:
        known = [[word if counts[word] >= fewest else "<unk>" for word in text.split()] for text in texts.texts]
        return replace(texts, texts=[" ".join(words) for words in known], owners=whose)

    own = [owners.get(number, BASE) for number in numbers]
    return to_text("wikitext2", read(train, own), read(test, [BASE] * len(test.texts)))


def select_owner(dataset: Dataset, owner: int) -> Split:
    """Return the rows of one owner."""
    if dataset.owners is None:
        raise DataError(f"{dataset.name} has no owners")
    return dataset.train.select((dataset.owners[0] == owner).nonzero().flatten())


def train_base(folder: RunFolder, dataset: Dataset, seed: int, size: Size) -> Transformer:
    """Return the model that all clients have, trained on the articles of the base; each pass is kept.

    The folder then notes its perplexity on the test set, too.
    """
    with kept_random_state(seed):
        model = Transformer(dataset.classes, size.shape, encoder_init="fixed")
    done = 0
    if folder.has_checkpoint:
        checkpoint = folder.load_checkpoint()
        load_parameters(model, checkpoint.state)
        done = checkpoint.server_round
    for epoch in range(done + 1, size.epochs + 1):
        options = TrainOptions(learning_rate=size.base_lr, epochs=1)
        train(model, select_owner(dataset, BASE), options, seed=derive(seed, "base", epoch))
        state = {name: own.detach() for name, own in model.named_parameters()}
        folder.save_checkpoint(Checkpoint(server_round=epoch, state=state))
    if "perplexity" not in folder.about():
        folder.note(perplexity=compute_perplexity(model, dataset))
    return model


def compute_perplexity(model: nn.Module, dataset: Dataset) -> float:
    """Return a model's perplexity on the test set: exp of the mean loss of all words, of which 15 % are hidden."""
    result = evaluate(model, dataset.test, batch_size=20, perplexity_kind="fixed")
    return result.metrics("global")["global-perplexity"]


def build_levels(base: nn.Module, method: Method, seed: int) -> Build:
    """Return the function from a rate to the model with adapters of that share of the method's rank."""
    with extra("lora"):
        from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=method.rank, lora_alpha=SCALING * method.rank, target_modules=LAYERS)
    with kept_random_state(derive(seed, "adapters")):
        build: Build = lora(get_peft_model(base, config))
    return build


def make_app(build: Build, dataset: Dataset, size: Size) -> ClientApp:
    """Return the clients: each trains its adapters for a part of a pass over its articles."""
    app, options = ClientApp(), TrainOptions(learning_rate=size.lr, epochs=1, weight_decay=0.0)
    answer_queries(app, build)

    @app.train()
    def train_adapters(message: Message, context: Context) -> Message:
        model = submodel(message, build)
        own = select_owner(dataset, 1 + int(context.node_config["partition-id"]))
        job = TrainingJob(model=model, split=own, seed=seed_of(message), step_share=size.step_share)
        (result,) = train_together([job], options, engine="plain")
        return reply(message, model, num_examples=result.examples, metrics={"loss": result.loss})

    return app


def run_cell(folder: RunFolder, base: nn.Module, dataset: Dataset, method: Method, seed: int, size: Size) -> None:
    """Run a federation, or go on with it; its folder has the rounds."""
    build, mix = build_levels(base, method, seed), Mix.parse(method.mix)

    def evaluate_levels(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if not server_round:
            return None  # the perplexity of the base is known
        state, found = arrays.to_torch_state_dict(), {}
        for rate in mix.rates:
            model = build(rate)
            load_parameters(model, strategy.federation.plan(rate).extract(state))
            found[f"rank-{round(rate * method.rank)}-perplexity"] = compute_perplexity(model, dataset)
        return MetricRecord({"global-perplexity": next(iter(found.values())), **found})

    strategy = HeteroFL(
        build,
        mix,
        seed=seed,
        aggregator=AGGREGATORS[method.aggregator],
        fraction_evaluate=0.0,
        evaluation=Evaluation(every=size.rounds),
        callbacks=[Recorder(folder, models=False)],
    )
    done = folder.load_checkpoint() if folder.has_checkpoint else None
    with LocalGrid(make_app(build, dataset, size), CLIENTS) as grid:
        strategy.start(
            grid,
            initial_arrays=ArrayRecord(dict(done.state)) if done else None,
            num_rounds=size.rounds,
            evaluate_fn=evaluate_levels,
            first_round=done.server_round + 1 if done else 1,
        )


def total_bytes(history: Sequence[RoundRecord]) -> dict[str, int]:
    """Return how many bytes of parameters clients got and sent in all rounds."""
    return {"down": sum(own.bytes_down for own in history), "up": sum(own.bytes_up for own in history)}
