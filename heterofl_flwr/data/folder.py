"""Read a folder: an offline copy of a hub's data set, parquet or CSV files, or images in folders named by class."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
from pyarrow import csv, parquet

from heterofl_flwr.data.convert import Raw
from heterofl_flwr.data.tables import SUFFIXES, read_image_folder, read_table
from heterofl_flwr.errors import DataError

_WORDS = {"train": "train", "training": "train", "test": "test", "validation": "validation", "valid": "validation"}
"""How the names of files and folders begin, and the split that they hold."""


def read_folder(folder: Path) -> tuple[Raw, Raw]:
    """Return a folder's train and test splits. Nothing is written.

    Read are, in this order: images as ``train/<class>/*.png`` and ``test/<class>/*.png``; parquet files; CSV files.
    Of these, the name, or that of a folder above, begins with ``train`` or ``test``, and a split may lie in several.
    """
    if any(file.suffix.lower() in SUFFIXES for file in folder.glob("train/*/*")):
        _check_splits(folder, {part: [folder / part] for part in ("train", "test") if (folder / part).is_dir()})
        return read_image_folder(folder / "train"), read_image_folder(folder / "test")
    for suffix, read in _READERS.items():
        files = sorted(folder.rglob(f"*{suffix}"))
        if files:
            splits = _by_split(folder, files)
            return _read(folder, splits["train"], read), _read(folder, splits["test"], read)
    found = ", ".join(sorted(file.name for file in folder.iterdir())[:10]) or "nothing"
    raise DataError(
        f"{folder} holds {found}; expected train/<class>/*.png and test/<class>/*.png, or train and test files as "
        ".parquet or .csv"
    )


def read_lines(folder: Path) -> tuple[list[str], list[str]]:
    """Return the texts of a folder's train and test splits: the column ``text`` of its parquet files."""
    splits = _by_split(folder, sorted(folder.rglob("*.parquet")))
    train, test = (_texts(folder, splits[part]) for part in ("train", "test"))
    return train, test


def _texts(folder: Path, files: Sequence[Path]) -> list[str]:
    table = _table(folder, files, _read_parquet)
    if "text" not in table.column_names:
        raise DataError(f"{files[0]}: found the columns {', '.join(table.column_names)}; expected one named text")
    texts: list[str] = table.column("text").to_pylist()
    return texts


def _by_split(folder: Path, files: Sequence[Path]) -> Mapping[str, list[Path]]:
    """Sort files by split; refuse a folder of several configurations."""
    configurations = defaultdict(list)
    for file in files:
        parts = file.relative_to(folder).parts
        named = [(place, split) for place, part in enumerate(parts) if (split := _split_of(part))]
        if named:
            place, split = named[0]
            configurations["/".join(parts[:place])].append((split, file))
    if len(configurations) > 1:
        raise DataError(
            f"{folder} holds several data sets ({', '.join(sorted(configurations))}): name one of these folders"
        )
    splits = defaultdict(list)
    for split, file in next(iter(configurations.values()), []):
        splits[split].append(file)
    _check_splits(folder, splits or {file.name: [file] for file in files})
    return splits


def _split_of(part: str) -> str | None:
    word = part.lower()
    for stop in ".-_":
        word = word.split(stop)[0]
    return _WORDS.get(word)


def _check_splits(folder: Path, splits: Mapping[str, Sequence[Path]]) -> None:
    missing = [split for split in ("train", "test") if split not in splits]
    if missing:
        raise DataError(
            f"{folder} has no {' and no '.join(missing)} split, only {', '.join(sorted(splits)[:10])}: give it files "
            "or folders named train and test"
        )


def _read(folder: Path, files: Sequence[Path], read: Callable[[Path], pa.Table]) -> Raw:
    return read_table(_table(folder, files, read), str(files[0]))


def _table(folder: Path, files: Sequence[Path], read: Callable[[Path], pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables([read(file) for file in files], promote_options="default")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        names = ", ".join(str(file.relative_to(folder)) for file in files)
        raise DataError(
            f"{folder}: {names} cannot be read ({error}); is the copy complete, and are the columns equal?"
        ) from error


def _read_parquet(file: Path) -> pa.Table:
    return parquet.ParquetFile(file).read()


def _read_csv(file: Path) -> pa.Table:
    """Read a CSV file; a first line of numbers only is data, not the columns' names."""
    table = csv.read_csv(file)
    if all(_is_number(name) for name in table.column_names):
        table = csv.read_csv(file, csv.ReadOptions(autogenerate_column_names=True))
    return table


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_READERS: Mapping[str, Callable[[Path], pa.Table]] = {".parquet": _read_parquet, ".csv": _read_csv}
