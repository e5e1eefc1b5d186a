"""Make tiny image folders and tables."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

SIZE = (4, 5)  # height, width


def png(value: int | np.ndarray, mode: str = "L", size: tuple[int, int] = SIZE) -> bytes:
    """Return a picture of one value, or of an array's."""
    file = io.BytesIO()
    shape = size if mode in ("L", "I;16") else (*size, len(mode))
    kind = np.uint16 if mode == "I;16" else np.uint8
    Image.fromarray(value if isinstance(value, np.ndarray) else np.full(shape, value, kind)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    else:
        path.write_bytes(content)
    return path


def write_table(path: Path, columns, features=None) -> None:
    table = pa.table(columns)
    if features:
        stated = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": stated})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def image_table(path: Path, values, labels, *, column="image", mode="L", features=True) -> None:
    columns = {column: [{"bytes": png(value, mode), "path": None} for value in values], "label": labels}
    stated = {column: {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["no", "yes", "maybe"]}}
    write_table(path, columns, stated if features else None)


def image_folder(root: Path, mode: str = "L") -> Path:
    for part, values in (("train", (0, 200)), ("test", (100,))):
        for value in values:
            write(root / part / "cat" / f"{value}.png", png(value, mode))
            write(root / part / "dog" / f"{value + 50}.png", png(value + 50, mode))
    return root
