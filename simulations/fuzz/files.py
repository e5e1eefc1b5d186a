"""What is read from files and settings: text made by chance, and files that were damaged."""

import math
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from pyarrow import csv, parquet  # type: ignore[import-untyped]

from heterofl_flwr import Mix
from heterofl_flwr.data.folder import read_folder
from heterofl_flwr.data.load import build_dataset
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report import Checkpoint, RunFolder
from heterofl_flwr.settings import DEFAULTS, from_flat, to_flat
from simulations.fuzz.mutations import ANY, damage
from simulations.fuzz.target import Target

CSV = "first,second,label\n" + "".join(f"{number},{number % 3}.5,{number % 2}\n" for number in range(12))
WORDS = ["a", "1", "b9", "-", "--", "x", ".", "0.5", "1.0x1", "0", "e999999999", "z1", "9" * 50]
WORDS += ["\x00", "\u0661", " ", "nan"]


def targets() -> Iterator[Target]:
    """Yield the texts, and the files; these last until the next is asked for."""
    yield Target("settings", ["anything"], lambda kind, draw: read_settings(draw), (ConfigError,))
    yield Target("mix", ["anything"], lambda kind, draw: read_mix(draw), (ConfigError,))
    with tempfile.TemporaryDirectory() as folder:
        run, data = write_run(Path(folder, "run")), write_data(Path(folder))
        yield damaged("checkpoint", run.path / "checkpoint", "round-000002*", partial(load_checkpoint, run))
        yield damaged("run folder", run.path, "*.json*", partial(read_run, run))
        for name, pattern in (("CSV", "*.csv"), ("parquet", "*.parquet"), ("images", "*/*/*.png")):
            yield damaged(f"data in {name}", data / name, pattern, partial(read_data, data / name))


def read_settings(draw: random.Random) -> str:
    """Read a run config of which some values are anything."""
    keys = draw.sample(list(DEFAULTS), draw.randrange(1, 5))
    odd = {key: draw.choice([*ANY, *DEFAULTS.values(), _text(draw)]) for key in keys}
    if draw.random() < 0.1:
        odd[_text(draw)] = 1
    settings = from_flat({**DEFAULTS, **odd})
    return "harmless" if from_flat(to_flat(settings)) == settings else "changed: what was written back"


def read_mix(draw: random.Random) -> str:
    mix = Mix.parse(_text(draw))
    sound = all(0 < rate <= 1 for rate in mix.rates) and math.isclose(sum(mix.shares), 1) and min(mix.counts) > 0
    return "harmless" if sound else "changed: no mix"


def _text(draw: random.Random) -> str:
    return "".join(draw.choice(WORDS) for _ in range(draw.randrange(6)))


def damaged(name: str, folder: Path, pattern: str, read: Callable[[], str]) -> Target:
    """Return the target of which a file is read after some of its bytes are others."""

    def trial(kind: str, draw: random.Random) -> str:
        path = draw.choice(sorted(folder.glob(pattern)))
        good = path.read_bytes()
        path.write_bytes(damage(draw, good))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return read()
        finally:
            path.write_bytes(good)

    return Target(name, ["damaged"], trial, (HeteroFLError,))


def write_run(folder: Path) -> RunFolder:
    """Write a run of two rounds, whose state is the number of the round."""
    run = RunFolder(folder)
    run.start({"seed": 0})
    for number in (1, 2):
        run.append(RoundRecord(server_round=number, seconds=1.0, learning_rate=0.1, rates={0: 1.0}))
    for number in (1, 2):
        run.save_checkpoint(Checkpoint(server_round=number, state={"w": torch.full((2, 2), float(number))}))
    return run


def load_checkpoint(run: RunFolder) -> str:
    found = run.load_checkpoint()
    if not torch.equal(found.state["w"], torch.full((2, 2), float(found.server_round))):
        return "changed: the state"
    return "harmless" if found.server_round == 2 else "refused"


def read_run(run: RunFolder) -> str:
    run.settings()
    run.about()
    run.history()
    return "harmless"


def write_data(folder: Path) -> Path:
    """Write small data sets in three formats; return their folder."""
    for name in ("CSV", "parquet"):
        (folder / name).mkdir()
    for part in ("train", "test"):
        (folder / "CSV" / f"{part}.csv").write_text(CSV)
        parquet.write_table(csv.read_csv(folder / "CSV" / f"{part}.csv"), folder / "parquet" / f"{part}.parquet")
    for number in range(8):
        path = folder / "images" / ("train", "test")[number % 2] / "ab"[number // 2 % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (5, 4), 30 * number).save(path)
    return folder


def read_data(folder: Path) -> str:
    found = build_dataset("data", *read_folder(folder))
    return "harmless" if found.train.inputs.isfinite().all() else "changed: inputs that are no numbers"
