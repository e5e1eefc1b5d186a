"""Run one of Flower's examples in its folder, without Ray and without the network, and print what came of it as JSON.

What examples would download is made here: data sets of the same form, and models with random weights.
"""

import json
import pkgutil
import random
import runpy
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader
from torchvision.models import VisionTransformer

from heterofl_flwr import LocalGrid
from heterofl_flwr.app.launch.request import Request, read_app
from heterofl_flwr.core.randomness import derive

IMAGES = {
    "ylecun/mnist": ("image", (28, 28), 10),
    "zalando-datasets/fashion_mnist": ("image", (28, 28), 10),
    "uoft-cs/cifar10": ("img", (32, 32, 3), 10),
    "nelorth/oxford-flowers": ("image", (64, 64, 3), 102),
}
"""By data set, the column of images, their shape and the number of classes; all others are texts of two classes."""

NEUTRAL = [f"word{number}" for number in range(200)]
OPINIONS = [[f"{kind}{number}" for number in range(20)] for kind in ("bad", "good")]


class Recorder(ClientApp):
    """A ClientApp that notes the sizes of what clients get, their metrics by round, and what fails."""

    def __init__(self, app: ClientApp) -> None:
        super().__init__()
        self.app, self.sizes = app, set[int]()
        self.metrics: dict[str, dict[int, list[float]]] = {}
        self.failures: list[str] = []

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer with what the app answers."""
        content, kind = message.content, message.metadata.message_type.partition(".")[0]
        config = next(iter(content.config_records.values()), {})
        server_round = int(str(config.get("server-round") or message.metadata.group_id or 0))
        set_random_state(derive(0, kind, int(context.node_config["partition-id"]), server_round))
        size = sum(array.numpy().size for record in content.array_records.values() for array in record.values())
        self.sizes |= {size} if kind == "train" and size else set()
        try:
            reply = self.app(message, context)
        except Exception as error:
            self.failures.append(f"{kind}: {type(error).__name__}: {error}".splitlines()[0])
            raise
        for record in reply.content.metric_records.values() if reply.has_content() else ():
            for name, value in record.items():
                if isinstance(value, float):
                    self.metrics.setdefault(f"{kind}/{name}", {}).setdefault(server_round, []).append(value)
        return reply


def play(folder: Path, rows: int, nodes: int, config: dict[str, Any], node_config: dict[str, str]) -> dict[str, Any]:
    """Run the app of a folder; return its sizes, failures and the means over clients of each metric, by round."""
    for place, function in stand_ins(rows).items():
        patch(place, function, create=True).start()
    if (script := folder / "generate_dataset.py").exists():
        sys.argv = [script.name, "--num-supernodes", str(nodes)]
        runpy.run_path(script.name, run_name="__main__")
    app = read_app(Request(config=config, out=Path(), clients=nodes, app=folder))
    set_random_state(0)
    server, client = map(pkgutil.resolve_name, (app.server, app.client))
    recorder = Recorder(client)

    def settings_of(partition: int) -> dict[str, str]:
        return {key: value.format(number=partition + 1) for key, value in node_config.items()}

    with LocalGrid(recorder, nodes, run_config=app.config, node_config=settings_of) as grid:
        set_random_state(0)
        server(grid, Context(grid.run.run_id, 0, {}, RecordDict(), dict(app.config)))
    means = {
        name: [float(np.mean(rounds[number])) for number in sorted(rounds)] for name, rounds in recorder.metrics.items()
    }
    return {"sizes": sorted(recorder.sizes), "failures": recorder.failures, "metrics": means}


def set_random_state(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what the examples draw from


def stand_ins(rows: int) -> dict[str, Any]:
    """Return what takes the place of the functions that download."""
    real = DataLoader.__init__
    functions: dict[str, Callable[..., Any]] = {
        "flwr.common.typing.UserConfig": dict,  # advanced-pytorch names this type, which Flower 1.41 has elsewhere
        "torch.utils.data.DataLoader.__init__": lambda *args, **named: real(*args, **{**named, "num_workers": 0}),
        "datasets.load_dataset": lambda path, name=None, split=None: load_dataset(path, split, rows),
        "torchvision.models.vit_b_16": vision_transformer,
    }
    if find_spec("evaluate"):
        functions["evaluate.load"] = lambda name: Accuracy()
    if find_spec("transformers"):
        functions["transformers.AutoTokenizer.from_pretrained"] = tokenizer
        functions["transformers.AutoModelForSequenceClassification.from_pretrained"] = text_model
    return functions


def load_dataset(path: str, split: str | None, rows: int) -> Any:
    make = made_images if path in IMAGES else made_texts
    sizes = {"train": rows, "test": rows // 5}
    parts = {part: datasets.Dataset.from_dict(*make(path, own, seed)) for seed, (part, own) in enumerate(sizes.items())}
    return parts[split] if split else datasets.DatasetDict(parts)


def made_images(path: str, rows: int, seed: int) -> tuple[dict[str, Any], Any]:
    """Return noisy images of each class's own coarse pattern, and their columns."""
    column, shape, classes = IMAGES[path]
    patterns = np.random.default_rng(0).integers(0, 256, (classes, 4, 4, *shape[2:]))
    coarse = np.repeat(np.repeat(patterns, shape[0] // 4, axis=1), shape[1] // 4, axis=2)  # (classes, height, width)
    draws = np.random.default_rng(1 + seed)
    labels = draws.integers(classes, size=rows)
    images = (coarse[labels] + draws.integers(-64, 65, (rows, *shape))).clip(0, 255).astype(np.uint8)
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)})
    return {column: list(images), "label": labels}, features


def made_texts(path: str, rows: int, seed: int) -> tuple[dict[str, Any], Any]:
    """Return texts of a few words of opinion among others, and their columns."""
    draws = np.random.default_rng(1 + seed)
    labels = draws.integers(2, size=rows)
    words = ([*draws.choice(NEUTRAL, 15), *draws.choice(OPINIONS[label], 10)] for label in labels)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(num_classes=2)})
    return {"text": [" ".join(draws.permutation(own)) for own in words], "label": labels}, features


def vision_transformer(**options: Any) -> torch.nn.Module:
    torch.manual_seed(0)  # one model for all, as with weights that are downloaded
    layers = {"num_layers": 2, "num_heads": 4, "hidden_dim": 96, "mlp_dim": 192}
    made: torch.nn.Module = VisionTransformer(image_size=224, patch_size=16, **layers)
    return made


def tokenizer(name: str, **options: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers: Any = import_module("transformers")
    words = ["[PAD]", "[UNK]", *NEUTRAL, *OPINIONS[0], *OPINIONS[1]]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", **options)


def text_model(name: str, num_labels: int) -> Any:
    transformers: Any = import_module("transformers")
    torch.manual_seed(0)
    layers = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    words = 2 + len(NEUTRAL) + 2 * len(OPINIONS[0])
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=words, num_labels=num_labels, **layers)
    )


class Accuracy:
    """The metric of that name of ``evaluate``, which would be downloaded."""

    def __init__(self) -> None:
        self.right, self.rows = 0, 0

    def add_batch(self, *, predictions: torch.Tensor, references: torch.Tensor) -> None:
        self.right += int((predictions == references).sum())
        self.rows += len(references)

    def compute(self) -> dict[str, float]:
        return {"accuracy": self.right / self.rows}


if __name__ == "__main__":
    datasets.disable_progress_bars()
    outcome = play(Path(), **json.loads(sys.argv[1]))
    Path("outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
