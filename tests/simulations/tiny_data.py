"""The paper's data sets, laid out as on the hub, but small and easy."""

from pathlib import Path

import numpy as np

from tests.data.files import png, write_table

Columns = tuple[dict[str, object], dict[str, object] | None]
SIZES = {"train": 400, "test": 200}
LINES = {"train": 200, "test": 20}  # of a text: 60 words, and 6, in each of its rows
FOLDERS = {
    "mnist": Path("ylecun", "mnist", "mnist"),
    "cifar10": Path("uoft-cs", "cifar10", "plain_text"),
    "wikitext2": Path("Salesforce", "wikitext", "wikitext-2-v1"),
}


def write_tiny(name: str, root: Path) -> None:
    """Write a data set of a few hundred images, the brighter the larger their number, or lines of twenty words."""
    draw = np.random.default_rng(0)
    for part, size in SIZES.items():
        columns = _text(draw, LINES[part]) if name == "wikitext2" else _images(draw, size, name)
        write_table(root / FOLDERS[name] / f"{part}-00000-of-00001.parquet", *columns)


def _images(draw: np.random.Generator, size: int, name: str) -> Columns:
    shape, image, label = ((28, 28), "image", "label") if name == "mnist" else ((32, 32, 3), "img", "label")
    labels = np.arange(size) % 10
    bright = (20 + 22 * labels).reshape(-1, *[1] * len(shape))
    images = np.clip(draw.normal(bright, 10, (size, *shape)), 0, 255).astype(np.uint8)
    features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list("0123456789")}}
    return {image: [{"bytes": png(one), "path": None} for one in images], label: labels}, features


def _text(draw: np.random.Generator, size: int) -> Columns:
    words = np.array([f"word{number}" for number in range(20)])
    return {"text": [" ".join(words[draw.integers(0, 20, 30)]) for _ in range(size)]}, None
