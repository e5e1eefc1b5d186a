"""Time the HeteroFL authors' code on CIFAR10.

A program of its own: it is started in the ``src`` folder of a checkout of their repository and imports nothing of ours,
because their modules' names (``data``, ``utils``, ``datasets``) are those of others. What their code needs and no
longer finds is put in place here; their files stay as they are.
"""

import functools
import importlib
import json
import os
import statistics
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

DATA = Path("data", "CIFAR10", "processed")


def measure(order: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of a round's training, of static batch norm and of the test, and the size of the model.

    Parameters
    ----------
    order : dict[str, Any]
        ``control``, their name of the experiment; ``work``, a folder to write in, with the data; ``device``;
        ``blocks`` of each stage of the model; local ``epochs``; ``rounds`` after one that is not counted.
    """
    theirs = import_theirs(order)
    cfg = theirs.cfg
    cfg["num_epochs"]["local"] = order["epochs"]
    set_blocks(order["blocks"])
    dataset = theirs.fetch_dataset("CIFAR10", "label")
    theirs.process_dataset(dataset)
    model = theirs.models.resnet18(model_rate=cfg["global_model_rate"]).to(cfg["device"])
    optimizer = theirs.make_optimizer(model, cfg["lr"])
    data, labels = theirs.split_dataset(dataset, cfg["num_users"], cfg["data_split_mode"])
    federation = theirs.Federation(model.state_dict(), cfg["model_rate"], labels)
    logger = theirs.Logger("output/runs/train")
    logger.safe(True)
    seed = balanced_seed(cfg)

    def train(number: int) -> None:
        torch.manual_seed(seed)
        theirs.train(dataset["train"], data["train"], labels, federation, model, optimizer, logger, number)

    times = [timed(functools.partial(train, number), cfg)[0] for number in range(1, order["rounds"] + 2)]
    moments, tested = timed(lambda: theirs.stats(dataset["train"], model), cfg)
    test, _ = timed(lambda: theirs.test(dataset["test"], data["test"], labels, tested, logger, 1), cfg)
    logger.safe(False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"train": statistics.median(times[1:]), "moments": moments, "test": test, "parameters": parameters}


def import_theirs(order: dict[str, Any]) -> Any:
    """Import their training program, which reads its settings from a file of this folder and from the command line."""
    sys.path[0] = os.getcwd()
    chosen = {"data_name": "CIFAR10", "model_name": "resnet18", "device": order["device"]}
    sys.argv[1:] = [word for key, value in chosen.items() for word in (f"--{key}", value)]
    sys.argv += ["--control_name", order["control"]]
    if find_spec("anytree") is None:
        sys.modules["anytree"] = types.ModuleType("anytree")  # for label hierarchies, which CIFAR10 has none of
    theirs = importlib.import_module("train_classifier_fed")
    os.chdir(order["work"])
    theirs.cfg["model_tag"] = "0_CIFAR10_label_resnet18"
    theirs.process_control()
    torch.manual_seed(0)
    write_data(theirs)
    return theirs


def set_blocks(blocks: Sequence[int]) -> None:
    """Let their network have these blocks, whatever it is asked for."""
    network: Any = sys.modules["models.resnet"].ResNet
    build = network.__init__

    def build_others(self: Any, shape: Any, hidden: Any, block: Any, _: Any, *others: Any) -> None:
        build(self, shape, hidden, block, blocks, *others)

    network.__init__ = build_others


def balanced_seed(cfg: dict[str, Any]) -> int:
    """Return the first seed with which their own draw gives equally many clients of each level."""
    users, rates = cfg["num_users"], cfg["model_rate"]
    for seed in count():
        torch.manual_seed(seed)
        found = Counter(rates[user] for user in torch.randperm(users)[: int(np.ceil(cfg["frac"] * users))].tolist())
        if len(found) == len(set(rates)) and len(set(found.values())) == 1:
            break
    return seed


def timed(call: Callable[[], Any], cfg: dict[str, Any]) -> tuple[float, Any]:
    """Return the seconds of a call, and of all that it asks a GPU for, and what it returns."""
    start = perf_counter()
    result = call()
    if torch.device(cfg["device"]).type == "cuda":
        torch.cuda.synchronize(cfg["device"])
    return perf_counter() - start, result


def write_data(theirs: Any) -> None:
    """Write the images in their format, with their own function."""
    with np.load("cifar10.npz") as arrays:
        for part in ("train", "test"):
            theirs.save((arrays[f"{part}_images"], {"label": arrays[f"{part}_labels"]}), str(DATA / f"{part}.pt"))
    theirs.save(({"label": None}, {"label": 10}), str(DATA / "meta.pt"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    answers = os.dup(1)
    os.dup2(2, 1)  # what they print goes where errors go
    found = measure(json.loads(sys.argv[1]))
    with os.fdopen(answers, "w") as out:
        json.dump(found, out)
