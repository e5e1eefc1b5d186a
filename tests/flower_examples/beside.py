# ruff: noqa: T201
"""Converted apps beside their originals, offline: ``python -m tests.flower_examples.beside SEED NAME ...``.

``HETEROFL_FLOWER`` is a checkout of Flower, and ``HETEROFL_DATA`` a folder of data laid out like the hub. Both runs of
an app have the same few examples, clients and seed; its code is changed by its diff alone.
"""

import contextlib
import inspect
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import datasets
import evaluate
import torch
import transformers
from flwr.app import Context, RecordDict
from sklearn.datasets import make_classification

from heterofl_flwr import LocalGrid
from tests.flower_examples.test_flower_examples import HERE, source_of

CLIENTS = 5
ROWS = {"train": 4000, "test": 1000}


class App(NamedTuple):
    """What is changed of an app: its run config, and texts in its code, before and after its diff is applied."""

    config: Mapping[str, str | float] = MappingProxyType({})
    metric: str = "accuracy"
    """the last of these counts"""
    example: str = ""
    """the name of the example, where it is not the app's"""
    before: Mapping[str, str] = MappingProxyType({})
    after: Mapping[str, str] = MappingProxyType({})


TEXTS = {"model-name": "tiny", "fraction-train": 1.0, "fraction-evaluate": 1.0}
FASTER = {  # as the model is not pretrained
    "lr=5e-5": "lr=3e-3",
    "train_fn(model, trainloader, epochs=1, ": "train_fn(model, trainloader, epochs=8, ",
}
ADAPTERS = "LoraConfig(r=16, lora_alpha=32, target_modules=['query', 'value'], modules_to_save=['classifier'])"
LORA = {
    **FASTER,
    "    return AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=2)": (
        "    from peft import LoraConfig, get_peft_model\n\n"
        "    model = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=2)\n"
        f"    return get_peft_model(model, {ADAPTERS})"
    ),
}
APPS = {
    "quickstart-pytorch": App({"learning-rate": 0.02, "local-epochs": 4}),
    "advanced-pytorch": App(  # Flower 1.41 has no such type any more
        {"num-server-rounds": 3, "fraction-train": 1.0, "fraction-evaluate": 1.0},
        "eval_acc",
        before={"from flwr.common.typing import UserConfig": "UserConfig = dict"},
    ),
    "quickstart-pytorch-lightning": App(metric="eval_loss", before={"num_workers=2": "num_workers=0"}),
    "quickstart-huggingface": App(TEXTS, before=FASTER),
    "huggingface-lora": App(
        TEXTS,
        example="quickstart-huggingface",
        before=LORA,
        after={
            "from heterofl_flwr import elastic": "from heterofl_flwr import lora",
            "elastic(get_model(model_name), torch.ones(1, 8, dtype=torch.long))": "lora(get_model(model_name))",
        },
    ),
    "flower-simulation-step-by-step-pytorch": App({"num-server-rounds": 3, "fraction-fit": 1.0}, "cen_accuracy"),
    "opacus": App(),
    "fl-tabular": App(),
    "custom-mods": App(
        {"learning-rate": 0.02, "local-epochs": 4}, before={"from flwr.client.typing": "from flwr.clientapp.typing"}
    ),
    "fedrep": App({"num-server-rounds": 3, "num-local-epochs": 1, "fraction-fit": 1.0, "fraction-evaluate": 1.0}),
}


def data_for(path: str, *_, split: str | None = None, **__):
    """Return what stands for a data set of the hub: images of this machine, a made table, or texts of two kinds."""
    if path == "scikit-learn/adult-census-income":
        inputs, income = make_classification(ROWS["train"], n_features=14, n_informative=10, random_state=0)
        columns = {f"feature-{number}": column for number, column in enumerate(inputs.T)}
        found = {"train": datasets.Dataset.from_dict({**columns, "income": income})}
    elif path == "stanfordnlp/imdb":
        found = {"train": datasets.Dataset.from_list([{"text": text, "label": label} for text, label in texts()])}
    else:
        folder = Path(os.environ["HETEROFL_DATA"], "uoft-cs/cifar10" if "cifar10" in path else "ylecun/mnist")
        files = {part: str(min(folder.glob(f"*/{part}-*.parquet"))) for part in ROWS}
        found = {part: datasets.Dataset.from_parquet(files[part]).select(range(rows)) for part, rows in ROWS.items()}
    return datasets.DatasetDict(found) if split is None else found[split]


def texts() -> list[tuple[str, int]]:
    """Return beginnings of sentences of WikiText-2 and of Python's documentation, by turns."""
    (validation,) = Path(os.environ["HETEROFL_DATA"], "Salesforce/wikitext").glob("*/validation-*.parquet")
    articles = "\n".join(datasets.Dataset.from_parquet(str(validation))["text"])
    documents = "\n".join(inspect.getdoc(import_module(name)) or "" for name in ("typing", "argparse", "turtle"))
    documents += "\n".join(inspect.getdoc(own) or "" for own in vars(torch.Tensor).values())
    kinds = ([line[:80].lower() for line in text.splitlines() if len(line) > 60] for text in (articles, documents))
    return [(text, label) for both in zip(*kinds, strict=False) for label, text in enumerate(both)][: ROWS["test"]]


def write_tiny_model(folder: Path) -> None:
    """Write a small BERT with random weights, and a tokenizer of letters and frequent words."""
    words = Counter(word for text, _ in texts() for word in re.findall(r"\w+|[^\w\s]", text))
    letters = sorted({letter for word in words for letter in word})
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    known += [word for word, _ in words.most_common(1000) if len(word) > 1]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(known), encoding="utf-8")
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = transformers.BertConfig(vocab_size=len(known), num_labels=2, **shape)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)


class Share:
    """What ``evaluate.load("accuracy")`` downloads."""

    def __init__(self, name: str) -> None:
        self.right: list[bool] = []

    def add_batch(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        self.right += (predictions == references).tolist()

    def compute(self) -> dict[str, float]:
        return {"accuracy": sum(self.right) / len(self.right)}


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """Import from a folder and work in it; afterwards nothing of it is left."""
    before, modules = Path.cwd(), set(sys.modules)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        os.chdir(before)
        for name in set(sys.modules) - modules:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def replace(folder: Path, pairs: Mapping[str, str]) -> None:
    """Replace texts in an app's code; each is somewhere."""
    for old, new in pairs.items():
        found = [path for path in folder.rglob("*.py") if old in path.read_text(encoding="utf-8")]
        assert found, old
        for path in found:
            path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def last_metric(name: str, seed: int, *, converted: bool) -> float:
    """Run an app and return its metric after the last round."""
    app, example, log = APPS[name], APPS[name].example or name, io.StringIO()
    with tempfile.TemporaryDirectory() as temporary, inside(Path(temporary)) as folder:
        shutil.copytree(source_of(example), folder, dirs_exist_ok=True)
        replace(folder, app.before)
        if converted:
            subprocess.run(["git", "apply", str(HERE / f"{example}.diff")], check=True)
            replace(folder, app.after)
        described = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
        config = described["config"] | app.config
        torch.manual_seed(seed)
        if "model-name" in app.config:
            write_tiny_model(folder / "tiny")
        server, client = (
            getattr(import_module(module), attribute)
            for part in ("serverapp", "clientapp")
            for module, _, attribute in [described["components"][part].partition(":")]
        )
        with logged(log), LocalGrid(client, CLIENTS, run_config=config) as grid:
            server(grid, Context(grid.run.run_id, 0, {}, RecordDict(), config))
    return float(re.findall(rf"\b{app.metric}(?:': '?| )([\d.]+(?:e[+-]\d+)?)", log.getvalue())[-1])


@contextlib.contextmanager
def logged(log: io.StringIO) -> Iterator[None]:
    """Collect Flower's log, and print nothing of it."""
    logger = logging.getLogger("flwr")
    kept, logger.handlers, logger.propagate = logger.handlers, [logging.StreamHandler(log)], False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.handlers = kept


if __name__ == "__main__":
    datasets.load_dataset = data_for
    evaluate.load = Share
    os.environ["WANDB_MODE"] = "disabled"
    seed, *names = sys.argv[1:]
    for name in names or APPS:
        print(name, *(last_metric(name, int(seed), converted=converted) for converted in (False, True)), flush=True)
