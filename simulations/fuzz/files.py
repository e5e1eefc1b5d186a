"""Files that were damaged or forged: checkpoints, a run's folder, a folder of data."""

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from pyarrow import csv, parquet  # type: ignore[import-untyped]

from heterofl_flwr import Mix
from heterofl_flwr.data.convert import to_dataset
from heterofl_flwr.data.folder import read_folder
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report import Checkpoint, RunFolder
from heterofl_flwr.settings import DEFAULTS, from_flat, to_flat
from simulations.fuzz.mutations import ANY

CSV = "first,second,label\n" + "".join(f"{number},{number % 3}.5,{number % 2}\n" for number in range(12))
PIECES = (
    b"",
    b"\x00",
    b"nan",
    b"inf",
    b",",
    b"\n",
    b'"',
    b"{",
    b"[[[[",
    b"-1",
    b"1e999",
    b"null",
    b"\xff\xfe",
    b"9" * 400,
)


class Files:
    """Folders that are written once, and damaged anew in each trial."""

    def __init__(self, folder: Path) -> None:
        self._run = RunFolder(folder / "run")
        self._run.start({"seed": 0})
        self._run.append(RoundRecord(server_round=1, seconds=1.0, learning_rate=0.1, rates={0: 1.0}))
        self._run.append(RoundRecord(server_round=2, seconds=1.0, learning_rate=0.1, rates={0: 1.0}))
        self._states = {number: {"w": torch.full((2, 2), float(number))} for number in (1, 2)}
        for number, state in self._states.items():
            self._run.save_checkpoint(Checkpoint(server_round=number, state=state))
        self._data = folder / "data"
        self._data.mkdir()
        for part in ("train", "test"):
            (self._data / f"{part}.csv").write_text(CSV)
        self._parquet = folder / "parquet"
        self._parquet.mkdir()
        for part in ("train", "test"):
            parquet.write_table(csv.read_csv(self._data / "train.csv"), self._parquet / f"{part}.parquet")
        self._images = folder / "images"
        for number in range(8):
            path = self._images / ("train", "test")[number % 2] / "ab"[number // 2 % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (5, 4), 30 * number).save(path)
        self._trials: Mapping[str, tuple[Path, str, Callable[[], str]]] = {
            "checkpoint": (folder / "run" / "checkpoint", "round-000002*", self._load),
            "run folder": (folder / "run", "*.json*", self._read),
            "data in CSV": (self._data, "*.csv", lambda: _dataset(self._data)),
            "data in parquet": (self._parquet, "*.parquet", lambda: _dataset(self._parquet)),
            "data in images": (self._images, "*/*/*.png", lambda: _dataset(self._images)),
        }

    @property
    def targets(self) -> Sequence[str]:
        """What can be damaged."""
        return tuple(self._trials)

    def trial(self, target: str, draw: random.Random) -> str:
        """Return what became of a file in which some bytes are others."""
        folder, pattern, read = self._trials[target]
        path = draw.choice(sorted(folder.glob(pattern)))
        good = path.read_bytes()
        path.write_bytes(_damaged(draw, good))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return read()
        except HeteroFLError:
            return "refused"
        except Exception as error:  # this is what is looked for
            return f"crashed: {type(error).__name__}: {error}"[:200]
        finally:
            path.write_bytes(good)

    def _load(self) -> str:
        found = self._run.load_checkpoint()
        good = torch.equal(found.state["w"], self._states[found.server_round]["w"])
        if not good:
            return "changed: the state"
        return "harmless" if found.server_round == 2 else "refused"

    def _read(self) -> str:
        self._run.settings()
        self._run.about()
        self._run.history()
        return "harmless"


def _dataset(folder: Path) -> str:
    found = to_dataset("data", *read_folder(folder))
    return "harmless" if found.train.inputs.isfinite().all() else "changed: inputs that are no numbers"


def _damaged(draw: random.Random, good: bytes) -> bytes:
    data = bytearray(good)
    for _ in range(draw.randrange(1, 4)):
        place = draw.randrange(len(data) + 1)
        what = draw.randrange(4)
        if what == 0 and place < len(data):
            data[place] = draw.randrange(256)
        elif what == 1:
            del data[place : place + draw.randrange(1, 50)]
        elif what == 2:
            data[place:place] = draw.choice(PIECES)
        else:
            data[place : place + 4] = draw.randbytes(4)
    return bytes(data)


TEXT_PIECES = (
    "a",
    "1",
    "b9",
    "-",
    "--",
    "x",
    ".",
    "0.5",
    "1.0x1",
    "0",
    "e999999999",
    "z1",
    "9" * 50,
    "\x00",
    "\u0661",
    " ",
    "nan",
)


def trial(target: str, draw: random.Random) -> str:
    """Return what became of text: refused, harmless, or what is wrong."""
    try:
        return TRIALS[target](draw)
    except ConfigError:
        return "refused"
    except Exception as error:  # this is what is looked for
        return f"crashed: {type(error).__name__}: {error}"[:200]


def _settings(draw: random.Random) -> str:
    """Read a run config of which some values are anything."""
    keys = draw.sample(list(DEFAULTS), draw.randrange(1, 5))
    odd = {key: draw.choice([*ANY, *DEFAULTS.values(), _text(draw)]) for key in keys}
    if draw.random() < 0.1:
        odd[_text(draw)] = 1
    settings = from_flat({**DEFAULTS, **odd})
    return "harmless" if from_flat(to_flat(settings)) == settings else "changed: what was written back"


def _mix(draw: random.Random) -> str:
    """Read a mix."""
    mix = Mix.parse(_text(draw))
    sound = all(0 < rate <= 1 for rate in mix.rates) and math.isclose(sum(mix.shares), 1) and min(mix.counts) > 0
    return "harmless" if sound else "changed: no mix"


def _text(draw: random.Random) -> str:
    return "".join(draw.choice(TEXT_PIECES) for _ in range(draw.randrange(6)))


TRIALS: Mapping[str, Callable[[random.Random], str]] = {"settings": _settings, "mix": _mix}
"""What is read as text."""
