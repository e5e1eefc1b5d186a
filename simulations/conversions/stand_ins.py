"""What the examples would download, made here: data sets of the same form, and models with random weights."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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


class StandIns:
    """Answers what the examples ask of hubs; ``notes`` says what was not the real thing."""

    def __init__(self, root: Path | None, rows: int) -> None:
        self.root, self.rows = root, rows
        self.notes: list[str] = []

    def install(self) -> None:
        """Take the place of the functions that download; call it before an example is imported."""
        named: Any = importlib.import_module("flwr.common.typing")
        if not hasattr(named, "UserConfig"):  # advanced-pytorch names this type, which Flower 1.41 has elsewhere
            named.UserConfig = dict
        loader: Any = importlib.import_module("torch.utils.data").DataLoader
        real = loader.__init__
        loader.__init__ = lambda own, *values, **named: real(own, *values, **{**named, "num_workers": 0})
        datasets: Any = importlib.import_module("datasets")
        datasets.load_dataset = self._loader(datasets, datasets.load_dataset)
        datasets.disable_progress_bars()
        vision: Any = importlib.import_module("torchvision.models")
        vision.vit_b_16 = self._vision_transformer
        if importlib.util.find_spec("evaluate"):
            importlib.import_module("evaluate").load = lambda name: Accuracy()  # type: ignore[attr-defined]
        if importlib.util.find_spec("transformers"):
            transformers: Any = importlib.import_module("transformers")
            transformers.AutoTokenizer.from_pretrained = self._tokenizer
            transformers.AutoModelForSequenceClassification.from_pretrained = self._text_model

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _loader(self, datasets: Any, real: Callable[..., Any]) -> Callable[..., Any]:
        def load(path: str, name: str | None = None, *, split: str | None = None) -> Any:
            del name
            parts = self._copy(path, real) or self._made(datasets, path)
            few = {"train": self.rows, "test": self.rows // 5}
            parts = datasets.DatasetDict({part: parts[part].select(range(few[part])) for part in few})
            return parts[split] if split else parts

        return load

    def _copy(self, path: str, real: Callable[..., Any]) -> Any:
        for name in (path, LIKE.get(path)):
            if self.root and name and (self.root / name).is_dir():
                if name != path:
                    self.note(f"{name} for {path}")
                return real(str(self.root / name))
        return None

    def _made(self, datasets: Any, path: str) -> Any:
        self.note(f"made data for {path}")
        columns = made_texts if path not in IMAGES else made_images
        return {
            part: datasets.Dataset.from_dict(*columns(datasets, path, rows, seed))
            for seed, (part, rows) in enumerate({"train": self.rows, "test": self.rows // 5}.items())
        }

    def _vision_transformer(self, **options: Any) -> torch.nn.Module:
        self.note("a small vision transformer with random weights for vit_b_16")
        vision: Any = importlib.import_module("torchvision.models")
        torch.manual_seed(0)  # one model in all processes, as with weights that are downloaded
        made: torch.nn.Module = vision.VisionTransformer(
            image_size=224, patch_size=16, num_layers=2, num_heads=4, hidden_dim=96, mlp_dim=192
        )
        return made

    def _tokenizer(self, name: str, **options: Any) -> Any:
        tokenizers: Any = importlib.import_module("tokenizers")
        transformers: Any = importlib.import_module("transformers")
        words = ["[PAD]", "[UNK]", *NEUTRAL, *OPINIONS[0], *OPINIONS[1]]
        model = tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
        made = tokenizers.Tokenizer(model)
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", **options
        )

    def _text_model(self, name: str, num_labels: int) -> Any:
        self.note(f"random weights for {name}")
        transformers: Any = importlib.import_module("transformers")
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(
            transformers.BertConfig(  # as bert-tiny, but for the words
                vocab_size=2 + len(NEUTRAL) + 2 * len(OPINIONS[0]),
                hidden_size=128,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=512,
                num_labels=num_labels,
            )
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


def made_images(datasets: Any, path: str, rows: int, seed: int) -> tuple[dict[str, Any], Any]:
    """Return noisy images of each class's own coarse pattern, and their columns."""
    column, shape, classes = IMAGES[path]
    patterns = np.random.default_rng(0).integers(0, 256, (classes, 4, 4, *shape[2:]))
    coarse = np.repeat(np.repeat(patterns, shape[0] // 4, axis=1), shape[1] // 4, axis=2)  # (classes, height, width)
    random = np.random.default_rng(1 + seed)
    labels = random.integers(classes, size=rows)
    noise = random.integers(-64, 65, (rows, *shape))
    images: NDArray[np.uint8] = (coarse[labels] + noise).clip(0, 255).astype(np.uint8)
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)})
    return {column: list(images), "label": labels}, features


def made_texts(datasets: Any, path: str, rows: int, seed: int) -> tuple[dict[str, Any], Any]:
    """Return texts of a few words of opinion among others, and their columns."""
    random = np.random.default_rng(1 + seed)
    labels = random.integers(2, size=rows)
    texts = [
        " ".join(random.permutation([*random.choice(NEUTRAL, 15), *random.choice(OPINIONS[label], 10)]))
        for label in labels
    ]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(num_classes=2)})
    return {"text": texts, "label": labels}, features
