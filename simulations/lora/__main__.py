"""Compare ways to average LoRA adapters of unequal rank on WikiText-2, and what each costs in bytes.

A run that was cut off goes on where it stopped: each federation has a folder with its rounds and, when it is done, a
line in ``cells.jsonl``. Table and figure are made from these lines; ``--show`` makes them at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heterofl_flwr.data.load import ROOT_VARIABLE
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.runs import RunFolder
from heterofl_flwr.runs.files import append_line, write_atomic
from heterofl_flwr.training import give_back_freed_memory
from simulations.lora.experiment import METHODS, Size, load_articles, run_cell, total_bytes, train_base
from simulations.lora.page import draw, write_page
from simulations.program import chosen, parser_of, read_lines, status_of, words
from simulations.results.runs import portable

PROGRAM = "simulations.lora"


def run(options: argparse.Namespace, size: Size) -> int:
    """Run the federations that are not done; write the table and the figure."""
    path, names = options.out / "cells.jsonl", chosen("method", words(options.methods), list(METHODS))
    wanted = [] if options.show else [(seed, name) for seed in options.seeds for name in names]
    if wanted and not options.data:
        raise ConfigError(f"--data is missing: name a folder laid out as the Hugging Face hub, or set {ROOT_VARIABLE}")
    for seed, name in wanted:
        if not any((line["seed"], line["method"]) == (seed, name) for line in read_lines(path)):
            append_line(path, json.dumps(run_job(options, seed, name, size)))
    lines = read_lines(path)
    if not lines:
        raise ConfigError(f"{path} holds no federation that is done: run without --show")
    page = write_page(lines)
    write_atomic(options.out / "lora.md", page.encode())
    write_atomic(options.out / "lora.svg", draw(lines))
    print(page)
    return 0


def run_job(options: argparse.Namespace, seed: int, name: str, size: Size) -> dict[str, Any]:
    """Run a federation to its end, from wherever it stopped, and return its line."""
    dataset, settings = load_articles(Path(options.data), seed, size.fewest), {"seed": seed, **asdict(size)}
    base_folder = RunFolder(options.out / f"base-{seed}")
    with base_folder.lock():
        base_folder.start(settings, resume=base_folder.started)
        base = train_base(base_folder, dataset, seed, size)
    folder = RunFolder(options.out / f"{name.replace(' ', '-')}-{seed}")
    with folder.lock():
        folder.start({**settings, "method": asdict(METHODS[name])}, resume=folder.started)
        run_cell(folder, base, dataset, METHODS[name], seed, size)
    history, about = folder.history(), folder.about()
    return {
        "seed": seed,
        "method": name,
        "metrics": history[-1].evaluate,
        "base": base_folder.about()["perplexity"],
        "bytes": total_bytes(history),
        "rounds": len(history),
        "seconds": round(sum(own.seconds for own in history), 1),
        "command": portable(about["command"]),
        **{fact: about[fact] for fact in ("commits", "machines")},
    }


def numbers(text: str) -> list[int]:
    """Return the whole numbers of an option, between commas."""
    return [int(word) for word in words(text)]


def main(arguments: Sequence[str] | None = None, size: Size | None = None) -> int:
    """Run the program."""
    parser = parser_of(PROGRAM, __doc__, f"python -m {PROGRAM} --data /data/hub\npython -m {PROGRAM} --show")
    data, out = os.environ.get(ROOT_VARIABLE), Path("runs", "lora")
    parser.add_argument("--data", default=data, metavar="FOLDER", help=f"with data sets; default: {ROOT_VARIABLE}")
    parser.add_argument("--out", type=Path, default=out, metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--seeds", type=numbers, default="0,1,2", metavar="N,...", help="default: %(default)s")
    parser.add_argument("--methods", default="", metavar="NAME,...", help=f"default: {', '.join(METHODS)}")
    parser.add_argument("--show", action="store_true", help="run nothing")
    give_back_freed_memory()  # else each step's logits leave a gap that is too small for the next ones
    with torch_threads(1):
        return status_of(PROGRAM, lambda: run(parser.parse_args(arguments), size or Size()))


if __name__ == "__main__":
    sys.exit(main())
