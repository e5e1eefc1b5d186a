"""What the examples would download, made here: data sets of the same form, and models with random weights."""

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets  # type: ignore[import-untyped]
import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.models import VisionTransformer  # type: ignore[import-untyped]

IMAGES = {
    "ylecun/mnist": ("image", (28, 28), 10),
    "zalando-datasets/fashion_mnist": ("image", (28, 28), 10),
    "uoft-cs/cifar10": ("img", (32, 32, 3), 10),
    "nelorth/oxford-flowers": ("image", (64, 64, 3), 102),
}
"""By data set, the column of images, their shape and the number of classes."""

LIKE = {"zalando-datasets/fashion_mnist": "ylecun/mnist"}
"""A copy of the second serves for the first, where there is none of the first."""

NEUTRAL = [f"word{number}" for number in range(200)]
OPINIONS = [[f"{kind}{number}" for number in range(20)] for kind in ("bad", "good")]


def install(root: Path | None, rows: int, notes: list[str]) -> None:
    """Take the place of the functions that download; call it before an example is imported.

    ``notes`` gets what was not the real thing.
    """
    real = DataLoader.__init__
    datasets.disable_progress_bars()
    functions: dict[str, Any] = {
        "flwr.common.typing.UserConfig": dict,  # advanced-pytorch names this type, which Flower 1.41 has elsewhere
        "torch.utils.data.DataLoader.__init__": lambda *args, **named: real(*args, **{**named, "num_workers": 0}),
        "datasets.load_dataset": partial(load_dataset, datasets.load_dataset, root, rows, notes),
        "torchvision.models.vit_b_16": partial(vision_transformer, notes),
    }
    if find_spec("evaluate"):
        functions["evaluate.load"] = lambda name: Accuracy()
    if find_spec("transformers"):
        functions["transformers.AutoTokenizer.from_pretrained"] = tokenizer
        functions["transformers.AutoModelForSequenceClassification.from_pretrained"] = partial(text_model, notes)
    for place, function in functions.items():
        patch(place, function, create=True).start()


def _note(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)


def load_dataset(
    real: Any, root: Path | None, rows: int, notes: list[str], path: str, name: Any = None, *, split: str | None = None
) -> Any:
    """Return the first rows of a copy, or made ones."""
    few = {"train": rows, "test": rows // 5}
    copies = (one for one in (path, LIKE.get(path)) if root and one and (root / one).is_dir())
    if copy := next(copies, None):
        parts = real(f"{root}/{copy}")
    else:
        make = made_images if path in IMAGES else made_texts
        parts = {
            part: datasets.Dataset.from_dict(*make(path, number, seed))
            for seed, (part, number) in enumerate(few.items())
        }
    if copy != path:
        _note(notes, f"{copy or 'made data'} for {path}")
    parts = datasets.DatasetDict({part: parts[part].select(range(number)) for part, number in few.items()})
    return parts[split] if split else parts


def made_images(path: str, rows: int, seed: int) -> tuple[dict[str, Any], Any]:
    """Return noisy images of each class's own coarse pattern, and their columns."""
    column, shape, classes = IMAGES[path]
    patterns = np.random.default_rng(0).integers(0, 256, (classes, 4, 4, *shape[2:]))
    coarse = np.repeat(np.repeat(patterns, shape[0] // 4, axis=1), shape[1] // 4, axis=2)  # (classes, height, width)
    random = np.random.default_rng(1 + seed)
    labels = random.integers(classes, size=rows)
    noise = random.integers(-64, 65, (rows, *shape))
    images = (coarse[labels] + noise).clip(0, 255).astype(np.uint8)
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)})
    return {column: list(images), "label": labels}, features


def made_texts(path: str, rows: int, seed: int) -> tuple[dict[str, Any], Any]:
    """Return texts of a few words of opinion among others, and their columns."""
    random = np.random.default_rng(1 + seed)
    labels = random.integers(2, size=rows)
    texts = [
        " ".join(random.permutation([*random.choice(NEUTRAL, 15), *random.choice(OPINIONS[label], 10)]))
        for label in labels
    ]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(num_classes=2)})
    return {"text": texts, "label": labels}, features


def vision_transformer(notes: list[str], **options: Any) -> torch.nn.Module:
    _note(notes, "a small vision transformer with random weights for vit_b_16")
    torch.manual_seed(0)  # one model in all processes, as with weights that are downloaded
    made: torch.nn.Module = VisionTransformer(
        image_size=224, patch_size=16, num_layers=2, num_heads=4, hidden_dim=96, mlp_dim=192
    )
    return made


def tokenizer(name: str, **options: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers: Any = import_module("transformers")
    words = ["[PAD]", "[UNK]", *NEUTRAL, *OPINIONS[0], *OPINIONS[1]]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", **options)


def text_model(notes: list[str], name: str, num_labels: int) -> Any:
    transformers: Any = import_module("transformers")
    _note(notes, f"random weights for {name}")
    torch.manual_seed(0)
    layers = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    words = 2 + len(NEUTRAL) + 2 * len(OPINIONS[0])
    config = transformers.BertConfig(vocab_size=words, num_labels=num_labels, **layers)  # as bert-tiny, but for words
    return transformers.BertForSequenceClassification(config)


class Accuracy:
    """The metric of that name of ``evaluate``, which would be downloaded."""

    def __init__(self) -> None:
        self.right, self.rows = 0, 0

    def add_batch(self, *, predictions: torch.Tensor, references: torch.Tensor) -> None:
        self.right += int((predictions == references).sum())
        self.rows += len(references)

    def compute(self) -> dict[str, float]:
        return {"accuracy": self.right / self.rows}
